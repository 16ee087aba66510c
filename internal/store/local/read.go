package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/store"
)

// Get gives one object.
func (s *Store) Get(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (*store.Object, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var obj *store.Object
	err := s.db.View(func(tx *bolt.Tx) error {
		data := readTx(tx, kindOf(gvk), key)
		if data == nil {
			return store.ErrNotFound
		}
		var err error
		obj, err = decodeAs(data, gvk)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get %s %s: %w", gvk.Kind, key, explainClosed(err))
	}
	return obj, nil
}

// List gives the selected objects sorted by namespace and name, and the
// revision they are at.
func (s *Store) List(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector) ([]*store.Object, string, error) {
	if err := ctx.Err(); err != nil {
		return nil, "", err
	}
	var objs []*store.Object
	var revision uint64
	err := s.db.View(func(tx *bolt.Tx) error {
		revision = tx.Bucket(metaBucket).Sequence()
		bucket := tx.Bucket(objectsBucket).Bucket([]byte(kindOf(gvk)))
		if bucket == nil {
			return nil
		}
		var prefix []byte
		if sel.Namespace != "" {
			prefix = []byte(sel.Namespace + "/")
		}
		cursor := bucket.Cursor()
		for key, data := cursor.Seek(prefix); key != nil && bytes.HasPrefix(key, prefix); key, data = cursor.Next() {
			obj, err := decodeAs(data, gvk)
			if err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
			if sel.Matches(obj.GetNamespace(), obj.GetLabels()) {
				objs = append(objs, obj)
			}
		}
		return nil
	})
	if err != nil {
		return nil, "", fmt.Errorf("list %s: %w", gvk.Kind, explainClosed(err))
	}
	return objs, formatRevision(revision), nil
}

// readTx gives the stored text, valid while tx lasts, or nil.
func readTx(tx *bolt.Tx, kind kindName, key store.Key) []byte {
	bucket := tx.Bucket(objectsBucket).Bucket([]byte(kind))
	if bucket == nil {
		return nil
	}
	return bucket.Get(keyBytes(key))
}

func explainClosed(err error) error {
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	return err
}
