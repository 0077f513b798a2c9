package filemap

import "cowbird/cow"

// Kin turns pairs into what cow.Build takes: the stretches of the target image
// that hold a file, and those of the base image that hold its origin.
func Kin(base, target []File, pairs []Pair) []cow.Kin {
	all := make([]cow.Kin, 0, len(pairs))
	for _, p := range pairs {
		all = append(all, cow.Kin{Target: ranges(&target[p.Target]), Base: ranges(&base[p.Base])})
	}
	return all
}

func ranges(f *File) []cow.Range {
	all := make([]cow.Range, 0, len(f.Extents))
	for _, e := range f.Extents {
		all = append(all, cow.Range{Offset: e.Physical, Length: e.Stored})
	}
	return all
}

// Between lists the files of both images and returns the kin of those that are
// paired, or none if either image is of no known file system or damaged; the
// error of the latter is for information only.
func Between(base, target cow.Image) ([]cow.Kin, error) {
	old, err := Files(base.R, base.Size)
	if err != nil {
		return nil, err
	}
	next, err := Files(target.R, target.Size)
	if err != nil {
		return nil, err
	}
	return Kin(old.Files, next.Files, Pairs(old.Files, next.Files)), nil
}
