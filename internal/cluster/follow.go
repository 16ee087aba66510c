package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/store"
)

// follower is told of all objects of a kind.
type follower interface {
	// Begin says that all objects there are follow by Put, until Complete.
	Begin()
	Put(obj *store.Object)
	Gone(obj *store.Object)
	Complete()
}

// feed tells a follower of a kind's objects: by a list, and a watch from there on.
// Now and then everything is listed anew, so that a watch that lost something, or
// says nothing, does so for as long only.
type feed struct {
	api   store.Store
	gvk   schema.GroupVersionKind
	every time.Duration
	to    follower
	log   *slog.Logger
	// optional: the kind may not be there, which nobody need be told.
	optional bool
}

// Pauses after failures: doubled from the first to the last.
const (
	firstPause = 200 * time.Millisecond
	lastPause  = 15 * time.Second
)

// String names the task.
func (f feed) String() string { return "feed of kind " + f.gvk.Kind }

// Run follows until ctx ends.
func (f feed) Run(ctx context.Context) error {
	pause := time.Duration(0)
	for ctx.Err() == nil {
		err := f.round(ctx)
		if err == nil {
			pause = 0
			continue
		}
		if ctx.Err() != nil {
			break
		}
		if missing := f.optional && unserved(err); pause == 0 && !missing {
			f.log.Warn("the API server is not followed; what is known of it stays", "kind", f.gvk.Kind, "err", err)
		}
		pause = min(max(2*pause, firstPause), lastPause)
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
	}
	return nil
}

// round lists, and watches until it is time to list anew.
func (f feed) round(ctx context.Context) error {
	f.to.Begin()
	since, err := each(ctx, f.api, f.gvk, f.to.Put)
	if err != nil {
		return fmt.Errorf("list %s: %w", f.gvk.Kind, err)
	}
	f.to.Complete()
	until, cancel := context.WithTimeout(ctx, f.every+rand.N(f.every/10+1))
	defer cancel()
	for until.Err() == nil {
		began := time.Now()
		last, err := f.watch(until, since)
		if errors.Is(err, store.ErrExpired) || until.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watch %s: %w", f.gvk.Kind, err)
		}
		if last == since && time.Since(began) < firstPause {
			return fmt.Errorf("watch %s: it ends at once", f.gvk.Kind)
		}
		since = last
	}
	return nil
}

// watch takes the events of one watch, and gives the revision of the last.
func (f feed) watch(ctx context.Context, since string) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := f.api.Watch(ctx, f.gvk, store.Selector{}, since)
	if err != nil {
		return since, err
	}
	for event := range events {
		since = event.Object.GetResourceVersion()
		if event.Type == store.Deleted {
			f.to.Gone(event.Object)
		} else {
			f.to.Put(event.Object)
		}
	}
	return since, nil
}

// lister reads a list without having all of it in memory, as store/kube can.
type lister interface {
	Each(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector, do func(*store.Object)) (string, error)
}

// each does something with every object of a kind, and gives the revision to watch
// from. One may come twice.
func each(ctx context.Context, api store.Store, gvk schema.GroupVersionKind, do func(*store.Object)) (string, error) {
	if api, ok := api.(lister); ok {
		return api.Each(ctx, gvk, store.Selector{}, do)
	}
	list, revision, err := api.List(ctx, gvk, store.Selector{})
	for _, obj := range list {
		do(obj)
	}
	return revision, err
}
