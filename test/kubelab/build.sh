#!/bin/bash
# Builds what a Kubernetes cluster consists of from Go modules, once for each
# machine, and prints one folder of programs for each of etcd, containerd and kube:
#
#   build.sh [PART...]      all of them without arguments
#
# A cold build takes about 15 minutes of two cores (kube is 13 of them); with
# the Go build cache kept, a new one takes under a minute. The folders are kept
# in $WEFT_CACHE (default ~/.cache/weft), named after a hash of the part's
# module files and flags; a run with nothing to do takes milliseconds.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/build
cache=${WEFT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/weft}/kubelab
parts=("$@")
[ $# -gt 0 ] || parts=(etcd containerd kube)

export CGO_ENABLED=0 GOWORK=off GOFLAGS="-trimpath -buildvcs=false"

die() { # PROBLEM REMEDY
	echo "kubelab: $1" >&2
	echo "kubelab: remedy: $2" >&2
	exit 1
}
command -v go >/dev/null || die "go is not installed" "install the Go toolchain go.mod names"

kube_version=v1.36.3 # as in build/kube/go.mod
kube_flags="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
	kube_flags+=" -X $package.gitVersion=$kube_version -X $package.gitMajor=1 -X $package.gitMinor=36"
	kube_flags+=" -X $package.gitTreeState=clean -X $package.gitCommit=lab"
done
containerd=github.com/containerd/containerd/v2
containerd_flags="-s -w -X $containerd/version.Version=2.4.2 -X $containerd/version.Package=$containerd"
containerd_tags="no_btrfs no_zfs no_devmapper no_aufs"
etcd_flags="-s -w"

# Each is called in its module, with the folder to fill, where set -e is off.
build_etcd() { go build -ldflags "$etcd_flags" -o "$1/etcd" .; }
build_containerd() {
	local program
	for program in containerd containerd-shim-runc-v2 ctr; do
		go build -tags "$containerd_tags" -ldflags "$containerd_flags" -o "$1/$program" "$containerd/cmd/$program" || return
	done
}
build_kube() {
	local program
	go build -ldflags "$kube_flags" -o "$1/kube" . || return
	for program in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
		ln -s kube "$1/$program" || return
	done
}

# folder PART: where it is, or will be.
folder() {
	local flags=$1_flags hash
	hash=$({ cat "$here/$1/go.mod" "$here/$1/go.sum" "$here/$1/main.go"; go env GOVERSION GOARCH; echo "${!flags} ${containerd_tags}"; } | sha256sum)
	echo "$cache/$1-${hash:0:16}"
}

mkdir -p "$cache"
exec 9>"$cache/lock"
for part in "${parts[@]}"; do
	dir=$(folder "$part")
	if [ ! -d "$dir" ]; then
		flock -n 9 || { echo "kubelab: waiting for another build" >&2; flock 9; }
	fi
	if [ ! -d "$dir" ]; then
		echo "kubelab: building $part; once for this machine" >&2
		began=$SECONDS
		rm -rf "$dir".tmp
		mkdir "$dir".tmp
		# A line a minute: a build of ten minutes should not look stuck.
		(while read -rt 60 <> <(:) || [ $? -gt 128 ]; do echo "kubelab: still building $part, $((SECONDS - began)) s so far" >&2; done) 9>&- &
		ticker=$!
		trap 'kill $ticker 2>/dev/null || true' EXIT
		(cd "$here/$part" && "build_$part" "$dir".tmp >&2) || die "$part does not build" "see the compiler's message above"
		kill "$ticker" 2>/dev/null || true
		mv "$dir".tmp "$dir"
		echo "kubelab: built $part in $((SECONDS - began)) s" >&2
	fi
	echo "$dir"
done
