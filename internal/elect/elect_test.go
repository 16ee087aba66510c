package elect

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/local"
)

var errAway = errors.New("the API server is away")

// link is the way of one candidate to the store.
type link struct {
	store.Store
	away atomic.Bool // nothing arrives
	deaf atomic.Bool // answers are lost
	late atomic.Bool // what was asked for last arrives before the end of leading
}

func (l *link) answer(obj *store.Object, err error) (*store.Object, error) {
	if l.deaf.Load() {
		return nil, errAway
	}
	return obj, err
}

func (l *link) Get(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (*store.Object, error) {
	if l.away.Load() {
		return nil, errAway
	}
	return l.answer(l.Store.Get(ctx, gvk, key))
}

func (l *link) Create(ctx context.Context, obj *store.Object) (*store.Object, error) {
	if l.away.Load() {
		return nil, errAway
	}
	return l.answer(l.Store.Create(ctx, obj))
}

func (l *link) Update(ctx context.Context, obj *store.Object) (*store.Object, error) {
	if l.away.Load() {
		return nil, errAway
	}
	if holder, _ := holderOf(obj); holder == "" && l.late.Swap(false) {
		now, err := l.Store.Get(ctx, LeaseKind, store.KeyOf(obj))
		if err != nil {
			return nil, err
		}
		now.SetLabels(map[string]string{"x": "y"})
		if _, err := l.Store.Update(ctx, now); err != nil {
			return nil, err
		}
	}
	return l.answer(l.Store.Update(ctx, obj))
}

// candidate stands for election, and notes while it leads when its period lasted.
type candidate struct {
	*Elector
	link *link
	stop func() error

	mu          sync.Mutex // guards what follows
	first, last time.Time
	terms       int
	period      *Period
}

func (c *candidate) Leading() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.period != nil && c.period.Lasts()
}

const term = 2 * time.Second

func stand(t *testing.T, s store.Store, name string) *candidate {
	t.Helper()
	c := &candidate{link: &link{Store: s}}
	c.Elector = New(Config{
		API: c.link, Lease: store.Key{Namespace: "a", Name: "b"}, Identity: name, Term: term, Renewal: term / 2, Retry: term / 20,
		Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx, c.do) }()
	c.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := c.stop(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
	return c
}

func (c *candidate) do(ctx context.Context, period *Period) error {
	c.mu.Lock()
	c.first, c.terms, c.period = time.Now(), c.terms+1, period
	c.mu.Unlock()
	for ctx.Err() == nil {
		c.mu.Lock()
		if period.Lasts() {
			c.last = time.Now()
		}
		c.mu.Unlock()
		time.Sleep(time.Millisecond) // it works
	}
	if err := period.Writer(c.link).Delete(context.WithoutCancel(ctx), LeaseKind, store.Key{Namespace: "a", Name: "other"}, store.Precondition{}); period.Lasts() == errors.Is(err, ErrOver) {
		return err
	}
	return nil
}

func (c *candidate) led() (first, last time.Time, terms int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.first, c.last, c.terms
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not after 30 s: %s", what)
		}
	}
}

func open(t *testing.T) *local.Store {
	t.Helper()
	s, err := local.Open(filepath.Join(t.TempDir(), "objects"), local.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// begun gives two candidates of whom the first leads.
func begun(t *testing.T) (s store.Store, a, b *candidate) {
	t.Helper()
	s = open(t)
	a = stand(t, s, "a")
	eventually(t, "a leads", a.Leading)
	b = stand(t, s, "b")
	return s, a, b
}

// after says that b leads, and did not begin before a ended.
func after(t *testing.T, a, b *candidate) {
	t.Helper()
	eventually(t, "b leads", func() bool {
		_, _, terms := b.led()
		return terms > 0
	})
	_, last, _ := a.led()
	first, _, _ := b.led()
	if !first.After(last) {
		t.Errorf("a led until %v, b from %v", last, first)
	}
}

func TestLeaderIsCutOff(t *testing.T) {
	t.Parallel()
	_, a, b := begun(t)
	a.link.away.Store(true)
	after(t, a, b)
	a.link.away.Store(false)
	time.Sleep(term) //nolint:forbidigo // that nothing happens for so long
	if a.Leading() || !b.Leading() {
		t.Errorf("a leads: %t, b: %t", a.Leading(), b.Leading())
	}
}

// TestAnswersAreLost: the leader renews and does not know it; so it ends, and takes
// up its own Lease as soon as answers come.
func TestAnswersAreLost(t *testing.T) {
	t.Parallel()
	_, a, b := begun(t)
	a.link.deaf.Store(true)
	eventually(t, "a ends", func() bool { return !a.Leading() })
	a.link.deaf.Store(false)
	eventually(t, "one leads", func() bool { return a.Leading() || b.Leading() })
	if a.Leading() && b.Leading() {
		t.Error("both lead")
	}
}

// TestLeaderEnds: others lead at once, also if the leader's last renewal was cut short
// and came through.
func TestLeaderEnds(t *testing.T) {
	t.Parallel()
	s, a, b := begun(t)
	a.link.late.Store(true)
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	lease, err := s.Get(t.Context(), LeaseKind, store.Key{Namespace: "a", Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if holder, _ := holderOf(lease); holder == "a" {
		t.Error("a does not say that it ended")
	}
	after(t, a, b)
	lease, err = s.Get(t.Context(), LeaseKind, store.Key{Namespace: "a", Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	spec, _ := lease.Object["spec"].(map[string]any)
	if spec["holderIdentity"] != "b" || spec["leaseDurationSeconds"] != int64(2) || spec["leaseTransitions"] != int64(2) {
		t.Errorf("the Lease is %v", spec)
	}
}

// TestClocksDiffer: what times stand in the Lease is nobody's business.
func TestClocksDiffer(t *testing.T) {
	t.Parallel()
	s := open(t)
	lease := &store.Object{Object: map[string]any{"spec": map[string]any{
		"holderIdentity": "x", "leaseDurationSeconds": int64(2), "renewTime": "2001-01-01T00:00:00.000000Z",
	}}}
	lease.SetGroupVersionKind(LeaseKind)
	lease.SetNamespace("a")
	lease.SetName("b")
	if _, err := s.Create(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	b := stand(t, s, "b")
	eventually(t, "b leads", b.Leading)
	if took := time.Since(began); took < term {
		t.Errorf("b leads after %v, and the term is %v", took, term)
	}
}

// TestLeaseIsTaken: somebody deletes the Lease, or writes himself into it.
func TestLeaseIsTaken(t *testing.T) {
	t.Parallel()
	s, a, b := begun(t)
	if err := s.Delete(t.Context(), LeaseKind, store.Key{Namespace: "a", Name: "b"}, store.Precondition{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one leads again", func() bool {
		_, _, one := a.led()
		_, _, other := b.led()
		return one+other == 2 && a.Leading() != b.Leading()
	})
}

// TestLabelled: others may write labels.
func TestLabelled(t *testing.T) {
	t.Parallel()
	s, a, b := begun(t)
	lease, err := s.Get(t.Context(), LeaseKind, store.Key{Namespace: "a", Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	lease.SetResourceVersion("")
	lease.SetLabels(map[string]string{"x": "y"})
	if _, err := s.Update(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	_, before, _ := a.led()
	eventually(t, "a led for a term more", func() bool {
		_, last, _ := a.led()
		return last.Sub(before) > term
	})
	if _, _, terms := a.led(); terms != 1 || b.Leading() {
		t.Errorf("a led %d times", terms)
	}
}
