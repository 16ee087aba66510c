package storetest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/weftnet/weft/internal/store"
)

// randomWalk makes random changes and holds the store against a model, and
// what three watches with different selectors put together against a list.
func randomWalk(f *fixture) {
	rapid.Check(f.T, func(rt *rapid.T) {
		w := &walk{fixture: &fixture{T: f.T, s: f.s, ctx: f.ctx, ns: f.namespace()}, rt: rt, model: map[string]*store.Object{}}
		selectors := []store.Selector{
			{Namespace: w.ns},
			{Namespace: w.ns, Labels: map[string]string{"app": "x"}},
			{Namespace: w.ns, Labels: map[string]string{"app": "y", "tier": "1"}},
		}
		var watches []<-chan store.Event
		for _, sel := range selectors {
			_, revision := w.list(sel)
			watches = append(watches, w.watch(sel, revision))
		}
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			w.step()
		}
		w.compare()
		for i, sel := range selectors {
			w.follow(watches[i], sel)
		}
	})
}

// walk is one random walk and the objects that should be there.
type walk struct {
	*fixture
	rt    *rapid.T
	model map[string]*store.Object
}

func (w *walk) step() {
	name := rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(w.rt, "name")
	obj := w.widget(name)
	if stored := w.model[name]; stored != nil && rapid.Bool().Draw(w.rt, "withRevision") {
		obj.SetResourceVersion(stored.GetResourceVersion())
	}
	obj.SetLabels(rapid.SampledFrom([]map[string]string{
		nil, {"app": "x"}, {"app": "y"}, {"app": "y", "tier": "1"},
	}).Draw(w.rt, "labels"))
	if rapid.IntRange(0, 3).Draw(w.rt, "finalizer") == 0 {
		obj.SetFinalizers([]string{"weft.network/wait"})
	}
	obj.Object["spec"] = map[string]any{"size": int64(rapid.IntRange(0, 2).Draw(w.rt, "size"))}
	obj.Object["status"] = map[string]any{"n": int64(rapid.IntRange(0, 1).Draw(w.rt, "status"))}
	switch rapid.SampledFrom([]string{"create", "update", "update", "status", "delete"}).Draw(w.rt, "verb") {
	case "create":
		obj.SetResourceVersion("")
		made, err := w.s.Create(w.ctx, obj)
		w.expect(err, w.model[name] == nil, store.ErrExists)
		if err == nil {
			w.model[name] = made
		}
	case "update":
		w.replaceWith(w.s.Update(w.ctx, w.allowed(obj)))(name)
	case "status":
		w.replaceWith(w.s.UpdateStatus(w.ctx, obj))(name)
	case "delete":
		err := w.s.Delete(w.ctx, Widget, w.key(name), store.Precondition{})
		w.expect(err, w.model[name] != nil, store.ErrNotFound)
		switch {
		case w.model[name] == nil:
		case len(w.model[name].GetFinalizers()) > 0:
			w.model[name] = w.get(name)
			if w.model[name].GetDeletionTimestamp() == nil {
				w.rt.Fatalf("%s: deleted with a finalizer, but it has no deletionTimestamp", name)
			}
		default:
			delete(w.model, name)
		}
	}
}

// allowed takes off a finalizer that may not be added any more.
func (w *walk) allowed(obj *store.Object) *store.Object {
	if old := w.model[obj.GetName()]; old != nil && old.GetDeletionTimestamp() != nil && len(old.GetFinalizers()) == 0 {
		obj.SetFinalizers(nil)
	}
	return obj
}

func (w *walk) replaceWith(made *store.Object, err error) func(name string) {
	return func(name string) {
		w.expect(err, w.model[name] != nil, store.ErrNotFound)
		switch {
		case err != nil:
		case made.GetDeletionTimestamp() != nil && len(made.GetFinalizers()) == 0:
			delete(w.model, name)
		default:
			w.model[name] = made
		}
	}
}

// expect wants success if ok, and otherwise this error.
func (w *walk) expect(err error, ok bool, otherwise error) {
	if ok && err != nil || !ok && !errors.Is(err, otherwise) {
		w.rt.Fatalf("got error %v; want success: %v, else %v", err, ok, otherwise)
	}
}

func (w *walk) compare() {
	objs, _ := w.list(w.sel())
	stored := map[string]string{}
	for _, obj := range objs {
		stored[obj.GetName()] = text(obj.Object)
	}
	want := map[string]string{}
	for name, obj := range w.model {
		want[name] = text(obj.Object)
	}
	if !maps.Equal(stored, want) {
		w.rt.Fatalf("stored:\n%v\nmodel:\n%v", stored, want)
	}
}

// follow applies a watch's events to an empty replica until it equals the list.
func (w *walk) follow(events <-chan store.Event, sel store.Selector) {
	objs, _ := w.list(sel)
	want := map[string]string{}
	for _, obj := range objs {
		want[obj.GetName()] = text(obj.Object)
	}
	replica := map[string]string{}
	// A last object that every selector takes marks the end.
	mark := w.widget(fmt.Sprintf("mark-%d", namespaces.Add(1)))
	mark.SetLabels(map[string]string{"app": "x"})
	if sel.Labels != nil {
		mark.SetLabels(sel.Labels)
	}
	w.create(mark)
	defer w.delete(mark.GetName())
	for {
		select {
		case e := <-events:
			name := e.Object.GetName()
			if name == mark.GetName() {
				if !maps.Equal(replica, want) {
					w.rt.Fatalf("selector %v: watched:\n%v\nlisted:\n%v", sel.Labels, replica, want)
				}
				return
			}
			if len(name) > 4 { // another selector's mark
				continue
			}
			if _, known := replica[name]; e.Type == store.Deleted && !known {
				w.rt.Fatalf("selector %v: %s deleted, which was not there", sel.Labels, name)
			}
			delete(replica, name)
			if e.Type == store.Put {
				replica[name] = text(e.Object.Object)
			}
		case <-time.After(deadline):
			w.rt.Fatalf("selector %v: no end of events; so far %v", sel.Labels, slices.Collect(maps.Keys(replica)))
		}
	}
}
