#!/bin/bash
# Builds the small guest: Debian's cloud kernel and an initramfs of busybox,
# qemu-ga and weft-guest, as an OCI archive whose path is the last line printed.
#
# Downloads are kept in $WEFT_CACHE (default ~/.cache/weft); a run with nothing
# to do takes about a second. WEFT_GUEST_REFRESH=1 looks for a newer kernel.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${WEFT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/weft}/guest
archive=$cache/guest.oci.tar
image=localhost/weft/guest:latest

say() { echo "guest: $*"; }
die() { # PROBLEM REMEDY
	echo "guest: $1" >&2
	echo "guest: remedy: $2" >&2
	exit 1
}

[ "$(uname -m)" = x86_64 ] || die "the small guest is built for x86_64 only, this is $(uname -m)" \
	"load an image of your own with: weft image load FILE"
command -v go >/dev/null || die "go is not installed" "install the Go toolchain go.mod names"

mkdir -p "$cache/deb"
exec 9>"$cache/lock"
flock 9 # several tests may want the guest at once

updated=
update_lists() {
	[ -n "$updated" ] && return
	say "apt-get update"
	apt-get update -qq >&2 || die "apt-get update does not work" "check /etc/apt/sources.list and the network"
	updated=1
}

# Missing tools are installed: COMMAND=PACKAGE.
missing=()
for pair in busybox=busybox-static cpio=cpio modprobe=kmod strip=binutils xz=xz-utils; do
	PATH=$PATH:/sbin:/usr/sbin command -v "${pair%=*}" >/dev/null || missing+=("${pair#*=}")
done
busybox=$(command -v busybox || true)
if [ -n "$busybox" ] && ldd "$busybox" >/dev/null 2>&1; then # a dynamic one does not run alone
	missing+=(busybox-static)
fi
if [ ${#missing[@]} -gt 0 ]; then
	[ "$(id -u)" = 0 ] || die "missing packages: ${missing[*]}" "as root: apt-get install ${missing[*]}"
	update_lists
	say "installing ${missing[*]}"
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 ||
		die "cannot install ${missing[*]}" "install them by hand"
fi
busybox=$(command -v busybox)
PATH=$PATH:/sbin:/usr/sbin

# The stamp file of a download names what was unpacked; a half one has none.
fetch() { # PACKAGE DIRECTORY: unpack PACKAGE there
	local dir=$cache/$2
	if [ -e "$dir.done" ] && { [ -z "${WEFT_GUEST_REFRESH:-}" ] || [ "$(cat "$dir.done")" = "$1" ]; }; then
		return
	fi
	say "downloading $1"
	rm -rf "$dir" "$dir.done" "$cache/deb/$1"_*.deb
	(cd "$cache/deb" && apt-get download -qq -o APT::Sandbox::User=root "$1" >&2) ||
		die "cannot download $1" "run apt-get update, check the network, and start again"
	mkdir -p "$dir"
	dpkg-deb -x "$cache/deb/$1"_*.deb "$dir"
	rm -f "$cache/deb/$1"_*.deb
	echo "$1" >"$dir.done"
}

kernel_package() {
	apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }'
}

if [ ! -e "$cache/kernel.done" ] || [ -n "${WEFT_GUEST_REFRESH:-}" ]; then
	package=$(kernel_package)
	if [ -z "$package" ]; then
		update_lists
		package=$(kernel_package)
	fi
	[ -n "$package" ] || die "apt knows no linux-image-cloud-amd64" "use a Debian machine with its main archive"
	fetch "$package" kernel
fi
fetch qemu-guest-agent qga
version=$(ls "$cache/kernel/lib/modules")
[ -e "$cache/kernel/lib/modules/$version/modules.dep" ] || depmod -b "$cache/kernel" "$version"

say "compiling weft-guest"
(cd "$here" && CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$cache/weft-guest" ./cmd/weft-guest &&
	go build -o "$cache/mkimage" ./mkimage) || die "weft-guest does not compile" "see the compiler's message above"

stamp=$({ cat "$here/build.sh" "$here"/rootfs/* "$cache/weft-guest" "$cache/mkimage" "$busybox" && echo "$version $(cat "$cache/qga.done")"; } | sha256sum)
if [ -e "$archive" ] && [ "$(cat "$cache/stamp" 2>/dev/null)" = "$stamp" ]; then
	say "up to date, kernel $version"
	echo "$archive"
	exit 0
fi

say "packing the initramfs, kernel $version"
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,sbin,dev,proc,sys,etc,run,tmp,root,lib/modules,usr/bin}
cp "$busybox" "$root/bin/busybox"
cp "$cache/weft-guest" "$root/bin/weft-guest"
cp "$here/rootfs/init" "$root/init"
cp "$here/rootfs/shutdown" "$root/sbin/shutdown"
cp "$here/rootfs/bash" "$root/bin/bash"
ln -s ../../bin/env "$root/usr/bin/env"
cp "$here/rootfs/os-release" "$root/etc/os-release"
mkdir -p "$root/usr/share/udhcpc"
cp "$here/rootfs/udhcpc.script" "$root/usr/share/udhcpc/default.script"

# modules NAME MODULE...: the files and, in lib/modules/NAME, their load order.
modules() {
	local list=$root/lib/modules/$1 module file
	shift
	for module; do
		modprobe -d "$cache/kernel" -S "$version" --show-depends "$module" ||
			die "kernel $version has no module $module" "report it: the guest's module list must change"
	done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$list.files"
	while read -r file; do
		cp "$file" "$root/lib/modules/"
		strip --strip-debug "$root/lib/modules/${file##*/}"
		echo "${file##*/}"
	done <"$list.files" >"$list"
	rm "$list.files"
}
modules base virtio_pci virtio_net virtio_console virtio_blk button evdev
modules rng virtio-rng
modules scsi virtio_scsi sd_mod sr_mod
modules iso isofs

# qemu-ga with the libraries it names, from this machine.
agent=$cache/qga/usr/sbin/qemu-ga
if ldd "$agent" | grep -q 'not found'; then
	[ "$(id -u)" = 0 ] || die "libraries of qemu-ga are missing" "as root: apt-get install qemu-guest-agent"
	update_lists
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		libglib2.0-0 liburing2 libnuma1 libudev1 >&2 || die "cannot install qemu-ga's libraries" "apt-get install qemu-guest-agent"
fi
cp "$agent" "$root/bin/qemu-ga"
ldd "$agent" | grep -o '/[^ ]*' | sort -u | while read -r library; do
	mkdir -p "$root/$(dirname "$library")"
	cp -L "$library" "$root/$library"
	strip --strip-unneeded "$root/$library" 2>/dev/null || true
done

find "$root" -exec touch -h -d @0 {} +
(cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --reproducible --quiet) | gzip -n -6 >"$cache/initrd.tmp"
mv "$cache/initrd.tmp" "$cache/initrd"
ln -sf "kernel/boot/vmlinuz-$version" "$cache/vmlinuz"
"$cache/mkimage" -o "$archive" "$image" "/boot/vmlinuz=$cache/kernel/boot/vmlinuz-$version" "/boot/initrd=$cache/initrd"
echo "$stamp" >"$cache/stamp"
say "built $image, kernel $version, initrd $(du -k "$cache/initrd" | cut -f1) KiB"
echo "$archive"
