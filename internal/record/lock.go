package record

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"golang.org/x/sys/unix"
)

// errBusy: somebody else holds the lock.
var errBusy = errors.New("sandbox is being worked on")

// lockPoll is how often a held lock is tried again: fcntl(2) can wait, but not
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
	release, err := s.lockOthers(ctx, id)
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
		leave, done := s.tryEnter(id)
		if leave != nil {
			return leave, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock sandbox %s: %w", id, context.Cause(ctx))
		case <-done:
		}
	}
}

// tryEnter enters if nobody else in this process works on the sandbox; else it
// gives nil, and what closes when they end.
func (s *Store) tryEnter(id string) (leave func(), done <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if others, held := s.working[id]; held {
		return nil, others
	}
	mine := make(chan struct{})
	s.working[id] = mine
	return func() {
		s.mu.Lock()
		delete(s.working, id)
		s.mu.Unlock()
		close(mine)
	}, nil
}

// lockOthers waits for other processes.
func (s *Store) lockOthers(ctx context.Context, id string) (func(), error) {
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

// tryLock locks the sandbox's byte of the lock file or says errBusy. The lock is
// of the open file description (fcntl(2), F_OFD_SETLK), so two stores of one
// process exclude each other too, and it goes with the process.
func (s *Store) tryLock(id string) (func(), error) {
	place := unix.Flock_t{Type: unix.F_WRLCK, Start: lockByte(id), Len: 1}
	err := s.setLock(place)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil, errBusy
	}
	if err != nil {
		return nil, fmt.Errorf("lock sandbox %s: %w", id, err)
	}
	return func() {
		place.Type = unix.F_UNLCK
		_ = s.setLock(place) // a lock that is held can be given back
	}, nil
}

func (s *Store) setLock(place unix.Flock_t) error {
	for {
		err := unix.FcntlFlock(s.lockFile.Fd(), unix.F_OFD_SETLK, &place)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// lockByte is where in the lock file a sandbox's lock is. Two that meet in one
// place, once in 2^62, wait for each other.
func lockByte(id string) int64 {
	h := fnv.New64a()
	h.Write([]byte(id)) // never fails
	return int64(h.Sum64() >> 2)
}
