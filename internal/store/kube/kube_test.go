package kube

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/storetest"
	"github.com/weftnet/weft/test/kubelab"
)

func TestMain(m *testing.M) { kubelab.Main(m) }

var podKind = schema.GroupVersionKind{Version: "v1", Kind: "Pod"}

// open gives a store of a client that may do everything.
func open(t testing.TB, c *kubelab.Cluster, opt kubeapi.Options) *Store {
	t.Helper()
	opt.Dial = c.Dial
	client, err := kubeapi.Open(c.Kubeconfig(), opt)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return New(client)
}

// connect gives a store on the shared cluster, which has the suite's kinds.
func connect(t testing.TB) (*kubelab.Cluster, *Store) {
	t.Helper()
	c := kubelab.Shared(t)
	s := open(t, c, kubeapi.Options{})
	prepare.Do(func() { prepareErr = prepareCluster(c, s) })
	if prepareErr != nil {
		t.Fatalf("prepare the cluster: %v", prepareErr)
	}
	return c, s
}

var (
	prepare    sync.Once
	prepareErr error
)

const definition = `{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
 "metadata": {"name": "%[1]ss.storetest.weft.network"},
 "spec": {"group": "storetest.weft.network", "scope": "%[3]s", "names": {"kind": "%[2]s", "plural": "%[1]ss", "singular": "%[1]s"},
  "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
   "schema": {"openAPIV3Schema": {"type": "object", "properties": {
     "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"size": {"type": "integer", "maximum": 1000000}}},
     "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}]}}`

// prepareCluster installs the kinds and waits until all of Kubernetes knows
// them: the garbage collector learns of new ones at its start, and then every
// half minute.
func prepareCluster(c *kubelab.Cluster, s *Store) error {
	ctx, cancel := context.WithTimeout(context.Background(), kubelab.Patience)
	defer cancel()
	for _, names := range [][]any{{"widget", "Widget", "Namespaced"}, {"panel", "Panel", "Cluster"}} {
		crd := &store.Object{}
		if err := json.Unmarshal(fmt.Appendf(nil, definition, names...), &crd.Object); err != nil {
			return err
		}
		if _, err := s.Create(ctx, crd); err != nil {
			return err
		}
	}
	out, err := c.Kubectl(ctx, "", "wait", "--for=condition=Established", "--timeout=2m", "crd", "widgets.storetest.weft.network", "panels.storetest.weft.network")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if err := c.Kill(kubelab.ControllerManager); err != nil {
		return err
	}
	return collectorWorks(ctx, s)
}

// collectorWorks waits until a Widget goes whose owner has gone.
func collectorWorks(ctx context.Context, s *Store) error {
	panel := &store.Object{Object: map[string]any{
		"apiVersion": "storetest.weft.network/v1", "kind": "Panel", "metadata": map[string]any{"name": "owner"},
	}}
	panel, err := s.Create(ctx, panel)
	if err != nil {
		return err
	}
	widget := newWidget("default", "owned")
	widget.Object["metadata"].(map[string]any)["ownerReferences"] = []any{map[string]any{
		"apiVersion": "storetest.weft.network/v1", "kind": "Panel", "name": "owner", "uid": string(panel.GetUID()),
	}}
	if _, err := s.Create(ctx, widget); err != nil {
		return err
	}
	if err := s.Delete(ctx, storetest.Panel, store.Key{Name: "owner"}, store.Precondition{}); err != nil {
		return err
	}
	for {
		_, err := s.Get(ctx, storetest.Widget, store.Key{Namespace: "default", Name: "owned"})
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func newWidget(namespace, name string) *store.Object {
	return &store.Object{Object: map[string]any{
		"apiVersion": "storetest.weft.network/v1", "kind": "Widget",
		"metadata": map[string]any{"name": name, "namespace": namespace}, "spec": map[string]any{"size": int64(1)},
	}}
}

func namespace(t testing.TB, s *Store) string {
	t.Helper()
	name := strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))
	ns := &store.Object{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": name}}}
	if _, err := s.Create(t.Context(), ns); err != nil {
		t.Fatalf("create namespace: %v", err)
	}
	return name
}

func TestSuite(t *testing.T) {
	_, s := connect(t)
	// A walk makes some hundred requests; a hundred walks are for store/local.
	if err := flag.Set("rapid.checks", "15"); err != nil {
		t.Fatal(err)
	}
	storetest.Run(t, func(*testing.T) store.Store { return s })
}

func TestRefusals(t *testing.T) {
	c, s := connect(t)
	ns := namespace(t, s)
	forbidden := open(t, c, kubeapi.Options{As: "nobody"})
	tooBig := newWidget(ns, "big")
	tooBig.Object["spec"] = map[string]any{"size": int64(2000000)}
	unknown := newWidget(ns, "a")
	unknown.Object["kind"] = "Gadget"
	configMap := &store.Object{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "a", "namespace": ns}}}
	if _, err := s.Create(t.Context(), configMap); err != nil {
		t.Fatalf("create ConfigMap: %v", err)
	}
	for _, test := range []struct {
		name, want string
		do         func(ctx context.Context) error
	}{
		{"unknown kind", `kind "Gadget": the API server does not serve this kind in storetest.weft.network/v1; install`, func(ctx context.Context) error {
			_, err := s.Create(ctx, unknown)
			return err
		}},
		{"invalid field", "spec.size: Invalid value", func(ctx context.Context) error {
			_, err := s.Create(ctx, tooBig)
			return err
		}},
		{"no such namespace", `metadata.namespace "nowhere": there is no such namespace`, func(ctx context.Context) error {
			_, err := s.Create(ctx, newWidget("nowhere", "a"))
			return err
		}},
		{"no namespace", "metadata.namespace: is empty", func(ctx context.Context) error {
			_, err := s.Get(ctx, storetest.Widget, store.Key{Name: "a"})
			return err
		}},
		{"no status", `kind "ConfigMap": the API server keeps no status`, func(ctx context.Context) error {
			_, err := s.UpdateStatus(ctx, configMap)
			return err
		}},
		{"label selector", "label selector: is malformed", func(ctx context.Context) error {
			_, _, err := s.List(ctx, storetest.Widget, store.Selector{Labels: map[string]string{"a b": "c"}})
			return err
		}},
		{"forbidden", "the API server forbids it", func(ctx context.Context) error {
			_, _, err := forbidden.List(ctx, storetest.Widget, store.Selector{Namespace: ns})
			return err
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.do(t.Context())
			var h *hint.Error
			if !errors.As(err, &h) || h.Remedy == "" || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v, want a hint with %q", err, test.want)
			}
		})
	}
}

func TestPatch(t *testing.T) {
	_, s := connect(t)
	ns := namespace(t, s)
	made, err := s.Create(t.Context(), newWidget(ns, "a"))
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	key := store.KeyOf(made)
	annotate := func(value string) map[string]any {
		return map[string]any{"metadata": map[string]any{"annotations": map[string]any{"k": value}}}
	}
	got, err := s.Patch(t.Context(), storetest.Widget, key, annotate("one"), store.Precondition{UID: made.GetUID(), Revision: made.GetResourceVersion()})
	if err != nil || got.GetAnnotations()["k"] != "one" {
		t.Fatalf("Patch under true preconditions: got annotations %v, error %v", got.GetAnnotations(), err)
	}
	_, err = s.Patch(t.Context(), storetest.Widget, key, annotate("two"), store.Precondition{Revision: made.GetResourceVersion()})
	if !errors.Is(err, store.ErrConflict) {
		t.Errorf("Patch of an old revision: got error %v, want ErrConflict", err)
	}
	_, err = s.Patch(t.Context(), storetest.Widget, key, annotate("two"), store.Precondition{UID: "other"})
	if !errors.Is(err, store.ErrConflict) {
		t.Errorf("Patch of another UID: got error %v, want ErrConflict", err)
	}
	_, err = s.Patch(t.Context(), storetest.Widget, store.Key{Namespace: ns, Name: "b"}, annotate("two"), store.Precondition{})
	if !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Patch of nothing: got error %v, want ErrNotFound", err)
	}
	status := map[string]any{"status": map[string]any{"ready": true}, "spec": map[string]any{"size": int64(7)}}
	if _, err := s.Patch(t.Context(), storetest.Widget, key, status, store.Precondition{}, "status"); err != nil {
		t.Fatalf("Patch of the status: %v", err)
	}
	now, err := s.Get(t.Context(), storetest.Widget, key)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	if got := fmt.Sprint(now.Object["status"], now.Object["spec"], now.GetAnnotations()); got != "map[ready:true] map[size:1] map[k:one]" {
		t.Errorf("after the patches: got %s", got)
	}
}

// TestUnguardedWritersAllWin: updates without a revision succeed, whoever else writes.
func TestUnguardedWritersAllWin(t *testing.T) {
	_, s := connect(t)
	ns := namespace(t, s)
	if _, err := s.Create(t.Context(), newWidget(ns, "a")); err != nil {
		t.Fatalf("Create: %v", err)
	}
	var wg sync.WaitGroup
	for writer := range 3 {
		wg.Go(func() {
			for i := range 10 {
				obj := newWidget(ns, "a")
				obj.Object["spec"] = map[string]any{"size": int64(writer*100 + i)}
				if _, err := s.Update(t.Context(), obj); err != nil {
					t.Errorf("Update: %v", err)
				}
				if obj.GetResourceVersion() != "" {
					t.Error("Update changed its argument")
				}
			}
		})
	}
	wg.Wait()
}

// TestExpired: an API server that was started again does not know the past;
// a watch that wants it ends, and resuming says so.
func TestExpired(t *testing.T) {
	c, s := connect(t)
	ns := namespace(t, s)
	first, err := s.Create(t.Context(), newWidget(ns, "first"))
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	for i := range 5 {
		if _, err := s.Create(t.Context(), newWidget(ns, fmt.Sprint("w", i))); err != nil {
			t.Fatalf("Create: %v", err)
		}
	}
	if err := c.Kill(kubelab.APIServer); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitAPI(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(kubelab.Patience)
	for {
		events, err := s.Watch(t.Context(), storetest.Widget, store.Selector{Namespace: ns}, first.GetResourceVersion())
		if errors.Is(err, store.ErrExpired) {
			return
		}
		if err == nil {
			for range events { // until the server ends it
				t.Fatal("the watch gave an event of the past, want ErrExpired")
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("Watch: got error %v, want ErrExpired", err)
		}
	}
}
