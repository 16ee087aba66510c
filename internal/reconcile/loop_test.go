package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/store"
)

var key = store.Key{Namespace: "default", Name: "a"}

func run(t *testing.T, fn Func) *Loop {
	t.Helper()
	loop := NewLoop("test", 4, slog.New(slog.DiscardHandler), fn)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- loop.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return loop
}

func TestKeyIsNeverWorkedOnTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls, at atomic.Int32
		loop := run(t, func(context.Context, store.Key) (time.Duration, error) {
			if at.Add(1) > 1 {
				t.Error("worked on twice at once")
			}
			time.Sleep(time.Second)
			at.Add(-1)
			calls.Add(1)
			return 0, nil
		})
		loop.Add(key)
		time.Sleep(500 * time.Millisecond)
		loop.Add(key)
		loop.Add(key)
		time.Sleep(5 * time.Second)
		if got := calls.Load(); got != 2 {
			t.Errorf("got %d calls, want 2: one, and one for all that came during it", got)
		}
	})
}

func TestFailureIsRetriedWithGrowingDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var at []time.Duration
		loop := run(t, func(context.Context, store.Key) (time.Duration, error) {
			at = append(at, time.Since(start))
			if len(at) < 4 {
				return 0, errors.New("not yet")
			}
			return 0, nil
		})
		loop.Add(key)
		time.Sleep(time.Minute)
		synctest.Wait()
		want := []time.Duration{0, 100 * time.Millisecond, 300 * time.Millisecond, 700 * time.Millisecond}
		if len(at) != len(want) {
			t.Fatalf("called at %v, want %v", at, want)
		}
		for i := range want {
			if at[i] != want[i] {
				t.Errorf("call %d at %v, want %v", i, at[i], want[i])
			}
		}
	})
}

func TestRequeueAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		loop := run(t, func(context.Context, store.Key) (time.Duration, error) {
			calls.Add(1)
			return 5 * time.Second, nil
		})
		loop.Add(key)
		time.Sleep(12 * time.Second)
		if got := calls.Load(); got != 3 {
			t.Errorf("got %d calls in 12 s, want 3", got)
		}
	})
}

// awayReader fails until it has been asked often enough, then has one object.
type awayReader struct {
	fails int
	asked []time.Time
}

func (r *awayReader) List(context.Context, schema.GroupVersionKind, store.Selector) ([]*store.Object, string, error) {
	r.asked = append(r.asked, time.Now())
	if len(r.asked) <= r.fails {
		return nil, "", errors.New("away")
	}
	obj := &store.Object{Object: map[string]any{"metadata": map[string]any{"name": "a"}}}
	return []*store.Object{obj}, "1", nil
}

func (r *awayReader) Watch(ctx context.Context, _ schema.GroupVersionKind, _ store.Selector, _ string) (<-chan store.Event, error) {
	events := make(chan store.Event)
	context.AfterFunc(ctx, func() { close(events) })
	return events, nil
}

// TestSourceOutlivesAnOutage: a store that cannot be read is asked again, ever
// more slowly, and followed when it is back.
func TestSourceOutlivesAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		loop := NewLoop("test", 1, slog.New(slog.DiscardHandler), nil)
		reader := &awayReader{fails: 3}
		done := make(chan error)
		go func() { done <- Source{Store: reader, Loop: loop}.Run(ctx) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(reader.asked) != 4 {
			t.Fatalf("got %d lists, want three that fail and one", len(reader.asked))
		}
		for i, want := range []time.Duration{firstRetry, 2 * firstRetry, 4 * firstRetry} {
			if got := reader.asked[i+1].Sub(reader.asked[i]); got != want {
				t.Errorf("delay %d: got %v, want %v", i+1, got, want)
			}
		}
		if key, ok := loop.take(); !ok || key.Name != "a" {
			t.Errorf("woken: got %v, %v, want a", key, ok)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}
