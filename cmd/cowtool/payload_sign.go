package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/ota/generate"
)

// sign puts in what somebody else has signed.
type sign struct {
	metadata, whole  []string
	zip, certificate string
}

func payloadSignCommand(c *common) *cobra.Command {
	s := &sign{}
	cmd := &cobra.Command{
		Use:   "sign {--metadata-signature FILE --payload-signature FILE PAYLOAD | --certificate FILE --zip-signature FILE ZIP}",
		Short: "Put signatures into a payload that has room for them, or into a zip",
		Long: `Puts signatures into a payload that was made with --signature-size, in place: those of
metadata.sha256 and of payload.sha256, as the files have them (RSA: PKCS #1 v1.5 with
SHA-256; ECDSA: ASN.1). With several keys each flag is given as often, in the same
order. They are not verified here: cowtool payload verify does it.

With --zip-signature it is a zip that is signed, made by cowtool payload pack with
--digests: the signature is of zip.sha256, and of the key of --certificate, which is
verified.`,
		Example: `  openssl pkeyutl -sign -inkey key.pem -pkeyopt digest:sha256 -in metadata.sha256 -out m.sig
  openssl pkeyutl -sign -inkey key.pem -pkeyopt digest:sha256 -in payload.sha256 -out p.sig
  cowtool payload sign --metadata-signature m.sig --payload-signature p.sig new.bin
  cowtool payload sign --certificate release.x509.pem --zip-signature z.sig ota.zip`,
		Args: cli.Args("PAYLOAD"), ValidArgsFunction: fileArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if s.zip != "" {
				return s.archive(args[0])
			}
			return s.payload(c.output(cmd), args[0])
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&s.metadata, "metadata-signature", nil, "a signature of the metadata, a `FILE`")
	f.StringArrayVar(&s.whole, "payload-signature", nil, "a signature of the payload, a `FILE`")
	f.StringVar(&s.zip, "zip-signature", "", "the signature of a whole zip, a `FILE`")
	f.StringVar(&s.certificate, "certificate", "", "the certificate of who has signed the zip, a `FILE` (X.509, PEM)")
	cmd.MarkFlagsRequiredTogether("metadata-signature", "payload-signature")
	cmd.MarkFlagsRequiredTogether("zip-signature", "certificate")
	cmd.MarkFlagsOneRequired("payload-signature", "zip-signature")
	cmd.MarkFlagsMutuallyExclusive("payload-signature", "zip-signature")
	return cmd
}

func (s *sign) payload(out cli.Output, name string) error {
	m, err := readFiles(s.metadata)
	if err != nil {
		return err
	}
	p, err := readFiles(s.whole)
	if err != nil {
		return err
	}
	return inPlace(name, func(f *os.File, size int64) error {
		w, err := generate.Sign(f, size, m, p)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return reportPayload(out, name, w)
	})
}

func (s *sign) archive(name string) error {
	files, err := readFiles([]string{s.certificate, s.zip})
	if err != nil {
		return err
	}
	c, err := generate.ParseCertificate(files[0])
	if err != nil {
		return fmt.Errorf("%s: %w", s.certificate, err)
	}
	return inPlace(name, func(f *os.File, size int64) error {
		if err := generate.SignZip(f, size, c, generate.Given(files[1])); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
}

// inPlace changes a file, durably.
func inPlace(name string, change func(f *os.File, size int64) error) (err error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := change(f, st.Size()); err != nil {
		return err
	}
	return f.Sync()
}

func readFiles(names []string) (all [][]byte, err error) {
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}
