#!/bin/bash
# image.sh DIR: what is in weft's image, as files below DIR: the programs, built
# from this tree, and nft with its libraries, copied from this machine. The
# Dockerfile and the tests' images are made of it.
set -euo pipefail
root=$1
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo dev)}

mkdir -p "$root"/{usr/bin,usr/sbin,etc,run,tmp,var}
ln -sfn ../run "$root/var/run" # runtimes name namespaces /var/run/netns/...
CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X github.com/weftnet/weft/internal/version.Text=$version" \
	-o "$root/usr/bin/" ./cmd/weft-node ./cmd/weft-cni ./cmd/weft-cni-thin ./cmd/weft-controller

nft=$(command -v nft || command -v /usr/sbin/nft) || { echo "image.sh: nft is not installed; install the package nftables" >&2; exit 1; }
cp -L "$nft" "$root/usr/sbin/nft"
ldd "$nft" | grep -oE '/[^ ]+\.so[^ ]*' | while read -r library; do
	mkdir -p "$root${library%/*}"
	cp -L "$library" "$root$library"
done
