#!/bin/bash
# images.sh DIR: the images of the cluster as OCI archives, from programs of
# this machine: no registry is asked.
#
#   lab.local/pause:1    what holds a Pod's namespaces
#   lab.local/toolbox:1  sleeps; has a shell and the network tools that are installed
set -euo pipefail
out=$1
work=$(mktemp -d -p "$out")
trap 'rm -rf "$work"' EXIT

pack() { # NAME ROOT USER ENTRYPOINT-AS-JSON
	"${0%/*}/pack.sh" "$out/$1.tar" "lab.local/$1:1" "${@:2}"
}

busybox=$(command -v busybox)
sleeper='["/bin/sh","-c","trap \"exit 0\" TERM INT; while :; do sleep 86400 & wait $!; done"]'

pause=$work/pause
mkdir -p "$pause/bin"
cp "$busybox" "$pause/bin/busybox"
ln -s busybox "$pause/bin/sh"
pack pause "$pause" 65535:65535 "${sleeper/sleep 86400/\/bin\/busybox sleep 86400}"

tools=$work/toolbox
mkdir -p "$tools"/{bin,sbin,usr/bin,usr/sbin,etc,tmp,proc,sys,dev,root,run,var}
chmod 1777 "$tools/tmp"
ln -s /run "$tools/var/run"
cp "$busybox" "$tools/bin/busybox"
for applet in $("$busybox" --list); do
	[ "$applet" = busybox ] || ln -sf busybox "$tools/bin/$applet"
done
# dash is the shell: that of busybox would prefer its own ip and ping.
for program in dash curl ip bridge ss tc ping arping tcpdump iperf3 ethtool nft; do
	file=$(command -v "$program") || continue
	rm -f "$tools/bin/$program"
	cp -L "$file" "$tools/bin/$program"
	for library in $(ldd "$file" 2>/dev/null | grep -oE '/[^ ]+\.so[^ ]*'); do
		[ -e "$tools$library" ] || { mkdir -p "$tools${library%/*}" && cp -L "$library" "$tools$library"; }
	done
done
ln -sf dash "$tools/bin/sh"
printf 'root:x:0:0:root:/root:/bin/sh\n' >"$tools/etc/passwd"
printf 'root:x:0:\n' >"$tools/etc/group"
pack toolbox "$tools" "" "$sleeper"
