package launcher

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/qemu"
)

// maxSerialLog is how long serial.log grows before it is moved aside; with what
// was moved aside, a guest can fill about twice that.
const maxSerialLog = 8 << 20

// checkFiles says which of the machine's files this user cannot reach, and
// which directory is in the way: QEMU's own message names neither.
func checkFiles(m qemu.Machine) error {
	var errs []error
	check := func(what, path string, write bool) {
		if path == "" {
			return
		}
		if err := checkFile(what, path, write); err != nil {
			errs = append(errs, err)
		}
	}
	check("kernel", m.Kernel, false)
	check("initrd", m.Initrd, false)
	for _, disk := range m.Disks {
		check("disk "+disk.Name, disk.Path, !disk.ReadOnly)
	}
	return errors.Join(errs...)
}

func checkFile(what, path string, write bool) error {
	mode := uint32(unix.R_OK)
	if write {
		mode |= unix.W_OK
	}
	err := unix.Access(path, mode)
	if err == nil {
		return nil
	}
	h := &hint.Error{Field: what, Value: path, Err: err, Problem: fmt.Sprintf("user %d, as which QEMU runs, cannot use the file", os.Getuid())}
	switch {
	case errors.Is(err, os.ErrNotExist):
		h.Problem, h.Remedy = "the file is missing", "put it there, or delete the VM's disk and start again"
	case unreachable(path) != "":
		h.Remedy = fmt.Sprintf("let it pass through %s: chmod o+x", unreachable(path))
	case write:
		h.Remedy = fmt.Sprintf("give it the file: chown %d", os.Getuid())
	default:
		h.Remedy = "let it read the file: chmod o+r"
	}
	return h
}

// unreachable is the first directory on the way that this user may not pass.
func unreachable(path string) string {
	dir := filepath.Dir(path)
	if dir != path {
		if above := unreachable(dir); above != "" {
			return above
		}
	}
	if errors.Is(unix.Access(dir, unix.X_OK), unix.EACCES) {
		return dir
	}
	return ""
}

// trimLog moves a console log that grew too long aside. QEMU keeps the file
// open and appends, so it is copied and cut; what is written in between is lost.
func trimLog(path string) error {
	if path == "" {
		return nil
	}
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at serial log: %w", err)
	}
	if info.Size() <= maxSerialLog {
		return nil
	}
	if err := copyTail(path, path+".1", info.Size()); err != nil {
		return fmt.Errorf("move serial log aside: %w", err)
	}
	if err := os.Truncate(path, 0); err != nil {
		return fmt.Errorf("cut serial log: %w", err)
	}
	return nil
}

// copyTail copies the last maxSerialLog bytes.
func copyTail(from, to string, size int64) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() // opened for reading only
	if _, err := in.Seek(max(size-maxSerialLog, 0), io.SeekStart); err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, copyErr := io.Copy(out, io.LimitReader(in, maxSerialLog))
	return errors.Join(copyErr, out.Close())
}
