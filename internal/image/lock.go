package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockMode is how a lock file is held.
type lockMode int

const (
	shared    lockMode = unix.LOCK_SH
	exclusive lockMode = unix.LOCK_EX
)

// lockPoll is how often a busy lock is tried: flock cannot wait for a context.
const lockPoll = 20 * time.Millisecond

// lockPath takes the lock file at path and returns what gives it back. The
// kernel drops it when the process dies.
func lockPath(ctx context.Context, path string, mode lockMode) (func(), error) {
	ticker := time.NewTicker(lockPoll)
	defer ticker.Stop()
	for {
		unlock, ok, err := tryLockPath(path, mode)
		if err != nil || ok {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: %w", path, ctx.Err())
		case <-ticker.C:
		}
	}
}

// tryLockPath is lockPath without waiting: ok is false if the lock is busy.
func tryLockPath(path string, mode lockMode) (unlock func(), ok bool, err error) {
	// A lock is per open file, so goroutines exclude each other as well.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, false, fmt.Errorf("open lock: %w", err)
	}
	err = unix.Flock(int(f.Fd()), int(mode)|unix.LOCK_NB)
	for errors.Is(err, unix.EINTR) {
		err = unix.Flock(int(f.Fd()), int(mode)|unix.LOCK_NB)
	}
	if err != nil {
		f.Close() // nothing was written
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, false, nil
		}
		return nil, false, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, true, nil // closing unlocks
}
