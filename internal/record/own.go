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

// ErrOwned says that another process works on the records.
var ErrOwned = errors.New("another process owns the records")

const (
	ownerName = "owner.lock"
	ownPause  = 10 * time.Millisecond
)

// Own makes this process the only one that allocates from these records: an
// allocator in memory knows nothing of what another process gives out. It waits
// for the owner until ctx ends, then the error is ErrOwned. The kernel releases
// what a dead process owned.
func (s *Store) Own(ctx context.Context) (release func() error, err error) {
	file, err := os.OpenFile(filepath.Join(s.dir, ownerName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open owner's lock of records: %w", err)
	}
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return file.Close, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock records: %w", err), file.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%s: %w", s.dir, ErrOwned), file.Close())
		case <-time.After(ownPause):
		}
	}
}
