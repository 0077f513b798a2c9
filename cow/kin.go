package cow

// Range is a stretch of an image, in bytes.
type Range struct{ Offset, Length int64 }

// Kin says that the bytes of the target in some ranges are a version of those of
// the base in others, in the order of the contents: two versions of a file.
// Build looks there for what an xor op can read. What it is told need not be
// true: it compares.
type Kin struct{ Target, Base []Range }
