// Package reconcile runs controllers: level-triggered functions of one key,
// called again until the world is as wanted. A key is never worked on twice at
// once; failures are retried with growing delay; changes in the store wake
// keys up.
package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/store"
)

// Retry delays after failures: doubled from the first to the last.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
)

// Func brings one key nearer to what is wanted. It is called again after the
// duration it returns, if that is not zero, or with growing delay after an error.
type Func func(ctx context.Context, key store.Key) (time.Duration, error)

// Loop calls a Func for the keys added to it.
type Loop struct {
	name    string
	fn      Func
	workers int
	log     *slog.Logger

	// mu guards the fields below it.
	mu      sync.Mutex
	ready   []store.Key // waiting for a worker, in order
	queued  map[store.Key]bool
	working map[store.Key]bool
	again   map[store.Key]bool // added while being worked on
	fails   map[store.Key]int
	timers  map[store.Key]*time.Timer

	wake chan struct{} // capacity 1: a signal, not a queue
}

// NewLoop gives a loop with that many workers.
func NewLoop(name string, workers int, log *slog.Logger, fn Func) *Loop {
	return &Loop{
		name: name, fn: fn, workers: workers, log: log.With("loop", name),
		queued: map[store.Key]bool{}, working: map[store.Key]bool{}, again: map[store.Key]bool{},
		fails: map[store.Key]int{}, timers: map[store.Key]*time.Timer{},
		wake: make(chan struct{}, 1),
	}
}

// String names the task.
func (l *Loop) String() string { return l.name }

// Add asks for key to be worked on soon.
func (l *Loop) Add(key store.Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addLocked(key)
}

func (l *Loop) addLocked(key store.Key) {
	switch {
	case l.working[key]:
		l.again[key] = true
	case !l.queued[key]:
		l.queued[key] = true
		l.ready = append(l.ready, key)
		l.signal()
	}
}

func (l *Loop) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *Loop) addAfterLocked(key store.Key, d time.Duration) {
	if old := l.timers[key]; old != nil {
		old.Stop()
	}
	l.timers[key] = time.AfterFunc(d, func() { l.Add(key) })
}

// Run works until ctx ends.
func (l *Loop) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for range l.workers {
		group.Go(func() error { return l.work(ctx) })
	}
	err := group.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, timer := range l.timers {
		timer.Stop()
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (l *Loop) work(ctx context.Context) error {
	for {
		key, ok := l.take()
		if !ok {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-l.wake:
				continue
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		after, err := l.fn(ctx, key)
		l.done(ctx, key, after, err)
	}
}

func (l *Loop) take() (store.Key, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ready) == 0 {
		return store.Key{}, false
	}
	key := l.ready[0]
	l.ready = l.ready[1:]
	delete(l.queued, key)
	l.working[key] = true
	if len(l.ready) > 0 {
		l.signal() // for the next worker
	}
	return key, true
}

func (l *Loop) done(ctx context.Context, key store.Key, after time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.working, key)
	again := l.again[key]
	delete(l.again, key)
	switch {
	case err != nil && ctx.Err() == nil:
		delay := min(firstRetry<<min(l.fails[key], 10), lastRetry)
		l.fails[key]++
		if !errors.Is(err, store.ErrConflict) { // an everyday race, over at the next turn
			l.log.Warn("reconcile", "key", key.String(), "err", err, "retryIn", delay)
		}
		l.addAfterLocked(key, delay)
	case after > 0:
		delete(l.fails, key)
		l.addAfterLocked(key, after)
	default:
		delete(l.fails, key)
	}
	if again {
		l.addLocked(key)
	}
}

// Reader is what a Source follows: a store.Store, or a cache of one.
type Reader interface {
	List(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector) ([]*store.Object, string, error)
	Watch(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector, since string) (<-chan store.Event, error)
}

// Source wakes keys of a loop for objects of one kind.
type Source struct {
	Store Reader
	GVK   schema.GroupVersionKind
	// Keys maps an object to the keys it concerns; nil: its own.
	Keys func(*store.Object) []store.Key
	Loop *Loop
}

// String names the task.
func (s Source) String() string { return s.Loop.name + " source " + s.GVK.Kind }

// Run lists, then watches, until ctx ends. A store that cannot be read, such as
// an API server that is away, is tried again with growing delay.
func (s Source) Run(ctx context.Context) error {
	for fails := 0; ctx.Err() == nil; {
		err := s.follow(ctx)
		if err == nil {
			fails = 0
			continue
		}
		if ctx.Err() != nil {
			break
		}
		delay := min(firstRetry<<min(fails, 10), lastRetry)
		fails++
		s.Loop.log.Warn("cannot follow the store", "kind", s.GVK.Kind, "err", err, "retryIn", delay)
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
	return nil
}

// follow lists and watches until the watch ends.
func (s Source) follow(ctx context.Context) error {
	objects, revision, err := s.Store.List(ctx, s.GVK, store.Selector{})
	if err != nil {
		return fmt.Errorf("list %s: %w", s.GVK.Kind, err)
	}
	for _, obj := range objects {
		s.add(obj)
	}
	events, err := s.Store.Watch(ctx, s.GVK, store.Selector{}, revision)
	if errors.Is(err, store.ErrExpired) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("watch %s: %w", s.GVK.Kind, err)
	}
	for event := range events {
		s.add(event.Object)
	}
	return nil
}

func (s Source) add(obj *store.Object) {
	if s.Keys == nil {
		s.Loop.Add(store.KeyOf(obj))
		return
	}
	for _, key := range s.Keys(obj) {
		s.Loop.Add(key)
	}
}
