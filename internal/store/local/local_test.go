package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/storetest"
)

func open(t *testing.T, path string, opt Options) *Store {
	t.Helper()
	s, err := Open(path, opt)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func TestSuite(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		s := open(t, filepath.Join(t.TempDir(), "store.db"), Options{NoSync: true})
		t.Cleanup(func() { checkIndexes(t, s.db) })
		return s
	})
}

func widget(name string) *store.Object {
	return &store.Object{Object: map[string]any{
		"apiVersion": "storetest.weft.network/v1", "kind": "Widget",
		"metadata": map[string]any{"name": name, "namespace": "ns"}, "spec": map[string]any{"n": int64(1)},
	}}
}

func create(t *testing.T, s *Store, obj *store.Object) *store.Object {
	t.Helper()
	made, err := s.Create(t.Context(), obj)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	return made
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := open(t, path, Options{NoSync: true, Now: func() time.Time { return at }})
	create(t, s, widget("a"))
	kept := create(t, s, widget("b"))
	if err := s.Delete(t.Context(), storetest.Widget, store.Key{Namespace: "ns", Name: "a"}, store.Precondition{}); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := s.Create(t.Context(), widget("late")); !errors.Is(err, ErrClosed) {
		t.Errorf("Create after Close: got %v, want ErrClosed", err)
	}
	if _, err := s.Watch(t.Context(), storetest.Widget, store.Selector{}, ""); !errors.Is(err, ErrClosed) {
		t.Errorf("Watch after Close: got %v, want ErrClosed", err)
	}

	s = open(t, path, Options{NoSync: true})
	objs, revision, err := s.List(t.Context(), storetest.Widget, store.Selector{})
	if err != nil || len(objs) != 1 {
		t.Fatalf("List: got %d objects, error %v, want b", len(objs), err)
	}
	if got, want := fmt.Sprint(objs[0].Object), fmt.Sprint(kept.Object); got != want {
		t.Errorf("after reopening:\ngot  %s\nwant %s", got, want)
	}
	if !objs[0].GetCreationTimestamp().Time.Equal(at) {
		t.Errorf("creationTimestamp: got %v, want %v", objs[0].GetCreationTimestamp(), at)
	}
	if revision != "3" {
		t.Errorf("revision after reopening: got %s, want 3, that of the deletion", revision)
	}
	if got := create(t, s, widget("c")).GetResourceVersion(); got != "4" {
		t.Errorf("next revision: got %s, want 4", got)
	}
	// The events before are forgotten, those since the start are not.
	if _, err := s.Watch(t.Context(), storetest.Widget, store.Selector{}, "2"); !errors.Is(err, store.ErrExpired) {
		t.Errorf("Watch since 2: got error %v, want ErrExpired", err)
	}
	if _, err := s.Watch(t.Context(), storetest.Widget, store.Selector{}, "99"); !errors.Is(err, store.ErrExpired) {
		t.Errorf("Watch since the future: got error %v, want ErrExpired", err)
	}
	events, err := s.Watch(t.Context(), storetest.Widget, store.Selector{}, "3")
	if err != nil {
		t.Fatalf("Watch since 3: %v", err)
	}
	if e := <-events; e.Object.GetName() != "c" {
		t.Errorf("resumed watch: got %s, want c", e.Object.GetName())
	}
}

func TestCloseEndsWatches(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "store.db"), Options{NoSync: true})
	events, err := s.Watch(context.Background(), storetest.Widget, store.Selector{}, "")
	if err != nil {
		t.Fatalf("Watch: %v", err)
	}
	create(t, s, widget("unread")) // its delivery waits for a reader
	if err := s.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	for range events { // drained until closed, or the test times out
	}
}

func TestHistoryIsBounded(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "store.db"), Options{NoSync: true, History: 10})
	events, err := s.Watch(t.Context(), storetest.Widget, store.Selector{}, "0")
	if err != nil {
		t.Fatalf("Watch: %v", err)
	}
	for i := range 100 {
		create(t, s, widget(fmt.Sprint("w", i)))
	}
	got := 0
	for range events { // ends: the reader did not keep up
		got++
	}
	if got >= 100 {
		t.Errorf("a watch that was not read took %d events, want fewer than 100", got)
	}
	if n := len(s.history.events); n != 10 {
		t.Errorf("history: got %d events, want 10", n)
	}
	big := widget("big")
	big.Object["spec"] = strings.Repeat("x", historyBytes/3)
	for range 2 {
		made := create(t, s, big)
		if err := s.Delete(t.Context(), storetest.Widget, store.KeyOf(made), store.Precondition{}); err != nil {
			t.Fatalf("Delete: %v", err)
		}
	}
	if s.history.bytes > historyBytes {
		t.Errorf("history: got %d bytes, want at most %d", s.history.bytes, historyBytes)
	}
}

func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	open(t, path, Options{})
	_, err := Open(path, Options{LockTimeout: 60 * time.Millisecond})
	var h *hint.Error
	if !errors.As(err, &h) || !strings.Contains(h.Remedy, "another weftd runs with this root") {
		t.Errorf("second Open: got %v, want the hint about another weftd", err)
	}
}

func TestDamagedAndForeignFiles(t *testing.T) {
	dir := t.TempDir()
	damaged := filepath.Join(dir, "damaged.db")
	if err := os.WriteFile(damaged, []byte(strings.Repeat("no database ", 2000)), 0o600); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(dir, "foreign.db")
	s := open(t, foreign, Options{})
	if err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(metaBucket).Put(formatKey, []byte("2")) }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{damaged, foreign} {
		_, err := Open(path, Options{})
		var h *hint.Error
		if !errors.As(err, &h) || h.Value != path {
			t.Errorf("Open %s: got %v, want a hint", filepath.Base(path), err)
		}
	}
	if _, err := Open(filepath.Join(dir, "none", "store.db"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open in a missing directory: got %v, want ErrNotExist", err)
	}
}

// TestVersionsShareObjects: v1 and v1alpha3 of a kind are one object.
func TestVersionsShareObjects(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "store.db"), Options{NoSync: true})
	create(t, s, widget("a"))
	alpha := schema.GroupVersionKind{Group: storetest.Widget.Group, Version: "v1alpha3", Kind: "Widget"}
	obj, err := s.Get(t.Context(), alpha, store.Key{Namespace: "ns", Name: "a"})
	if err != nil || obj.GetAPIVersion() != "storetest.weft.network/v1alpha3" {
		t.Errorf("Get as v1alpha3: got %v, error %v", obj, err)
	}
}

// TestGoNumbers: documents built in Go hold plain ints, on which DeepCopy of
// apimachinery panics.
func TestGoNumbers(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "store.db"), Options{NoSync: true})
	obj := widget("a")
	obj.Object["spec"] = map[string]any{"n": 5, "strings": []string{"x"}}
	made := create(t, s, obj)
	made.Object["spec"] = map[string]any{"n": 5, "strings": []string{"x"}}
	again, err := s.Update(t.Context(), made)
	if err != nil || again.GetResourceVersion() != made.GetResourceVersion() {
		t.Errorf("Update with the same: got revision %v, error %v", again.GetResourceVersion(), err)
	}
	obj.Object["spec"] = func() {}
	if _, err := s.Update(t.Context(), obj); err == nil {
		t.Error("a document that is no JSON was stored")
	}
}

// checkIndexes holds uids and owned against the objects themselves.
func checkIndexes(t *testing.T, db *bolt.DB) {
	t.Helper()
	want, got := map[string]bool{}, map[string]bool{}
	err := db.View(func(tx *bolt.Tx) error {
		objects := tx.Bucket(objectsBucket)
		err := objects.ForEachBucket(func(kind []byte) error {
			return objects.Bucket(kind).ForEach(func(key, data []byte) error {
				obj, err := decode(data)
				if err != nil {
					return err
				}
				ref := reference{kind: kindName(kind), key: parseKey(string(key))}
				want["uid "+string(obj.GetUID())+" "+string(ref.bytes())] = true
				for _, owner := range obj.GetOwnerReferences() {
					want["owned "+string(ref.under(owner.UID))] = true
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
		if err := tx.Bucket(uidsBucket).ForEach(func(k, v []byte) error {
			got["uid "+string(k)+" "+string(v)] = true
			return nil
		}); err != nil {
			return err
		}
		return tx.Bucket(ownedBucket).ForEach(func(k, _ []byte) error {
			got["owned "+string(k)] = true
			return nil
		})
	})
	if err != nil {
		t.Errorf("read indexes: %v", err)
	}
	for entry := range got {
		if !want[entry] {
			t.Errorf("index entry without object: %q", entry)
		}
	}
	for entry := range want {
		if !got[entry] {
			t.Errorf("object without index entry: %q", entry)
		}
	}
}
