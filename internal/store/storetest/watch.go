package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/weftnet/weft/internal/store"
)

func watchOrder(f *fixture) {
	f.create(f.widget("before"))
	_, revision := f.list(f.sel())
	events := f.watch(f.sel(), revision)
	a := f.create(f.widget("a"))
	a.Object["spec"] = map[string]any{"size": int64(2)}
	a = f.update(a)
	a.Object["status"] = map[string]any{"ok": true}
	f.updateStatus(a)
	f.create(f.widget("b"))
	f.delete("a")
	last := f.wantEvents(events, "put a", "put a", "put a", "put b", "deleted a")
	if got, want := text(last.Object.Object["status"]), `{"ok":true}`; got != want {
		f.Errorf("last state of the deleted object: got status %s, want %s", got, want)
	}
}

func watchSelects(f *fixture) {
	other := &fixture{T: f.T, s: f.s, ctx: f.ctx, ns: f.namespace()}
	_, revision := f.list(f.sel())
	events := f.watch(store.Selector{Namespace: f.ns, Labels: map[string]string{"app": "x"}}, revision)
	other.create(other.widget("elsewhere"))
	a := f.create(f.widget("a"))
	a.SetLabels(map[string]string{"app": "x"})
	a = f.update(a) // comes in
	a.Object["spec"] = map[string]any{"size": int64(2)}
	a = f.update(a)
	a.SetLabels(nil)
	left := f.update(a) // goes out
	f.delete("a")       // seen by nobody here
	in := f.widget("b")
	in.SetLabels(map[string]string{"app": "x"})
	f.create(in)
	f.delete("b")
	f.wantEvents(events, "put a", "put a")
	_, out := f.next(events)
	if out.Type != store.Deleted || out.Object.GetResourceVersion() != left.GetResourceVersion() {
		f.Errorf("leaving the selection: got %s at revision %s, want deleted at %s", out.Type, out.Object.GetResourceVersion(), left.GetResourceVersion())
	}
	f.wantEvents(events, "put b", "deleted b")
}

func watchResumes(f *fixture) {
	_, start := f.list(f.sel())
	f.create(f.widget("a"))
	f.create(f.widget("b"))
	f.delete("a")
	f.create(f.widget("c"))
	all := []string{"put a", "put b", "deleted a", "put c"}
	since := start
	for i := range all { // resume behind each event in turn
		ctx, cancel := context.WithCancel(f.ctx)
		events, err := f.s.Watch(ctx, Widget, f.sel(), since)
		if err != nil {
			f.Fatalf("Watch: %v", err)
		}
		got, e := f.next(events)
		if got != all[i] {
			f.Fatalf("resumed behind event %d: got %q, want %q", i, got, all[i])
		}
		since = e.Object.GetResourceVersion()
		cancel()
	}
	now := f.watch(f.sel(), "")
	f.create(f.widget("d"))
	f.wantEvents(now, "put d")
}

func watchEnds(f *fixture) {
	ctx, cancel := context.WithCancel(f.ctx)
	events, err := f.s.Watch(ctx, Widget, f.sel(), "")
	if err != nil {
		f.Fatalf("Watch: %v", err)
	}
	cancel()
	end := time.After(deadline)
	for {
		select {
		case _, ok := <-events:
			if !ok {
				return
			}
		case <-end:
			f.Fatal("the channel is not closed after the context's end")
		}
	}
}

// watchUnderWriters lists and watches while others write, and compares what it
// put together with the store at the end: no gap and nothing twice.
func watchUnderWriters(f *fixture) {
	const writers, rounds = 4, 40
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() { f.write(w, rounds) })
	}
	objs, revision := f.list(f.sel())
	seen := map[string]string{}
	for _, obj := range objs {
		seen[obj.GetName()] = obj.GetResourceVersion()
	}
	events := f.watch(f.sel(), revision)
	wg.Wait()
	f.create(f.widget("end"))
	for {
		what, e := f.next(events)
		name, at := e.Object.GetName(), e.Object.GetResourceVersion()
		if e.Type == store.Deleted {
			if _, ok := seen[name]; !ok {
				f.Errorf("%s at %s: deleted, but was not there", name, at)
			}
			delete(seen, name)
		} else {
			if seen[name] == at {
				f.Errorf("%s at %s came twice", name, at)
			}
			seen[name] = at
		}
		if what == "put end" {
			break
		}
	}
	objs, _ = f.list(f.sel())
	for _, obj := range objs {
		if got := seen[obj.GetName()]; got != obj.GetResourceVersion() {
			f.Errorf("%s: watched to revision %q, stored at %s", obj.GetName(), got, obj.GetResourceVersion())
		}
		delete(seen, obj.GetName())
	}
	if len(seen) > 0 {
		f.Errorf("watched but not stored: %v", seen)
	}
}

func (f *fixture) write(writer, rounds int) {
	for i := range rounds {
		obj, err := f.s.Create(f.ctx, f.widget(fmt.Sprintf("w%d-%d", writer, i)))
		if err != nil {
			f.Errorf("Create: %v", err)
			return
		}
		obj.Object["spec"] = map[string]any{"size": int64(i + 2)}
		if _, err := f.s.Update(f.ctx, obj); err != nil {
			f.Errorf("Update: %v", err)
		}
		if i%2 == 0 {
			if err := f.s.Delete(f.ctx, Widget, store.KeyOf(obj), store.Precondition{}); err != nil {
				f.Errorf("Delete: %v", err)
			}
		}
	}
}

// slowWatch opens a watch and does not read it while much is written; then the
// reader catches up, or is told to list again.
func slowWatch(f *fixture) {
	const writes = 3000
	obj := f.create(f.widget("a"))
	_, revision := f.list(f.sel())
	events := f.watch(f.sel(), revision)
	for i := range writes {
		obj.Object["spec"] = map[string]any{"size": int64(i + 2)}
		obj = f.update(obj)
	}
	last := revision
	for {
		select {
		case e, ok := <-events:
			if !ok {
				// Fallen behind: resuming is refused, or works for all the rest.
				again, err := f.s.Watch(f.ctx, Widget, f.sel(), last)
				if errors.Is(err, store.ErrExpired) {
					return
				}
				if err != nil {
					f.Fatalf("Watch: %v", err)
				}
				events = again
				continue
			}
			last = e.Object.GetResourceVersion()
			if last == obj.GetResourceVersion() {
				return
			}
		case <-time.After(deadline):
			f.Fatal("neither events nor the end of the watch")
		}
	}
}

// compareAndSwap has writers add to one counter under its revision: none of the
// additions may be lost.
func compareAndSwap(f *fixture) {
	const writers, additions = 4, 25
	obj := f.widget("counter")
	obj.Object["spec"] = map[string]any{"size": int64(0)}
	f.create(obj)
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < additions; {
				now, err := f.s.Get(f.ctx, Widget, f.key("counter"))
				if err != nil {
					f.Errorf("Get: %v", err)
					return
				}
				size, _, _ := nestedInt(now, "spec", "size")
				now.Object["spec"] = map[string]any{"size": size + 1}
				_, err = f.s.Update(f.ctx, now)
				switch {
				case err == nil:
					done++
				case !errors.Is(err, store.ErrConflict):
					f.Errorf("Update: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	if size, _, _ := nestedInt(f.get("counter"), "spec", "size"); size != writers*additions {
		f.Errorf("counter: got %d, want %d", size, writers*additions)
	}
}
