// Package storetest is the suite every store.Store must pass: what agent and
// controllers rely on, stated once. It does not test what only one
// implementation has (files and locks, API servers and caches).
//
// The suite makes its own Namespace objects and uses the kinds Widget
// (namespaced, with status) and Panel (cluster-scoped) of group
// storetest.weft.network, version v1.
package storetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/store"
)

// Kinds of the suite.
var (
	Widget = schema.GroupVersionKind{Group: "storetest.weft.network", Version: "v1", Kind: "Widget"}
	Panel  = schema.GroupVersionKind{Group: "storetest.weft.network", Version: "v1", Kind: "Panel"}
)

// deadline bounds everything that happens in the background.
const deadline = 20 * time.Second

// limit bounds each case: some make thousands of writes, over a network.
const limit = 5 * time.Minute

// Run runs the suite. open gives a store, the same or a new one each time; it
// registers its own cleanup.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	t.Helper()
	cases := []struct {
		name string
		body func(*fixture)
	}{
		{"CreateGetDelete", createGetDelete},
		{"CreateSetsSystemFields", createSetsSystemFields},
		{"CreateRefusals", createRefusals},
		{"UnknownFieldsSurvive", unknownFieldsSurvive},
		{"ListSelects", listSelects},
		{"UpdateKeepsStatusAndSystemFields", updateKeeps},
		{"UpdateStatusChangesStatusOnly", updateStatusOnly},
		{"GenerationCountsSpec", generationCountsSpec},
		{"NoOpGivesNoRevision", noOp},
		{"Conflicts", conflicts},
		{"NotFound", notFound},
		{"DeletePreconditions", deletePreconditions},
		{"Finalizers", finalizers},
		{"OwnersCascade", ownersCascade},
		{"LastOwnerCounts", lastOwnerCounts},
		{"OwnerNeverThere", ownerNeverThere},
		{"OwnedWithFinalizer", ownedWithFinalizer},
		{"WatchOrder", watchOrder},
		{"WatchSelects", watchSelects},
		{"WatchResumes", watchResumes},
		{"WatchEndsWithContext", watchEnds},
		{"WatchUnderWriters", watchUnderWriters},
		{"SlowWatchBlocksNobody", slowWatch},
		{"CompareAndSwap", compareAndSwap},
		{"RandomWalk", randomWalk},
		{"ResultsAreCopies", resultsAreCopies},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			t.Cleanup(cancel)
			f := &fixture{T: t, s: open(t), ctx: ctx}
			f.ns = f.namespace()
			c.body(f)
		})
	}
}

// fixture is one test's store and a namespace of its own.
type fixture struct {
	*testing.T
	s   store.Store
	ctx context.Context
	ns  string
}

var namespaces atomic.Int64

func (f *fixture) namespace() string {
	f.Helper()
	name := fmt.Sprintf("storetest-%d-%d", time.Now().UnixNano(), namespaces.Add(1))
	ns := &store.Object{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": name}}}
	f.create(ns)
	return name
}

// widget gives an object of this test's namespace that is not stored yet.
func (f *fixture) widget(name string) *store.Object {
	return &store.Object{Object: map[string]any{
		"apiVersion": "storetest.weft.network/v1", "kind": "Widget",
		"metadata": map[string]any{"name": name, "namespace": f.ns},
		"spec":     map[string]any{"size": int64(1)},
	}}
}

func (f *fixture) owned(name string, owners ...*store.Object) *store.Object {
	obj := f.widget(name)
	var refs []metav1.OwnerReference
	for _, owner := range owners {
		refs = append(refs, metav1.OwnerReference{
			APIVersion: owner.GetAPIVersion(), Kind: owner.GetKind(), Name: owner.GetName(), UID: owner.GetUID(),
		})
	}
	obj.SetOwnerReferences(refs)
	return obj
}

func (f *fixture) key(name string) store.Key { return store.Key{Namespace: f.ns, Name: name} }

func (f *fixture) sel() store.Selector { return store.Selector{Namespace: f.ns} }

func (f *fixture) create(obj *store.Object) *store.Object {
	f.Helper()
	made, err := f.s.Create(f.ctx, obj)
	if err != nil {
		f.Fatalf("Create: %v", err)
	}
	return made
}

func (f *fixture) update(obj *store.Object) *store.Object {
	f.Helper()
	made, err := f.s.Update(f.ctx, obj)
	if err != nil {
		f.Fatalf("Update: %v", err)
	}
	return made
}

func (f *fixture) updateStatus(obj *store.Object) *store.Object {
	f.Helper()
	made, err := f.s.UpdateStatus(f.ctx, obj)
	if err != nil {
		f.Fatalf("UpdateStatus: %v", err)
	}
	return made
}

func (f *fixture) get(name string) *store.Object {
	f.Helper()
	obj, err := f.s.Get(f.ctx, Widget, f.key(name))
	if err != nil {
		f.Fatalf("Get: %v", err)
	}
	return obj
}

func (f *fixture) delete(name string) {
	f.Helper()
	if err := f.s.Delete(f.ctx, Widget, f.key(name), store.Precondition{}); err != nil {
		f.Fatalf("Delete: %v", err)
	}
}

func (f *fixture) list(sel store.Selector) ([]*store.Object, string) {
	f.Helper()
	objs, revision, err := f.s.List(f.ctx, Widget, sel)
	if err != nil {
		f.Fatalf("List: %v", err)
	}
	return objs, revision
}

func (f *fixture) watch(sel store.Selector, since string) <-chan store.Event {
	f.Helper()
	events, err := f.s.Watch(f.ctx, Widget, sel, since)
	if err != nil {
		f.Fatalf("Watch: %v", err)
	}
	return events
}

// next gives one event as "put NAME" or "deleted NAME", and the event.
func (f *fixture) next(events <-chan store.Event) (string, store.Event) {
	f.Helper()
	select {
	case e, ok := <-events:
		if !ok {
			f.Fatal("watch: channel closed, want an event")
		}
		return string(e.Type) + " " + e.Object.GetName(), e
	case <-time.After(deadline):
		f.Fatalf("watch: no event within %v", deadline)
	}
	return "", store.Event{}
}

func (f *fixture) wantEvents(events <-chan store.Event, want ...string) (last store.Event) {
	f.Helper()
	for i, text := range want {
		var got string
		got, last = f.next(events)
		if got != text {
			f.Fatalf("event %d: got %q, want %q", i, got, text)
		}
	}
	return last
}

func (f *fixture) wantError(err, want error) {
	f.Helper()
	if !errors.Is(err, want) {
		f.Fatalf("got error %v, want %v", err, want)
	}
}

// gone waits until the object is not there any more.
func (f *fixture) gone(name string) {
	f.Helper()
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		_, err := f.s.Get(f.ctx, Widget, f.key(name))
		if errors.Is(err, store.ErrNotFound) {
			return
		}
		if err != nil {
			f.Fatalf("Get: %v", err)
		}
	}
	f.Fatalf("%s is still there after %v", name, deadline)
}

// until waits until cond holds for the object and gives it.
func (f *fixture) until(name string, cond func(*store.Object) bool) *store.Object {
	f.Helper()
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if obj := f.get(name); cond(obj) {
			return obj
		}
	}
	f.Fatalf("%s did not come to the state waited for within %v", name, deadline)
	return nil
}

func text(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(data)
}
