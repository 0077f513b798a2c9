package boot

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// sections are the services and actions of Android's init scripts: what is below a
// head, without the spaces that do not matter, by the head.
func sections(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, f := range glob(t, "android/*.rc") {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		head := ""
		for line := range strings.Lines(string(b)) {
			words := strings.Join(strings.Fields(line), " ")
			switch {
			case words == "" || words[0] == '#':
			case line[0] != ' ':
				head = words
				all[head] = nil
			default:
				all[head] = append(all[head], words)
			}
		}
	}
	return all
}

// service finds a service, and its command line.
func service(t *testing.T, name string) (command string, options []string) {
	t.Helper()
	all := sections(t)
	for head, options := range all {
		if command, ok := strings.CutPrefix(head, "service "+name+" "); ok {
			return command, options
		}
	}
	t.Fatalf("expected a service %s, found %q", name, slices.Sorted(maps.Keys(all)))
	return "", nil
}

// The platform's services have its names, sockets, users and labels (snapuserd.md 9).
func TestPlatformServices(t *testing.T) {
	for name, want := range map[string]struct {
		arguments []string
		options   []string
	}{
		"snapuserd": {nil, []string{
			"socket snapuserd stream 0660 system system", "oneshot", "disabled", "user root", "group root system",
			"task_profiles OtaProfiles", "seclabel u:r:snapuserd:s0",
		}},
		"snapuserd_proxy": {[]string{"-socket-handoff"}, []string{
			"socket snapuserd stream 0660 system system", "socket snapuserd_proxy seqpacket 0660 system root",
			"user root", "group root system", "seclabel u:r:snapuserd:s0",
		}},
	} {
		command, options := service(t, name)
		words := strings.Fields(command)
		if words[0] != "/system/bin/snapuserd" || want.arguments != nil && !slices.Equal(words[1:], want.arguments) {
			t.Errorf("%s: expected /system/bin/snapuserd %q, found %s", name, want.arguments, command)
		}
		for _, o := range want.options {
			if !slices.Contains(options, o) {
				t.Errorf("%s: expected the option %q, found %q", name, o, options)
			}
		}
	}
	const stopped = "on property:init.svc.snapuserd=stopped"
	if got := sections(t)[stopped]; !slices.Equal(got, []string{"setprop snapuserd.ready false"}) {
		t.Errorf("%s: expected the property to be set, found %q", stopped, got)
	}
}

// platformLabels are the domain and the program that the platform's own policy has.
var platformLabels = map[string]string{"snapuserd": "/system/bin/snapuserd"}

// fileContexts are the types of files by path.
func fileContexts(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile("android/sepolicy/file_contexts")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`^(/\S+)\s+u:object_r:(\w+):s0$`)
	types := map[string]string{}
	for text := range strings.Lines(string(b)) {
		text = strings.TrimSpace(text)
		if text == "" || text[0] == '#' {
			continue
		}
		m := line.FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("file_contexts: expected a path and a label, found %q", text)
		}
		types[m[1]] = m[2]
	}
	return types
}

func policy(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("android/sepolicy/cowbird.te")
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`(?m)#.*$`).ReplaceAllString(string(b), "")
}

// Each service runs in a domain that is the platform's, or is declared here and
// entered by a program with its label.
func TestLabels(t *testing.T) {
	files, rules := fileContexts(t), policy(t)
	seen := map[string]bool{}
	for head, options := range sections(t) {
		words := strings.Fields(head)
		if words[0] != "service" {
			continue
		}
		domain := ""
		for _, o := range options {
			if label, ok := strings.CutPrefix(o, "seclabel u:r:"); ok {
				domain = strings.TrimSuffix(label, ":s0")
			}
		}
		program := words[2]
		seen[program] = true
		if platformLabels[domain] == program {
			continue
		}
		if domain == "" || files[program] != domain+"_exec" || !declares(rules, domain) || !strings.Contains(rules, "init_daemon_domain("+domain+")") {
			t.Errorf("%s: expected a domain that %s is labelled for, found %q, %q", head, program, domain, files[program])
		}
	}
	for path, label := range files {
		if !seen[path] || !declares(rules, label) {
			t.Errorf("file_contexts: expected a program of a service and a type that is declared, found %s %s", path, label)
		}
	}
}

func declares(rules, name string) bool {
	return regexp.MustCompile(`(?m)^type ` + name + `, [\w, ]+;$`).MatchString(rules)
}

// A rule is a type, an allow or a macro, whole, and about our two domains.
func TestPolicyRules(t *testing.T) {
	const word = `(?:\w+|\{(?: \w+)+ \})`
	rule := regexp.MustCompile(`^(?:type \w+(?:, \w+)+;|allow (\w+) ` + word + `:\w+ ` + word + `;|\w+\((\w+)(?:, \w+)*\))$`)
	count := 0
	for line := range strings.Lines(policy(t)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		count++
		m := rule.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("expected a rule, found %q", line)
		} else if domain := m[1] + m[2]; domain != "" && domain != "otactl" && domain != "snapuserd" {
			t.Errorf("expected a rule about otactl or snapuserd, found %q", line)
		}
	}
	if count < 10 {
		t.Errorf("expected rules, found %d", count)
	}
}
