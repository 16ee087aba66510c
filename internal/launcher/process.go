package launcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotRunning says that no launcher lives for the machine; ReadExit tells
// how it ended.
var ErrNotRunning = errors.New("the machine does not run")

const (
	// settle bounds how long things take that are under way: a launcher that has
	// not yet written its pid, a QEMU that dies after its launcher.
	settle = 10 * time.Second
	// settleStep is how often they are looked at.
	settleStep = 5 * time.Millisecond
	// forceWait is how long QEMU has to end after `quit`, until the launcher
	// kills it; Stop gives the launcher twice that before it is killed itself.
	forceWait = 5 * time.Second
)

// identity is launcher.json. A pid alone could be another process by now.
type identity struct {
	PID int `json:"pid"`
	// Start is field 22 of /proc/PID/stat: clock ticks after boot.
	Start  uint64 `json:"startTicks"`
	BootID string `json:"bootID"`
}

// identify gives the identity of the process with this pid.
func identify(pid int) (identity, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return identity{}, fmt.Errorf("read boot id: %w", err)
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return identity{}, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	start, err := parseStartTicks(stat)
	if err != nil {
		return identity{}, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	return identity{PID: pid, Start: start, BootID: strings.TrimSpace(string(boot))}, nil
}

// parseStartTicks reads field 22 of /proc/PID/stat. The second field is the
// program's name in parentheses and may contain anything (proc_pid_stat(5)).
func parseStartTicks(stat []byte) (uint64, error) {
	_, rest, found := bytes.Cut(stat, []byte(") "))
	if i := bytes.LastIndex(stat, []byte(") ")); i >= 0 {
		rest = stat[i+2:]
	}
	fields := bytes.Fields(rest)
	const third, wanted = 3, 22
	if !found || len(fields) <= wanted-third {
		return 0, fmt.Errorf("malformed stat %.60q", stat)
	}
	return strconv.ParseUint(string(fields[wanted-third]), 10, 64)
}

// Process is a machine's launcher, started or adopted.
type Process struct {
	// Spec is what it runs.
	Spec Spec
	// PID of the launcher.
	PID int

	pidfd *os.File
	// reap collects the process if it is our child; else nil.
	reap func()
}

// newProcess holds on to a process that is known to be the launcher.
func newProcess(spec Spec, pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("hold on to process %d: %w", pid, err)
	}
	return &Process{Spec: spec, PID: pid, pidfd: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// Adopt finds the launcher that was started for the machine in dir, by this
// process or one before it. ErrNotRunning: none lives.
func Adopt(ctx context.Context, dir string) (*Process, error) {
	process, err := adopt(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("adopt machine in %s: %w", dir, err)
	}
	return process, nil
}

func adopt(ctx context.Context, dir string) (*Process, error) {
	spec, err := ReadSpec(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotRunning
	}
	if err != nil {
		return nil, err
	}
	// While the lock is held but no launcher is found, one begins or its QEMU ends.
	var found *Process
	err = poll(ctx, settle, func() (bool, error) {
		held, err := locked(filepath.Join(dir, lockFile))
		if err != nil {
			return false, err
		}
		if !held {
			return false, ErrNotRunning
		}
		found, err = findLauncher(spec)
		return found != nil, err
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// findLauncher gives the process of launcher.json if it still is that process.
func findLauncher(spec Spec) (*Process, error) {
	var want identity
	err := readJSON(filepath.Join(spec.Dir, pidFile), &want)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	process, err := newProcess(spec, want.PID)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// Looked at after the descriptor was opened, so that both are of one process.
	got, err := identify(want.PID)
	if err != nil || got != want {
		process.Close()
		return nil, nil // gone, and the pid perhaps somebody else's
	}
	return process, nil
}

// Close lets go of the process, which runs on.
func (p *Process) Close() error { return p.pidfd.Close() }

// Alive says whether launcher or QEMU live.
func (p *Process) Alive() bool {
	held, err := locked(filepath.Join(p.Spec.Dir, lockFile))
	return err == nil && held
}

// Wait waits until launcher and QEMU have ended and says how. It can be called
// again and concurrently.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	if err := p.waitLauncher(ctx); err != nil {
		return Exit{}, fmt.Errorf("wait for machine %s: %w", p.Spec.Machine.Name, err)
	}
	if p.reap != nil {
		p.reap()
	}
	// QEMU gets SIGKILL with its launcher, but takes a moment to go.
	err := poll(ctx, settle, func() (bool, error) { return !p.Alive(), nil })
	if err != nil {
		return Exit{}, fmt.Errorf("wait for QEMU of machine %s: %w", p.Spec.Machine.Name, err)
	}
	exit, err := ReadExit(p.Spec.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return Exit{Reason: Lost}, nil
	}
	return exit, err
}

// waitLauncher waits until the pidfd is readable, which is when the process has ended.
func (p *Process) waitLauncher(ctx context.Context) error {
	// A descriptor of this call's own: deadlines are per descriptor.
	var own int
	var dupErr error
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	if err := raw.Control(func(fd uintptr) { own, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return err
	}
	if dupErr != nil {
		return fmt.Errorf("duplicate pidfd: %w", dupErr)
	}
	file := os.NewFile(uintptr(own), "pidfd")
	defer file.Close()                                                                   // nothing was written
	stop := context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(time.Unix(1, 0)) }) // a failure means it is closed
	defer stop()
	raw, err = file.SyscallConn()
	if err != nil {
		return err
	}
	var pollErr error
	err = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			pollErr = err
			return true
		}
		return n > 0
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(err, pollErr)
}

// Stop ends the machine: the guest has grace to power off, then QEMU is told
// to quit, then killed. With no grace QEMU is told to quit at once.
func (p *Process) Stop(ctx context.Context, grace time.Duration) (Exit, error) {
	for _, step := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, grace}, {unix.SIGINT, 4 * forceWait}, {unix.SIGKILL, settle}} {
		if step.wait <= 0 {
			continue
		}
		if err := p.signal(step.signal); err != nil {
			return Exit{}, fmt.Errorf("stop machine %s: %w", p.Spec.Machine.Name, err)
		}
		waitCtx, cancel := context.WithTimeout(ctx, step.wait)
		exit, err := p.Wait(waitCtx)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return exit, err
		}
	}
	return Exit{}, fmt.Errorf("stop machine %s: process %d does not end", p.Spec.Machine.Name, p.PID)
}

// signal reaches this process only, never another that got its pid.
func (p *Process) signal(sig unix.Signal) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	if err := raw.Control(func(fd uintptr) { sendErr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(sendErr, unix.ESRCH) {
		return nil // already gone
	}
	return sendErr
}

// abandon ends a launcher whose guest never ran.
func (p *Process) abandon() error {
	ctx, cancel := context.WithTimeout(context.Background(), settle)
	defer cancel()
	err := p.signal(unix.SIGKILL)
	_, waitErr := p.Wait(ctx)
	return errors.Join(err, waitErr, p.Close())
}

// poll calls done until it says so, fails, or limit has passed.
func poll(ctx context.Context, limit time.Duration, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(settleStep)
	defer ticker.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// ThisBoot says whether the machine in dir was last started since the node
// booted. What ran before a reboot ended with it, through no fault of the guest.
func ThisBoot(dir string) bool {
	var last identity
	if readJSON(filepath.Join(dir, pidFile), &last) != nil {
		return false
	}
	now, err := identify(os.Getpid())
	return err == nil && now.BootID == last.BootID
}

// Forget removes what a start that failed left in dir, so that it is not taken
// for a machine that ran and was lost.
func Forget(dir string) error {
	if err := os.Remove(filepath.Join(dir, pidFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget failed start: %w", err)
	}
	return nil
}
