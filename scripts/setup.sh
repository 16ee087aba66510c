#!/usr/bin/env bash
# Installs the Debian packages that weft's programs, guest and tests need, if
# any is missing, and says which. A run with nothing to do takes milliseconds:
# it looks for the files themselves and never asks apt.
set -euo pipefail

# One line for each need: PACKAGE FILE...; the package is missing unless every
# file (a glob) is there or, for a bare name, in PATH.
needs='
qemu-system-x86           qemu-system-x86_64
ipxe-qemu                 /usr/lib/ipxe/qemu/*virtio*.rom
qemu-utils                qemu-img
nftables                  nft
iproute2                  ip bridge tc
kmod                      modprobe depmod
busybox-static            busybox
cpio                      cpio
xz-utils                  xz
binutils                  strip
genisoimage               genisoimage
jq                        jq
iputils-ping              ping
tcpdump                   tcpdump
isc-dhcp-client           dhclient
ndisc6                    rdisc6
dhcpcd-base               dhcpcd
dnsmasq-base              dnsmasq
containernetworking-plugins /usr/lib/cni/bridge /usr/lib/cni/host-local /usr/lib/cni/tuning
libxml2-utils             xmllint
libvirt-clients           virsh virt-xml-validate
libvirt-daemon            libvirtd
libvirt-daemon-driver-qemu /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so
runc                      runc
curl                      curl
gcc                       gcc
libc6-dev                 /usr/include/stdlib.h
'

export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

there() { # FILE: a path or glob, or a program
	case $1 in
	/*) compgen -G "$1" >/dev/null ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

missing=()
while read -r package files; do
	[ -n "$package" ] || continue
	for file in $files; do
		if ! there "$file"; then
			missing+=("$package")
			break
		fi
	done
done <<<"$needs"

command -v go >/dev/null || {
	echo "setup: go is not installed; install the version that go.mod names" >&2
	exit 1
}
if [ ${#missing[@]} -eq 0 ]; then
	echo "setup: everything is there"
	exit 0
fi
echo "setup: missing: ${missing[*]}"
command -v apt-get >/dev/null || {
	echo "setup: this machine has no apt-get; install what these Debian packages hold: ${missing[*]}" >&2
	exit 1
}
[ "$(id -u)" = 0 ] || {
	echo "setup: not root; run: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
	exit 1
}

install() {
	DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y -qq --no-install-recommends "${missing[@]}" >"$log" 2>&1
}
update() {
	echo "setup: apt-get update"
	apt-get -o DPkg::Lock::Timeout=120 update -qq
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
updated=
if ! compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null; then
	update
	updated=1
fi
echo "setup: apt-get install ${missing[*]}"
if ! install && { [ -n "$updated" ] || ! update || ! install; }; then
	tail -n 20 "$log" >&2
	echo "setup: apt-get cannot install them; see above" >&2
	exit 1
fi
echo "setup: done"
