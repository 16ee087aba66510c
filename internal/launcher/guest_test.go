package launcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/qemu"
	"github.com/weftnet/weft/internal/vmnet"
	"github.com/weftnet/weft/test/vmlab"
)

// guestSpec is a machine that boots the small guest.
func (l *lab) guestSpec(kernelArgs string, nics ...vmnet.NIC) Spec {
	l.t.Helper()
	small := vmlab.SmallGuest(l.t)
	spec := l.spec(nics...)
	dir := passable(l.t)
	spec.Machine.Kernel, spec.Machine.Initrd = copyFile(l.t, small.Kernel, dir), copyFile(l.t, small.Initrd, dir)
	spec.Machine.Cmdline = vmlab.KernelArgs(kernelArgs)
	spec.Machine.MemoryBytes = 256 << 20
	return spec
}

// copyFile puts a file where every user can read it.
func copyFile(t testing.TB, from, dir string) string {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, filepath.Base(from))
	if err := os.WriteFile(to, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return to
}

// agent waits until the guest's agent is there and connects to it.
func agent(t *testing.T, process *Process, client *qemu.Client) *qemu.Agent {
	t.Helper()
	err := poll(t.Context(), vmlab.Patience, func() (bool, error) { return client.AgentOpen(t.Context()) })
	if err != nil {
		t.Fatalf("wait for the guest agent: %v", err)
	}
	channel, err := process.Agent(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { channel.Close() })
	return channel
}

// inGuest runs a shell command in the guest and gives its output.
func inGuest(t *testing.T, channel *qemu.Agent, command string) string {
	t.Helper()
	result, err := channel.Exec(testContext(t), qemu.Command{Path: "/bin/sh", Args: []string{"-c", command}})
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	if result.ExitCode != 0 {
		t.Fatalf("%s: exit code %d: %s", command, result.ExitCode, result.Stderr)
	}
	return strings.TrimSpace(string(result.Stdout))
}

// guestNICs says where the guest sees each NIC, by MAC.
const guestNICs = `for n in /sys/class/net/eth*; do d=$(readlink -f $n/device); case $d in */virtio*) d=${d%/*};; esac
	echo "$(cat $n/address) ${d##*/} mtu $(cat $n/mtu) queues $(ls -d $n/queues/rx-* | wc -l)"; done | sort`

// TestGuest runs a guest's whole life: boot, agent, console, cable, hotplug,
// reboot, an agent of ours that dies, and the power button.
func TestGuest(t *testing.T) {
	vmLane(t)
	l := newLab(t)
	disks := passable(t)
	disk := func(name string, make func(path string) error) string {
		path := filepath.Join(disks, name)
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	owner := qemu.Owner{UID: testUID, GID: testUID}
	spec := l.guestSpec("",
		l.nic(0, nil),
		l.nic(2, func(n *vmnet.NIC) { n.Queues = 2; n.MTU = 1400 }),
		l.nic(9, func(n *vmnet.NIC) { n.LinkUp = false }),
		l.nic(10, func(n *vmnet.NIC) { n.PCIAddress = "0000:00:14.0"; n.ACPIIndex = 7 }),
	)
	spec.Machine.CPU.Cores = 2 // a queue needs a CPU
	spec.Machine.Disks = []qemu.Disk{
		{Name: "data", Serial: "DATA1", Format: qemu.QCOW2, Path: disk("data,1.qcow2", func(p string) error { return qemu.CreateDisk(t.Context(), p, 32<<20, owner) })},
		{Name: "scsi", Bus: qemu.BusSCSI, Path: disk("scsi.raw", func(p string) error { return qemu.CreateRawDisk(p, 16<<20, owner) })},
		{Name: "seed", Bus: qemu.BusSCSI, CDROM: true, Path: disk("seed.iso", func(p string) error {
			return qemu.WriteNoCloud(t.Context(), p, qemu.NoCloud{MetaData: []byte("instance-id: i\n")}, owner)
		})},
	}
	spec.Machine.RootPorts = qemu.RootPortsFor(spec.Machine.NICs)
	spec.Machine.Default()
	process := l.start(spec)
	client := qmp(t, process)
	channel := agent(t, process, client)
	ctx := testContext(t)

	if got, err := channel.HostName(ctx); err != nil || got != "weft-guest" {
		t.Errorf("host name %q, %v", got, err)
	}
	if info, err := channel.Info(ctx); err != nil || !info.Commands["guest-exec"] {
		t.Errorf("agent %+v, %v", info, err)
	}
	if got, err := channel.OSInfo(ctx); err != nil || !strings.HasPrefix(got.KernelRelease, "6.") {
		t.Errorf("OS %+v, %v", got, err)
	}
	links, err := channel.NetworkInterfaces(ctx)
	if err != nil || len(links) != 5 || links[0].Name != "lo" {
		t.Errorf("links %+v, %v", links, err)
	}
	if result, err := channel.Exec(ctx, qemu.Command{Path: "/bin/sh", Args: []string{"-c", "cat; exit 3"}, Stdin: []byte("hello")}); err != nil || result.ExitCode != 3 || string(result.Stdout) != "hello" {
		t.Errorf("exec %+v, %v", result, err)
	}

	// The layout of layout.go, as the guest sees it.
	want := []string{
		"02:00:00:00:01:00 0000:01:00.0 mtu 1500 queues 1",
		"02:00:00:00:01:02 0000:03:00.0 mtu 1400 queues 2",
		"02:00:00:00:01:09 0000:0a:00.0 mtu 1500 queues 1",
		"02:00:00:00:01:0a 0000:00:14.0 mtu 1500 queues 1",
	}
	if diff := cmp.Diff(want, strings.Split(inGuest(t, channel, guestNICs), "\n")); diff != "" {
		t.Errorf("NICs in the guest (-want +got):\n%s", diff)
	}
	if got := inGuest(t, channel, "echo $(cat /sys/block/vda/serial);cat /sys/block/vda/size /sys/block/sda/size; ls -d /sys/block/sr0"); got != "DATA1\n65536\n32768\n/sys/block/sr0" {
		t.Errorf("disks: %q", got)
	}
	// What is on the disk when the guest says so is in the file.
	inGuest(t, channel, "echo kept | dd of=/dev/sda conv=fsync")
	if data, err := os.ReadFile(filepath.Join(disks, "scsi.raw")); err != nil || !strings.HasPrefix(string(data[:8]), "kept\n") {
		t.Errorf("disk holds %q, %v", data[:8], err)
	}

	t.Run("cable", func(t *testing.T) { checkCable(t, client, channel) })
	t.Run("mac", func(t *testing.T) { checkMAC(t, client, channel) })
	t.Run("console", func(t *testing.T) { checkConsole(t, l, process) })
	t.Run("hotplug", func(t *testing.T) { checkHotplug(t, l, client, channel) })
	channel = checkReboot(t, process, client, channel)
	if diff := cmp.Diff(want, strings.Split(inGuest(t, channel, guestNICs), "\n")); diff != "" {
		t.Errorf("NICs after the reboot (-want +got):\n%s", diff)
	}

	// The power button: a guest that listens ends by itself.
	exit, err := process.Stop(ctx, vmlab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	checkExit(t, exit, Exit{Reason: Shutdown, Requested: true, QEMUReason: "guest-shutdown"})
	serial, err := os.ReadFile(SerialLog(l.dir))
	if err != nil || strings.Count(string(serial), "weft-guest: kernel") != 2 {
		t.Errorf("the console's log shows not two boots (%v):\n%s", err, serial)
	}
}

// carrier is how the guest sees a cable, by the NIC's MAC.
func carrier(mac string) string {
	return `for n in /sys/class/net/eth*; do [ $(cat $n/address) = ` + mac + ` ] && ip link set ${n##*/} up && cat $n/carrier; done`
}

func awaitGuest(t *testing.T, channel *qemu.Agent, command, want string) {
	t.Helper()
	var got string
	err := poll(t.Context(), 30*time.Second, func() (bool, error) {
		got = inGuest(t, channel, command)
		return got == want, nil
	})
	if err != nil {
		t.Fatalf("%s: %q, want %q", command, got, want)
	}
}

func checkCable(t *testing.T, client *qemu.Client, channel *qemu.Agent) {
	command := carrier("02:00:00:00:01:09")
	if got := inGuest(t, channel, command); got != "0" {
		t.Errorf("a NIC with state down has carrier %s", got)
	}
	for _, up := range []bool{true, false, true} {
		if err := client.SetLink(t.Context(), "ua-net9", up); err != nil {
			t.Fatal(err)
		}
		awaitGuest(t, channel, command, map[bool]string{true: "1", false: "0"}[up])
	}
}

// checkMAC changes a MAC in the guest: the machine knows both.
func checkMAC(t *testing.T, client *qemu.Client, channel *qemu.Agent) {
	change := func(from, to string) {
		inGuest(t, channel, "for n in /sys/class/net/eth*; do [ $(cat $n/address) = "+from+" ] || continue; n=${n##*/}; ip link set $n down; ip link set $n address "+to+"; ip link set $n up; done")
	}
	change("02:00:00:00:01:00", "02:00:00:00:77:77")
	defer change("02:00:00:00:77:77", "02:00:00:00:01:00")
	nics, err := client.NICs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, nic := range nics {
		got[nic.Network] = fmt.Sprintf("%s %s %02x:%02x.%x", nic.MAC, nic.MACInUse, nic.Bus, nic.Slot, nic.Function)
	}
	want := map[string]string{
		"net0":  "02:00:00:00:01:00 02:00:00:00:77:77 01:00.0",
		"net2":  "02:00:00:00:01:02 02:00:00:00:01:02 03:00.0",
		"net9":  "02:00:00:00:01:09 02:00:00:00:01:09 0a:00.0",
		"net10": "02:00:00:00:01:0a 02:00:00:00:01:0a 00:14.0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("NICs of the machine (-want +got):\n%s", diff)
	}
}

// checkConsole types at the root shell on the serial port.
func checkConsole(t *testing.T, l *lab, process *Process) {
	console, err := process.Console(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	if err := console.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(console, "\necho con$((40+2))sole\n"); err != nil {
		t.Fatal(err)
	}
	var heard strings.Builder
	buffer := make([]byte, 512)
	for !strings.Contains(heard.String(), "con42sole") {
		n, err := console.Read(buffer)
		if err != nil {
			t.Fatalf("%v after %q", err, heard.String())
		}
		heard.Write(buffer[:n])
	}
	// QEMU writes the log after it has told us.
	vmlab.Eventually(t, "the log to have what the console said", func() bool {
		serial, err := os.ReadFile(SerialLog(l.dir))
		return err == nil && strings.Contains(string(serial), "con42sole")
	})
}

// checkHotplug proves the room the root ports are for: a NIC can be added on
// the last port, which is not function 0 of its device, and taken away.
func checkHotplug(t *testing.T, l *lab, client *qemu.Client, channel *qemu.Agent) {
	ctx := testContext(t)
	l.tap("tap99", false)
	last := qemu.RootPortsFor([]vmnet.NIC{{Slot: 10}}) - 1
	for command, args := range map[string]map[string]any{
		"netdev_add": {"type": "tap", "id": "host-new", "ifname": "tap99", "script": "no", "downscript": "no"},
	} {
		if err := client.Execute(ctx, command, args, nil); err != nil {
			t.Fatal(err)
		}
	}
	device := map[string]any{"driver": "virtio-net-pci-non-transitional", "id": "ua-new", "netdev": "host-new", "mac": "02:00:00:00:01:99", "bus": fmt.Sprintf("rp%d", last), "romfile": ""}
	if err := client.Execute(ctx, "device_add", device, nil); err != nil {
		t.Fatal(err)
	}
	command := `cat /sys/class/net/eth*/address | grep -c 02:00:00:00:01:99 || true`
	awaitGuest(t, channel, command, "1")
	if got := inGuest(t, channel, guestNICs); !strings.Contains(got, fmt.Sprintf("02:00:00:00:01:99 0000:%02x:00.0", last+1)) {
		t.Errorf("new NIC is elsewhere: %s", got)
	}
	if err := client.Execute(ctx, "device_del", map[string]string{"id": "ua-new"}, nil); err != nil {
		t.Fatal(err)
	}
	for event := range client.Events() {
		if event.Name == "DEVICE_DELETED" && strings.Contains(string(event.Data), `"ua-new"`) {
			break
		}
	}
	awaitGuest(t, channel, command, "0")
	if err := client.Execute(ctx, "netdev_del", map[string]string{"id": "host-new"}, nil); err != nil {
		t.Fatal(err)
	}
}

// checkReboot has the guest reboot: QEMU stays, and its agent comes again.
func checkReboot(t *testing.T, process *Process, client *qemu.Client, channel *qemu.Agent) *qemu.Agent {
	t.Helper()
	boot := inGuest(t, channel, "cat /proc/sys/kernel/random/boot_id")
	if err := channel.Shutdown(testContext(t), "reboot"); err != nil {
		t.Fatal(err)
	}
	for event := range client.Events() {
		if event.Name == "RESET" {
			break
		}
	}
	if err := channel.Close(); err != nil {
		t.Fatal(err)
	}
	channel = agent(t, process, client)
	if again := inGuest(t, channel, "cat /proc/sys/kernel/random/boot_id"); again == boot {
		t.Error("the guest did not reboot")
	}
	return channel
}

// TestGuestOutlivesAgent kills the agent that started a guest: the guest goes
// on, and is shut down by one that comes later.
func TestGuestOutlivesAgent(t *testing.T) {
	vmLane(t)
	l := newLab(t)
	cmd := startStandIn(t, l.guestSpec("", l.nic(0, nil)))
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	process, err := Adopt(testContext(t), l.dir)
	if err != nil {
		t.Fatal(err)
	}
	l.cleanup(process)
	client := qmp(t, process)
	channel := agent(t, process, client)
	before := inGuest(t, channel, "cat /proc/sys/kernel/random/boot_id")
	// Another one comes, while the first has its connections: it waits, and gets
	// them when they are free.
	second, err := Adopt(testContext(t), l.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := second.QMP(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second monitor while the first is connected: %v", err)
	}
	if err := errors.Join(client.Close(), channel.Close()); err != nil {
		t.Fatal(err)
	}
	client = qmp(t, second)
	channel = agent(t, second, client)
	if after := inGuest(t, channel, "cat /proc/sys/kernel/random/boot_id"); after != before {
		t.Error("the guest was restarted")
	}
	if err := second.signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	exit, err := process.Wait(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	checkExit(t, exit, Exit{Reason: Shutdown, Requested: true, QEMUReason: "guest-shutdown"})
}
