#!/usr/bin/env bash
# Runs every test lane and says how long each took. A lane that cannot run
# fails; with CI set, tests that would skip for want of root or a program fail.
#
#   scripts/test.sh [LANE...]      all lanes without arguments
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lanes=(setup build lint race bench guest vm kube demo leaks)
[ $# -eq 0 ] || lanes=("$@")

setup() { scripts/setup.sh; }
build() { make --no-print-directory build; }
lint() { make --no-print-directory lint; }

# Unit and netns: everything that needs no virtual machine.
race() { go test -race -count=1 -timeout 20m ./...; }

# The differential tests against the reference plugins live in a module of
# their own, so that those are no dependency of weft.
bench() { (cd bench && go test -count=1 -timeout 10m ./...); }

guest() { guest/build.sh; }

# Packages whose tests boot virtual machines, those of the examples among
# them, look at WEFT_VM or use a harness that does. QEMU's timing counts there: no race detector, and one
# package at a time.
vm() {
	local packages
	mapfile -t packages < <(grep -rlE --include='*_test.go' 'WEFT_VM|NeedVMs\(|LoadGuest\(|weft/test/vmlab"' . | grep -v '^./bench/' | xargs -r -n1 dirname | sort -u)
	if [ ${#packages[@]} -eq 0 ]; then
		echo "no package has a VM test"
		return 1
	fi
	WEFT_VM=1 go test -count=1 -p 1 -timeout 40m "${packages[@]}"
}

# Packages whose tests run on a real Kubernetes cluster. Its programs are built
# here, where one sees it: the first time takes a quarter of an hour.
kube() {
	local packages
	if [ ! -e /sys/fs/cgroup/memory/cgroup.procs ]; then
		echo "not run: the nodes of the test cluster need the cgroup v1 controllers in /sys/fs/cgroup"
		return $not_run
	fi
	test/kubelab/build.sh
	mapfile -t packages < <(grep -rl --include='*_test.go' 'weft/test/kubelab"' . | grep -v '^./bench/' | xargs -r -n1 dirname | sort -u)
	if [ ${#packages[@]} -eq 0 ]; then
		echo "no package has a test on a cluster"
		return 1
	fi
	WEFT_KUBE=1 go test -count=1 -p 1 -timeout 30m ./test/kubelab "${packages[@]}"
	(cd bench && WEFT_KUBE=1 go test -count=1 -timeout 10m -run 'TestNodes|TestTakeover|TestMigration' .) # with Multus and Whereabouts, built the first time
}

# What a newcomer runs first must work.
demo() { make --no-print-directory demo; }

# not_run is what a lane returns that cannot run on this machine, and has said why.
not_run=75

# What the host's own namespace has; the tests must leave all of it as it was.
inventory() {
	ip netns list | awk '{ print "namespace " $1 }'
	ip -o link | awk -F': ' '{ sub(/@.*/, "", $2); print "link " $2 }'
	nft list tables 2>/dev/null | sed 's/^/nft /'
	ps -eo pid=,comm= | awk '$2 ~ /^(qemu-system|weft|dhclient|etcd|kube|containerd)/ { print "process " $2 " " $1 }'
	find /sys/fs/cgroup -maxdepth 2 -name 'weft-*' 2>/dev/null | sed 's/^/cgroup /'
}
leaks() {
	local left deadline=$((SECONDS + 15))
	# A namespace's links go a moment after it.
	while left=$(comm -13 "$before" <(inventory | sort)) && [ -n "$left" ]; do
		if [ $SECONDS -ge $deadline ]; then
			printf 'left behind:\n%s\n' "$left"
			[ -z "${CI:-}" ] && echo "(not counted: without CI set others may use this machine)" && return 0
			return 1
		fi
		sleep 0.2
	done
	echo "nothing left behind"
}

before=$(mktemp)
trap 'rm -f "$before"' EXIT
summary=()
began=$SECONDS
for lane in "${lanes[@]}"; do
	[ "$lane" != setup ] && [ ! -s "$before" ] && inventory | sort >"$before"
	printf '\n=== lane %s\n' "$lane"
	start=$SECONDS
	# Not in an if: bash would then go on after errors inside the function.
	set +e
	(
		set -e
		"$lane"
	)
	status=$?
	set -e
	result=FAILED
	case $status in
	0) result=ok ;;
	"$not_run") result="not run" ;;
	esac
	summary+=("$(printf '%-10s %-7s %4d s' "$lane" "$result" $((SECONDS - start)))")
	printf '=== lane %s: %s after %d s\n' "$lane" "$result" $((SECONDS - start))
	# The rest cannot run without these.
	[ $status -eq 0 ] || case $lane in setup | build) break ;; esac
done

printf '\n=== lanes, %d s in all\n' $((SECONDS - began))
printf '%s\n' "${summary[@]}"
! printf '%s\n' "${summary[@]}" | grep -q FAILED
