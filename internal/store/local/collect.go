package local

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"sync"

	bolt "go.etcd.io/bbolt"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/internal/store"
)

// collectBatch bounds the objects one transaction of the collector removes.
const collectBatch = 64

// reference is the place of an object as the indexes write it.
type reference struct {
	kind kindName
	key  store.Key
}

func (r reference) bytes() []byte { return []byte(string(r.kind) + "\x00" + string(keyBytes(r.key))) }

// under is the key of r in the owned bucket.
func (r reference) under(owner types.UID) []byte {
	return []byte(string(owner) + "\x00" + string(r.bytes()))
}

func parseReference(text string) reference {
	kind, key, _ := strings.Cut(text, "\x00")
	return reference{kind: kindName(kind), key: parseKey(key)}
}

// queue is a set of owners to look at, with a signal. It never blocks a writer.
type queue struct {
	signal chan struct{} // size 1: one pending wake-up says it all

	// mu guards uids.
	mu   sync.Mutex
	uids []types.UID
}

func newQueue() *queue { return &queue{signal: make(chan struct{}, 1)} }

func (q *queue) add(uids ...types.UID) {
	if len(uids) == 0 {
		return
	}
	q.mu.Lock()
	q.uids = append(q.uids, uids...)
	q.mu.Unlock()
	select {
	case q.signal <- struct{}{}:
	default:
	}
}

func (q *queue) take() []types.UID {
	q.mu.Lock()
	defer q.mu.Unlock()
	uids := q.uids
	q.uids = nil
	return uids
}

// collect deletes what owners leave behind until the store closes. What it has
// not come to by then is found again by namedOwners.
func (s *Store) collect() {
	for {
		select {
		case <-s.closing:
			return
		case <-s.orphans.signal:
		}
		for _, owner := range s.orphans.take() {
			if !s.collectOwned(owner) {
				return
			}
		}
	}
}

// collectOwned deletes the ownerless objects that name owner, and reports
// whether the store is still open.
func (s *Store) collectOwned(owner types.UID) bool {
	var after []byte
	for more := true; more; {
		select {
		case <-s.closing:
			return false
		default:
		}
		var deleted []event
		err := s.commit(func(tx *txn) error {
			var err error
			after, more, err = tx.deleteOwned(owner, after, metav1.NewTime(s.opt.Now()))
			deleted = tx.events
			if err == nil && len(deleted) == 0 {
				return errUnchanged
			}
			return err
		})
		if err != nil {
			s.opt.Log.Error("deleting what an owner left behind", "ownerUid", owner, "error", err)
			return true
		}
		for _, e := range deleted {
			s.opt.Log.Info("ownerless object deleted", "kind", e.kind, "object", e.key.String(), "ownerUid", owner)
		}
	}
	return true
}

// deleteOwned deletes a batch of the objects that name owner and have no
// living owner, going on behind the index key after.
func (t *txn) deleteOwned(owner types.UID, after []byte, now metav1.Time) (last []byte, more bool, err error) {
	prefix := []byte(string(owner) + "\x00")
	start := prefix
	if after != nil {
		start = append(slices.Clone(after), 0) // the next possible key
	}
	// Read first: a cursor is not valid across the bucket's own changes.
	var refs [][]byte
	cursor := t.tx.Bucket(ownedBucket).Cursor()
	for key, _ := cursor.Seek(start); key != nil && bytes.HasPrefix(key, prefix); key, _ = cursor.Next() {
		if len(refs) == collectBatch {
			more = true
			break
		}
		refs = append(refs, slices.Clone(key))
	}
	for _, key := range refs {
		last = key
		ref := parseReference(string(key[len(prefix):]))
		if err := t.deleteOrphan(ref, now); err != nil {
			return last, false, err
		}
	}
	return last, more, nil
}

func (t *txn) deleteOrphan(ref reference, now metav1.Time) error {
	data := t.read(ref.kind, ref.key)
	if data == nil {
		return nil
	}
	obj, err := decode(data)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(obj.GetOwnerReferences(), func(o metav1.OwnerReference) bool { return t.lives(o, ref.key) }) {
		return nil
	}
	if err := t.delete(ref.kind, ref.key, store.Precondition{}, now); err != nil && !errors.Is(err, errUnchanged) {
		return err
	}
	return nil
}

// lives reports whether the owner named by an object at key is there: same UID,
// kind and name, in the object's namespace or in none.
func (t *txn) lives(owner metav1.OwnerReference, key store.Key) bool {
	found := t.tx.Bucket(uidsBucket).Get([]byte(owner.UID))
	if found == nil {
		return false
	}
	ref := parseReference(string(found))
	group, err := schema.ParseGroupVersion(owner.APIVersion)
	if err != nil {
		return false
	}
	return ref.kind == kindOf(group.WithKind(owner.Kind)) && ref.key.Name == owner.Name &&
		(ref.key.Namespace == "" || ref.key.Namespace == key.Namespace)
}

// namedOwners gives every owner that objects name. Looking at them all once
// after opening finds the work that a crash left undone.
func namedOwners(tx *bolt.Tx) []types.UID {
	var owners []types.UID
	cursor := tx.Bucket(ownedBucket).Cursor()
	for key, _ := cursor.First(); key != nil; {
		owner, _, _ := bytes.Cut(key, []byte{0})
		owners = append(owners, types.UID(owner))
		// On to the next owner; 1 is behind the NUL that all its keys have.
		key, _ = cursor.Seek(append(slices.Clone(owner), 1))
	}
	return owners
}
