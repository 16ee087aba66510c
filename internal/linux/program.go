package linux

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// UnmapProgram lets go of the pages of this program's file: most of them were
// mapped for what runs once, when it starts, or beside something else. They stay
// in the page cache, for the kernel to map again or to use otherwise.
func UnmapProgram() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("read memory map: %w", err)
	}
	for line := range strings.Lines(string(maps)) {
		begin, end, ok := readOnly(line, self)
		if !ok {
			continue
		}
		// Of a private mapping that is not written to, the file is all there is
		// (madvise(2), MADV_DONTNEED).
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, begin, end-begin, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("let go of memory: %w", errno)
		}
	}
	return nil
}

// readOnly takes a line of /proc/PID/maps apart (proc_pid_maps(5)) that is of a
// mapping of file nobody can write to.
func readOnly(line, file string) (begin, end uintptr, ok bool) {
	fields := strings.Fields(line)
	if len(fields) != 6 || fields[5] != file || fields[1] != "r--p" && fields[1] != "r-xp" {
		return 0, 0, false
	}
	from, to, _ := strings.Cut(fields[0], "-")
	first, err := strconv.ParseUint(from, 16, 64)
	if err != nil {
		return 0, 0, false
	}
	last, err := strconv.ParseUint(to, 16, 64)
	return uintptr(first), uintptr(last), err == nil && first < last
}
