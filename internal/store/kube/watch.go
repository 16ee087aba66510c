package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"k8s.io/apimachinery/pkg/runtime/schema"
	kubejson "sigs.k8s.io/json"

	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/store"
)

// watchFrom is a watch and where it wanted to resume.
type watchFrom struct {
	gvk                        schema.GroupVersionKind
	namespace, selector, since string
}

// Watch delivers changes as the API server sends them. A reader that does not
// read holds up the connection until the server ends it; the server also ends
// watches that have lasted for long. The reader resumes either way.
func (s *Store) Watch(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector, since string) (<-chan store.Event, error) {
	r, err := s.resource(ctx, gvk)
	if err != nil {
		return nil, err
	}
	selector, err := labelSelector(sel)
	if err != nil {
		return nil, err
	}
	query := url.Values{}
	if selector != "" {
		query.Set("labelSelector", selector)
	}
	if since == "" {
		// A watch without a revision would begin with what is there already.
		now, err := s.listChunk(ctx, r, sel.Namespace, url.Values{"limit": {"1"}}, func(map[string]any) {})
		if err != nil {
			return nil, failed("watch", gvk, store.Key{Namespace: sel.Namespace}, err)
		}
		since = now.Revision
	}
	from := watchFrom{gvk, sel.Namespace, selector, since}
	if s.takeExpired(from) {
		return nil, fmt.Errorf("watch %s from %s: %w", gvk.Kind, since, store.ErrExpired)
	}
	query.Set("resourceVersion", since)
	w, err := s.watch(ctx, r, sel.Namespace, query)
	if err != nil {
		return nil, failed("watch", gvk, store.Key{Namespace: sel.Namespace}, err)
	}
	events := make(chan store.Event)
	go func() {
		defer close(events)
		defer w.Close()
		s.deliver(ctx, w, from, events)
	}()
	return events, nil
}

// deliver passes events on until one side ends.
func (s *Store) deliver(ctx context.Context, w *watch, from watchFrom, events chan<- store.Event) {
	for {
		typ, obj, err := w.next()
		if isExpired(err) {
			s.noteExpired(from)
		}
		if err != nil {
			return
		}
		e := store.Event{Object: tidy(obj)}
		switch typ {
		case added, modified:
			e.Type = store.Put
		case deleted:
			e.Type = store.Deleted
		default:
			continue
		}
		from.since = obj.GetResourceVersion() // the reader may change the object
		select {
		case events <- e:
		case <-ctx.Done():
			return
		}
	}
}

// Types of a watch's events (WatchEvent of k8s.io/apimachinery/pkg/apis/meta/v1).
const (
	added    = "ADDED"
	modified = "MODIFIED"
	deleted  = "DELETED"
	bookmark = "BOOKMARK"
	failure  = "ERROR"
)

// watch is an open one. It ends with its context.
type watch struct {
	io.Closer
	events kubejson.Decoder
}

// watch opens one.
func (s *Store) watch(ctx context.Context, r resource, namespace string, query url.Values) (*watch, error) {
	query.Set("watch", "true")
	answer, err := s.client.Stream(ctx, kubeapi.Request{Method: http.MethodGet, Path: r.path(store.Key{Namespace: namespace}), Query: query, Resource: r.name})
	if err != nil {
		return nil, err
	}
	return &watch{answer, kubejson.NewDecoderCaseSensitivePreserveInts(answer)}, nil
}

// next waits for an event. The server's reason to end the watch is a
// *kubeapi.Status; without one it is io.EOF.
func (w *watch) next() (string, *store.Object, error) {
	var e struct {
		Type   string         `json:"type"`
		Object map[string]any `json:"object"`
	}
	if err := w.events.Decode(&e); err != nil {
		return "", nil, err
	}
	if e.Type != failure {
		return e.Type, &store.Object{Object: e.Object}, nil
	}
	status := &kubeapi.Status{}
	data, err := json.Marshal(e.Object)
	if err == nil {
		err = json.Unmarshal(data, status)
	}
	if err != nil {
		return "", nil, err
	}
	return "", nil, status
}

// noteExpired remembers that a watch cannot resume there. The API server says
// so only in the stream of an accepted watch, when ours has returned already.
func (s *Store) noteExpired(from watchFrom) {
	const most = 1000 // of readers that never came back
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.expired) >= most {
		clear(s.expired)
	}
	s.expired[from] = true
}

func (s *Store) takeExpired(from watchFrom) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	expired := s.expired[from]
	delete(s.expired, from)
	return expired
}
