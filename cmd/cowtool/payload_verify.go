package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/payload"
	"cowbird/ota/apply"
	"cowbird/ota/verify"
)

type payloadVerify struct {
	payloads
	keys       []string
	properties string
	policy     verify.Policy
	timestamp  int64
	patchLevel string
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
	f.BoolVar(&v.policy.Unsigned, "unsigned", false, "do not look at signatures")
	f.BoolVar(&v.policy.Unhashed, "unhashed", false, "take data without a hash")
	f.Int64Var(&v.timestamp, "timestamp", 0, "when the device's system was built, `SECONDS`")
	f.StringVar(&v.patchLevel, "security-patch-level", "", "the device's, yyyy-mm-dd")
	_ = cmd.MarkFlagFilename("key")
	_ = cmd.MarkFlagFilename("properties")
	return cmd
}

func (v *payloadVerify) run(ctx context.Context, out cli.Output, name string) error {
	if len(v.keys) == 0 && !v.policy.Unsigned {
		return cli.Usagef("expected --key, or --unsigned to do without")
	}
	if err := v.readKeys(); err != nil {
		return err
	}
	o, err := v.open(name)
	if err != nil {
		return verify.Read(err)
	}
	defer o.close()
	if err := v.readProperties(o); err != nil {
		return err
	}
	v.policy.Device = verify.Device{Timestamp: v.timestamp, SecurityPatchLevel: v.patchLevel}
	if err := v.all(ctx, out, o); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if out.JSON {
		return out.Emit(struct {
			Event string `json:"event"`
			Good  bool   `json:"good"`
		}{"result", true})
	}
	by := fmt.Sprintf("signed by one of %d keys", len(v.policy.Keys))
	if v.policy.Unsigned {
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

func (v *payloadVerify) readProperties(o *openPayload) error {
	v.policy.Properties = o.Properties
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

func (v *payloadVerify) all(ctx context.Context, out cli.Output, o *openPayload) error {
	if err := v.policy.Metadata(o.Metadata); err != nil {
		return err
	}
	meter := out.Meter("verifying")
	defer meter.End()
	if err := v.policy.Whole(o.Metadata, o.File, o.File.Size(), meter.Update); err != nil {
		return err
	}
	blobs := apply.BlobsAt(o.Metadata, o.File)
	for _, p := range v.partitions(o.Metadata) {
		for i, op := range p.GetOperations() {
			do, done, err := apply.NewOperation(op, int64(o.Manifest.GetBlockSize()), blobs, nil)
			if err == nil {
				err = do.CheckBlob()
				done()
			}
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return fmt.Errorf("partition %s, operation %d (%v): %w", p.GetPartitionName(), i, op.GetType(), err)
			}
		}
	}
	return nil
}
