# Runs a libvirtd of its own, in a mount namespace of its own, and has its QEMU
# driver take the domain XML in $1/domain.xml. Leaves there argv and dump.xml.
set -eu
dir=$1
for d in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
	if [ -d $d ]; then mount -t tmpfs tmpfs $d; fi
done
cp -r /etc/libvirt "$dir/etc"
cat >"$dir/etc/qemu.conf" <<'Q'
user = "root"
group = "root"
security_driver = "none"
stdio_handler = "file"
namespaces = []
cgroup_controllers = []
remember_owner = 0
Q
mount --bind "$dir/etc" /etc/libvirt
# The driver does not load without this user.
for f in passwd group; do cp /etc/$f "$dir/$f"; done
grep -q ^libvirt-qemu: "$dir/passwd" || echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin' >>"$dir/passwd"
grep -q ^libvirt-qemu: "$dir/group" || echo 'libvirt-qemu:x:64055:' >>"$dir/group"
for f in passwd group; do mount --bind "$dir/$f" /etc/$f; done
libvirtd 2>"$dir/log" &
pid=$!
trap 'kill $pid; wait $pid || true' EXIT
for _ in $(seq 300); do
	virsh -q -c qemu:///system list >/dev/null 2>&1 && break
	kill -0 $pid
	sleep 0.1
done
virsh -q -c qemu:///system define --validate "$dir/domain.xml"
virsh -q -c qemu:///system dumpxml "$(virsh -q -c qemu:///system list --all --name | head -1)" >"$dir/dump.xml"
virsh -q -c qemu:///system domxml-to-native qemu-argv "$dir/domain.xml" >"$dir/argv"
