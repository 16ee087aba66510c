#!/bin/bash
# sandbox.sh DIR ID: the first process of a cluster's namespaces (PID, mount,
# network, UTS, IPC). Its standard input is a pipe from the test: when that
# ends, however the test ended, everything in here dies and nothing is left.
set -euo pipefail
dir=$1 id=$2
[ $$ = 1 ] || { echo "only for the first process of a PID namespace: it kills all others" >&2; exit 1; }
trap '' INT # of the test's terminal; the test says when it ends

mount --make-rprivate /
mount -t proc proc /proc
ip link set lo up
ip link add br0 type bridge
ip addr add 10.99.0.1/24 dev br0
ip link set br0 up
sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0

echo ready
cat >/dev/null || true

kill -9 -1 2>/dev/null || true # everyone in this PID namespace but us
for round in {1..100}; do
	left=
	for group in /sys/fs/cgroup/*/"$id"-n*; do
		[ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || left=$group
	done
	[ -n "$left" ] || break
	read -rt 0.1 <> <(:) || true # the dead leave their groups a moment later
done
rm -rf "$dir"
[ -z "$left" ] || { echo "cgroup $left cannot be removed after $round rounds" >&2; exit 1; }
