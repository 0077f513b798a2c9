package generate

import (
	"archive/zip"
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"cowbird/cow"
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
	"cowbird/formats/sparse"
)

// Input is the images of a build: a folder of NAME.img, or the target files of an
// Android build as a folder or zip, with IMAGES and META.
type Input struct {
	// Names are the partitions, sorted; of target files those that AB_PARTITIONS tells.
	Names []string
	// Dynamic is what target files say of the super partition and of snapshots; nil:
	// nothing.
	Dynamic *pb.DynamicPartitionMetadata
	// Postinstalls are what target files have devices run, by partition.
	Postinstalls map[string]*Postinstall
	// Apexes are the modules that target files tell; CareMap, which blocks a device reads
	// before it counts a build as good.
	Apexes  []*pb.ApexInfo
	CareMap []byte

	images map[string]cow.Image
	close  []func() error
}

// Image gives an image by its partition's name.
func (in *Input) Image(name string) (cow.Image, bool) {
	img, ok := in.images[name]
	return img, ok
}

// Close closes the files.
func (in *Input) Close() (err error) {
	for _, f := range in.close {
		err = errors.Join(err, f())
	}
	return err
}

const (
	imageSuffix = ".img"
	// maxText bounds a file of META, in bytes.
	maxText = 1 << 20
)

// OpenInput opens what a path names. Images of a zip are unpacked into files of the
// folder spool that have no name; sparse ones are read as they are.
func OpenInput(name, spool string) (*Input, error) {
	in := &Input{images: map[string]cow.Image{}}
	st, err := os.Stat(name)
	if err == nil && st.IsDir() {
		err = in.openFolder(name)
	} else if err == nil {
		err = in.openZip(name, spool)
	}
	if err == nil && len(in.images) == 0 {
		err = fmt.Errorf("%w: expected images, NAME.img, found none: give a folder with them, or the target files of a build", ErrInput)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), in.Close())
	}
	if in.Names == nil {
		for n := range in.images {
			in.Names = append(in.Names, n)
		}
	}
	slices.Sort(in.Names)
	for _, n := range in.Names {
		if _, ok := in.images[n]; !ok {
			return nil, errors.Join(fmt.Errorf("%s: %w: expected an image of %s, which is among the partitions of the update, found none", name, ErrInput, n), in.Close())
		}
	}
	return in, nil
}

func (in *Input) openFolder(dir string) error {
	images := dir
	if st, err := os.Stat(filepath.Join(dir, "IMAGES")); err == nil && st.IsDir() {
		images = filepath.Join(dir, "IMAGES")
	}
	files, err := filepath.Glob(filepath.Join(images, "*"+imageSuffix))
	if err != nil {
		return err
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		in.close = append(in.close, f.Close)
		if err := in.add(strings.TrimSuffix(filepath.Base(file), imageSuffix), f); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return in.meta(func(name string) (io.ReadCloser, error) { return os.Open(filepath.Join(dir, "META", name)) })
}

// add takes an image, which may be sparse.
func (in *Input) add(name string, f *os.File) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	img := cow.Image{R: f, Size: size}
	s, err := sparse.Open(f, size)
	switch {
	case err == nil:
		img = cow.Image{R: s, Size: s.Size()}
	case !errors.Is(err, sparse.ErrMagic):
		return err
	}
	in.images[name] = img
	return nil
}

func (in *Input) openZip(name, folder string) error {
	z, err := zip.OpenReader(name)
	if err != nil {
		return fmt.Errorf("%w: expected a folder or a zip: %w", ErrInput, err)
	}
	defer z.Close()
	for _, f := range z.File {
		base, ok := strings.CutSuffix(strings.TrimPrefix(f.Name, "IMAGES/"), imageSuffix)
		if !ok || base != path.Base(base) {
			continue
		}
		if err := in.unpack(base, f, folder); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return in.meta(func(name string) (io.ReadCloser, error) { return z.Open("META/" + name) })
}

func (in *Input) unpack(name string, f *zip.File, folder string) error {
	out, err := spool(folder)
	if err != nil {
		return err
	}
	in.close = append(in.close, out.Close)
	r, err := f.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := io.Copy(out, r); err != nil {
		return err
	}
	return in.add(name, out)
}

// meta reads what target files say.
func (in *Input) meta(open func(name string) (io.ReadCloser, error)) error {
	names, err := lines(open, "ab_partitions.txt")
	if err != nil {
		return err
	}
	in.Names = names
	info, err := values(open, "dynamic_partitions_info.txt")
	if err != nil {
		return err
	}
	if in.Dynamic, err = dynamicOf(info); err != nil {
		return err
	}
	post, err := values(open, "postinstall_config.txt")
	if err != nil {
		return err
	}
	in.Postinstalls = postinstallsOf(post)
	if in.CareMap, err = whole(open, "care_map.pb"); err != nil {
		return err
	}
	if _, err := payload.ParseCareMap(in.CareMap); err != nil {
		return fmt.Errorf("%w: META/care_map.pb: %w", ErrInput, err)
	}
	apex, err := whole(open, "apex_info.pb")
	if err != nil {
		return err
	}
	var m pb.ApexMetadata
	if err := proto.Unmarshal(apex, &m); err != nil {
		return fmt.Errorf("%w: META/apex_info.pb: %w", ErrInput, err)
	}
	in.Apexes = m.GetApexInfo()
	return nil
}

// postinstallsOf reads what each partition's name ends the key of.
func postinstallsOf(values map[string]string) map[string]*Postinstall {
	all := map[string]*Postinstall{}
	for key, value := range values {
		if name, found := strings.CutPrefix(key, "RUN_POSTINSTALL_"); found && value == "true" {
			all[name] = &Postinstall{Path: values["POSTINSTALL_PATH_"+name], Filesystem: values["FILESYSTEM_TYPE_"+name],
				Optional: values["POSTINSTALL_OPTIONAL_"+name] == "true"}
		}
	}
	return all
}

// whole reads a file; nil if it is not there.
func whole(open func(string) (io.ReadCloser, error), name string) ([]byte, error) {
	f, err := open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxText+1))
	if err == nil && len(b) > maxText {
		err = fmt.Errorf("%w: META/%s: expected at most %d bytes", ErrInput, name, maxText)
	}
	return b, err
}

// values reads a text file of lines KEY=VALUE.
func values(open func(string) (io.ReadCloser, error), name string) (map[string]string, error) {
	all, err := lines(open, name)
	values := map[string]string{}
	for _, l := range all {
		if key, value, found := strings.Cut(l, "="); found {
			values[key] = value
		}
	}
	return values, err
}

// lines reads a text file without empty lines; nil if it is not there.
func lines(open func(string) (io.ReadCloser, error), name string) (all []string, err error) {
	f, err := open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := bufio.NewScanner(io.LimitReader(f, maxText))
	for s.Scan() {
		if l := strings.TrimSpace(s.Text()); l != "" && !strings.HasPrefix(l, "#") {
			all = append(all, l)
		}
	}
	return all, s.Err()
}

// dynamicOf reads the keys of specs/payload.md 13.
func dynamicOf(values map[string]string) (*pb.DynamicPartitionMetadata, error) {
	d := &pb.DynamicPartitionMetadata{}
	for _, name := range strings.Fields(values["super_partition_groups"]) {
		either := func(key string) string {
			return cmp.Or(values["super_"+name+"_group"+key], values["super_"+name+key], values[name+key])
		}
		size, err := strconv.ParseUint(cmp.Or(either("_size"), "0"), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%w: group %s: expected a size, found %q", ErrInput, name, either("_size"))
		}
		g := &pb.DynamicPartitionGroup{Name: proto.String(name), PartitionNames: strings.Fields(either("_partition_list"))}
		if size > 0 {
			g.Size = proto.Uint64(size)
		}
		d.Groups = append(d.Groups, g)
	}
	if len(d.Groups) == 0 {
		return nil, nil
	}
	d.SnapshotEnabled = proto.Bool(values["virtual_ab"] == "true")
	d.VabcEnabled = proto.Bool(values["virtual_ab_compression"] == "true")
	if d.GetVabcEnabled() {
		d.VabcCompressionParam = proto.String(cmp.Or(values["virtual_ab_compression_method"], "gz"))
		for key, set := range map[string]func(uint64){
			"virtual_ab_cow_version":        func(n uint64) { d.CowVersion = proto.Uint32(uint32(n)) },
			"virtual_ab_compression_factor": func(n uint64) { d.CompressionFactor = proto.Uint64(n) },
		} {
			if values[key] == "" {
				continue
			}
			n, err := strconv.ParseUint(values[key], 10, 32)
			if err != nil {
				return nil, fmt.Errorf("%w: %s: expected a number, found %q", ErrInput, key, values[key])
			}
			set(n)
		}
	}
	return d, nil
}
