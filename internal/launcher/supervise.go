package launcher

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/qemu"
)

// supervise follows the orders that come as signals until QEMU has ended.
func (m *machine) supervise(signals <-chan os.Signal) {
	trim, press := time.NewTicker(trimEvery), time.NewTicker(pressEvery)
	defer trim.Stop()
	defer press.Stop()
	press.Stop() // until the button is to be pressed
	var deadline <-chan time.Time
	events := m.monitor.Events()
	for {
		select {
		case <-m.ended:
			m.drain(events)
			return
		case event, open := <-events:
			if !open {
				events = nil
				continue
			}
			m.note(event)
		case sig := <-signals:
			switch {
			case m.quitting, m.requested && sig == unix.SIGTERM:
			case sig == unix.SIGTERM:
				m.requested = true
				m.press()
				press.Reset(pressEvery)
				deadline = time.After(m.spec.Grace)
			default:
				m.requested = true
				press.Stop()
				deadline = m.quit()
			}
		case <-press.C:
			m.press()
		case <-deadline:
			press.Stop()
			if m.quitting {
				m.kill()
				deadline = nil
			} else {
				deadline = m.quit()
			}
		case <-trim.C:
			if err := trimLog(m.spec.Machine.SerialLog); err != nil {
				m.complain(err)
			}
		}
	}
}

// press presses the guest's power button.
func (m *machine) press() {
	ctx, cancel := context.WithTimeout(context.Background(), monitorLimit)
	defer cancel()
	if err := m.monitor.Powerdown(ctx); err != nil {
		m.complain(err)
	}
}

// quit tells QEMU to end and gives the time after which it is killed.
func (m *machine) quit() <-chan time.Time {
	m.quitting = true
	ctx, cancel := context.WithTimeout(context.Background(), monitorLimit)
	defer cancel()
	if err := m.monitor.Quit(ctx); err != nil {
		m.complain(err)
	}
	// Whatever became of the monitor: QEMU takes this as quit, too.
	if err := m.cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		m.complain(err)
	}
	return time.After(forceWait)
}

func (m *machine) kill() {
	m.killed = true
	if err := m.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		m.complain(err)
	}
}

// complain writes to launcher.log.
func (m *machine) complain(err error) {
	_, _ = io.WriteString(os.Stderr, Program+": "+err.Error()+"\n") // there is nobody else to tell
}

// note keeps what QEMU says about its end.
func (m *machine) note(event qemu.Event) {
	if reason, _ := qemu.ShutdownReason(event); reason != "" {
		m.why = reason
	}
}

// drain reads the events QEMU wrote before it ended; the channel is closed
// once all are read.
func (m *machine) drain(events <-chan qemu.Event) {
	if events == nil {
		return
	}
	limit := time.NewTimer(monitorLimit)
	defer limit.Stop()
	for {
		select {
		case event, open := <-events:
			if !open {
				return
			}
			m.note(event)
		case <-limit.C:
			return
		}
	}
}

// conclude fills in how QEMU ended.
func (m *machine) conclude(exit *Exit) {
	exit.Requested, exit.QEMUReason, exit.Stderr = m.requested, m.why, m.stderr.lines()
	var state *os.ProcessState
	if m.cmd != nil {
		state = m.cmd.ProcessState
	}
	if state != nil {
		exit.ExitCode, exit.Signal = outcome(state)
	}
	if exit.Reason == "" {
		exit.Reason = m.reason(exit)
	}
}

// outcome is an exit code or a signal's name.
func outcome(state *os.ProcessState) (code int, signal string) {
	status, ok := state.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return 0, unix.SignalName(status.Signal())
	}
	return state.ExitCode(), ""
}

func (m *machine) reason(exit *Exit) Reason {
	switch {
	case m.killed:
		return Killed
	case exit.Signal != "" || exit.ExitCode != 0:
		return Crash
	case m.why == "guest-panic":
		return Panic
	case m.why == "host-qmp-quit" || m.why == "host-signal" || m.quitting:
		return Stopped
	}
	return Shutdown
}
