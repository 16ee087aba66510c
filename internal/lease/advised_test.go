package lease

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/adviser"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
)

// desk is the adviser's view, without a network in between.
type desk struct{ *adviser.View }

func (d desk) Candidates(_ context.Context, scope string, spans []ipam.Span, count int) []netip.Addr {
	return d.View.Candidates(time.Now(), scope, spans, count)
}

// newDesk gives an adviser that follows the leases.
func newDesk(t testing.TB, api *faults) desk {
	t.Helper()
	d := desk{adviser.New()}
	ctx, cancel := context.WithCancel(context.Background())
	events, err := api.Store.Watch(ctx, v1alpha1.AddressLeaseKind, store.Selector{}, "")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for event := range events {
			lease, err := v1alpha1.LeaseFromObject(event.Object)
			if err != nil {
				t.Error(err)
				continue
			}
			if event.Type == store.Deleted {
				d.Release(time.Now(), lease.Spec.Scope, lease.Spec.IP)
			} else {
				d.Hold(time.Now(), lease.Spec.Scope, lease.Spec.IP)
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return d
}

// wrong proposes what nobody may have, what is held, and what is no address.
type wrong struct{}

func (wrong) Candidates(_ context.Context, _ string, spans []ipam.Span, count int) []netip.Addr {
	all := []netip.Addr{{}, netip.MustParseAddr("10.50.0.7"), netip.MustParseAddr("10.50.0.0"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fd00::1"), spans[0].First, spans[0].First.Next()}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:min(count, len(all))]
}

// absent never answers in time.
type absent struct{}

func (absent) Candidates(ctx context.Context, _ string, _ []ipam.Span, _ int) []netip.Addr {
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Millisecond):
	}
	return nil
}

// TestLowestFirst: with advice, nodes take the lowest addresses in order, by one
// request each.
func TestLowestFirst(t *testing.T) {
	api := newAPI(t)
	advice := newDesk(t, api)
	config := parse(t, `{"type":"whereabouts","range":"10.50.0.0/24","exclude":["10.50.0.3-10.50.0.4"]}`)
	var all []*node
	for i := range 4 {
		n := newNode(t, api, fmt.Sprint("n", i))
		n.Adviser = advice
		all = append(all, n)
	}
	var got, want []string
	for i := range 40 {
		got = append(got, all[i%4].mustAdd(config, fmt.Sprint("s", i))...)
		if i >= 2 {
			want = append(want, fmt.Sprintf("10.50.0.%d", i+3))
		} else {
			want = append(want, fmt.Sprintf("10.50.0.%d", i+1))
		}
	}
	same(t, "addresses", got, want)
	if creates := api.count("create"); creates != 40 {
		t.Errorf("%d creates for 40 addresses", creates)
	}
	for i := range 40 {
		all[i%4].del(fmt.Sprint("s", i))
	}
	nothingLeft(t, api, all...)
}

// TestAdvisers: whatever advice is worth, no address is given twice, and a range is
// exhausted only when it is.
func TestAdvisers(t *testing.T) {
	for name, advisers := range map[string]func(*testing.T, *faults) []Adviser{
		"right":  func(t *testing.T, api *faults) []Adviser { return []Adviser{newDesk(t, api)} },
		"two":    func(t *testing.T, api *faults) []Adviser { return []Adviser{newDesk(t, api), newDesk(t, api)} },
		"behind": func(*testing.T, *faults) []Adviser { return []Adviser{desk{adviser.New()}} },
		"wrong":  func(*testing.T, *faults) []Adviser { return []Adviser{wrong{}} },
		"absent": func(t *testing.T, api *faults) []Adviser { return []Adviser{absent{}, newDesk(t, api)} },
	} {
		t.Run(name, func(t *testing.T) {
			api := newAPI(t)
			churn(t, api, 4, 6, 8, advisers(t, api)...)
		})
	}
}

// stubborn proposes the same addresses whoever asks.
type stubborn struct{}

func (stubborn) Candidates(_ context.Context, _ string, spans []ipam.Span, count int) []netip.Addr {
	return []netip.Addr{spans[0].First, spans[0].First.Next()}[:min(count, 2)]
}

// TestAdvisedTwice: two addresses of one range for one attachment are two, and both
// are known to be held, although the adviser proposes one of them twice.
func TestAdvisedTwice(t *testing.T) {
	api := newAPI(t)
	n := newNode(t, api, "n1")
	n.Adviser = stubborn{}
	for i := range 20 {
		sandbox := fmt.Sprint("s", i)
		got := n.mustAdd(parse(t, `{"type":"whereabouts","range":"10.9.0.0/24","ipRanges":[{"range":"10.9.0.0/24"}]}`), sandbox)
		if len(got) != 2 || got[0] == got[1] {
			t.Errorf("got %v", got)
		}
		if known := len(n.boxes[sandbox].Attachments[0].Leases); known != 2 {
			t.Errorf("%d of the two are known to be held", known)
		}
		n.del(sandbox)
		if left := objects(t, api); len(left) > 0 {
			t.Fatalf("left are %q", left)
		}
	}
	nothingLeft(t, api, n)
}

// gated answers once it may.
type gated struct {
	desk
	may   chan struct{}
	asked *[]int // the counts
	mu    *sync.Mutex
}

func (g gated) Candidates(ctx context.Context, scope string, spans []ipam.Span, count int) []netip.Addr {
	g.mu.Lock()
	*g.asked = append(*g.asked, count)
	g.mu.Unlock()
	<-g.may
	return g.desk.Candidates(ctx, scope, spans, count)
}

// TestOneQuestion: sixteen interfaces of a Pod that want addresses of one range cost
// one question beside that which is under way.
func TestOneQuestion(t *testing.T) {
	api := newAPI(t)
	n := newNode(t, api, "n1")
	g := gated{newDesk(t, api), make(chan struct{}), new([]int), new(sync.Mutex)}
	n.Adviser = g
	config := parse(t, `{"type":"whereabouts","range":"10.50.0.0/24"}`)
	var group sync.WaitGroup
	got := make([]string, 17)
	add := func(i int) {
		group.Go(func() {
			if addrs, err := n.add(config, fmt.Sprint("s", i)); err != nil {
				t.Error(err)
			} else {
				got[i] = addrs[0]
			}
		})
	}
	add(0)
	waiting := func(want int) {
		t.Helper()
		eventually(t, "they wait", func() error {
			n.questions.mu.Lock()
			defer n.questions.mu.Unlock()
			for _, q := range n.questions.next {
				if q.count == want {
					return nil
				}
			}
			return fmt.Errorf("not %d", want)
		})
	}
	waiting(0)
	for i := 1; i <= 16; i++ {
		add(i)
	}
	waiting(16)
	close(g.may)
	group.Wait()
	if want := []int{1, 16}; !slices.Equal(*g.asked, want) {
		t.Errorf("asked for %v addresses, want %v", *g.asked, want)
	}
	slices.Sort(got)
	if len(slices.Compact(got)) != 17 {
		t.Errorf("got %v", got)
	}
	if len(n.questions.next) != 0 {
		t.Errorf("%d questions are left", len(n.questions.next))
	}
}
