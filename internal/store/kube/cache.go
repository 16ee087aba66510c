package kube

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/weftnet/weft/internal/store"
)

// historyEvents is how many past events of a kind a reader of the cache may be
// behind.
const historyEvents = 2000

// Scope is what a Cache follows of one kind.
type Scope struct {
	GVK       schema.GroupVersionKind
	Namespace string // empty: all
	Fields    string // a field selector, such as "spec.nodeName=n1"; empty: everything
	// Trim takes off what nobody reads, before an object is kept. Nil: nothing.
	Trim func(*store.Object)
}

// PodsOnNode follows the Pods of one node, without what only their containers
// need.
func PodsOnNode(node string) Scope {
	return Scope{
		GVK:    schema.GroupVersionKind{Version: "v1", Kind: "Pod"},
		Fields: "spec.nodeName=" + node,
		Trim:   trimPod,
	}
}

// trimPod leaves the metadata and the few fields that say whose network it is
// and whether it still runs.
func trimPod(pod *store.Object) {
	keep := func(part string, fields ...string) {
		all, _ := pod.Object[part].(map[string]any)
		kept := map[string]any{}
		for _, field := range fields {
			if value, ok := all[field]; ok {
				kept[field] = value
			}
		}
		pod.Object[part] = kept
	}
	keep("spec", "nodeName", "hostNetwork", "readinessGates")
	keep("status", "phase", "podIP", "podIPs", "conditions")
	status, _ := pod.Object["status"].(map[string]any)
	conditions, _ := status["conditions"].([]any)
	conditions = slices.DeleteFunc(conditions, func(item any) bool {
		one, _ := item.(map[string]any)
		kind, _ := one["type"].(string)
		return !strings.HasPrefix(kind, ourConditions)
	})
	if status["conditions"] = conditions; len(conditions) == 0 {
		delete(status, "conditions")
	}
}

// ourConditions begins the types of conditions that weft writes.
const ourConditions = "weft.network/"

// Cache answers reads of a few kinds from memory. Its reads wait until the
// first list has come, and are then behind the API server by as long as a
// watch event takes; they give copies. Its revisions are the API server's.
type Cache struct {
	kinds map[schema.GroupVersionKind]*followed
}

// NewCache gives a cache over s. Run fills it.
func NewCache(s *Store, log *slog.Logger, scopes ...Scope) *Cache {
	c := &Cache{kinds: map[schema.GroupVersionKind]*followed{}}
	for _, scope := range scopes {
		c.kinds[scope.GVK] = &followed{
			scope: scope, source: s, log: log, objects: map[store.Key]*store.Object{},
			synced: make(chan struct{}), changed: make(chan struct{}),
		}
	}
	return c
}

// Run follows the API server until ctx ends, through errors and outages.
func (c *Cache) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, f := range c.kinds {
		wg.Go(func() { f.run(ctx) })
	}
	wg.Wait()
	return nil
}

// Synced says whether the first list of every kind has come.
func (c *Cache) Synced() bool {
	for _, f := range c.kinds {
		select {
		case <-f.synced:
		default:
			return false
		}
	}
	return true
}

// kind gives what is followed of a kind, filled.
func (c *Cache) kind(ctx context.Context, gvk schema.GroupVersionKind) (*followed, error) {
	f := c.kinds[gvk]
	if f == nil {
		return nil, fmt.Errorf("kind %s is not in the cache", gvk)
	}
	select {
	case <-f.synced:
		return f, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the first list of %s: %w", gvk.Kind, ctx.Err())
	}
}

// Get gives one object, as store.Store does.
func (c *Cache) Get(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (*store.Object, error) {
	f, err := c.kind(ctx, gvk)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	obj := f.objects[key]
	f.mu.Unlock()
	if obj == nil {
		return nil, fmt.Errorf("get %s %s: %w", gvk.Kind, key, store.ErrNotFound)
	}
	return obj.DeepCopy(), nil
}

// Await gives an object as soon as it is there and ok holds for it, or the
// context's error. ok must not change what it sees.
func (c *Cache) Await(ctx context.Context, gvk schema.GroupVersionKind, key store.Key, ok func(*store.Object) bool) (*store.Object, error) {
	f, err := c.kind(ctx, gvk)
	if err != nil {
		return nil, err
	}
	for {
		f.mu.Lock()
		obj, changed := f.objects[key], f.changed
		f.mu.Unlock()
		if obj != nil && ok(obj) {
			return obj.DeepCopy(), nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %s %s: %w", gvk.Kind, key, ctx.Err())
		}
	}
}

// List gives the selected objects by key, and the revision to watch from, as
// store.Store does.
func (c *Cache) List(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector) ([]*store.Object, string, error) {
	f, err := c.kind(ctx, gvk)
	if err != nil {
		return nil, "", err
	}
	f.mu.Lock()
	var objs []*store.Object
	for key, obj := range f.objects {
		if sel.Matches(key.Namespace, obj.GetLabels()) {
			objs = append(objs, obj)
		}
	}
	revision := f.revision
	f.mu.Unlock()
	slices.SortFunc(objs, func(a, b *store.Object) int { return strings.Compare(store.KeyOf(a).String(), store.KeyOf(b).String()) })
	for i, obj := range objs {
		objs[i] = obj.DeepCopy()
	}
	return objs, revision, nil
}

// Watch delivers changes after revision since, as store.Store does. When the
// cache had to list anew, its watches end and resuming gives ErrExpired.
func (c *Cache) Watch(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector, since string) (<-chan store.Event, error) {
	f, err := c.kind(ctx, gvk)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	next, ok := f.find(since)
	epoch := f.epoch
	f.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("watch %s from %s: %w", gvk.Kind, since, store.ErrExpired)
	}
	events := make(chan store.Event)
	go func() {
		defer close(events)
		f.deliver(ctx, sel, epoch, next, events)
	}()
	return events, nil
}

// change is one event and the state before it.
type change struct {
	typ      store.EventType
	revision string
	old, obj *store.Object
}

// as gives the change as a watch with this selector sees it, if it does.
func (c change) as(sel store.Selector) (store.Event, bool) {
	selected := func(obj *store.Object) bool { return obj != nil && sel.Matches(obj.GetNamespace(), obj.GetLabels()) }
	switch {
	case c.typ == store.Put && selected(c.obj):
		return store.Event{Type: store.Put, Object: c.obj.DeepCopy()}, true
	case c.typ == store.Deleted && selected(c.obj):
		return store.Event{Type: store.Deleted, Object: c.obj.DeepCopy()}, true
	case selected(c.old):
		left := c.old.DeepCopy()
		left.SetResourceVersion(c.revision)
		return store.Event{Type: store.Deleted, Object: left}, true
	}
	return store.Event{}, false
}

// followed is one kind in the cache. It is the store that client-go's Reflector
// fills.
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

var (
	_ cache.ReflectorStore         = (*followed)(nil)
	_ cache.ReflectorBookmarkStore = (*followed)(nil)
)

func (f *followed) run(ctx context.Context) {
	list := func(ctx context.Context, opt metav1.ListOptions) (runtime.Object, error) {
		r, err := f.source.resource(ctx, f.scope.GVK)
		if err != nil {
			return nil, err
		}
		opt.FieldSelector = f.scope.Fields
		return f.source.at(r, f.scope.Namespace).List(ctx, opt)
	}
	watch := func(ctx context.Context, opt metav1.ListOptions) (watch.Interface, error) {
		r, err := f.source.resource(ctx, f.scope.GVK)
		if err != nil {
			return nil, err
		}
		opt.FieldSelector = f.scope.Fields
		return f.source.at(r, f.scope.Namespace).Watch(ctx, opt)
	}
	log := logr.FromSlogHandler(f.log.Handler())
	reflector := cache.NewReflectorWithOptions(
		&cache.ListWatch{ListWithContextFunc: list, WatchFuncWithContext: watch},
		&unstructured.Unstructured{}, f, cache.ReflectorOptions{Logger: &log, Name: f.scope.GVK.Kind, TypeDescription: f.scope.GVK.String()},
	)
	reflector.RunWithContext(ctx)
}

// trimmed gives the object as it is kept. The Reflector leaves it to us.
func (f *followed) trimmed(given any) (*store.Object, error) {
	obj, ok := given.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("the API server gave a %T, want an object", given)
	}
	tidy(obj)
	if f.scope.Trim != nil {
		f.scope.Trim(obj)
	}
	return obj, nil
}

// Add is called by the Reflector.
func (f *followed) Add(given any) error { return f.put(store.Put, given) }

// Update is called by the Reflector.
func (f *followed) Update(given any) error { return f.put(store.Put, given) }

// Delete is called by the Reflector.
func (f *followed) Delete(given any) error { return f.put(store.Deleted, given) }

// Resync is called by the Reflector; there is nothing to do.
func (f *followed) Resync() error { return nil }

// Bookmark is called by the Reflector: no change up to that revision.
func (f *followed) Bookmark(string) error { return nil }

func (f *followed) put(typ store.EventType, given any) error {
	obj, err := f.trimmed(given)
	if err != nil {
		return err
	}
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
	return nil
}

// Replace is called by the Reflector with a whole list.
func (f *followed) Replace(list []any, revision string) error {
	objects := map[store.Key]*store.Object{}
	for _, given := range list {
		obj, err := f.trimmed(given)
		if err != nil {
			return err
		}
		objects[store.KeyOf(obj)] = obj
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects, f.revision, f.base, f.history, f.first = objects, revision, revision, nil, 0
	if f.epoch++; f.epoch == 1 {
		close(f.synced)
	}
	f.wake()
	return nil
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
