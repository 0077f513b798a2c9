// Package sparse reads and writes Android's sparse images, which leave out what
// an image has of repetition.
//
//	│ header 28 │ chunk 12 │ data │ chunk 12 │ data │ …
//
// A chunk covers some blocks: raw (the data are their bytes), fill (four bytes,
// again and again) or don't care (no data). A chunk of the fourth kind has a CRC of
// all before it and no blocks.
//
//	image, err := sparse.Open(file, fileSize)   // an io.ReaderAt of image.Size() bytes
//	err = sparse.Write(out, image, size, 4096)
//
// What one need not care about reads as zeros. Checksums are not verified, as
// Android's tools do not by default either; lengths are, before anything is
// read. An open image takes 32 bytes a chunk, of which it may have MaxChunks.
//
// Write stores blocks that are one word repeated, zeros among them, as fill, so that
// flashing the image over anything gives exactly these bytes. Same input, same bytes.
//
// Source: the format as Android's libsparse documents it; tests compare with its
// tools.
package sparse
