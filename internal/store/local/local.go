// Package local keeps API objects in one bbolt file: the Store of a machine
// without Kubernetes. It gives what controllers rely on there: revisions that
// only grow, optimistic concurrency, status as a subresource, finalizers,
// collection of what an owner leaves behind, and watches that resume without a
// gap.
//
// It does not validate kinds, default fields or convert between versions: an
// object is one document per group, kind, namespace and name, and is given out
// under the version it is asked for. One process opens the file at a time; the
// CLI asks the agent.
//
// Layout of the file:
//
//	meta                      bucket; its sequence is the newest revision
//	  format                  "1"
//	objects
//	  KIND.GROUP              one bucket for each kind
//	    NAMESPACE/NAME        the document as JSON (cluster-scoped: "/NAME")
//	uids
//	  UID                     KIND.GROUP NUL NAMESPACE/NAME
//	owned                     who must be looked at when an owner goes
//	  OWNER-UID NUL KIND.GROUP NUL NAMESPACE/NAME
//
// Objects, both indexes and the revision change in one transaction, so a crash
// leaves all of a write or nothing of it.
package local

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/store"
)

// format is the layout drawn above; a file of another one is refused.
const format = "1"

// Bucket and key names.
var (
	metaBucket    = []byte("meta")
	objectsBucket = []byte("objects")
	uidsBucket    = []byte("uids")
	ownedBucket   = []byte("owned")
	formatKey     = []byte("format")
)

// Options say how a Store is opened. The zero value is usable.
type Options struct {
	// NoSync leaves writes to the page cache: they survive the death of the
	// process, not that of the machine, after which the file may be unreadable.
	NoSync bool
	// Now gives creation and deletion times; nil means time.Now.
	Now func() time.Time
	// LockTimeout bounds the wait for another process to close the file; zero
	// means one second.
	LockTimeout time.Duration
	// Log takes what the collector of ownerless objects does; nil discards it.
	Log *slog.Logger
	// History is the number of past events a watch can resume over; zero means
	// 1024.
	History int
}

func (o Options) withDefaults() Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.LockTimeout == 0 {
		o.LockTimeout = time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.History <= 0 {
		o.History = 1024
	}
	return o
}

// Store is the objects of one machine. It is safe for concurrent use.
type Store struct {
	db      *bolt.DB
	opt     Options
	history *history
	orphans *queue
	closing chan struct{}
	tasks   sync.WaitGroup

	// write keeps the order of events that of the commits. bbolt allows one
	// writer at a time anyway.
	write sync.Mutex

	// mu guards closed, and that no watch starts once Close waits for tasks.
	mu     sync.Mutex
	closed bool
}

var _ store.Store = (*Store)(nil)

// ErrClosed is returned by a Store after Close.
var ErrClosed = errors.New("store is closed")

// Open opens or creates the file at path. Its directory must exist.
func Open(path string, opt Options) (*Store, error) {
	opt = opt.withDefaults()
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout: opt.LockTimeout,
		NoSync:  opt.NoSync,
		// The list of free pages is found again on opening; not writing it
		// makes every commit smaller.
		NoFreelistSync: true,
		FreelistType:   bolt.FreelistMapType,
	})
	if err != nil {
		return nil, explainOpen(path, err)
	}
	s := &Store{db: db, opt: opt, orphans: newQueue(), closing: make(chan struct{})}
	if err := s.prepare(path); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s.tasks.Go(s.collect)
	return s, nil
}

func explainOpen(path string, err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return &hint.Error{
			Field: "store", Value: path, Problem: "the file is locked", Err: err,
			Remedy: "another weftd runs with this root: use it, stop it with 'weft down', or choose another --root",
		}
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return &hint.Error{
			Field: "store", Value: path, Problem: "the file is damaged", Err: err,
			Remedy: "move it away and run 'weft up' again with your YAML files",
		}
	}
	return fmt.Errorf("open store %s: %w", path, err)
}

// prepare makes the buckets, checks the format and looks for work that a
// crash left to the collector.
func (s *Store) prepare(path string) error {
	var revision uint64
	err := s.db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{metaBucket, objectsBucket, uidsBucket, ownedBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return fmt.Errorf("create bucket %s: %w", name, err)
			}
		}
		meta := tx.Bucket(metaBucket)
		found := meta.Get(formatKey)
		if found == nil {
			return meta.Put(formatKey, []byte(format))
		}
		if string(found) != format {
			return &hint.Error{
				Field: "store", Value: path, Problem: fmt.Sprintf("has format %s, this weft knows %s", found, format),
				Remedy: "run the weft that wrote it, or move the file away and apply your YAML again",
			}
		}
		revision = meta.Sequence()
		s.orphans.add(namedOwners(tx)...)
		return nil
	})
	if err != nil {
		return err
	}
	s.history = newHistory(s.opt.History, revision)
	return nil
}

// Close ends all watches and the collector and closes the file.
func (s *Store) Close() error {
	s.mu.Lock()
	already := s.closed
	if !already {
		s.closed = true
		close(s.closing)
	}
	s.mu.Unlock()
	s.tasks.Wait()
	if already {
		return nil
	}
	// A clean stop is durable also with NoSync.
	if err := errors.Join(s.db.Sync(), s.db.Close()); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// start runs task in a goroutine that Close waits for.
func (s *Store) start(task func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.tasks.Go(task)
	return nil
}
