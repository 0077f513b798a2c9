package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cowbird/cmd/internal/cli"
	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

// payloadFacts is what info tells.
type payloadFacts struct {
	Event         string           `json:"event"`
	File          string           `json:"file"`
	Size          int64            `json:"size"`
	MetadataSize  int64            `json:"metadata_size"`
	Minor         uint32           `json:"minor_version"`
	Delta         bool             `json:"delta"`
	Partial       bool             `json:"partial"`
	BlockSize     uint32           `json:"block_size"`
	Signatures    []int            `json:"metadata_signatures"` // their sizes in bytes
	Timestamp     int64            `json:"max_timestamp,omitempty"`
	SecurityPatch string           `json:"security_patch_level,omitempty"`
	Compression   string           `json:"vabc_compression,omitempty"`
	CowVersion    uint32           `json:"cow_version,omitempty"`
	Unit          uint64           `json:"compression_factor,omitempty"`
	Groups        []groupFacts     `json:"groups,omitempty"`
	Partitions    []partitionFacts `json:"partitions"`
	Package       *packageFacts    `json:"package,omitempty"`
}

// packageFacts are what a zip says of itself.
type packageFacts struct {
	Type          string         `json:"type"`
	Devices       []string       `json:"devices,omitempty"`
	FromBuilds    []string       `json:"from_builds,omitempty"`
	ToBuilds      []string       `json:"to_builds,omitempty"`
	Timestamp     int64          `json:"timestamp,omitempty"`
	SecurityPatch string         `json:"security_patch_level,omitempty"`
	Wipe          bool           `json:"wipe,omitempty"`
	Downgrade     bool           `json:"downgrade,omitempty"`
	CareBlocks    map[string]int `json:"care_map_blocks,omitempty"`
}

func packageOf(z *payload.Package) *packageFacts {
	if z == nil || z.Metadata == nil && z.CareMap == nil {
		return nil
	}
	m := z.Metadata
	pre, post := m.GetPrecondition(), m.GetPostcondition()
	f := &packageFacts{Type: m.GetType().String(), Devices: pre.GetDevice(), FromBuilds: pre.GetBuild(), ToBuilds: post.GetBuild(),
		Timestamp: post.GetTimestamp(), SecurityPatch: post.GetSecurityPatchLevel(), Wipe: m.GetWipe(), Downgrade: m.GetDowngrade() || m.GetSplDowngrade()}
	care, _ := payload.ParseCareMap(z.CareMap) // it has been parsed when the zip was opened
	for _, p := range care {
		if f.CareBlocks == nil {
			f.CareBlocks = map[string]int{}
		}
		for _, r := range p.Ranges {
			f.CareBlocks[p.Name] += int(r.End - r.Start)
		}
	}
	return f
}

func (f *packageFacts) print(row func(name, format string, args ...any)) {
	if f == nil {
		return
	}
	kind := f.Type
	if f.Wipe {
		kind += ", wipes the user's data"
	}
	if f.Downgrade {
		kind += ", a downgrade"
	}
	row("package", "%s", kind)
	for _, line := range []struct {
		name   string
		values []string
	}{{"  devices", f.Devices}, {"  from", f.FromBuilds}, {"  to", f.ToBuilds}} {
		if len(line.values) > 0 {
			row(line.name, "%s", strings.Join(line.values, " "))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.CareBlocks)) {
		row("  care map", "%s, %d blocks", name, f.CareBlocks[name])
	}
}

type groupFacts struct {
	Name       string   `json:"name"`
	Size       uint64   `json:"size"`
	Partitions []string `json:"partitions"`
}

type partitionFacts struct {
	Name        string         `json:"name"`
	OldSize     uint64         `json:"old_size,omitempty"`
	NewSize     uint64         `json:"new_size"`
	NewSHA256   string         `json:"new_sha256"`
	Version     string         `json:"version,omitempty"`
	Operations  map[string]int `json:"operations"`
	Merges      map[string]int `json:"merge_operations,omitempty"`
	DataBytes   uint64         `json:"data_bytes"`
	CowSize     uint64         `json:"estimate_cow_size,omitempty"`
	HashTree    string         `json:"hash_tree,omitempty"`
	FEC         bool           `json:"fec,omitempty"`
	Postinstall string         `json:"postinstall,omitempty"`
}

func payloadInfoCommand(c *common) *cobra.Command {
	p := payloads{common: c}
	cmd := &cobra.Command{
		Use:   "info [--partition PATTERNS] PAYLOAD",
		Short: "Tell what is in a payload",
		Long: `Prints the versions, sizes and signatures, and for each partition its sizes and how
many operations of each type make it; of an OTA zip also what it says that it is for.
Nothing but the metadata is read, and no signature is verified.`,
		Example: `  cowtool payload info payload.bin
  cowtool payload info --json ota.zip | jq '.partitions[].name'`,
		RunE: func(cmd *cobra.Command, args []string) error { return p.info(p.output(cmd), args[0]) },
	}
	p.flags(cmd)
	return cmd
}

func (p *payloads) info(out cli.Output, name string) error {
	o, err := p.open(name)
	if err != nil {
		return err
	}
	defer o.close()
	f := o.facts(name)
	for _, part := range p.partitions(o.Metadata) {
		f.Partitions = append(f.Partitions, factsOf(part))
	}
	if out.JSON {
		return out.Emit(f)
	}
	return f.print(out)
}

func (o *openPayload) facts(name string) *payloadFacts {
	m, d := o.Manifest, o.Manifest.GetDynamicPartitionMetadata()
	f := &payloadFacts{Event: "result", File: name, Size: o.File.Size(), MetadataSize: o.Metadata.Size(), Minor: m.GetMinorVersion(),
		Delta: o.IsDelta(), Partial: m.GetPartialUpdate(), BlockSize: m.GetBlockSize(), Timestamp: m.GetMaxTimestamp(),
		SecurityPatch: m.GetSecurityPatchLevel()}
	f.Package = packageOf(o.File.Package)
	for _, s := range o.Signatures {
		f.Signatures = append(f.Signatures, s.Size)
	}
	for _, g := range d.GetGroups() {
		f.Groups = append(f.Groups, groupFacts{g.GetName(), g.GetSize(), g.GetPartitionNames()})
	}
	if d.GetVabcEnabled() {
		f.Compression, f.CowVersion, f.Unit = d.GetVabcCompressionParam(), max(d.GetCowVersion(), 2), max(d.GetCompressionFactor(), 4096)
	}
	return f
}

func factsOf(p *pb.PartitionUpdate) partitionFacts {
	f := partitionFacts{Name: p.GetPartitionName(), OldSize: p.GetOldPartitionInfo().GetSize(), NewSize: p.GetNewPartitionInfo().GetSize(),
		NewSHA256: fmt.Sprintf("%x", p.GetNewPartitionInfo().GetHash()), Version: p.GetVersion(), Operations: map[string]int{}, Merges: map[string]int{},
		CowSize: p.GetEstimateCowSize(), FEC: p.GetFecExtent().GetNumBlocks() > 0}
	for _, op := range p.GetOperations() {
		f.Operations[op.GetType().String()]++
		f.DataBytes += op.GetDataLength()
	}
	for _, m := range p.GetMergeOperations() {
		f.Merges[m.GetType().String()]++
	}
	if p.GetHashTreeExtent().GetNumBlocks() > 0 {
		f.HashTree = p.GetHashTreeAlgorithm()
	}
	if p.GetRunPostinstall() {
		f.Postinstall = p.GetPostinstallPath()
	}
	return f
}

func (f *payloadFacts) print(out cli.Output) error {
	t := tabwriter.NewWriter(out.Stdout, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, name+"\t"+format+"\n", args...) }
	kind := map[bool]string{true: "delta", false: "full"}[f.Delta]
	if f.Partial {
		kind = "partial " + kind
	}
	row("file", "%s, %s", f.File, amount(f.Size))
	f.Package.print(row)
	row("kind", "%s, minor version %d, blocks of %d bytes", kind, f.Minor, f.BlockSize)
	row("metadata", "%s, %s", amount(f.MetadataSize), signaturesText(f.Signatures))
	if f.Timestamp != 0 || f.SecurityPatch != "" {
		row("build", "timestamp %d, security patch level %s", f.Timestamp, orNone(f.SecurityPatch))
	}
	if f.CowVersion > 0 {
		row("cow", "version %d, %s, units up to %s", f.CowVersion, orNone(f.Compression), sizeText(int(f.Unit)))
	}
	for _, g := range f.Groups {
		row("group", "%s, %s: %s", g.Name, amount(int64(g.Size)), strings.Join(g.Partitions, " "))
	}
	for _, p := range f.Partitions {
		p.print(row)
	}
	return t.Flush()
}

func (p *partitionFacts) print(row rowFunc) {
	size := amount(int64(p.NewSize))
	if p.OldSize > 0 {
		size += ", from " + amount(int64(p.OldSize))
	}
	row(p.Name, "%s", size)
	row("", "operations: %s; %s of data", countsText(p.Operations), amount(int64(p.DataBytes)))
	if len(p.Merges) > 0 {
		row("", "merge operations: %s", countsText(p.Merges))
	}
	if p.CowSize > 0 {
		row("", "estimated cow: %s", amount(int64(p.CowSize)))
	}
	if p.HashTree != "" {
		row("", "made on the device: hash tree (%s)%s", p.HashTree, map[bool]string{true: ", error correction"}[p.FEC])
	}
	if p.Postinstall != "" {
		row("", "runs %s after installation", p.Postinstall)
	}
}

func signaturesText(sizes []int) string {
	if len(sizes) == 0 {
		return "not signed"
	}
	return fmt.Sprintf("%d signatures (bytes: %s)", len(sizes), strings.Trim(fmt.Sprint(sizes), "[]"))
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func countsText(counts map[string]int) string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		words = append(words, fmt.Sprintf("%d %s", counts[name], name))
	}
	if words == nil {
		return "none"
	}
	return strings.Join(words, ", ")
}

func payloadListCommand(c *common) *cobra.Command {
	p := payloads{common: c}
	cmd := &cobra.Command{
		Use:   "list [--partition PATTERNS] PAYLOAD",
		Short: "List the operations of a payload",
		Long: `Prints a line for each operation: the partition, its number there, its type, its
data in the payload (bytes at offset) and its blocks, old and new, as first-last.`,
		Example: `  cowtool payload list --partition boot payload.bin`,
		RunE:    func(cmd *cobra.Command, args []string) error { return p.list(p.output(cmd), args[0]) },
	}
	p.flags(cmd)
	return cmd
}

type operationLine struct {
	Event      string      `json:"event"`
	Partition  string      `json:"partition"`
	Number     int         `json:"number"`
	Type       string      `json:"type"`
	DataOffset *uint64     `json:"data_offset,omitempty"`
	DataLength *uint64     `json:"data_length,omitempty"`
	Source     [][2]uint64 `json:"source,omitempty"` // start, blocks
	Target     [][2]uint64 `json:"target"`
}

func (p *payloads) list(out cli.Output, name string) error {
	o, err := p.open(name)
	if err != nil {
		return err
	}
	defer o.close()
	w := bufio.NewWriter(out.Stdout)
	out.Stdout = w
	for _, part := range p.partitions(o.Metadata) {
		for i, op := range part.GetOperations() {
			if err := listOperation(out, part.GetPartitionName(), i, op); err != nil {
				return err
			}
		}
	}
	return w.Flush()
}

func listOperation(out cli.Output, partition string, i int, op *pb.InstallOperation) error {
	if out.JSON {
		return out.Emit(operationLine{"operation", partition, i, op.GetType().String(), op.DataOffset, op.DataLength,
			pairs(op.GetSrcExtents()), pairs(op.GetDstExtents())})
	}
	data := "-"
	if payload.HasBlob(op.GetType()) {
		data = fmt.Sprintf("%d@%d", op.GetDataLength(), op.GetDataOffset())
	}
	_, err := fmt.Fprintf(out.Stdout, "%s %d %v data %s old %s new %s\n", partition, i, op.GetType(), data,
		rangesText(op.GetSrcExtents()), rangesText(op.GetDstExtents()))
	return err
}

func pairs(extents []*pb.Extent) (out [][2]uint64) {
	for _, e := range extents {
		out = append(out, [2]uint64{e.GetStartBlock(), e.GetNumBlocks()})
	}
	return out
}

func rangesText(extents []*pb.Extent) string {
	if len(extents) == 0 {
		return "-"
	}
	var words []string
	for _, e := range extents {
		switch start, n := e.GetStartBlock(), e.GetNumBlocks(); {
		case start == payload.Hole:
			words = append(words, fmt.Sprintf("hole*%d", n))
		case n == 0:
			words = append(words, "none")
		default:
			words = append(words, fmt.Sprintf("%d-%d", start, start+n-1))
		}
	}
	return strings.Join(words, ",")
}

func payloadStatsCommand(c *common) *cobra.Command {
	p := payloads{common: c}
	cmd := &cobra.Command{
		Use:   "diff-stats [--partition PATTERNS] PAYLOAD",
		Short: "Tell what the bytes of a payload are spent on",
		Long: `Prints, for each partition and type of operation: how many there are, how many blocks
they make, how many bytes of data they take, and how many bytes that is a block.`,
		Example: `  cowtool payload diff-stats delta.zip`,
		RunE:    func(cmd *cobra.Command, args []string) error { return p.stats(p.output(cmd), args[0]) },
	}
	p.flags(cmd)
	return cmd
}

// typeStats is a row of diff-stats.
type typeStats struct {
	Event      string `json:"event"`
	Partition  string `json:"partition"`
	Type       string `json:"type"`
	Operations int    `json:"operations"`
	Blocks     uint64 `json:"blocks"`
	Bytes      uint64 `json:"bytes"`
}

func (p *payloads) stats(out cli.Output, name string) error {
	o, err := p.open(name)
	if err != nil {
		return err
	}
	defer o.close()
	t := tabwriter.NewWriter(out.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	if !out.JSON {
		fmt.Fprintf(t, "partition\ttype\toperations\tblocks\tbytes\tbytes a block\t\n")
	}
	for _, part := range p.partitions(o.Metadata) {
		for _, s := range statsOf(part) {
			if out.JSON {
				err = errors.Join(err, out.Emit(s))
			} else {
				fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%.0f\t\n", s.Partition, s.Type, s.Operations, s.Blocks, s.Bytes, float64(s.Bytes)/float64(max(1, s.Blocks)))
			}
		}
	}
	return errors.Join(err, t.Flush())
}

// statsOf are a partition's, the costliest type first.
func statsOf(p *pb.PartitionUpdate) []typeStats {
	byType := map[pb.InstallOperation_Type]*typeStats{}
	for _, op := range p.GetOperations() {
		s := byType[op.GetType()]
		if s == nil {
			s = &typeStats{Event: "stats", Partition: p.GetPartitionName(), Type: op.GetType().String()}
			byType[op.GetType()] = s
		}
		s.Operations++
		s.Blocks += payload.Blocks(op.GetDstExtents())
		s.Bytes += op.GetDataLength()
	}
	var all []typeStats
	for _, t := range slices.Sorted(maps.Keys(byType)) {
		all = append(all, *byType[t])
	}
	slices.SortStableFunc(all, func(a, b typeStats) int { return cmp.Compare(b.Bytes, a.Bytes) })
	return all
}
