#!/usr/bin/env bash
# Prints the Go benchmarks and the tables of ratios against the reference
# plugins and Multus. Figures are of this machine; the ratios within one run are
# what counts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

echo "== Go benchmarks (BenchmarkRoundTrip has the DHCP reply beside an echo of the same frame)"
go test -run '^$' -bench . -benchmem ./... | grep -E '^(Benchmark|ok|FAIL|---|panic)' | grep -v 'no test files' || exit 1
echo
echo "== against the reference plugins, Multus and bare netlink; Pods and VMs on a machine"
test/kubelab/build.sh etcd kube >/dev/null
cd bench
WEFT_VM=1 WEFT_KUBE=1 exec go test -count=1 -run '^$' -bench . -timeout 40m ./...
