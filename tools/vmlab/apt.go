package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// aptTarget is one index of the machine's apt configuration.
type aptTarget struct{ label, codename, uri, component string }

const aptTargetFormat = "$(LABEL)|$(CODENAME)|$(REPO_URI)|$(COMPONENT)"

func parseTargets(out string) (targets []aptTarget) {
	for line := range strings.Lines(out) {
		if f := strings.Split(strings.TrimSpace(line), "|"); len(f) == 4 {
			targets = append(targets, aptTarget{f[0], f[1], f[2], f[3]})
		}
	}
	return targets
}

// debianMirror is where the machine gets Debian's own packages from.
func debianMirror(targets []aptTarget) (string, error) {
	i := slices.IndexFunc(targets, func(t aptTarget) bool { return t.label == "Debian" && t.component == "main" })
	if i < 0 {
		return "", errors.New("apt knows no mirror of Debian's main archive: run apt-get update, on Debian")
	}
	return targets[i].uri, nil
}

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// privateSources is the source list of an apt that knows one more suite than
// the machine's own.
func privateSources(mirror, suite string) string {
	return fmt.Sprintf("deb [signed-by=%s] %s %s main\n", keyring, mirror, suite)
}

// privateConf has such an apt keep to one folder.
func privateConf(root string) string {
	return fmt.Sprintf("Dir::Etc::sourcelist \"%[1]s/sources.list\";\nDir::Etc::sourceparts \"%[1]s/parts\";\n"+
		"Dir::State::lists \"%[1]s/lists\";\nDir::Cache \"%[1]s/cache\";\nAPT::Sandbox::User \"root\";\n", root)
}

// An apt downloads packages, and installs none: the machine's own
// configuration if conf is empty, a private one otherwise.
type apt struct {
	conf string
	log  logger
}

// privateApt makes an apt for one suite of the machine's mirror.
func privateApt(ctx context.Context, root, suite string, log logger) (*apt, error) {
	system := &apt{log: log}
	out, err := system.output(ctx, "", "apt-get", "indextargets", "--format", aptTargetFormat, "Created-By: Packages")
	if err != nil {
		return nil, err
	}
	mirror, err := debianMirror(parseTargets(out))
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"parts", "lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return nil, err
		}
	}
	a := &apt{conf: filepath.Join(root, "apt.conf"), log: log}
	err = errors.Join(
		os.WriteFile(filepath.Join(root, "sources.list"), []byte(privateSources(mirror, suite)), 0o644),
		os.WriteFile(a.conf, []byte(privateConf(root)), 0o644))
	if err != nil {
		return nil, err
	}
	return a, a.update(ctx)
}

func (a *apt) update(ctx context.Context) error {
	_, err := a.output(ctx, "", "apt-get", "-q", "update")
	return err
}

// download fetches packages into dir, and returns their files.
func (a *apt) download(ctx context.Context, dir string, packages ...string) ([]string, error) {
	for _, p := range packages {
		a.log.printf("downloading %s", p)
	}
	if _, err := a.output(ctx, dir, "apt-get", append([]string{"-q", "download"}, packages...)...); err != nil {
		return nil, err
	}
	var files []string
	for _, p := range packages {
		name, _, _ := strings.Cut(p, "=")
		found, _ := filepath.Glob(filepath.Join(dir, name+"_*.deb"))
		if len(found) != 1 {
			return nil, fmt.Errorf("apt-get download %s: expected one file, found %q", p, found)
		}
		files = append(files, found[0])
	}
	return files, nil
}

// candidate is the version of a package that apt would take.
func (a *apt) candidate(ctx context.Context, name string) (string, error) {
	out, err := a.output(ctx, "", "apt-cache", "policy", name)
	if err != nil {
		return "", err
	}
	return parseCandidate(name, out)
}

func parseCandidate(name, policy string) (string, error) {
	for line := range strings.Lines(policy) {
		if v, found := strings.CutPrefix(strings.TrimSpace(line), "Candidate: "); found && v != "(none)" {
			return v, nil
		}
	}
	return "", fmt.Errorf("package %s is not to be had", name)
}

// depends lists what a package file depends on, one alternative each.
func (a *apt) depends(ctx context.Context, file string) ([]string, error) {
	out, err := a.output(ctx, "", "dpkg-deb", "-f", file, "Depends")
	return parseDependsField(out), err
}

func parseDependsField(field string) (names []string) {
	for _, d := range strings.Split(field, ",") {
		if words := strings.Fields(d); len(words) > 0 {
			names = append(names, words[0])
		}
	}
	return names
}

func (a *apt) output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if a.conf != "" {
		cmd.Env = append(cmd.Env, "APT_CONFIG="+a.conf)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return string(out), nil
}
