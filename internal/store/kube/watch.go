package kube

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

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
	if since == "" {
		// A watch without a revision would begin with what is there already.
		if _, since, err = s.list(ctx, gvk, sel, metav1.ListOptions{Limit: 1}); err != nil {
			return nil, err
		}
	}
	from := watchFrom{gvk, sel.Namespace, selector, since}
	if s.takeExpired(from) {
		return nil, fmt.Errorf("watch %s from %s: %w", gvk.Kind, since, store.ErrExpired)
	}
	w, err := s.at(r, sel.Namespace).Watch(ctx, metav1.ListOptions{LabelSelector: selector, ResourceVersion: since})
	if err != nil {
		return nil, failed("watch", gvk, store.Key{Namespace: sel.Namespace}, err)
	}
	events := make(chan store.Event)
	go func() {
		defer close(events)
		defer w.Stop()
		s.deliver(ctx, w, from, events)
	}()
	return events, nil
}

// deliver passes events on until one side ends.
func (s *Store) deliver(ctx context.Context, w watch.Interface, from watchFrom, events chan<- store.Event) {
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-w.ResultChan():
			if !ok {
				return
			}
			if e.Type == watch.Error {
				if isExpired(apierrors.FromObject(e.Object)) {
					s.noteExpired(from)
				}
				return
			}
			obj, ok := e.Object.(*unstructured.Unstructured)
			if !ok || e.Type == watch.Bookmark {
				continue
			}
			typ := store.Put
			if e.Type == watch.Deleted {
				typ = store.Deleted
			}
			from.since = obj.GetResourceVersion() // the reader may change the object
			select {
			case events <- store.Event{Type: typ, Object: tidy(obj)}:
			case <-ctx.Done():
				return
			}
		}
	}
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
