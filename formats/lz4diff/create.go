package lz4diff

import (
	"bytes"
	"crypto/sha256"
	"fmt"
)

// Diff makes a patch from source to target.
type Diff func(source, target []byte) ([]byte, error)

// Differs has what makes the patches inside a patch.
type Differs struct {
	BSDiff Diff // BSDF2, for the contents
	// PuffDiff makes a PUF1 patch for the contents, or returns nil where there is
	// nothing to gain. It may be nil.
	PuffDiff Diff
	Postfix  Diff // BSDIFF40, for clusters that compress to other bytes
	// Terse leaves out the hashes of clusters without a postfix patch, 34 bytes each,
	// which Android does not look at.
	Terse bool
}

// Create makes the patch from a source file to a target file, with the smaller
// of the inner formats. Hashes and postfix patches of the target are filled in.
// Equal input gives equal bytes if the Differs do. Errors wrap one of the
// package's or the one of a Diff function.
func Create(source, target []byte, sourceFile, targetFile File, inner Differs) (*Patch, error) {
	targetFile.Clusters = append([]Cluster(nil), targetFile.Clusters...)
	p := &Patch{Source: sourceFile, Target: targetFile}
	if err := p.check(); err != nil {
		return nil, err
	}
	old, err := p.Source.contents("source", source)
	if err != nil {
		return nil, err
	}
	contents, err := p.Target.contents("target", target)
	if err != nil {
		return nil, err
	}
	if err := p.diff(old, contents, inner); err != nil {
		return nil, err
	}
	return p, p.Target.addPostfix(contents, target, inner)
}

// Contents decompresses a file that has nothing behind its clusters. It holds the
// sum of their lengths, which the caller bounds. Errors wrap one of the package's.
func (f *File) Contents(file []byte) ([]byte, error) {
	if err := f.check("source"); err != nil {
		return nil, err
	}
	return f.contents("source", file)
}

// contents decompresses a file, of which what follows the clusters is a part
// for targets only.
func (f *File) contents(name string, file []byte) ([]byte, error) {
	length, stored := f.Lengths()
	more := int64(len(file)) - stored
	if stored == 0 || more < 0 || name == "source" && more > 0 {
		return nil, refuse(ErrSource, "length of the "+name, stored, len(file))
	}
	b, err := f.decompress(make([]byte, 0, length+more), file[:stored])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return append(b, file[stored:]...), nil
}

// diff chooses the inner patch.
func (p *Patch) diff(old, contents []byte, inner Differs) (err error) {
	if p.Data, err = inner.BSDiff(old, contents); err != nil {
		return fmt.Errorf("bsdiff: %w", err)
	}
	p.Inner = BSDiff
	if inner.PuffDiff == nil {
		return nil
	}
	puff, err := inner.PuffDiff(old, contents)
	if err != nil {
		return fmt.Errorf("puffdiff: %w", err)
	}
	if puff != nil && len(puff) < len(p.Data) {
		p.Data, p.Inner = puff, PuffDiff
	}
	return nil
}

// addPostfix compares what the encoder makes with the file.
func (f *File) addPostfix(contents, file []byte, inner Differs) error {
	var offset int64
	_, err := f.compress(make([]byte, len(file)), contents, func(i int, stored []byte) (err error) {
		c := &f.Clusters[i]
		want := file[offset : offset+c.Stored]
		offset += c.Stored
		sum := sha256.Sum256(stored)
		c.Hash, c.Postfix = sum[:], nil
		if bytes.Equal(stored, want) {
			if inner.Terse {
				c.Hash = nil
			}
			return nil
		}
		if c.Postfix, err = inner.Postfix(bytes.Clone(stored), want); err != nil {
			return fmt.Errorf("postfix patch of cluster %d: %w", i, err)
		}
		return nil
	})
	return err
}
