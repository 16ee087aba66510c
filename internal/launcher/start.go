package launcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/qemu"
)

// ErrRunning says that the machine's launcher, or its QEMU, still lives.
var ErrRunning = errors.New("the machine already runs")

// Descriptors the launcher inherits from Start, after standard error.
const (
	readyFD = 3
	lockFD  = 4
)

// readyText is what the launcher writes once the guest runs; anything else it
// writes is an error's text.
const readyText = "ready\n"

// maxLog is how long launcher.log may be before a start begins it anew.
const maxLog = 1 << 20

// Start runs the machine and returns when its guest runs. The launcher is in a
// session of its own and survives the caller. When ctx ends before the guest
// runs, everything is ended again.
//
// The caller must call Wait or Stop in time, which also reaps the process, and
// Close when it loses interest.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	if err := spec.validate(); err != nil {
		return nil, err
	}
	if err := checkVersion(ctx, spec); err != nil {
		return nil, err
	}
	program, err := findProgram(spec.Launcher)
	if err != nil {
		return nil, err
	}
	process, err := start(ctx, spec, program)
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", spec.Machine.Name, err)
	}
	return process, nil
}

// checkVersion asks QEMU for its version where the machine depends on it: the
// question takes longer than all else here.
func checkVersion(ctx context.Context, spec Spec) error {
	if !qemu.DependsOnVersion(spec.Machine) {
		return nil
	}
	version, err := qemu.DetectVersion(ctx, spec.binary())
	if err != nil {
		return err
	}
	return qemu.Validate(spec.Machine, version)
}

func start(ctx context.Context, spec Spec, program string) (*Process, error) {
	lock, err := prepareDir(spec)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // for the failures before the fork
	logTo, err := openLog(filepath.Join(spec.Dir, logFile))
	if err != nil {
		return nil, err
	}
	defer logTo.Close() // the launcher has its own
	ready, readyWrite, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	defer ready.Close()
	cmd := exec.Command(program, filepath.Join(spec.Dir, specFile))
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = logTo, logTo
	cmd.ExtraFiles = []*os.File{readyWrite, lock}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	// A process is born in the namespace of the thread that makes it.
	if spec.NetNS == "" {
		err = cmd.Start()
	} else {
		err = linux.InNS(spec.NetNS, cmd.Start)
	}
	readyWrite.Close() // so that the pipe ends with the launcher
	lock.Close()       // so that the lock does, too
	if err != nil {
		return nil, fmt.Errorf("start launcher: %w", err)
	}
	process, err := newProcess(spec, cmd.Process.Pid)
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	process.reap = sync.OnceFunc(func() { _ = cmd.Wait() }) // how it ended is in exit.json
	if err := awaitReady(ctx, ready); err != nil {
		return nil, errors.Join(err, process.abandon())
	}
	return process, nil
}

// awaitReady reads the launcher's word. Its end without a word is its death.
func awaitReady(ctx context.Context, ready *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) }) // pipes have deadlines
	defer stop()
	text, err := io.ReadAll(io.LimitReader(ready, 64<<10))
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("wait for the guest to run: %w", context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("wait for the guest to run: %w", err)
	case string(text) == readyText:
		return nil
	case len(text) == 0:
		return errors.New("the launcher ended without a word")
	}
	return errors.New(string(bytes.TrimSpace(text)))
}

// prepareDir makes the machine's directory and takes its lock. The intent is on
// disk before the process is there; what an earlier run left is removed.
func prepareDir(spec Spec) (lock *os.File, err error) {
	run := filepath.Join(spec.Dir, runDir)
	if err := os.MkdirAll(spec.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	if err := os.Mkdir(run, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	if err := os.Lchown(run, int(spec.UID), int(spec.GID)); err != nil {
		return nil, fmt.Errorf("give directory to QEMU's user: %w", err)
	}
	lock, err = openLock(filepath.Join(spec.Dir, lockFile))
	if err != nil {
		return nil, err
	}
	taken, err := takeLock(lock)
	if err == nil && !taken {
		err = ErrRunning
	}
	if err == nil {
		err = clearRun(spec)
	}
	if err != nil {
		lock.Close() // nothing was written
		return nil, err
	}
	return lock, nil
}

func clearRun(spec Spec) error {
	for _, name := range []string{pidFile, filepath.Join(runDir, exitFile)} {
		if err := os.Remove(filepath.Join(spec.Dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove what the last run left: %w", err)
		}
	}
	// The launcher reads it as root and as the user.
	if err := writeJSON(filepath.Join(spec.Dir, specFile), spec, 0o644); err != nil {
		return fmt.Errorf("write spec: %w", err)
	}
	return nil
}

func openLog(path string) (*os.File, error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND | unix.O_NOFOLLOW
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		flags |= os.O_TRUNC
	}
	file, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return file, nil
}

// findProgram finds the launcher's binary.
func findProgram(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(strings.TrimSuffix(self, " (deleted)")), Program)
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() {
			return beside, nil
		}
	}
	path, err := exec.LookPath(Program)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", Program, err)
	}
	return path, nil
}
