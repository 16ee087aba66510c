package launcher

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// Reason says in one word why a machine is no longer there.
type Reason string

// The reasons a machine ends.
const (
	// Shutdown: the guest powered itself off, asked by its power button or not.
	Shutdown Reason = "shutdown"
	// Panic: the guest said through pvpanic that it crashed.
	Panic Reason = "panic"
	// Stopped: QEMU was told to end, over QMP or by a signal.
	Stopped Reason = "stopped"
	// Killed: it did not end when told, so the launcher killed it.
	Killed Reason = "killed"
	// Crash: QEMU ended by itself with an error or a signal.
	Crash Reason = "crash"
	// NotStarted: the guest never ran.
	NotStarted Reason = "not-started"
	// Lost: there is no exit.json: the launcher was killed or the node went down.
	Lost Reason = "lost"
)

// Exit is how a machine ended.
type Exit struct {
	Reason Reason `json:"reason"`
	// Requested: the launcher had been told to end it.
	Requested bool `json:"requested,omitempty"`
	// ExitCode and Signal are QEMU's; at most one of them is set.
	ExitCode int    `json:"exitCode,omitempty"`
	Signal   string `json:"signal,omitempty"`
	// QEMUReason is QEMU's own word: guest-shutdown, host-qmp-quit, ...
	QEMUReason string    `json:"qemuReason,omitempty"`
	Error      string    `json:"error,omitempty"`
	Started    time.Time `json:"started,omitzero"`
	Ended      time.Time `json:"ended,omitzero"`
	// Stderr are QEMU's last lines.
	Stderr []string `json:"stderr,omitempty"`
}

// String is one line for people.
func (e Exit) String() string {
	text := string(e.Reason)
	switch {
	case e.Signal != "":
		text += " (signal " + e.Signal + ")"
	case e.ExitCode != 0:
		text += fmt.Sprintf(" (exit code %d)", e.ExitCode)
	}
	if e.Error != "" {
		text += ": " + e.Error
	}
	if len(e.Stderr) > 0 && e.Reason != Shutdown {
		text += ": " + strings.Join(e.Stderr, "; ")
	}
	return text
}

// ReadExit reads how the machine in dir ended. The error is fs.ErrNotExist if
// that was not written: it never ran, still runs or was lost.
func ReadExit(dir string) (Exit, error) {
	var exit Exit
	if err := readJSON(filepath.Join(dir, runDir, exitFile), &exit); err != nil {
		return Exit{}, fmt.Errorf("read exit: %w", err)
	}
	return exit, nil
}
