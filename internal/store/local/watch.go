package local

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"sync"

	bolt "go.etcd.io/bbolt"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/store"
)

const (
	// historyBytes bounds the memory of past events beside their number.
	historyBytes = 4 << 20
	// watchBatch is how many events one watch takes out of the history at once.
	watchBatch = 32
)

// event is one committed change, kept as text: few watches look at most of them.
type event struct {
	kind      kindName
	key       store.Key
	typ       store.EventType
	revision  uint64
	data      []byte // the new state, or the last one of a deleted object
	labels    map[string]string
	existed   bool // there was a state before
	oldLabels map[string]string
	oldData   []byte // the state before, where labels changed
}

func newEvent(typ store.EventType, revision uint64, obj *store.Object, data []byte, old *store.Object, oldData []byte) event {
	e := event{
		kind: kindOf(obj.GroupVersionKind()), key: store.KeyOf(obj), typ: typ, revision: revision,
		data: data, labels: obj.GetLabels(),
	}
	if old != nil {
		e.existed, e.oldLabels = true, old.GetLabels()
		if typ == store.Put && !maps.Equal(e.labels, e.oldLabels) {
			e.oldData = slices.Clone(oldData) // bbolt's memory ends with the transaction
		}
	}
	return e
}

func (e *event) size() int { return len(e.data) + len(e.oldData) }

// as gives the event as a watch with this selector sees it, if it does. An
// object that a change takes out of the selection is deleted for that watch.
func (e *event) as(gvk schema.GroupVersionKind, sel store.Selector) (store.Event, bool, error) {
	if e.kind != kindOf(gvk) {
		return store.Event{}, false, nil
	}
	before := e.existed && sel.Matches(e.key.Namespace, e.oldLabels)
	now := e.typ == store.Put && sel.Matches(e.key.Namespace, e.labels)
	seen := store.Event{Type: store.Put}
	data := e.data
	switch {
	case now:
	case before:
		seen.Type = store.Deleted
		if e.typ == store.Put {
			data = e.oldData
		}
	default:
		return store.Event{}, false, nil
	}
	obj, err := decodeAs(data, gvk)
	if err != nil {
		return store.Event{}, false, err
	}
	obj.SetResourceVersion(formatRevision(e.revision))
	seen.Object = obj
	return seen, true, nil
}

// history is the newest events, shared by all watches: each walks it with a
// cursor of its own, so that a slow one costs nobody anything.
type history struct {
	limit int

	// mu guards what follows.
	mu     sync.Mutex
	events []event
	bytes  int
	// start is the revision after which nothing is missing.
	start uint64
	// changed is closed and replaced when events are added.
	changed chan struct{}
}

func newHistory(limit int, revision uint64) *history {
	return &history{limit: limit, start: revision, changed: make(chan struct{})}
}

func (h *history) add(events []event) {
	if len(events) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range events {
		h.events = append(h.events, e)
		h.bytes += e.size()
	}
	for len(h.events) > h.limit || (h.bytes > historyBytes && len(h.events) > 1) {
		h.bytes -= h.events[0].size()
		h.start = h.events[0].revision
		h.events[0] = event{} // lets go of its text before the slice moves on
		h.events = h.events[1:]
	}
	close(h.changed)
	h.changed = make(chan struct{})
}

// after gives some events past revision, and whether nothing between is
// missing. The channel is closed when there is more.
func (h *history) after(revision uint64) (events []event, complete bool, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if revision < h.start {
		return nil, false, h.changed
	}
	first := sort.Search(len(h.events), func(i int) bool { return h.events[i].revision > revision })
	last := min(first+watchBatch, len(h.events))
	return slices.Clone(h.events[first:last]), true, h.changed
}

// Watch delivers changes after revision since; empty means from now on. The
// channel is closed when ctx ends, the store is closed, or the reader is so
// slow that events it has not taken are forgotten: it then lists again.
func (s *Store) Watch(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector, since string) (<-chan store.Event, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	cursor, err := s.cursor(since)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", gvk.Kind, err)
	}
	out := make(chan store.Event)
	if err := s.start(func() {
		defer close(out)
		s.deliver(ctx, gvk, sel, cursor, out)
	}); err != nil {
		return nil, fmt.Errorf("watch %s: %w", gvk.Kind, err)
	}
	return out, nil
}

// cursor is the revision a watch starts after.
func (s *Store) cursor(since string) (uint64, error) {
	var newest uint64
	err := s.db.View(func(tx *bolt.Tx) error {
		newest = tx.Bucket(metaBucket).Sequence()
		return nil
	})
	if err != nil {
		return 0, explainClosed(err)
	}
	if since == "" {
		return newest, nil
	}
	revision, err := strconv.ParseUint(since, 10, 64)
	if err != nil {
		return 0, &hint.Error{Field: "resourceVersion", Value: since, Problem: "is not a revision of this store", Remedy: "list first and watch from the revision it gives", Err: err}
	}
	if revision > newest {
		return 0, fmt.Errorf("%w: %d is ahead of %d: the store was made anew", store.ErrExpired, revision, newest)
	}
	if _, complete, _ := s.history.after(revision); !complete {
		return 0, fmt.Errorf("%w: %d", store.ErrExpired, revision)
	}
	return revision, nil
}

func (s *Store) deliver(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector, cursor uint64, out chan<- store.Event) {
	for {
		events, complete, changed := s.history.after(cursor)
		if !complete {
			return
		}
		for i := range events {
			cursor = events[i].revision
			seen, ok, err := events[i].as(gvk, sel)
			if err != nil {
				return // we wrote that text ourselves; the next list gives the error
			}
			if !ok {
				continue
			}
			select {
			case out <- seen:
			case <-ctx.Done():
				return
			case <-s.closing:
				return
			}
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		case <-s.closing:
			return
		}
	}
}
