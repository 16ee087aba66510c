package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

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
