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

# pack NAME ROOT USER ENTRYPOINT-AS-JSON: $out/NAME.tar
pack() {
	local layout=$work/layout-$1 layer config manifest
	mkdir -p "$layout/blobs/sha256"
	tar -C "$2" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$layout/layer" .
	blob() { # FILE: moves it among the blobs and prints its digest and size
		local sum
		sum=$(sha256sum "$1" | cut -d' ' -f1)
		mv "$1" "$layout/blobs/sha256/$sum"
		printf '"digest":"sha256:%s","size":%s' "$sum" "$(stat -c %s "$layout/blobs/sha256/$sum")"
	}
	layer=$(blob "$layout/layer")
	printf '{"architecture":"%s","os":"linux","config":{"User":"%s","Env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],"Entrypoint":%s},"rootfs":{"type":"layers","diff_ids":[%s]}}' \
		"$(go env GOARCH)" "$3" "$4" "$(sed -E 's/"digest":([^,]*),.*/\1/' <<<"$layer")" >"$layout/config"
	config=$(blob "$layout/config")
	printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar",%s}]}' \
		"$config" "$layer" >"$layout/manifest"
	manifest=$(blob "$layout/manifest")
	printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",%s,"annotations":{"io.containerd.image.name":"lab.local/%s:1","org.opencontainers.image.ref.name":"lab.local/%s:1"}}]}' \
		"$manifest" "$1" "$1" >"$layout/index.json"
	echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
	tar -C "$layout" -cf "$out/$1.tar" oci-layout index.json blobs
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
