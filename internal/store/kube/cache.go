package kube

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/store"
)

// historyEvents is how many past events of a kind a reader of the cache may be
// behind. It then lists from memory, so that keeping more of them costs more.
const historyEvents = 200

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
	if metadata, ok := pod.Object["metadata"].(map[string]any); ok {
		delete(metadata, "ownerReferences")
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
