package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/payload/pb"
	"cowbird/ota/generate"
)

// packaging are the flags of what is beside a payload in an OTA zip.
type packaging struct {
	devices     []string
	from        string
	to          string
	wipe        bool
	certificate string
}

func (p *packaging) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&p.devices, "device", nil, "the devices that a zip is for, by `NAMES`")
	f.StringVar(&p.from, "from-build", "", "the `FINGERPRINT` of the build that a zip's delta is for")
	f.StringVar(&p.to, "to-build", "", "the `FINGERPRINT` of the new build")
	f.BoolVar(&p.wipe, "wipe", false, "the user's data go with the update")
	f.StringVar(&p.certificate, "certificate", "", "a certificate of the key, a `FILE` (X.509, PEM): the whole zip is signed as well, which recovery asks for")
	_ = cmd.MarkFlagFilename("certificate")
}

// unwanted refuses what only a zip has.
func (p *packaging) unwanted(out string) error {
	if p.certificate != "" {
		return cli.Usagef("--certificate: expected a zip to sign, found -o %s", out)
	}
	return nil
}

// signer is the certificate, and the one of the keys that is its own: nil if there are
// none, so that somebody else signs.
func (p *packaging) signer(names []string) (*x509.Certificate, generate.Signer, error) {
	if p.certificate == "" {
		return nil, nil, nil
	}
	b, err := os.ReadFile(p.certificate)
	if err != nil {
		return nil, nil, err
	}
	c, err := generate.ParseCertificate(b)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", p.certificate, err)
	}
	keys, err := readKeys(names)
	if err != nil {
		return nil, nil, err
	}
	for _, k := range keys {
		if k.IsOf(c) {
			return c, k, nil
		}
	}
	if len(keys) == 0 {
		return c, nil, nil
	}
	return nil, nil, cli.Usagef("--certificate: expected that of a --key, found %s, of another key", p.certificate)
}

func readKeys(names []string) (all []generate.KeySigner, err error) {
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		k, err := generate.ParsePrivateKey(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, k)
	}
	return all, nil
}

// write writes a zip with a payload, which w describes, and signs it if it can. It returns
// its size before that.
func (p *packaging) write(out *cli.OutFile, f io.ReaderAt, w *generate.Written, m *pb.DeltaArchiveManifest, keys []string, extras []generate.Extra) (int64, error) {
	certificate, key, err := p.signer(keys)
	if err != nil {
		return 0, err
	}
	meta := &pb.OtaMetadata{Type: pb.OtaMetadata_AB, Wipe: p.wipe, Precondition: &pb.DeviceState{Device: p.devices},
		Postcondition: &pb.DeviceState{Timestamp: m.GetMaxTimestamp(), SecurityPatchLevel: m.GetSecurityPatchLevel()}}
	if p.from != "" {
		meta.Precondition.Build = []string{p.from}
	}
	if p.to != "" {
		meta.Postcondition.Build = []string{p.to}
	}
	if p.wipe {
		w.Properties.More = map[string]string{"POWERWASH": "1"}
	}
	size, err := generate.WritePackage(out, f, w, generate.Package{Metadata: meta, Extras: extras, Certificate: certificate})
	if err == nil && key != nil {
		err = generate.SignZip(out, size, certificate, key)
	}
	return size, err
}

// pack makes a zip of a payload that is there.
type pack struct {
	out, digests, newer, older string
	keys                       []string
	zip                        packaging
}

func payloadPackCommand(c *common) *cobra.Command {
	p := &pack{}
	cmd := &cobra.Command{
		Use:   "pack -o ZIP PAYLOAD",
		Short: "Make an OTA zip of a payload",
		Long: `Makes the zip that cowtool payload create -o ota.zip would have made, of a payload that
is there: one whose signatures have been put in by cowtool payload sign, say. The
payload is stored in it as it is, so that devices can read it where it lies. What target
files add (modules, care maps) is taken from --new, with --old for a delta.

With --certificate the zip has a certificate and, with its --key, a signature of the
whole, which recovery asks for and the updater of A/B devices does not. A key that
cannot be had as a file signs in two steps: --digests writes what is to be signed,
and cowtool payload sign puts the signature in.`,
		Example: `  cowtool payload pack -o ota.zip --key release.pem --certificate release.x509.pem new.bin
  cowtool payload pack -o ota.zip --certificate release.x509.pem --digests . new.bin`,
		Args: cli.Args("PAYLOAD"), ValidArgsFunction: fileArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return p.run(c.output(cmd), args[0]) },
	}
	f := cmd.Flags()
	f.StringVarP(&p.out, "output", "o", "", "the `ZIP` to write")
	f.StringVar(&p.newer, "new", "", "the target files that the payload was made of, a folder or zip `IMAGES`")
	f.StringVar(&p.older, "old", "", "the target files that it is a delta to, `IMAGES`")
	f.StringArrayVar(&p.keys, "key", nil, "sign the zip with the private key in a `FILE` (RSA or ECDSA, PEM)")
	f.StringVar(&p.digests, "digests", "", "a `FOLDER` for what is to be signed: zip.sha256, 32 bytes")
	p.zip.flags(cmd)
	_ = cmd.MarkFlagRequired("output")
	_ = cmd.MarkFlagFilename("output")
	_ = cmd.MarkFlagFilename("key")
	_ = cmd.MarkFlagDirname("digests")
	cmd.MarkFlagsMutuallyExclusive("key", "digests")
	return cmd
}

func (p *pack) run(out cli.Output, name string) (err error) {
	if signs := len(p.keys) > 0 || p.digests != ""; signs != (p.zip.certificate != "") {
		return cli.Usagef("expected --certificate and, beside it, --key or --digests; found one without the other")
	}
	if _, _, err := p.zip.signer(p.keys); err != nil {
		return err
	}
	extras, err := p.extras()
	if err != nil {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	m, w, err := generate.Describe(f, st.Size())
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	to, err := cli.CreateOut(p.out)
	if err != nil {
		return err
	}
	defer to.Discard()
	size, err := p.zip.write(to, f, w, m.Manifest, p.keys, extras)
	if err != nil {
		return err
	}
	if err := p.writeDigest(to, size); err != nil {
		return err
	}
	if err := to.Commit(); err != nil {
		return err
	}
	return reportPayload(out, p.out, w)
}

// extras are what target files add.
func (p *pack) extras() (all []generate.Extra, err error) {
	var inputs [2]*generate.Input
	for i, name := range []string{p.newer, p.older} {
		if name == "" {
			continue
		}
		in, err := generate.OpenInput(name, "")
		if err != nil {
			return nil, err
		}
		defer in.Close()
		inputs[i] = in
	}
	if inputs[0] == nil {
		if inputs[1] != nil {
			return nil, cli.Usagef("--old: expected --new beside it")
		}
		return nil, nil
	}
	return generate.Extras(inputs[0], inputs[1])
}

func (p *pack) writeDigest(zip io.ReaderAt, size int64) error {
	if p.digests == "" {
		return nil
	}
	digest, err := generate.ZipDigest(zip, size)
	if err == nil {
		err = os.MkdirAll(p.digests, 0o777)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(p.digests, "zip.sha256"), digest[:], 0o666)
	}
	return err
}
