package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/payload"
	"cowbird/ota/apply"
	"cowbird/ota/install"
	"cowbird/ota/verify"
)

type payloadVerify struct {
	payloads
	keys       []string
	properties string
	policy     verify.Policy
	timestamp  int64
	patchLevel string
	zip        bool
}

func payloadVerifyCommand(c *common) *cobra.Command {
	v := payloadVerify{payloads: payloads{common: c}}
	cmd := &cobra.Command{
		Use:   "verify --key FILE [--properties FILE] PAYLOAD",
		Short: "Prove that a payload is whole and signed by whom it should be",
		Long: `Checks what a device checks before and while it installs a payload, in the same order
and with the same names for what is wrong: the metadata signature, the manifest, the
versions, the hash of each piece of data, and the signature over everything. A
signature by one of the keys is enough. Nothing is applied and nothing written.

Keys are public keys or certificates, PEM or DER, or a zip of them (otacerts.zip).
What payload_properties.txt says of sizes and hashes is checked too, with --properties
or if PAYLOAD is a zip that has it. With --timestamp and --security-patch-level, of a
device, an older payload is refused.`,
		Example: `  cowtool payload verify --key otacerts.zip ota.zip
  cowtool payload verify --key release.pem --properties payload_properties.txt payload.bin
  cowtool payload verify --unsigned payload.bin         # hashes only`,
		RunE: func(cmd *cobra.Command, args []string) error { return v.run(cmd.Context(), v.output(cmd), args[0]) },
	}
	v.flags(cmd)
	f := cmd.Flags()
	f.StringSliceVar(&v.keys, "key", nil, "public keys or certificates, a `FILE`")
	f.StringVar(&v.properties, "properties", "", "payload_properties.txt")
	f.BoolVar(&v.policy.AllowUnsigned, "unsigned", false, "do not look at signatures")
	f.BoolVar(&v.zip, "zip-signature", false, "also look at the signature over the whole zip, as recovery does")
	f.BoolVar(&v.policy.AllowUnhashed, "unhashed", false, "take data without a hash")
	f.Int64Var(&v.timestamp, "timestamp", 0, "when the device's system was built, `SECONDS`")
	f.StringVar(&v.patchLevel, "security-patch-level", "", "the device's, yyyy-mm-dd")
	_ = cmd.MarkFlagFilename("key")
	_ = cmd.MarkFlagFilename("properties")
	return cmd
}

func (v *payloadVerify) run(ctx context.Context, out cli.Output, name string) error {
	if len(v.keys) == 0 && !v.policy.AllowUnsigned {
		return cli.Usagef("expected --key, or --unsigned to do without")
	}
	if v.zip && len(v.keys) == 0 {
		return cli.Usagef("--zip-signature: expected --key, found none")
	}
	if err := v.readKeys(); err != nil {
		return err
	}
	f, err := v.openFile(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := v.readProperties(f); err != nil {
		return err
	}
	v.policy.Device = verify.Device{BuildTime: v.timestamp, SecurityPatch: v.patchLevel}
	if err := v.all(ctx, out, f); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if out.JSON {
		return out.Emit(struct {
			Event string `json:"event"`
			Good  bool   `json:"good"`
		}{"result", true})
	}
	by := fmt.Sprintf("signed by one of %d keys", len(v.policy.Keys))
	if v.policy.AllowUnsigned {
		by = "signatures were not verified"
	}
	_, err = fmt.Fprintf(out.Stdout, "%s: good; %s\n", name, by)
	return err
}

func (v *payloadVerify) readKeys() error {
	for _, path := range v.keys {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		k, err := verify.ParseKeys(b)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		v.policy.Keys = append(v.policy.Keys, k...)
	}
	return nil
}

func (v *payloadVerify) readProperties(f *install.File) error {
	if f.Package != nil {
		v.policy.Properties = f.Package.Properties
	}
	if v.properties == "" {
		return nil
	}
	b, err := os.ReadFile(v.properties)
	if err != nil {
		return err
	}
	if v.policy.Properties, err = payload.ParseProperties(b); err != nil {
		return fmt.Errorf("%s: %w", v.properties, err)
	}
	return nil
}

func (v *payloadVerify) all(ctx context.Context, out cli.Output, f *install.File) error {
	m, err := verify.Read(io.NewSectionReader(f, 0, f.Size()), f.Size(), v.policy)
	if err == nil {
		err = v.check(m)
	}
	if err != nil {
		return err
	}
	if err := v.zipSignature(f); err != nil {
		return err
	}
	meter := out.Meter("verifying")
	defer meter.End()
	if err := verify.File(ctx, m, f, f.Size(), v.policy, meter.Update); err != nil {
		return err
	}
	return v.data(ctx, m, f)
}

func (v *payloadVerify) zipSignature(f *install.File) error {
	if !v.zip {
		return nil
	}
	zip, size := f.Zip()
	if zip == nil {
		return errors.New("--zip-signature: expected a zip, found a payload: give an OTA zip")
	}
	return verify.Zip(zip, size, v.policy.Keys)
}

// data checks each operation's, which says where a payload is damaged.
func (v *payloadVerify) data(ctx context.Context, m *payload.Metadata, f *install.File) error {
	blobs := apply.BlobsAt(m, f)
	for _, p := range v.partitions(m) {
		ops := &apply.Operations{Partition: p, BlockSize: int64(m.Manifest.GetBlockSize()), Blobs: blobs}
		for i, op := range p.GetOperations() {
			do, done, err := ops.At(i)
			if err == nil {
				err = errors.Join(do.CheckBlob(), ctx.Err())
				done()
			}
			if err != nil {
				return fmt.Errorf("partition %s, operation %d (%v): %w", p.GetPartitionName(), i, op.GetType(), err)
			}
		}
	}
	return nil
}
