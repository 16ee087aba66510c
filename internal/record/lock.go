package record

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// errBusy: somebody else holds the lock.
var errBusy = errors.New("sandbox is being worked on")

// lockPoll is how often a held lock is tried again: flock(2) can wait, but not
// until a context ends.
const lockPoll = 2 * time.Millisecond

// Lock waits until nobody else, in this process or another, works on the
// sandbox. The function it returns gives the lock back.
func (s *Store) Lock(ctx context.Context, id string) (unlock func(), err error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	leave, err := s.enter(ctx, id)
	if err != nil {
		return nil, err
	}
	release, err := s.lockFile(ctx, id)
	if err != nil {
		leave()
		return nil, err
	}
	return func() {
		release()
		leave()
	}, nil
}

// enter queues among the goroutines of this process.
func (s *Store) enter(ctx context.Context, id string) (leave func(), err error) {
	for {
		s.mu.Lock()
		done, held := s.working[id]
		if !held {
			mine := make(chan struct{})
			s.working[id] = mine
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.working, id)
				s.mu.Unlock()
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock sandbox %s: %w", id, context.Cause(ctx))
		case <-done:
		}
	}
}

// lockFile waits for other processes.
func (s *Store) lockFile(ctx context.Context, id string) (func(), error) {
	var tick *time.Ticker
	for {
		release, err := s.tryLock(id)
		if !errors.Is(err, errBusy) {
			return release, err
		}
		if tick == nil {
			tick = time.NewTicker(lockPoll)
			defer tick.Stop()
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock sandbox %s: %w", id, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// tryLock takes the lock of the file or says errBusy.
func (s *Store) tryLock(id string) (func(), error) {
	path := filepath.Join(s.dir, lockDir, id)
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock sandbox %s: %w", id, err)
		}
		if err := flock(file); err != nil {
			file.Close() // nothing was written
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, errBusy
			}
			return nil, fmt.Errorf("lock sandbox %s: %w", id, err)
		}
		if same(file, path) {
			return func() {
				// Removed while held: whoever opened it meanwhile sees that the path
				// leads elsewhere and opens again. Closing gives the lock back.
				os.Remove(path) // left over, it does no harm
				file.Close()    // nothing was written
			}, nil
		}
		file.Close() // nothing was written
	}
}

func flock(file *os.File) error {
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// same says whether path still leads to file.
func same(file *os.File, path string) bool {
	mine, err := file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(mine, there)
}
