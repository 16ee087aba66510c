// Package bench holds weft's native network kinds against the reference CNI
// plugins: the same config given to both must make the same links, addresses,
// routes and CNI result (TestSameAsReference). `make bench` prints how much faster
// weft is and which of the promised factors it meets (BenchmarkTable); TestBars
// fails only on a regression far beyond them.
//
// The reference plugins are built by `go install` at one pinned version, with
// the dependencies they pin themselves, and kept in the cache directory; they
// are no dependency of weft.
package bench
