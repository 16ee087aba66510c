#!/bin/bash
# node.sh outer: joins the cgroups of a node and makes its namespaces; then, as
# their first process, node.sh inner: the node itself. Runs in the sandbox.
# Environment: CLUSTER (folder of the cluster), ID, N (number), PROXY, CNI_BIN.
set -euo pipefail
name=n$N dir=$CLUSTER/$name ip=10.99.0.1$N pods=10.244.$N.0/24
scripts=$CLUSTER/scripts

if [ "$1" = outer ]; then
	for controller in cpu cpuacct cpuset memory devices freezer blkio pids hugetlb systemd; do
		parent=/sys/fs/cgroup/$controller group=/sys/fs/cgroup/$controller/$ID-$name
		[ -d "$parent" ] || continue
		[ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + # of the boot before
		mkdir "$group"
		if [ "$controller" = cpuset ]; then
			cat "$parent/cpuset.cpus" >"$group/cpuset.cpus"
			cat "$parent/cpuset.mems" >"$group/cpuset.mems"
		fi
		echo 0 >"$group/cgroup.procs"
	done
	exec unshare --net --mount --uts --ipc --cgroup --pid --fork --kill-child --propagation private "$0" inner
fi

# /proc is still the sandbox's: our id there, and the way back to its network.
read -r pid _ </proc/self/stat
echo "$pid" >"$dir/init.pid.new"
ip link add eth0 type veth peer name "v$N.new" netns /proc/1/ns/net
nsenter --net=/proc/1/ns/net -- bash -ec "
	! ip link show v$N >/dev/null 2>&1 || ip link del v$N # of the boot before
	ip link set v$N.new name v$N master br0 up
	ip route replace $pods via $ip"
mv "$dir/init.pid.new" "$dir/init.pid"

hostname "$name"
mount -t proc proc /proc
mount -t sysfs sysfs /sys # this network namespace's view
mount -t tmpfs tmpfs /sys/fs/cgroup
awk -F: '$1 > 0 { print $2 }' /proc/self/cgroup | while read -r controller; do
	mkdir "/sys/fs/cgroup/${controller#name=}"
	mount -t cgroup -o "${controller/#name=/none,name=}" cgroup "/sys/fs/cgroup/${controller#name=}"
done

# The kubelet writes these, for the whole machine: a file over each keeps the
# machine's own settings. kernel.panic_on_oops=1 would be no joke.
while read -r key value; do
	file=/proc/sys/$key
	[ -e "$file" ] || continue
	echo "$value" >"$dir/sysctl-${key//\//.}"
	mount --bind "$dir/sysctl-${key//\//.}" "$file"
done <<-SYSCTLS
	vm/overcommit_memory 1
	vm/panic_on_oom 0
	kernel/panic 10
	kernel/panic_on_oops 1
	kernel/keys/root_maxkeys 1000000
	kernel/keys/root_maxbytes 25000000
SYSCTLS
# A node that is started anew is one that was booted anew.
cat /proc/sys/kernel/random/uuid >"$dir/boot_id"
mount --bind "$dir/boot_id" /proc/sys/kernel/random/boot_id

# What the node writes elsewhere is its own, too: an installer leaves nothing
# on the machine.
for path in etc opt var usr/libexec; do
	mkdir -p "$dir/over/$path/upper" "$dir/over/$path/work" "/$path"
	mount -t overlay -o "lowerdir=/$path,upperdir=$dir/over/$path/upper,workdir=$dir/over/$path/work" overlay "/$path"
done
mount --make-rshared /
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/lock /run/tmp
# Every path is the standard one. These are no overlays, since containerd makes
# overlays in them, and tests look into $dir/fs.
for path in var/lib/kubelet var/lib/containerd var/lib/cni var/lib/weft var/log/pods var/log/containers etc/cni/net.d opt/cni/bin etc/containerd; do
	mkdir -p "$dir/fs/$path" "/$path"
	mount --bind "$dir/fs/$path" "/$path"
	mount --make-rshared "/$path"
done

ip link set lo up
ip link set eth0 up
ip addr add "$ip/24" dev eth0
ip route add default via 10.99.0.1 # which knows the way to the Pods of other nodes
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
printf 'nameserver 127.0.0.1\n' >/run/resolv.conf

if [ ! -e "$dir/installed" ]; then
	cp "$CNI_BIN"/* /opt/cni/bin/
	[ ! -s "$dir/cni.conflist" ] || cp "$dir/cni.conflist" /etc/cni/net.d/10-primary.conflist
	cp "$dir/containerd.toml" /etc/containerd/config.toml
fi

export HOME=/root TMPDIR=/run/tmp # containerd and kubelet look for them
"$scripts/keep.sh" "$dir" containerd containerd --config /etc/containerd/config.toml &
for _ in {1..600}; do
	! ctr version >/dev/null 2>&1 || break
	read -rt 0.1 <> <(:) || true
done
if [ ! -e "$dir/installed" ]; then
	for image in "$CLUSTER"/images/*.tar; do
		ctr -n k8s.io images import --local "$image"
	done
	ctr -n k8s.io images label lab.local/pause:1 io.cri-containerd.pinned=pinned
	touch "$dir/installed"
fi
if [ "$PROXY" = 1 ]; then
	"$scripts/keep.sh" "$dir" kube-proxy kube-proxy --kubeconfig "$CLUSTER/proxy.kubeconfig" --hostname-override "$name" \
		--proxy-mode nftables --conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0 --conntrack-tcp-timeout-close-wait 0 &
fi
"$scripts/keep.sh" "$dir" kubelet kubelet --config "$dir/kubelet.yaml" --kubeconfig "$dir/kubelet.kubeconfig" \
	--hostname-override "$name" --node-ip "$ip" --v 1 &
wait
