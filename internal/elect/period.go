package elect

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/store"
)

// ErrOver says that this process leads no more, so it may not write.
var ErrOver = errors.New("this process does not lead any more")

// Period is how long a process leads. It is extended while it does.
type Period struct {
	until atomic.Pointer[time.Time] // with the monotonic clock
}

func (p *Period) extend(until time.Time) { p.until.Store(&until) }

func (p *Period) end() time.Time { return *p.until.Load() }

// Lasts says whether the period is not over, by both clocks: that which does not jump
// stands still while a machine sleeps. A process that was stopped, and goes on after
// others have taken over, sees so here before its ctx tells. After a clock was set
// forward it lasts no more until it is renewed.
func (p *Period) Lasts() bool {
	now, end := time.Now(), p.end()
	return now.Before(end) && now.Round(0).Before(end.Round(0))
}

// Writer gives a store that writes while the period lasts, and then no more.
func (p *Period) Writer(s store.Store) store.Store { return writer{s, p} }

type writer struct {
	store.Store
	period *Period
}

var _ store.Store = writer{}

// within runs a write that ends with the period.
func (w writer) within(ctx context.Context, write func(context.Context) error) error {
	if !w.period.Lasts() {
		return ErrOver
	}
	ctx, cancel := context.WithDeadline(ctx, w.period.end())
	defer cancel()
	return write(ctx)
}

// Create is that of the store.
func (w writer) Create(ctx context.Context, obj *store.Object) (made *store.Object, err error) {
	err = w.within(ctx, func(ctx context.Context) error {
		made, err = w.Store.Create(ctx, obj)
		return err
	})
	return made, err
}

// Update is that of the store.
func (w writer) Update(ctx context.Context, obj *store.Object) (made *store.Object, err error) {
	err = w.within(ctx, func(ctx context.Context) error {
		made, err = w.Store.Update(ctx, obj)
		return err
	})
	return made, err
}

// UpdateStatus is that of the store.
func (w writer) UpdateStatus(ctx context.Context, obj *store.Object) (made *store.Object, err error) {
	err = w.within(ctx, func(ctx context.Context) error {
		made, err = w.Store.UpdateStatus(ctx, obj)
		return err
	})
	return made, err
}

// Delete is that of the store.
func (w writer) Delete(ctx context.Context, gvk schema.GroupVersionKind, key store.Key, pre store.Precondition) error {
	return w.within(ctx, func(ctx context.Context) error { return w.Store.Delete(ctx, gvk, key, pre) })
}
