package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/storetest"
	"github.com/weftnet/weft/test/kubelab"
)

var serviceAccount = schema.GroupVersionKind{Version: "v1", Kind: "ServiceAccount"}

// follow runs a cache until the test ends.
func follow(t *testing.T, s *Store, scopes ...Scope) *Cache {
	t.Helper()
	c := NewCache(s, slog.New(slog.DiscardHandler), scopes...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return c
}

// until waits until cond holds.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(kubelab.Patience); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, kubelab.Patience)
		}
	}
}

// TestCacheFollows: what the cache holds, and what a watch of it puts together,
// is what the API server has, also when that goes away meanwhile.
func TestCacheFollows(t *testing.T) {
	cluster, s := connect(t)
	ns := namespace(t, s)
	cache := follow(t, s, Scope{GVK: storetest.Widget, Namespace: ns})
	sel := store.Selector{Namespace: ns, Labels: map[string]string{"app": "x"}}
	replica := newReplica(cache, sel)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { replica.run(ctx) })
	defer wg.Wait()
	defer cancel()

	write(t, s, ns, 0)
	if err := cluster.Kill(kubelab.APIServer); err != nil {
		t.Fatal(err)
	}
	if err := cluster.WaitAPI(); err != nil {
		t.Fatal(err)
	}
	write(t, s, ns, 1)

	view := func(objs []*store.Object, _ string, err error) string {
		if err != nil {
			t.Fatalf("List: %v", err)
		}
		text := ""
		for _, obj := range objs {
			text += fmt.Sprintln(obj.GetName(), obj.GetResourceVersion(), obj.Object["spec"])
		}
		return text
	}
	all := store.Selector{Namespace: ns}
	want := view(s.List(t.Context(), storetest.Widget, all))
	until(t, "the cache has what the API server has", func() bool {
		return view(cache.List(t.Context(), storetest.Widget, all)) == want
	})
	want = view(s.List(t.Context(), storetest.Widget, sel))
	until(t, "a watch of the cache has what the API server selects", func() bool { return replica.view(view) == want })
}

// write changes a lot of widgets in every way.
func write(t *testing.T, s *Store, ns string, round int) {
	t.Helper()
	var wg sync.WaitGroup
	for writer := range 3 {
		wg.Go(func() {
			for i := range 20 {
				obj := newWidget(ns, fmt.Sprintf("w%d-%d-%d", round, writer, i))
				if i%2 == 0 {
					obj.SetLabels(map[string]string{"app": "x"})
				}
				made, err := s.Create(t.Context(), obj)
				if err != nil {
					t.Errorf("Create: %v", err)
					return
				}
				switch i % 5 {
				case 0:
					made.SetLabels(nil)
				case 1:
					made.SetLabels(map[string]string{"app": "x"})
				}
				made.Object["spec"] = map[string]any{"size": int64(i)}
				if _, err := s.Update(t.Context(), made); err != nil {
					t.Errorf("Update: %v", err)
				}
				if i%3 == 0 {
					if err := s.Delete(t.Context(), storetest.Widget, store.KeyOf(made), store.Precondition{}); err != nil {
						t.Errorf("Delete: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
}

// replica is what a reader of lists and watches knows.
type replica struct {
	reader interface {
		List(context.Context, schema.GroupVersionKind, store.Selector) ([]*store.Object, string, error)
		Watch(context.Context, schema.GroupVersionKind, store.Selector, string) (<-chan store.Event, error)
	}
	sel store.Selector

	mu      sync.Mutex // guards objects
	objects map[string]*store.Object
}

func newReplica(c *Cache, sel store.Selector) *replica {
	return &replica{reader: c, sel: sel, objects: map[string]*store.Object{}}
}

// run lists and watches; it lists again only when it must.
func (r *replica) run(ctx context.Context) {
	for ctx.Err() == nil {
		objs, revision, err := r.reader.List(ctx, storetest.Widget, r.sel)
		if err != nil {
			continue
		}
		r.mu.Lock()
		clear(r.objects)
		for _, obj := range objs {
			r.objects[obj.GetName()] = obj
		}
		r.mu.Unlock()
		for ctx.Err() == nil {
			events, err := r.reader.Watch(ctx, storetest.Widget, r.sel, revision)
			if errors.Is(err, store.ErrExpired) {
				break
			}
			for e := range events {
				revision = e.Object.GetResourceVersion()
				r.mu.Lock()
				delete(r.objects, e.Object.GetName())
				if e.Type == store.Put {
					r.objects[e.Object.GetName()] = e.Object
				}
				r.mu.Unlock()
			}
		}
	}
}

func (r *replica) view(text func([]*store.Object, string, error) string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var objs []*store.Object
	for _, obj := range r.objects {
		objs = append(objs, obj)
	}
	slices.SortFunc(objs, func(a, b *store.Object) int { return strings.Compare(a.GetName(), b.GetName()) })
	return text(objs, "", nil)
}

// TestCachePodsOnNode: an agent sees the Pods of its node, trimmed, and its
// reads ask the API server nothing.
func TestCachePodsOnNode(t *testing.T) {
	cluster, s := connect(t)
	ns := namespace(t, s)
	account := store.Key{Namespace: ns, Name: "default"}
	until(t, "default service account", func() bool {
		_, err := s.Get(t.Context(), serviceAccount, account)
		return err == nil
	})
	for _, name := range []string{"here", "there"} {
		pod := &store.Object{Object: map[string]any{
			"apiVersion": "v1", "kind": "Pod",
			"metadata": map[string]any{"name": name, "namespace": ns, "annotations": map[string]any{"k8s.v1.cni.cncf.io/networks": "blue", "kubectl.kubernetes.io/last-applied-configuration": "{}"}},
			"spec":     map[string]any{"nodeName": name, "containers": []any{map[string]any{"name": "c", "image": "none"}}},
		}}
		if _, err := s.Create(t.Context(), pod); err != nil {
			t.Fatalf("create Pod: %v", err)
		}
	}
	var requests atomic.Int64
	cache := follow(t, open(t, cluster, kubeapi.Options{Observe: func(string, string, int) { requests.Add(1) }}), PodsOnNode("here"))
	pod, err := cache.Get(t.Context(), podKind, store.Key{Namespace: ns, Name: "here"})
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	if got := fmt.Sprint(pod.GetAnnotations()); got != "map[k8s.v1.cni.cncf.io/networks:blue]" {
		t.Errorf("annotations: got %s, want without kubectl's copy of the Pod", got)
	}
	if pod.GetUID() == "" || pod.GetKind() != "Pod" {
		t.Errorf("the Pod lost metadata or kind: %v", pod.Object)
	}
	if got := fmt.Sprint(pod.Object["spec"]); got != "map[nodeName:here]" {
		t.Errorf("spec: got %s, want only the node's name", got)
	}
	if len(pod.GetManagedFields()) > 0 {
		t.Error("managedFields are still there")
	}
	until(t, "the watch", func() bool { return requests.Load() >= 2 })
	before := requests.Load()
	for range 100 {
		_, err := cache.Get(t.Context(), podKind, store.Key{Namespace: ns, Name: "there"})
		if !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("Pod of another node: got error %v, want ErrNotFound", err)
		}
		pods, _, err := cache.List(t.Context(), podKind, store.Selector{Namespace: ns})
		if err != nil || len(pods) != 1 {
			t.Fatalf("List: got %d Pods, error %v, want 1", len(pods), err)
		}
		pods[0].SetName("spoilt")
	}
	if asked := requests.Load() - before; asked > 1 { // a watch may have been renewed
		t.Errorf("200 reads made %d requests", asked)
	}
	if _, err := cache.Get(t.Context(), storetest.Widget, store.Key{Namespace: ns, Name: "a"}); err == nil {
		t.Error("Get of a kind that is not followed: got no error")
	}
	patchConditions(t, s, cache, pod)
}

// patchConditions has two writers of conditions: neither loses the other's, and
// the cache keeps ours alone.
func patchConditions(t *testing.T, s *Store, cache *Cache, pod *store.Object) {
	t.Helper()
	key := store.KeyOf(pod)
	write := func(kind, status string, pre store.Precondition) error {
		_, err := s.PatchLists(t.Context(), podKind, key, map[string]any{"status": map[string]any{"conditions": []any{
			map[string]any{"type": kind, "status": status},
		}}}, pre, "status")
		return err
	}
	for _, one := range [][2]string{{"Ready", "False"}, {ourConditions + "X", "False"}, {"Ready", "True"}, {ourConditions + "X", "True"}} {
		if err := write(one[0], one[1], store.Precondition{UID: pod.GetUID()}); err != nil {
			t.Fatalf("PatchLists: %v", err)
		}
	}
	if err := write("Ready", "False", store.Precondition{UID: "other"}); !errors.Is(err, store.ErrConflict) {
		t.Errorf("PatchLists of another UID: got error %v, want ErrConflict", err)
	}
	conditions := func(pod *store.Object, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		var text []string
		status, _ := pod.Object["status"].(map[string]any)
		list, _ := status["conditions"].([]any)
		for _, item := range list {
			one, _ := item.(map[string]any)
			text = append(text, fmt.Sprintf("%s=%s", one["type"], one["status"]))
		}
		slices.Sort(text)
		return strings.Join(text, " ")
	}
	if got, want := conditions(s.Get(t.Context(), podKind, key)), "Ready=True weft.network/X=True"; got != want {
		t.Errorf("conditions: got %s, want %s", got, want)
	}
	until(t, "the cache has our condition alone", func() bool {
		return conditions(cache.Get(t.Context(), podKind, key)) == "weft.network/X=True"
	})
}

// TestCacheAwaits: a Pod made anew under its old name is waited for by its UID.
func TestCacheAwaits(t *testing.T) {
	_, s := connect(t)
	ns := namespace(t, s)
	cache := follow(t, s, Scope{GVK: storetest.Widget, Namespace: ns})
	old, err := s.Create(t.Context(), newWidget(ns, "a"))
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	key := store.KeyOf(old)
	is := func(uid types.UID) func(*store.Object) bool {
		return func(obj *store.Object) bool { return obj.GetUID() == uid }
	}
	if _, err := cache.Await(t.Context(), storetest.Widget, key, is(old.GetUID())); err != nil {
		t.Fatalf("Await: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := cache.Await(short, storetest.Widget, key, is("other")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Await of another UID: got error %v, want that of the deadline", err)
	}
	if err := s.Delete(t.Context(), storetest.Widget, key, store.Precondition{}); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	next, err := s.Create(t.Context(), newWidget(ns, "a"))
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	got, err := cache.Await(t.Context(), storetest.Widget, key, is(next.GetUID()))
	if err != nil || got.GetResourceVersion() != next.GetResourceVersion() {
		t.Errorf("Await: got %v, error %v, want revision %s", got, err, next.GetResourceVersion())
	}
}

// TestCacheHistory: a reader that is too far behind is told, and one that is
// not gets everything.
func TestCacheHistory(t *testing.T) {
	f := NewCache(nil, slog.New(slog.DiscardHandler), Scope{GVK: storetest.Widget}).kinds[storetest.Widget]
	f.replace(nil, "10")
	for i := range historyEvents + 10 {
		obj := newWidget("ns", "a")
		obj.SetResourceVersion(fmt.Sprint(11 + i))
		f.put(store.Put, obj)
	}
	if _, ok := f.find("10"); ok {
		t.Error("a revision that is out of the history is found")
	}
	last := 10 + historyEvents + 10
	for _, test := range []struct{ since, left int }{{last, 0}, {last - 1, 1}, {last - historyEvents/2, historyEvents / 2}, {10 + historyEvents/2, historyEvents/2 + 10}} {
		next, ok := f.find(fmt.Sprint(test.since))
		if left := f.first + len(f.history) - next; !ok || left != test.left {
			t.Errorf("since %d: got found %v with %d events left, want %d", test.since, ok, left, test.left)
		}
	}
	f.replace(nil, "99999")
	if _, ok := f.find(fmt.Sprint(last)); ok {
		t.Error("after a new list an older revision is found")
	}
}
