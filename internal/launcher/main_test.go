package launcher

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/qemu"
	"github.com/weftnet/weft/internal/vmnet"
	"github.com/weftnet/weft/test/vmlab"
)

// testUID is an ordinary user no account has.
const testUID = 64107

// standIn is the name under which the test binary plays an agent that starts a
// machine and is then killed.
const standIn = "weft-test-agent"

// TestMain lets the test binary be the launcher and the stand-in agent, too.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case Program:
		if err := Main(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case standIn:
		if err := standInMain(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		select {} // until killed
	}
	os.Exit(m.Run())
}

func standInMain(path string) error {
	var wrapped struct{ Dir, Spec string }
	if err := readJSON(path, &wrapped); err != nil {
		return err
	}
	var spec Spec
	if err := readJSON(wrapped.Spec, &spec); err != nil {
		return err
	}
	spec.Dir = wrapped.Dir
	if _, err := Start(context.Background(), spec); err != nil {
		return err
	}
	fmt.Println("started")
	return nil
}

// need skips a test that cannot run here; in CI that is a failure.
func need(t testing.TB, ok bool, reason string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// vmLane keeps the tests that boot a guest out of the fast lanes.
func vmLane(t *testing.T) {
	t.Helper()
	if os.Getenv("WEFT_VM") == "" {
		t.Skip("set WEFT_VM=1 to boot guests")
	}
}

// passable is a temporary directory that every user may pass through.
func passable(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// lab is a namespace and a directory for one machine.
type lab struct {
	t     testing.TB
	dir   string
	netns string
	name  string
}

func newLab(t testing.TB) *lab {
	t.Helper()
	need(t, os.Geteuid() == 0, "needs root: namespaces and another uid")
	_, err := exec.LookPath(qemu.Binary)
	need(t, err == nil, "needs qemu-system-x86_64")
	l := &lab{t: t, dir: filepath.Join(passable(t), "vm"), name: fmt.Sprintf("weft-lt%d-%d", os.Getpid(), time.Now().UnixNano()%1e6)}
	l.netns = "/run/netns/" + l.name
	l.run("ip", "netns", "add", l.name)
	t.Cleanup(func() { l.run("ip", "netns", "del", l.name) })
	return l
}

func (l *lab) run(program string, args ...string) {
	l.t.Helper()
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		l.t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
}

// tap makes a TAP for QEMU's user.
func (l *lab) tap(name string, multiQueue bool) {
	l.t.Helper()
	args := []string{"-n", l.name, "tuntap", "add", "dev", name, "mode", "tap", "user", strconv.Itoa(testUID)}
	if multiQueue {
		args = append(args, "multi_queue")
	}
	l.run("ip", args...)
	l.run("ip", "-n", l.name, "link", "set", name, "up")
}

// nic makes the TAP, too.
func (l *lab) nic(slot int, change func(*vmnet.NIC)) vmnet.NIC {
	l.t.Helper()
	nic := vmnet.NIC{
		Network: fmt.Sprintf("net%d", slot), TAP: netstate.IfName(fmt.Sprintf("tap%d", slot)),
		MAC: netstate.MAC(fmt.Sprintf("02:00:00:00:01:%02x", slot)), Model: "virtio", Queues: 1, MTU: 1500, Slot: slot, LinkUp: true,
	}
	if change != nil {
		change(&nic)
	}
	l.tap(string(nic.TAP), nic.Queues > 1)
	return nic
}

// spec is a machine with nothing to boot.
func (l *lab) spec(nics ...vmnet.NIC) Spec {
	l.t.Helper()
	launcherPath := filepath.Join(l.t.TempDir(), Program)
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.Symlink(self, launcherPath); err != nil {
		l.t.Fatal(err)
	}
	machine := qemu.Machine{
		Name: "test_" + l.name, UUID: qemu.StableUUID("test", l.name, ""), MemoryBytes: 64 << 20,
		NICs: nics, Sockets: qemu.SocketsFor(l.name), SerialLog: SerialLog(l.dir),
	}
	machine.Default()
	return Spec{Dir: l.dir, Machine: machine, NetNS: l.netns, Launcher: launcherPath, UID: testUID, GID: testUID, Grace: vmlab.Patience}
}

// start starts the machine and sees to its end.
func (l *lab) start(spec Spec) *Process {
	l.t.Helper()
	process, err := Start(testContext(l.t), spec)
	if err != nil {
		l.t.Fatal(err)
	}
	l.cleanup(process)
	return process
}

func (l *lab) cleanup(process *Process) {
	l.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := process.Stop(ctx, 0); err != nil {
			l.t.Errorf("stop: %v", err)
		}
		if process.Alive() {
			l.t.Error("alive after Stop")
		}
		process.Close()
		if l.t.Failed() {
			log, _ := os.ReadFile(Log(l.dir))
			serial, _ := os.ReadFile(SerialLog(l.dir))
			l.t.Logf("launcher.log: %s\nserial.log: %s", log, serial)
		}
	})
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func qmp(t *testing.T, process *Process) *qemu.Client {
	t.Helper()
	client, err := process.QMP(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// status reads /proc/PID/status.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			fields[key] = strings.Join(strings.Fields(value), " ")
		}
	}
	return fields
}

// sniff opens a packet socket on a TAP.
func (l *lab) sniff(device string) *os.File {
	l.t.Helper()
	var file *os.File
	err := linux.InNS(l.netns, func() error {
		index, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "packet")
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index.Index})
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { file.Close() })
	return file
}

// awaitDHCP reads until the client with this MAC sends a BOOTREQUEST.
func awaitDHCP(t *testing.T, file *os.File, mac netstate.MAC, limit time.Duration) bool {
	t.Helper()
	if err := file.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	frame := make([]byte, 2048)
	for {
		n, err := file.Read(frame)
		if os.IsTimeout(err) {
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
		// Ethernet 14, IPv4 20, UDP 8: source MAC, protocol, destination port.
		f := frame[:n]
		if n > 42 && net.HardwareAddr(f[6:12]).String() == string(mac) && f[23] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(f[36:]) == 67 {
			return true
		}
	}
}
