// Package launcher runs one QEMU and outlives whoever started it: the agent
// starts a weft-launcher process (Start), finds it again after a restart of its
// own (Adopt), and reads how it ended (ReadExit). The same package is what the
// process itself does (Main): give up root, start QEMU, let the guest run, press
// its power button when told to end, and write down the end.
//
// It plans nothing: the machine comes from its caller. It keeps no connection
// to QEMU on the agent's behalf; Process.QMP, Agent and Console make one.
package launcher

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/qemu"
)

// One directory per machine:
//
//	DIR/               root's
//	  spec.json        what to run; written by Start
//	  lock             locked (F_OFD_SETLK) as long as launcher or QEMU lives
//	  launcher.json    the launcher's pid and start time; written by the launcher while it is root
//	  launcher.log     what launcher and QEMU complain of
//	  run/             the unprivileged user's; nothing in it is trusted
//	    exit.json      how it ended; written last, whole or not at all
//	    serial.log     the console's output, if Machine.SerialLog says so
//	    serial.log.1   what was before it, once it grew too long
const (
	specFile   = "spec.json"
	lockFile   = "lock"
	pidFile    = "launcher.json"
	logFile    = "launcher.log"
	runDir     = "run"
	exitFile   = "exit.json"
	serialFile = "serial.log"
)

// Program is the launcher's binary.
const Program = "weft-launcher"

// Spec says what to run.
type Spec struct {
	// Dir is the machine's directory; it is where the file was read from.
	Dir string `json:"-"`
	// Machine to run, after Default and Validate.
	Machine qemu.Machine
	// QEMU is the binary; empty: qemu-system-x86_64 from PATH.
	QEMU string `json:",omitempty"`
	// NetNS is the path of the namespace it runs in; empty: the agent's own.
	NetNS string `json:",omitempty"`
	// Launcher is the launcher's binary; empty: weft-launcher beside the running
	// program, or from PATH.
	Launcher string `json:",omitempty"`
	// UID and GID are who launcher and QEMU become. Not root. Every file of the
	// machine must be within this user's reach.
	UID, GID uint32
	// Grace is how long the guest has to power off when the launcher gets
	// SIGTERM; 0: QEMU is told to quit at once.
	Grace time.Duration `json:",omitempty"`
}

// binary is the QEMU to run.
func (s Spec) binary() string {
	if s.QEMU != "" {
		return s.QEMU
	}
	return qemu.Binary
}

// SerialLog is where a machine in dir keeps its console's output, for
// Machine.SerialLog: the one place QEMU can write it and the launcher bounds it.
func SerialLog(dir string) string { return filepath.Join(dir, runDir, serialFile) }

// Log is the file launcher and QEMU complain in.
func Log(dir string) string { return filepath.Join(dir, logFile) }

func (s Spec) validate() error {
	var errs []error
	if !filepath.IsAbs(s.Dir) {
		errs = append(errs, fmt.Errorf("launcher directory %q is not an absolute path", s.Dir))
	}
	if s.UID == 0 || s.GID == 0 {
		errs = append(errs, &hint.Error{
			Field: "launcher user", Value: strconv.FormatUint(uint64(s.UID), 10) + ":" + strconv.FormatUint(uint64(s.GID), 10),
			Problem: "QEMU must not run as root", Remedy: "choose an unprivileged uid and gid, such as 64107",
		})
	}
	if s.Grace < 0 {
		errs = append(errs, fmt.Errorf("grace period %s is negative", s.Grace))
	}
	return errors.Join(append(errs, qemu.Validate(s.Machine, qemu.Version{}))...)
}

// ReadSpec reads what was started in dir.
func ReadSpec(dir string) (Spec, error) {
	var spec Spec
	if err := readJSON(filepath.Join(dir, specFile), &spec); err != nil {
		return Spec{}, fmt.Errorf("read launcher spec: %w", err)
	}
	spec.Dir = dir
	return spec, nil
}

// maxJSON bounds the files read here: those in run/ are not trusted.
const maxJSON = 4 << 20

// readJSON reads a regular file, never what a link points to.
func readJSON(path string, out any) error {
	data, err := readRegular(path, maxJSON)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}

// writeJSON puts a file in place whole or not at all, also when power fails.
func writeJSON(path string, value any, mode os.FileMode) (err error) {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	tmp := path + ".new"
	// Left by a crash: O_EXCL would fail on it for ever.
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove leftover: %w", err)
	}
	file, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	_, writeErr := file.Write(append(data, '\n'))
	if err := errors.Join(writeErr, file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("move into place: %w", err)
	}
	return nil
}
