package kube

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	kubejson "sigs.k8s.io/json"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/storetest"
	"github.com/weftnet/weft/test/kubelab"
)

func TestReadList(t *testing.T) {
	for text, want := range map[string]string{
		`{"kind":"PodList","metadata":{"resourceVersion":"7","continue":"c"},"items":[{"a":1},{"a":2}]}`: "7 c [map[a:1] map[a:2]]",
		`{"items":[{"a":12345678901234567}],"more":[{}],"metadata":{"resourceVersion":"7"}}`:             "7  [map[a:12345678901234567]]",
		`{"items":null,"metadata":{"resourceVersion":"7"}}`:                                              "7  []",
		`{"items":[],"metadata":{}}`: "  []",
		`{"items":[{"a":1}`:          io.ErrUnexpectedEOF.Error(),
		`{"items":[{"a":1},`:         io.EOF.Error(),
		`{"items":[1]}`:              "cannot unmarshal number",
		`{"items":{}}`:               "got {, want [",
		`[]`:                         "got [, want {",
		``:                           io.ErrUnexpectedEOF.Error(),
	} {
		var items []map[string]any
		meta, err := readList(kubejson.NewDecoderCaseSensitivePreserveInts(strings.NewReader(text)), func(item map[string]any) { items = append(items, item) })
		got := fmt.Sprint(meta.Revision, " ", meta.Continue, " ", items)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}

// TestChunks: a list is read in parts, and is as of one revision.
func TestChunks(t *testing.T) {
	c, s := connect(t)
	ns := namespace(t, s)
	const count = 10
	for i := range count {
		if _, err := s.Create(t.Context(), newWidget(ns, fmt.Sprint("w", i))); err != nil {
			t.Fatalf("Create: %v", err)
		}
	}
	var requests atomic.Int64
	parts := open(t, c, kubeapi.Options{Observe: func(_, resource string, _ int) {
		if resource == "widgets" {
			requests.Add(1)
		}
	}})
	parts.chunk = 3
	objs, revision, err := parts.List(t.Context(), storetest.Widget, store.Selector{Namespace: ns})
	if err != nil || len(objs) != count || requests.Load() != 4 {
		t.Fatalf("List: got %d objects in %d requests, error %v, want %d in 4", len(objs), requests.Load(), err, count)
	}
	for i, obj := range objs {
		if obj.GetName() != fmt.Sprint("w", i) || obj.GetKind() != "Widget" || len(obj.GetManagedFields()) > 0 {
			t.Errorf("object %d is %v", i, obj.Object)
		}
	}
	events, err := s.Watch(t.Context(), storetest.Widget, store.Selector{Namespace: ns}, revision)
	if err != nil {
		t.Fatalf("Watch: %v", err)
	}
	if err := s.Delete(t.Context(), storetest.Widget, store.KeyOf(objs[0]), store.Precondition{}); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	if e := <-events; e.Type != store.Deleted || e.Object.GetName() != "w0" {
		t.Errorf("the first event after the list is %s of %s, want the deletion", e.Type, e.Object.GetName())
	}
}

// TestThroughFaults: a cache comes to have what the API server has, whatever the
// way to it does meanwhile; and what a store does not get it says why, and what to do.
func TestThroughFaults(t *testing.T) {
	c, s := connect(t)
	ns := namespace(t, s)
	proxy := c.Proxy(t)
	kubeconfig, err := proxy.Kubeconfig(c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubeapi.Open(kubeconfig, kubeapi.Options{Dial: c.Dial})
	if err != nil {
		t.Fatal(err)
	}
	through := New(client)
	through.chunk = 2
	cache := follow(t, through, Scope{GVK: storetest.Widget, Namespace: ns})
	all := store.Selector{Namespace: ns}
	if _, _, err := cache.List(t.Context(), storetest.Widget, all); err != nil {
		t.Fatal(err)
	}
	for i, fault := range []kubelab.Fault{
		{Away: true},
		{Status: http.StatusInternalServerError},
		{Status: http.StatusTooManyRequests},
		{Status: http.StatusForbidden},
		{Status: http.StatusGone},
		{Status: http.StatusGatewayTimeout},
	} {
		// The watch ends, and some requests are refused, the second part of a list
		// among them.
		var refused, parts atomic.Int64
		proxy.Spoil(func(r *http.Request) kubelab.Fault {
			part := r.URL.Query().Has("continue") && parts.Add(1) == 1
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/widgets") && (refused.Add(1) <= 4 || part) {
				return fault
			}
			return kubelab.Fault{}
		})
		proxy.Cut()
		for j, when := range []string{"during", "after"} { // the latter comes by a watch that works
			if _, err := s.Create(t.Context(), newWidget(ns, fmt.Sprint(when, i))); err != nil {
				t.Fatalf("Create: %v", err)
			}
			until(t, fmt.Sprintf("%+v: the cache has what was made %s it", fault, when), func() bool {
				objs, _, err := cache.List(t.Context(), storetest.Widget, all)
				return err == nil && len(objs) == 2*i+j+1
			})
		}
		if refused.Load() == 0 {
			t.Errorf("%+v met nobody", fault)
		}
	}
	for status, want := range map[int]string{401: "does not know this user", 403: "the API server forbids it"} {
		proxy.Spoil(func(*http.Request) kubelab.Fault { return kubelab.Fault{Status: status} })
		_, err := through.Get(t.Context(), storetest.Widget, store.Key{Namespace: ns, Name: "during0"})
		if !isHint(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%d: got error %v, want a hint with %q", status, err, want)
		}
	}
	proxy.Spoil(func(*http.Request) kubelab.Fault { return kubelab.Fault{Away: true} })
	if _, err := through.Get(t.Context(), storetest.Widget, store.Key{Namespace: ns, Name: "during0"}); !errors.Is(err, kubeapi.ErrUnanswered) {
		t.Errorf("away: got error %v, want that there was no answer", err)
	}
	proxy.Spoil(nil)
}

// TestRefusedParts: parts of a list that the server no longer has are read all at once.
func TestRefusedParts(t *testing.T) {
	c, s := connect(t)
	ns := namespace(t, s)
	for i := range 5 {
		if _, err := s.Create(t.Context(), newWidget(ns, fmt.Sprint("w", i))); err != nil {
			t.Fatalf("Create: %v", err)
		}
	}
	proxy := c.Proxy(t)
	kubeconfig, err := proxy.Kubeconfig(c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubeapi.Open(kubeconfig, kubeapi.Options{Dial: c.Dial})
	if err != nil {
		t.Fatal(err)
	}
	through := New(client)
	through.chunk = 2
	proxy.Spoil(func(r *http.Request) kubelab.Fault {
		if r.URL.Query().Has("continue") {
			return kubelab.Fault{Status: http.StatusGone}
		}
		return kubelab.Fault{}
	})
	objs, _, err := through.List(t.Context(), storetest.Widget, store.Selector{Namespace: ns})
	if err != nil || len(objs) != 5 {
		t.Errorf("List: got %d objects, error %v, want 5", len(objs), err)
	}
	if _, _, err := NewCache(through, slog.New(slog.DiscardHandler)).List(t.Context(), storetest.Widget, store.Selector{}); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("a cache of nothing gives %v", err)
	}
}

func isHint(err error) bool {
	h, ok := errors.AsType[*hint.Error](err)
	return ok && h.Remedy != ""
}
