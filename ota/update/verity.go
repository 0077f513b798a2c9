package update

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"cowbird/formats/vbmeta"
)

// veritySuffix is that of the devices of dm-verity.
const veritySuffix = "-verity"

// Boot is Manager.Boot, and if the configuration asks for it, maps a device of
// dm-verity over each partition for which the metadata of verified boot have a hash
// tree. What cannot be verified is not mapped, and then nothing is.
func (d *Device) Boot(ctx context.Context) ([]Mounted, error) {
	before, err := d.anyMapped()
	if err != nil {
		return nil, err
	}
	all, err := d.Manager.Boot(ctx)
	if err != nil || d.config.VerifiedBoot == nil || !d.config.VerifiedBoot.Verity {
		return all, err
	}
	if err := d.mapVerity(ctx, all); err != nil {
		if !before {
			err = errors.Join(err, d.locked(true, func() error { return d.unmapAll(ctx) }))
		}
		return nil, fmt.Errorf("verified boot: %w", err)
	}
	return all, nil
}

func (d *Device) mapVerity(ctx context.Context, all []Mounted) error {
	v := &verifier{d: d}
	defer v.close()
	descriptors, flags, err := v.chain()
	if err != nil || flags&(vbmeta.HashtreeDisabled|vbmeta.VerificationDisabled) != 0 {
		return err
	}
	current, _, err := d.suffixes()
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(descriptors)) {
		for _, descriptor := range descriptors[name] {
			tree, ok := descriptor.(*vbmeta.Hashtree)
			at := slices.IndexFunc(all, func(m Mounted) bool { return m.Name == name+current })
			if !ok || at < 0 {
				continue
			}
			if all[at].Verity, err = d.mapTree(ctx, all[at], tree); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

func (d *Device) mapTree(ctx context.Context, m Mounted, tree *vbmeta.Hashtree) (string, error) {
	o := vbmeta.TableOptions{OnCorruption: d.config.VerifiedBoot.OnCorruption, WithoutFEC: d.config.VerifiedBoot.WithoutFEC}
	return d.Mapper.MapTarget(ctx, m.Name+veritySuffix, "verity", uint64(tree.Sectors()), tree.Table(m.Path, o))
}
