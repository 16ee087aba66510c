package kube

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/weftnet/weft/internal/store"
)

// followed is one kind in the cache: a list, and a watch that resumes until it
// cannot.
type followed struct {
	scope  Scope
	source *Store
	log    *slog.Logger
	synced chan struct{} // closed after the first list

	// mu guards the fields below it. Objects are never changed once they are here.
	mu       sync.Mutex
	objects  map[store.Key]*store.Object
	revision string
	epoch    int           // counts lists: events before one do not lead to it
	history  []change      // since the list, but at most historyEvents
	first    int           // the number of history[0]
	base     string        // the revision before history[0]
	changed  chan struct{} // closed and replaced at each change
}

const (
	// A request that failed is made again after a pause: doubled from the first to
	// the last, and shortened by chance, so that nodes do not come all at once.
	firstPause = 50 * time.Millisecond
	lastPause  = 10 * time.Second
	// The server ends a watch after so long, and up to twice: a way that has come
	// to lead nowhere is not waited at for longer.
	watchFor = 5 * time.Minute
	// A watch that lasted for so long was none that failed.
	watchAtLeast = time.Second
)

// trouble counts failures in a row, and tells of it when there are some: watches
// end when servers do, and go on elsewhere.
type trouble struct {
	log      *slog.Logger
	failures int
}

// toldAfter is how many failures in a row are worth telling.
const toldAfter = 3

// wait pauses after a failure.
func (t *trouble) wait(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	if t.failures++; t.failures == toldAfter {
		t.log.Warn("the API server cannot be followed; what is known of it stays", "err", err)
	}
	pause := min(firstPause<<min(t.failures-1, 16), lastPause)
	select {
	case <-time.After(pause/2 + rand.N(pause/2)):
	case <-ctx.Done():
	}
}

// over is called after a success.
func (t *trouble) over() {
	if t.failures >= toldAfter {
		t.log.Info("the API server is followed again")
	}
	t.failures = 0
}

func (f *followed) run(ctx context.Context) {
	t := &trouble{log: f.log.With("kind", f.scope.GVK.Kind)}
	for ctx.Err() == nil {
		revision, err := f.list(ctx)
		if err != nil {
			t.wait(ctx, err)
			continue
		}
		f.resume(ctx, revision, t)
	}
}

// list reads everything, and gives the revision to watch from.
func (f *followed) list(ctx context.Context) (string, error) {
	r, err := f.source.resource(ctx, f.scope.GVK)
	if err != nil {
		return "", err
	}
	var objs []*store.Object
	keep := func(obj *store.Object) {
		f.trim(obj)
		objs = append(objs, obj)
	}
	revision, err := f.source.parts(ctx, r, f.scope.GVK, f.scope.Namespace, f.query(), keep, func() { objs = nil })
	if err != nil {
		return "", failed("list", f.scope.GVK, store.Key{Namespace: f.scope.Namespace}, err)
	}
	f.replace(objs, revision)
	return revision, nil
}

func (f *followed) query() url.Values {
	query := url.Values{}
	if f.scope.Fields != "" {
		query.Set("fieldSelector", f.scope.Fields)
	}
	return query
}

// resume watches from a revision on, through ends and outages, until ctx ends or
// everything is to be listed anew.
func (f *followed) resume(ctx context.Context, revision string, t *trouble) {
	for ctx.Err() == nil {
		last, worked, err := f.follow(ctx, revision, t)
		if revision = last; worked {
			t.over()
		}
		if worked && errors.Is(err, io.EOF) {
			continue // watches end
		}
		t.wait(ctx, failed("watch", f.scope.GVK, store.Key{Namespace: f.scope.Namespace}, err))
		if listsAnew(err) {
			return
		}
	}
}

// listsAnew says whether what the server says does not go away by asking again:
// all but that it is busy or about to end.
func listsAnew(err error) bool {
	status := refusal(err)
	return status != nil && status.Code != http.StatusTooManyRequests && status.Code != http.StatusServiceUnavailable && status.Code != http.StatusInternalServerError
}

// follow takes the events of one watch, and gives the revision of the last and
// whether it was a watch that worked.
func (f *followed) follow(ctx context.Context, revision string, t *trouble) (last string, worked bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := f.source.resource(ctx, f.scope.GVK)
	if err != nil {
		return revision, false, err
	}
	query := f.query()
	query.Set("resourceVersion", revision)
	query.Set("allowWatchBookmarks", "true")
	query.Set("timeoutSeconds", strconv.Itoa(int((watchFor + rand.N(watchFor)).Seconds())))
	w, err := f.source.watch(ctx, r, f.scope.Namespace, query)
	if err != nil {
		return revision, false, err
	}
	defer w.Close()
	for began := time.Now(); ; {
		typ, obj, err := w.next()
		if err != nil {
			return revision, worked || time.Since(began) > watchAtLeast, err
		}
		worked = true
		t.over()
		revision = obj.GetResourceVersion()
		switch typ {
		case added, modified:
			f.put(store.Put, f.trimmed(obj))
		case deleted:
			f.put(store.Deleted, f.trimmed(obj))
		case bookmark: // no change up to that revision
		}
	}
}

// trimmed gives the object as it is kept.
func (f *followed) trimmed(obj *store.Object) *store.Object {
	tidy(obj)
	f.trim(obj)
	return obj
}

// trim takes off what no reader of a cache needs: kubectl's copy of the object, and
// what the scope says.
func (f *followed) trim(obj *store.Object) {
	metadata, _ := obj.Object["metadata"].(map[string]any)
	annotations, _ := metadata["annotations"].(map[string]any)
	delete(annotations, "kubectl.kubernetes.io/last-applied-configuration")
	if f.scope.Trim != nil {
		f.scope.Trim(obj)
	}
}

func (f *followed) put(typ store.EventType, obj *store.Object) {
	key := store.KeyOf(obj)
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.objects[key]
	if typ == store.Deleted {
		delete(f.objects, key)
	} else {
		f.objects[key] = obj
	}
	f.revision = obj.GetResourceVersion()
	if len(f.history) == historyEvents {
		half := historyEvents / 2
		f.base = f.history[half-1].revision
		f.history = slices.Clone(f.history[half:])
		f.first += half
	}
	f.history = append(f.history, change{typ: typ, revision: f.revision, old: old, obj: obj})
	f.wake()
}

// replace takes over a whole list.
func (f *followed) replace(list []*store.Object, revision string) {
	objects := make(map[store.Key]*store.Object, len(list))
	for _, obj := range list {
		objects[store.KeyOf(obj)] = obj
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects, f.revision, f.base, f.history, f.first = objects, revision, revision, nil, 0
	if f.epoch++; f.epoch == 1 {
		close(f.synced)
	}
	f.wake()
}

// wake is called with mu held.
func (f *followed) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// find gives the number of the first change after a revision. mu is held.
func (f *followed) find(since string) (int, bool) {
	end := f.first + len(f.history)
	if since == "" || since == f.revision {
		return end, true
	}
	if since == f.base {
		return f.first, true
	}
	for i, c := range f.history {
		if c.revision == since {
			return f.first + i + 1, true
		}
	}
	return 0, false
}

// deliver sends the changes from number next on, until ctx ends or the reader
// has fallen out of the history.
func (f *followed) deliver(ctx context.Context, sel store.Selector, epoch, next int, events chan<- store.Event) {
	for {
		f.mu.Lock()
		if epoch != f.epoch || next < f.first {
			f.mu.Unlock()
			return
		}
		pending, changed := f.history[next-f.first:], f.changed
		f.mu.Unlock()
		for _, c := range pending {
			next++
			e, ok := c.as(sel)
			if !ok {
				continue
			}
			select {
			case events <- e:
			case <-ctx.Done():
				return
			}
		}
		if len(pending) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
