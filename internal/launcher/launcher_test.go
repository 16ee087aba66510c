package launcher

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/qemu"
	"github.com/weftnet/weft/internal/vmnet"
)

// TestBootROM is the canary: a machine with nothing but a bootable NIC runs
// iPXE, which asks for an address, over a TAP it may attach only as its owner.
func TestBootROM(t *testing.T) {
	l := newLab(t)
	nic := l.nic(0, func(n *vmnet.NIC) { n.BootOrder = 1 })
	frames := l.sniff("tap0")
	process := l.start(l.spec(nic))
	client := qmp(t, process)
	ctx := testContext(t)

	pid, err := process.QEMUPID(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{process.PID, pid} {
		got := status(t, pid)
		uid := strings.Repeat(strconv.Itoa(testUID)+" ", 4)
		for key, want := range map[string]string{
			"Uid": strings.TrimSpace(uid), "Gid": strings.TrimSpace(uid), "Groups": "", "NoNewPrivs": "1",
			"CapInh": strings.Repeat("0", 16), "CapPrm": strings.Repeat("0", 16), "CapEff": strings.Repeat("0", 16),
			"CapBnd": strings.Repeat("0", 16), "CapAmb": strings.Repeat("0", 16),
		} {
			if got[key] != want {
				t.Errorf("process %d (%s): %s is %q, want %q", pid, got["Name"], key, got[key], want)
			}
		}
	}
	if got := status(t, pid)["Seccomp"]; got != "2" {
		t.Errorf("QEMU's Seccomp is %s, want 2 (filter)", got)
	}
	running, err := client.Status(ctx)
	if err != nil || !running.Running {
		t.Fatalf("status %+v, %v; want running", running, err)
	}
	if !awaitDHCP(t, frames, nic.MAC, 90*time.Second) {
		t.Fatal("no DHCP request from iPXE")
	}
	nics, err := client.NICs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []qemu.NICFacts{{Network: "net0", MAC: nic.MAC, MACInUse: nic.MAC, Bus: 1, PCIID: "1af4:1041"}}
	if diff := cmp.Diff(want, nics, cmp.Transformer("nil", func(f qemu.NICFacts) qemu.NICFacts { f.MulticastTable = nil; return f })); diff != "" {
		t.Errorf("NICs (-want +got):\n%s", diff)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Errorf("the host's TUN device is gone: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), " /dev/net ") {
		t.Errorf("the launcher's mounts show outside (%v)", err)
	}
}

// TestModels sees every NIC model work, by its option ROM asking for an address.
func TestModels(t *testing.T) {
	vmLane(t)
	version, err := qemu.DetectVersion(t.Context(), qemu.Binary)
	if err != nil {
		t.Fatal(err)
	}
	for _, model := range qemu.NICModels() {
		t.Run(model, func(t *testing.T) {
			l := newLab(t)
			nic := l.nic(0, func(n *vmnet.NIC) { n.BootOrder = 1; n.Model = model })
			spec := l.spec(nic)
			if model == "igb" && version.Major < 8 {
				var refusal *hint.Error
				if _, err := Start(testContext(t), spec); !errors.As(err, &refusal) || !strings.Contains(refusal.Problem, "has no igb") {
					t.Errorf("start: %v", err)
				}
				return
			}
			frames := l.sniff("tap0")
			l.start(spec)
			if !awaitDHCP(t, frames, nic.MAC, 90*time.Second) {
				t.Fatal("no DHCP request")
			}
		})
	}
}

// TestLinkDown sees that a NIC whose cable is out never sends, from the first
// moment, and does once it is put in.
func TestLinkDown(t *testing.T) {
	vmLane(t)
	l := newLab(t)
	nic := l.nic(0, func(n *vmnet.NIC) { n.BootOrder = 1; n.LinkUp = false })
	frames := l.sniff("tap0")
	process := l.start(l.spec(nic))
	if awaitDHCP(t, frames, nic.MAC, 8*time.Second) {
		t.Fatal("a NIC without a cable sent")
	}
	client := qmp(t, process)
	ctx := testContext(t)
	if err := client.SetLink(ctx, qemu.DeviceID(nic.Network), true); err != nil {
		t.Fatal(err)
	}
	if err := client.Reset(ctx); err != nil { // iPXE has given up by now
		t.Fatal(err)
	}
	if !awaitDHCP(t, frames, nic.MAC, 90*time.Second) {
		t.Fatal("no DHCP request with the cable in")
	}
}

// TestAdopt kills the agent that started a machine and finds the machine again.
func TestAdopt(t *testing.T) {
	l := newLab(t)
	spec := l.spec(l.nic(0, nil))
	agent := startStandIn(t, spec)
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = agent.Wait() // it was killed
	ctx := testContext(t)
	process, err := Adopt(ctx, l.dir)
	if err != nil {
		t.Fatal(err)
	}
	l.cleanup(process)
	if diff := cmp.Diff(spec, process.Spec); diff != "" {
		t.Errorf("adopted spec (-want +got):\n%s", diff)
	}
	if !process.Alive() {
		t.Fatal("not alive")
	}
	if _, err := Start(ctx, spec); !errors.Is(err, ErrRunning) {
		t.Errorf("second start: %v, want ErrRunning", err)
	}
	client := qmp(t, process)
	if got, err := client.Status(ctx); err != nil || !got.Running {
		t.Fatalf("status %+v, %v; want running", got, err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := process.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait with a deadline: %v", err)
	}
	if err := client.Quit(ctx); err != nil {
		t.Fatal(err)
	}
	exit, err := process.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	checkExit(t, exit, Exit{Reason: Stopped, QEMUReason: "host-qmp-quit"})
	if _, err := Adopt(ctx, l.dir); !errors.Is(err, ErrNotRunning) {
		t.Errorf("adopt after the end: %v, want ErrNotRunning", err)
	}
}

func startStandIn(t *testing.T, spec Spec) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, value any) string {
		path := filepath.Join(dir, name)
		if err := writeJSON(path, value, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	arg := write("arg.json", map[string]string{"Dir": spec.Dir, "Spec": write("spec.json", spec)})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, arg)
	cmd.Args[0] = standIn
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "started\n" {
		t.Fatalf("stand-in agent said %q, %v", line, err)
	}
	return cmd
}

func checkExit(t *testing.T, got, want Exit) {
	t.Helper()
	if got.Started.IsZero() || got.Ended.Before(got.Started) {
		t.Errorf("times %s to %s", got.Started, got.Ended)
	}
	got.Started, got.Ended, got.Stderr = time.Time{}, time.Time{}, nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("exit (-want +got):\n%s", diff)
	}
}

// TestEnds ends a machine in each way and reads what is left written.
func TestEnds(t *testing.T) {
	l := newLab(t)
	spec := l.spec(l.nic(0, nil))
	ctx := testContext(t)
	qemuPID := func(p *Process) int {
		pid, err := p.QEMUPID(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	kill := func(pid int, sig unix.Signal) {
		if err := unix.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	// The same directory and TAP again and again: each end leaves both usable.
	for _, tt := range []struct {
		name string
		end  func(*Process)
		want Exit
	}{
		{"QEMU crashes", func(p *Process) { kill(qemuPID(p), unix.SIGSEGV) }, Exit{Reason: Crash, Signal: "SIGSEGV"}},
		{"guest ignores the button", func(p *Process) {
			if _, err := p.Stop(ctx, 50*time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}, Exit{Reason: Stopped, Requested: true, QEMUReason: "host-qmp-quit"}},
		{"QEMU hangs", func(p *Process) { // takes its time: that is what it waits for
			kill(qemuPID(p), unix.SIGSTOP)
			if _, err := p.Stop(ctx, 0); err != nil {
				t.Fatal(err)
			}
		}, Exit{Reason: Killed, Requested: true, Signal: "SIGKILL"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want.Reason == Killed {
				vmLane(t)
			}
			process := l.start(spec)
			tt.end(process)
			exit, err := process.Wait(ctx)
			if err != nil {
				t.Fatal(err)
			}
			checkExit(t, exit, tt.want)
		})
	}
	t.Run("launcher is killed", func(t *testing.T) {
		process := l.start(spec)
		pid := qemuPID(process)
		kill(process.PID, unix.SIGKILL)
		exit, err := process.Wait(ctx)
		if err != nil || exit.Reason != Lost {
			t.Fatalf("exit %v, %v; want lost", exit, err)
		}
		// Its new parent may not have collected it yet.
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err == nil && !strings.Contains(string(stat), ") Z ") {
			t.Errorf("QEMU outlives its launcher: %s", stat)
		}
	})
}

// TestNotStarted sees what is said when QEMU cannot run, and that a later start
// in the same place works.
func TestNotStarted(t *testing.T) {
	l := newLab(t)
	good := l.spec(l.nic(0, nil))
	ctx := testContext(t)
	hidden := filepath.Join(passable(t), "hidden")
	if err := os.Mkdir(hidden, 0o700); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(hidden, "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(*Spec)
		want   string
	}{
		{"no TAP", func(s *Spec) {
			s.Machine.NICs = append([]vmnet.NIC(nil), s.Machine.NICs...)
			s.Machine.NICs[0].TAP = "none0"
		}, "none0"},
		{"hidden disk", func(s *Spec) {
			s.Machine.Disks = []qemu.Disk{{Name: "root", Path: disk}}
			s.Machine.Default()
		}, "let it pass through " + hidden},
		{"missing kernel", func(s *Spec) { s.Machine.Kernel = "/nonexistent/vmlinuz" }, "the file is missing"},
		{"no QEMU", func(s *Spec) { s.QEMU = "/nonexistent/qemu" }, "/nonexistent/qemu"},
		{"no namespace", func(s *Spec) { s.NetNS = "/run/netns/weft-none" }, "weft-none"},
		{"no launcher", func(s *Spec) { s.Launcher = "/nonexistent/launcher" }, "/nonexistent/launcher"},
		{"unknown accelerator", func(s *Spec) { s.Machine.Accel = "xen" }, "unknown accelerator"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := good
			tt.change(&spec)
			process, err := Start(ctx, spec)
			if err == nil {
				_, err := process.Stop(ctx, 0)
				t.Fatal("started; stop:", err)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not contain %q", err, tt.want)
			}
			if held, err := locked(filepath.Join(l.dir, lockFile)); err != nil || held {
				t.Errorf("lock held %t, %v after a failed start", held, err)
			}
		})
	}
	l.start(good)
}

// TestStartInterrupted gives up a start at many moments: nothing is left, and
// the next start works.
func TestStartInterrupted(t *testing.T) {
	l := newLab(t)
	spec := l.spec(l.nic(0, nil))
	interrupted := 0
	for _, after := range []time.Duration{0, 1, 2, 5, 10, 20, 40, 80, 160, 320, 10000} {
		ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
		process, err := Start(ctx, spec)
		cancel()
		if err != nil {
			interrupted++
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("after %d ms: %v", after, err)
			}
		} else {
			if _, err := process.Stop(testContext(t), 0); err != nil {
				t.Fatal(err)
			}
			process.Close()
		}
		if held, err := locked(filepath.Join(l.dir, lockFile)); err != nil || held {
			t.Fatalf("after %d ms: lock held %t, %v", after, held, err)
		}
	}
	if interrupted == 0 || interrupted == 11 {
		t.Errorf("%d of 11 starts interrupted: the moments are badly chosen", interrupted)
	}
}

// TestImpostor sees that a stranger who listens under QEMU's name is refused.
func TestImpostor(t *testing.T) {
	l := newLab(t)
	spec := l.spec()
	ns, err := linux.OpenNS("/run/netns/" + l.name)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var listener net.Listener
	if err := ns.Do(func() (err error) {
		listener, err = net.Listen("unix", "@"+spec.Machine.Sockets.QMP)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	process := &Process{Spec: spec}
	if pollErr := poll(t.Context(), settle, func() (bool, error) {
		_, err = process.QMP(testContext(t))
		return !errors.Is(err, unix.ECONNREFUSED), nil
	}); pollErr != nil {
		t.Fatal(pollErr)
	}
	var refusal *hint.Error
	if !errors.As(err, &refusal) {
		t.Fatalf("got %v, want a refusal", err)
	}
}

func TestParseStartTicks(t *testing.T) {
	for _, tt := range []struct {
		stat string
		want uint64
		fail bool
	}{
		{"1 (a) S 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 4711 23", 0, false},
		{"1 (a) b) S (c) ) S 2 3", 0, true},
		{"", 0, true},
		{"1 (x", 0, true},
	} {
		_, err := parseStartTicks([]byte(tt.stat))
		if (err != nil) != tt.fail {
			t.Errorf("%q: %v", tt.stat, err)
		}
	}
	// Field 22 of ourselves is the same twice and not zero.
	first, err := identify(os.Getpid())
	if err != nil || first.Start == 0 {
		t.Fatalf("identify: %+v, %v", first, err)
	}
	second, err := identify(os.Getpid())
	if err != nil || first != second {
		t.Fatalf("identify: %+v, %+v, %v", first, second, err)
	}
}

func TestTail(t *testing.T) {
	var out strings.Builder
	tail := &tail{to: &out}
	for i := range 30 {
		if _, err := tail.Write([]byte("line " + strconv.Itoa(i) + "\nhalf")); err != nil {
			t.Fatal(err)
		}
		if _, err := tail.Write([]byte(" more\n\n")); err != nil {
			t.Fatal(err)
		}
	}
	write := func(text []byte) {
		if n, err := tail.Write(text); n != len(text) || err != nil {
			t.Errorf("wrote %d of %d bytes, %v", n, len(text), err)
		}
	}
	write([]byte("unfinished"))
	lines := tail.lines()
	if len(lines) != tailLines || lines[0] != "half more" && !strings.HasPrefix(lines[0], "line ") || lines[tailLines-1] != "unfinished" {
		t.Errorf("lines %q", lines)
	}
	if !strings.HasPrefix(out.String(), "line 0\nhalf more\n\nline 1\n") {
		t.Errorf("passed on %.40q", out.String())
	}
	write(make([]byte, 2*maxLog))
	if out.Len() > maxLog {
		t.Errorf("passed on %d bytes, limit %d", out.Len(), maxLog)
	}
}

func TestTrimLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serial.log")
	if err := trimLog(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("x", maxSerialLog)+"end"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := trimLog(path); err != nil {
		t.Fatal(err)
	}
	now, err := os.Stat(path)
	if err != nil || now.Size() != 0 {
		t.Errorf("size after trimming: %v, %v", now, err)
	}
	aside, err := os.ReadFile(path + ".1")
	if err != nil || len(aside) != maxSerialLog || !strings.HasSuffix(string(aside), "xend") {
		t.Errorf("moved aside %d bytes, %v", len(aside), err)
	}
}

func TestExitRoundTrip(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, runDir), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, runDir, exitFile)
	if _, err := ReadExit(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no exit: %v", err)
	}
	want := Exit{Reason: Crash, ExitCode: 1, Error: "e", Started: time.Unix(1, 0).UTC(), Ended: time.Unix(2, 0).UTC(), Stderr: []string{"x"}}
	if err := writeJSON(path, want, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := ReadExit(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// The user may put there what it wants; it is not followed or believed.
	for name, put := range map[string]func() error{
		"link": func() error { return os.Symlink("/etc/passwd", path) },
		"fifo": func() error { return unix.Mkfifo(path, 0o666) },
		"text": func() error { return os.WriteFile(path, []byte("nonsense"), 0o666) },
		"huge": func() error { return os.WriteFile(path, make([]byte, maxJSON+1), 0o666) },
	} {
		if err := errors.Join(os.Remove(path), put()); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadExit(dir); err == nil {
			t.Errorf("%s: read as %+v", name, got)
		}
	}
}

func TestSpecRoundTrip(t *testing.T) {
	data, err := json.Marshal(Spec{Dir: "/x", UID: 1})
	if err != nil || strings.Contains(string(data), `"Dir"`) {
		t.Errorf("%s, %v", data, err)
	}
}

// TestKVMDevice sees that QEMU's user can open /dev/kvm, whatever its mode on
// the host. That guest code runs there is not asked: it may be emulated.
func TestKVMDevice(t *testing.T) {
	file, err := os.OpenFile(kvmPath, os.O_RDWR, 0)
	need(t, err == nil, fmt.Sprintf("needs /dev/kvm: %v", err))
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(kvmPath)
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	spec := l.spec(l.nic(0, nil))
	spec.Machine.Accel, spec.Machine.CPU.Model = qemu.KVM, "qemu64"
	process := l.start(spec)
	var kvm struct{ Enabled, Present bool }
	if err := qmp(t, process).Execute(testContext(t), "query-kvm", nil, &kvm); err != nil || !kvm.Enabled {
		t.Errorf("query-kvm: %+v, %v", kvm, err)
	}
	after, err := os.Stat(kvmPath)
	if err != nil || after.Mode() != before.Mode() {
		t.Errorf("the host's /dev/kvm changed from %s to %s (%v)", before.Mode(), after.Mode(), err)
	}
}

// BenchmarkStart is from the order to the running guest, and to its end.
func BenchmarkStart(b *testing.B) {
	need(b, os.Geteuid() == 0, "needs root")
	l := newLab(b)
	spec := l.spec(l.nic(0, nil))
	var running time.Duration
	for b.Loop() {
		begin := time.Now()
		process, err := Start(b.Context(), spec)
		if err != nil {
			b.Fatal(err)
		}
		running += time.Since(begin)
		if status, err := os.ReadFile("/proc/" + strconv.Itoa(process.PID) + "/status"); err == nil {
			for line := range strings.Lines(string(status)) {
				if text, ok := strings.CutPrefix(line, "VmRSS:"); ok {
					if kib, err := strconv.Atoi(strings.Fields(text)[0]); err == nil {
						b.ReportMetric(float64(kib), "launcher-KiB")
					}
				}
			}
		}
		if _, err := process.Stop(b.Context(), 0); err != nil {
			b.Fatal(err)
		}
		process.Close()
	}
	b.ReportMetric(float64(running.Milliseconds())/float64(b.N), "ms-to-run")
}
