#!/bin/bash
# pack.sh OUT.tar NAME ROOT USER ENTRYPOINT-AS-JSON: the folder ROOT as an OCI
# archive with one image of one layer.
set -euo pipefail
out=$1 name=$2 root=$3 user=$4 entrypoint=$5
layout=$(mktemp -d)
trap 'rm -rf "$layout"' EXIT
mkdir -p "$layout/blobs/sha256"

blob() { # FILE: moves it among the blobs and prints its digest and size
	local sum
	sum=$(sha256sum "$1" | cut -d' ' -f1)
	mv "$1" "$layout/blobs/sha256/$sum"
	printf '"digest":"sha256:%s","size":%s' "$sum" "$(stat -c %s "$layout/blobs/sha256/$sum")"
}
media=application/vnd.oci.image

tar -C "$root" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$layout/layer" .
layer=$(blob "$layout/layer")
diff=${layer#'"digest":'} # the layer is not compressed: its digest is that of its content
printf '{"architecture":"%s","os":"linux","config":{"User":"%s","Env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],"Entrypoint":%s},"rootfs":{"type":"layers","diff_ids":[%s]}}' \
	"$(go env GOARCH)" "$user" "$entrypoint" "${diff%%,*}" >"$layout/config"
config=$(blob "$layout/config")
printf '{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"%s",%s},"layers":[{"mediaType":"%s",%s}]}' \
	$media.manifest.v1+json $media.config.v1+json "$config" $media.layer.v1.tar "$layer" >"$layout/manifest"
manifest=$(blob "$layout/manifest")
printf '{"schemaVersion":2,"mediaType":"%s","manifests":[{"mediaType":"%s",%s,"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}]}' \
	$media.index.v1+json $media.manifest.v1+json "$manifest" "$name" "$name" >"$layout/index.json"
echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
tar -C "$layout" -cf "$out" oci-layout index.json blobs
