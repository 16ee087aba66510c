#!/usr/bin/env bash
# What `make demo` runs: the main job on a machine of its own (examples/lab.sh).
# KEEP=1 leaves everything running and says how to look around.
set -euo pipefail
cd "$(dirname "$0")/.."
name=weftdemo
root=${WEFT_DEMO_ROOT:-/tmp/weft-demo}
guest=$1 # OCI archive of the small guest
on_node() { nsenter --net=/run/netns/$name-node "$@"; }
weft() { on_node bin/weft --root "$root" "$@"; }
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

cleanup() {
	weft down --all --purge >/dev/null 2>&1 || true
	examples/lab.sh down $name
}
cleanup
trap '[ -n "${KEEP:-}" ] || cleanup' EXIT

say "a machine of its own, made of network namespaces (examples/lab.sh)"
examples/lab.sh up $name
weft image load "$guest"

say "weft up -f examples/three-networks.yaml"
weft up -f examples/three-networks.yaml --timeout 4m

say "weft describe vmi web"
weft describe vmi web

say "does it carry traffic?"
address() { weft get vmi "$1" -o json | jq -r --arg nic "$2" '.status.interfaces[] | select(.name == $nic) | .ipAddress'; }
try() {
	local what=$1
	shift
	if "$@" >/dev/null 2>&1; then printf '  ok      %s\n' "$what"; else
		printf '  FAILED  %s\n' "$what"
		failed=1
	fi
}
failed=
try "Pod -> VM db on backend" weft exec client -- ping -c 1 -W 3 "$(address db backend)"
try "Pod -> VM db on lan" weft exec client -- ping -c 1 -W 3 "$(address db lan)"
try "LAN host -> VM web on lan" ip netns exec $name-lan ping -c 1 -W 3 "$(address web lan)"
try "VM web -> VM db on backend" weft exec vmi/web -- ping -c 1 -W 3 "$(address db backend)"
try "VM web -> outside (203.0.113.1)" weft exec vmi/web -- ping -c 1 -W 3 203.0.113.1
try "outside -> VM db by Pod address and port" on_node busybox nc -w 3 "$(address db default)" 8080
[ -z "$failed" ] || exit 1

if [ -n "${KEEP:-}" ]; then
	say "left running; look around with"
	echo "  nsenter --net=/run/netns/$name-node bin/weft --root $root get vmi -o wide"
	echo "  take it down with: nsenter --net=/run/netns/$name-node bin/weft --root $root down --all --purge; examples/lab.sh down $name"
else
	say "weft down --all --purge"
	weft down --all --purge
	left=$(ip -n $name-node -o link | grep -v -E ' (lo|eth0|eth1)[@:]' || true)
	[ -z "$left" ] || {
		echo "left behind: $left"
		exit 1
	}
	echo "nothing left behind"
fi
