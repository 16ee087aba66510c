#!/usr/bin/env bash
# A machine of its own to try weft in, made of network namespaces, so that
# nothing on the real network is touched:
#
#    NAME-out                 NAME-node                    NAME-lan
#    eth0 198.51.100.1  <-->  eth0 198.51.100.2 (uplink)
#         2001:db8:51::1           2001:db8:51::2
#                             eth1 (no address)      <-->  lan0 172.16.1.1 192.168.1.1 10.100.0.1
#                                                               10.100.6.1, router to 198.18.0.1
#
#   lab.sh up NAME     make it        lab.sh down NAME   remove it
# Then: nsenter --net=/run/netns/NAME-node weft --root DIR up -f examples/three-networks.yaml
set -euo pipefail

up() {
	local name=$1
	for part in out node lan; do
		ip netns add "$name-$part"
		ip -n "$name-$part" link set lo up
	done
	ip -n "$name-node" link add eth0 type veth peer name eth0 netns "$name-out"
	ip -n "$name-node" link add eth1 type veth peer name port0 netns "$name-lan"
	ip -n "$name-lan" link add lan0 type bridge
	ip -n "$name-lan" link set port0 master lan0
	for link in node:eth0 node:eth1 out:eth0 lan:port0 lan:lan0; do
		ip -n "$name-${link%:*}" link set "${link#*:}" up
	done
	ip -n "$name-out" addr add 198.51.100.1/24 dev eth0
	ip -n "$name-out" addr add 2001:db8:51::1/64 dev eth0 nodad
	ip -n "$name-node" addr add 198.51.100.2/24 dev eth0
	ip -n "$name-node" addr add 2001:db8:51::2/64 dev eth0 nodad
	ip -n "$name-node" route add default via 198.51.100.1
	ip -n "$name-node" -6 route add default via 2001:db8:51::1
	for address in 172.16.1.1/24 192.168.1.1/24 10.100.0.1/16 10.100.6.1/24; do
		ip -n "$name-lan" addr add "$address" dev lan0
	done
	ip -n "$name-lan" addr add fd00:100::1/64 dev lan0 nodad
	# what a Pod sends to the outside host's loopback address proves routing beyond the wire
	ip -n "$name-out" addr add 203.0.113.1/32 dev lo
	ip -n "$name-lan" addr add 198.18.0.1/32 dev lo
}

down() {
	local name=$1 part
	for part in out node lan; do
		ip netns del "$name-$part" 2>/dev/null || true
	done
}

case "${1:-} ${2:-}" in
"up "?*) up "$2" ;;
"down "?*) down "$2" ;;
*)
	sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
	exit 2
	;;
esac
