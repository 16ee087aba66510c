package launcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/qemu"
)

const (
	// startLimit is how long QEMU has until the guest runs: it opens its disks
	// and TAPs in that time, on a host that may be busy.
	startLimit = 60 * time.Second
	// pressEvery is how often the power button is pressed: a guest that boots
	// does not see it the first time.
	pressEvery = 5 * time.Second
	// monitorLimit bounds a single command once the guest runs. QEMU answers in
	// milliseconds; one that hangs must not keep orders waiting.
	monitorLimit = time.Second
	// trimEvery is how often the serial log's length is looked at.
	trimEvery = 5 * time.Second

	// Descriptors QEMU inherits, after standard error.
	qemuMonitorFD = 3
)

// machine is a running QEMU under this launcher.
//
//	starting ──ready──▶ running ──SIGTERM──▶ powering down ──grace──▶ quitting ──forceWait──▶ killed
//	                       └────────────────SIGINT────────────────────▶ ┘
//
// From every state QEMU's own end leads to the end. A lost monitor changes
// nothing: the guest matters more.
type machine struct {
	spec    Spec
	cmd     *exec.Cmd
	stderr  *tail
	monitor *qemu.Client
	ended   chan struct{} // closed when QEMU has ended and was waited for

	// requested: a signal told us to end it.
	requested bool
	quitting  bool
	killed    bool
	// why is QEMU's own reason, from its SHUTDOWN event.
	why string
}

// runMachine runs QEMU from its start to its end.
func runMachine(spec Spec, started startedBy) Exit {
	exit := Exit{Reason: NotStarted, Started: time.Now()}
	// From here on a signal is an order about the guest.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP)
	m := &machine{spec: spec, stderr: &tail{to: os.Stderr}, ended: make(chan struct{})}
	err := m.start(started)
	if err == nil {
		started.tell(nil)
		exit.Reason = ""
		m.supervise(signals)
	} else if m.cmd != nil {
		m.kill()
		<-m.ended
	}
	exit.Ended = time.Now()
	if err != nil {
		exit.Error = err.Error()
	}
	m.conclude(&exit)
	return exit
}

// start brings the guest to run: QEMU waits (-S) until the links that shall be
// down are down. It is done here, not by the agent, so that an agent's death in
// between cannot leave a guest that never runs.
func (m *machine) start(started startedBy) error {
	// The user's processes must not look into each other's memory.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid tracing: %w", err)
	}
	if err := checkFiles(m.spec.Machine); err != nil {
		return err
	}
	conn, err := m.startQEMU(started)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if m.monitor, err = qemu.NewClient(ctx, conn); err != nil {
		return err
	}
	for _, id := range qemu.DownLinks(m.spec.Machine) {
		if err := m.monitor.SetLink(ctx, id, false); err != nil {
			return err
		}
	}
	return m.monitor.Cont(ctx)
}

// startQEMU starts it with a monitor of the launcher's own, over a socket pair,
// and gives our end of that.
func (m *machine) startQEMU(started startedBy) (net.Conn, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "monitor"), os.NewFile(uintptr(pair[1]), "monitor")
	defer ours.Close()   // FileConn makes a descriptor of its own
	defer theirs.Close() // QEMU has its own
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("use socket pair: %w", err)
	}
	binary := m.spec.binary()
	args := append(qemu.Args(m.spec.Machine),
		"-chardev", fmt.Sprintf("socket,id=launcher,fd=%d", qemuMonitorFD), "-mon", "chardev=launcher,mode=control")
	cmd := exec.Command(binary, args...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = m.stderr, m.stderr
	cmd.ExtraFiles = []*os.File{theirs, started.lock}
	// QEMU never outlives its launcher.
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	unix.CloseOnExec(readyFD)
	unix.CloseOnExec(lockFD)
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", binary, err), conn.Close())
	}
	m.cmd = cmd
	go func() {
		_ = cmd.Wait() // how it ended is in ProcessState
		close(m.ended)
	}()
	return conn, nil
}
