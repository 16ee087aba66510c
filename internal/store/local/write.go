package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	bolt "go.etcd.io/bbolt"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/store"
)

// errUnchanged ends a transaction that found nothing to write.
var errUnchanged = errors.New("unchanged")

// Create stores obj under a new UID. Its status is dropped.
func (s *Store) Create(ctx context.Context, obj *store.Object) (*store.Object, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := validate(obj); err != nil {
		return nil, err
	}
	if revision := obj.GetResourceVersion(); revision != "" {
		return nil, &hint.Error{
			Field: "metadata.resourceVersion", Value: revision, Problem: "is set on an object to be created",
			Remedy: "take it out: the store gives it",
		}
	}
	made, err := clone(obj)
	if err != nil {
		return nil, err
	}
	initialise(made, metav1.NewTime(s.opt.Now()))
	made.SetUID(uuid.NewUUID())
	err = s.commit(func(tx *txn) error {
		if tx.read(kindOf(made.GroupVersionKind()), store.KeyOf(made)) != nil {
			return store.ErrExists
		}
		return tx.put(made, nil, nil)
	})
	if err != nil {
		return nil, fmt.Errorf("create %s %s: %w", obj.GetKind(), store.KeyOf(obj), err)
	}
	return made, nil
}

// Update replaces everything but status and the system's fields. Taking the
// last finalizer off an object being deleted removes it.
func (s *Store) Update(ctx context.Context, obj *store.Object) (*store.Object, error) {
	if err := validate(obj); err != nil {
		return nil, err
	}
	given, err := clone(obj)
	if err != nil {
		return nil, err
	}
	return s.replace(ctx, "update", obj, func(old *store.Object) (*store.Object, error) {
		if err := checkFinalizers(given, old); err != nil {
			return nil, err
		}
		return given, inherit(given, old)
	})
}

// UpdateStatus replaces status and nothing else.
func (s *Store) UpdateStatus(ctx context.Context, obj *store.Object) (*store.Object, error) {
	if err := validate(obj); err != nil {
		return nil, err
	}
	given, err := clone(obj)
	if err != nil {
		return nil, err
	}
	return s.replace(ctx, "update status of", obj, func(old *store.Object) (*store.Object, error) {
		next, err := clone(old)
		if err != nil {
			return nil, err
		}
		delete(next.Object, "status")
		if status, ok := given.Object["status"]; ok {
			next.Object["status"] = status
		}
		return next, nil
	})
}

// replace writes what next makes of the present object, under the revision and
// UID that obj carries.
func (s *Store) replace(
	ctx context.Context, verb string, obj *store.Object, next func(old *store.Object) (*store.Object, error),
) (*store.Object, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	gvk, key := obj.GroupVersionKind(), store.KeyOf(obj)
	var made *store.Object
	err := s.commit(func(tx *txn) error {
		data := tx.read(kindOf(gvk), key)
		if data == nil {
			return store.ErrNotFound
		}
		old, err := decodeAs(data, gvk)
		if err != nil {
			return err
		}
		if err := checkPrecondition(old, store.Precondition{UID: obj.GetUID(), Revision: obj.GetResourceVersion()}); err != nil {
			return err
		}
		made, err = next(old)
		if err != nil {
			return err
		}
		if made.GetDeletionTimestamp() != nil && len(made.GetFinalizers()) == 0 {
			return tx.remove(made, old, data)
		}
		made.SetResourceVersion(old.GetResourceVersion())
		return tx.put(made, old, data)
	})
	if err != nil {
		return nil, fmt.Errorf("%s %s %s: %w", verb, obj.GetKind(), key, err)
	}
	return made, nil
}

// Delete removes an object, or marks it as being deleted if it has finalizers.
func (s *Store) Delete(ctx context.Context, gvk schema.GroupVersionKind, key store.Key, pre store.Precondition) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := s.commit(func(tx *txn) error { return tx.delete(kindOf(gvk), key, pre, metav1.NewTime(s.opt.Now())) })
	if err != nil {
		return fmt.Errorf("delete %s %s: %w", gvk.Kind, key, err)
	}
	return nil
}

// txn is one write transaction and what becomes of it once it is committed.
type txn struct {
	tx      *bolt.Tx
	events  []event
	orphans []types.UID // owners to look at: they went, or never were
}

// commit runs fn in a transaction and then tells the watches and the collector.
func (s *Store) commit(fn func(*txn) error) error {
	s.write.Lock()
	defer s.write.Unlock()
	var t txn
	err := s.db.Update(func(tx *bolt.Tx) error {
		t = txn{tx: tx}
		return fn(&t)
	})
	if errors.Is(err, errUnchanged) {
		return nil
	}
	if err != nil {
		return explainClosed(err)
	}
	s.history.add(t.events)
	s.orphans.add(t.orphans...)
	return nil
}

// read gives the stored text, valid while the transaction lasts, or nil.
func (t *txn) read(kind kindName, key store.Key) []byte { return readTx(t.tx, kind, key) }

// put writes obj in place of old (nil: there was none) under a new revision,
// unless both are the same text.
func (t *txn) put(obj, old *store.Object, oldData []byte) error {
	kind, key := kindOf(obj.GroupVersionKind()), store.KeyOf(obj)
	if old != nil {
		data, err := encode(obj)
		if err != nil {
			return err
		}
		was, err := encode(old)
		if err != nil {
			return err
		}
		if bytes.Equal(data, was) {
			return errUnchanged
		}
	}
	revision, err := t.tx.Bucket(metaBucket).NextSequence()
	if err != nil {
		return fmt.Errorf("count revision: %w", err)
	}
	obj.SetResourceVersion(formatRevision(revision))
	data, err := encode(obj)
	if err != nil {
		return err
	}
	bucket, err := t.tx.Bucket(objectsBucket).CreateBucketIfNotExists([]byte(kind))
	if err != nil {
		return fmt.Errorf("create bucket %s: %w", kind, err)
	}
	if err := t.reindex(kind, key, obj, old); err != nil {
		return err
	}
	t.events = append(t.events, newEvent(store.Put, revision, obj, data, old, oldData))
	return bucket.Put(keyBytes(key), data)
}

// remove takes old away; last is its final state, for the watches.
func (t *txn) remove(last, old *store.Object, oldData []byte) error {
	kind, key := kindOf(last.GroupVersionKind()), store.KeyOf(last)
	revision, err := t.tx.Bucket(metaBucket).NextSequence()
	if err != nil {
		return fmt.Errorf("count revision: %w", err)
	}
	last.SetResourceVersion(formatRevision(revision))
	data, err := encode(last)
	if err != nil {
		return err
	}
	if err := t.reindex(kind, key, nil, old); err != nil {
		return err
	}
	t.events = append(t.events, newEvent(store.Deleted, revision, last, data, old, oldData))
	t.orphans = append(t.orphans, old.GetUID())
	return t.tx.Bucket(objectsBucket).Bucket([]byte(kind)).Delete(keyBytes(key))
}

func (t *txn) delete(kind kindName, key store.Key, pre store.Precondition, now metav1.Time) error {
	data := t.read(kind, key)
	if data == nil {
		return store.ErrNotFound
	}
	old, err := decode(data)
	if err != nil {
		return err
	}
	if err := checkPrecondition(old, pre); err != nil {
		return err
	}
	next, err := decode(data)
	if err != nil {
		return err
	}
	if len(old.GetFinalizers()) == 0 {
		return t.remove(next, old, data)
	}
	if old.GetDeletionTimestamp() != nil {
		return errUnchanged
	}
	next.SetDeletionTimestamp(&now)
	next.SetDeletionGracePeriodSeconds(new(int64))
	next.SetGeneration(old.GetGeneration() + 1)
	return t.put(next, old, data)
}

// reindex brings uids and owned from old to obj; nil stands for no object.
func (t *txn) reindex(kind kindName, key store.Key, obj, old *store.Object) error {
	uids, owned := t.tx.Bucket(uidsBucket), t.tx.Bucket(ownedBucket)
	where := reference{kind: kind, key: key}
	if old != nil {
		for _, owner := range old.GetOwnerReferences() {
			if err := owned.Delete(where.under(owner.UID)); err != nil {
				return fmt.Errorf("drop owner of %s %s: %w", kind, key, err)
			}
		}
	}
	if obj == nil {
		return uids.Delete([]byte(old.GetUID()))
	}
	if err := uids.Put([]byte(obj.GetUID()), where.bytes()); err != nil {
		return fmt.Errorf("index UID of %s %s: %w", kind, key, err)
	}
	owners := obj.GetOwnerReferences()
	for _, owner := range owners {
		if err := owned.Put(where.under(owner.UID), nil); err != nil {
			return fmt.Errorf("index owner of %s %s: %w", kind, key, err)
		}
	}
	// As in Kubernetes, an object may name an owner that is gone already.
	if len(owners) > 0 && !slices.ContainsFunc(owners, func(o metav1.OwnerReference) bool { return t.lives(o, key) }) {
		t.orphans = append(t.orphans, owners[0].UID)
	}
	return nil
}
