//go:build failpoint

package chain

import (
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
)

// failpoint kills this process before its N-th step, counted from 1 over its
// whole life, where WEFT_FAILPOINT is N. Only tests are built with it.
func failpoint() func(step string) error {
	last, err := strconv.ParseInt(os.Getenv("WEFT_FAILPOINT"), 10, 64)
	if err != nil {
		return nil
	}
	var count atomic.Int64
	return func(step string) error {
		if count.Add(1) == last {
			fmt.Fprintln(os.Stderr, "failpoint: killed before "+step)
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	}
}
