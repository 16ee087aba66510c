#!/usr/bin/env bash
# Prints the Go benchmarks and the tables of ratios against the reference
# plugins, Multus and Whereabouts. Figures are of this machine; the ratios within one run are
# what counts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

echo "== Go benchmarks (BenchmarkRoundTrip has the DHCP reply beside an echo of the same frame)"
go test -run '^$' -bench . -benchmem ./... | grep -E '^(Benchmark|ok|FAIL|---|panic)' | grep -v 'no test files' || exit 1
echo
echo "== against the reference plugins, Multus, Whereabouts and bare netlink; Pods and VMs on a machine"
kube=1
if [ -e /sys/fs/cgroup/memory/cgroup.procs ]; then
	test/kubelab/build.sh >/dev/null # says by itself what takes how long
else
	kube=
	echo "not run: BenchmarkMultus and BenchmarkWhereabouts; the test cluster needs the cgroup v1 controllers in /sys/fs/cgroup"
fi
cd bench
WEFT_VM=1 WEFT_KUBE=$kube exec go test -count=1 -run '^$' -bench . -timeout 60m ./...
