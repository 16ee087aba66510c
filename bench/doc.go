// Package bench holds weft's native network kinds against the reference CNI
// plugins: the same config given to both must make the same links, addresses,
// routes and CNI result (TestSameAsReference). Bare netlink, which makes the same
// again (TestFloor), is the floor.
//
// `make bench` prints figures and which promises they meet: attach and detach
// (BenchmarkTable), attach as Pods grow in number (BenchmarkGrowth), and, of a
// machine with the real programs on it, time and memory for many Pods and VMs
// (BenchmarkPods, BenchmarkVMs). Tests fail only on a regression far beyond a
// promise, because other work on the machine disturbs even ratios.
//
// BenchmarkMultus (with WEFT_KUBE set) holds the node agent against Multus: each
// on a node of its own beside one real API server, called as a container runtime
// calls them, by turns. Its floor is the CNI program with bare netlink behind it.
// Its parts run alone, too: -bench Multus/Alone, and Burst, Together, Foreign,
// Requests. docs/benchmarks.md has figures.
//
// BenchmarkWhereabouts (with WEFT_KUBE set) holds addresses of the cluster against
// Whereabouts' own plugin, both on one API server, with bare creates of one object as
// the floor.
//
// The reference plugins are built by `go install` at one pinned version, with
// the dependencies they pin themselves, and kept in the cache directory; they
// are no dependency of weft.
package bench
