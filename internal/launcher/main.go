package launcher

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Main is the launcher's process: it reads the spec at path and runs it to its
// end. As root it first gives that up by executing itself again, so that no
// thread of the process that runs QEMU ever was root. Call it from the main
// goroutine.
func Main(path string) error {
	// QEMU dies with the thread that started it, so this must be one that stays;
	// a mount namespace, too, is a thread's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	started, err := inherited()
	if err != nil {
		return err
	}
	spec, err := ReadSpec(filepath.Dir(path))
	if errors.Is(err, os.ErrPermission) {
		err = checkFile("machine's directory", path, false) // names what is in the way
	}
	if err == nil {
		err = spec.validate()
	}
	if err == nil && os.Geteuid() != int(spec.UID) {
		err = descend(spec, path) // only a failure comes back
	}
	if err != nil {
		started.tell(err)
		return err
	}
	exit := runMachine(spec, started)
	if exit.Reason == NotStarted {
		started.tell(errors.New(exit.String()))
	}
	// Written last: who reads it knows that QEMU is gone.
	return writeJSON(filepath.Join(spec.Dir, runDir, exitFile), exit, 0o644)
}

// startedBy is what Start gave the launcher.
type startedBy struct {
	ready *os.File
	// lock is passed on to QEMU, so that it is held until both are gone.
	lock *os.File
}

// inherited takes over the descriptors of Start. They must stay open through
// descend, but go no further by accident.
func inherited() (startedBy, error) {
	for _, fd := range []int{readyFD, lockFD} {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return startedBy{}, fmt.Errorf("%s is started by the agent, with descriptors %d and %d: %w", Program, readyFD, lockFD, err)
		}
	}
	return startedBy{ready: os.NewFile(readyFD, "ready"), lock: os.NewFile(lockFD, "lock")}, nil
}

// tell says that the guest runs, or why it does not. Nobody may be listening
// any more, which is no reason to end.
func (s startedBy) tell(err error) {
	text := readyText
	if err != nil {
		text = err.Error()
	}
	_, _ = io.WriteString(s.ready, text)
	_ = s.ready.Close()
}

// descend becomes the unprivileged user in a mount namespace of its own, and
// executes the launcher again. It returns only on failure.
func descend(spec Spec, path string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("launcher runs as user %d, neither root nor user %d", os.Geteuid(), spec.UID)
	}
	self, err := identify(os.Getpid())
	if err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(spec.Dir, pidFile), self, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", pidFile, err)
	}
	if err := privateDevices(spec); err != nil {
		return err
	}
	if err := dropPrivileges(spec); err != nil {
		return err
	}
	// Same process id; the calling thread, and what is its alone, survives.
	err = unix.Exec("/proc/self/exe", []string{Program, path}, os.Environ())
	return fmt.Errorf("execute the launcher as user %d: %w", spec.UID, err)
}

// dropPrivileges acts on the calling thread only: the others end with the exec.
func dropPrivileges(spec Spec) error {
	for capability := range 64 {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(capability), 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // beyond the last one this kernel knows
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", capability, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	// The guest's memory must not end up in a core file.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("drop groups: %w", errno)
	}
	gid, uid := uintptr(spec.GID), uintptr(spec.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return fmt.Errorf("become group %d: %w", spec.GID, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return fmt.Errorf("become user %d: %w", spec.UID, errno)
	}
	// Leaving uid 0 cleared the permitted and effective sets; what could be
	// inherited goes too.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData // version 3 takes two
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}
