package lease

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/adviser"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

// keeper is the adviser of one node.
type keeper struct {
	desk
	node   string
	silent *atomic.Bool
}

func (k keeper) Keep(_ context.Context, scope string, spans []ipam.Span, keeps []netip.Addr) (adviser.Ahead, bool) {
	if k.silent != nil && k.silent.Load() {
		return adviser.Ahead{}, false
	}
	return k.View.Keep(time.Now(), k.node, scope, spans, keeps), true
}

// newKeeping is a node that keeps addresses ahead, its records being those of journal.
func newKeeping(t testing.TB, api *faults, advice desk, name string, silent *atomic.Bool) (n *node, journal *string) {
	t.Helper()
	first := "boot/first"
	n = &node{t: t, api: api, name: name, dir: t.TempDir(), boxes: map[string]*record.Sandbox{}, alive: map[string]bool{}, adding: map[string]bool{}}
	n.equip = func(s *Store) {
		k := keeper{advice, name, silent}
		s.Adviser, s.Keeper, s.Journal = k, k, func() (string, error) { return first, nil }
	}
	n.start()
	return n, &first
}

// stocked attaches sandboxes until something is kept ahead, and gives their names.
func (n *node) stocked(config ipam.Config, want int) (sandboxes []string) {
	n.t.Helper()
	for range want*perAhead + perAhead/2 {
		sandboxes = append(sandboxes, fmt.Sprintf("%s-first%d", n.name, len(sandboxes)))
		n.mustAdd(config, sandboxes[len(sandboxes)-1])
	}
	eventually(n.t, "addresses are kept ahead", func() error {
		if got := n.States()["ahead"]; got < want {
			return fmt.Errorf("got %d, want %d", got, want)
		}
		return nil
	})
	return sandboxes
}

const widely = `{"type":"whereabouts","range":"10.50.0.0/20"}`

// ahead gives the addresses that the node keeps ahead.
func (n *node) ahead() (out []string) {
	held, _ := n.memory.Held(context.Background(), n.nodeOwner()) // never fails
	for _, lease := range held {
		out = append(out, lease.Addr.String())
	}
	return out
}

// bindings gives what NodeAddresses tells.
func bindings(t testing.TB, api store.Store, node string) map[string]v1alpha1.Binding {
	t.Helper()
	out := map[string]v1alpha1.Binding{}
	obj, err := api.Get(context.Background(), v1alpha1.NodeAddressesKind, store.Key{Name: node})
	if errors.Is(err, store.ErrNotFound) {
		return out
	}
	if err == nil {
		var all *v1alpha1.NodeAddresses
		if all, err = v1alpha1.NodeAddressesFromObject(obj); err == nil {
			for _, b := range all.Spec.Bindings {
				out[b.Lease] = b
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// tellSoon lets what waits to be told be told.
func (n *node) tellSoon() {
	n.Store.mu.Lock()
	defer n.Store.mu.Unlock()
	n.unpublishedSince = n.unpublishedSince.Add(-publishLater)
}

// TestKeptAhead: once Pods come quickly, an address takes no request. The cluster is
// told whose it is, and it is deleted at the DEL.
func TestKeptAhead(t *testing.T) {
	api := newAPI(t)
	config := parse(t, widely)
	n, _ := newKeeping(t, api, newDesk(t, api), "n1", nil)
	n.run()
	before := n.stocked(config, 2)
	kept := n.ahead()
	api.set(func(verb, _ string) fault { // API away for 30 s
		return fault{before: errAway}
	})
	var got []string
	for i := range 2 {
		got = append(got, n.mustAdd(config, fmt.Sprint("s", i))...)
	}
	slices.Sort(got)
	same(t, "addresses taken while the API server is away", got, kept[:2])
	waiting, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	n.ctx = waiting
	if _, err := n.add(config, "late"); !errors.Is(err, ipam.ErrUnanswered) {
		t.Errorf("with nothing left: %v", err)
	}
	n.ctx = nil
	api.set(nil)
	n.tellSoon()
	eventually(t, "the cluster knows whose they are", func() error {
		for i := range 2 {
			b := bindings(t, api, "n1")[got[i]]
			if b.Owner.Kind != v1alpha1.OwnerPod || b.Network != "demo/lan" || b.Interface != "net1" || b.Owner.UID != types.UID("uid-"+b.Sandbox) || b.UID == "" {
				return fmt.Errorf("%s: %+v", got[i], b)
			}
		}
		return nil
	})
	for _, sandbox := range append(before, "s0", "s1") {
		n.del(sandbox)
	}
	n.idle()
	nothingLeft(t, api, n)
}

// idle makes what is kept ahead due for return.
func (n *node) idle() {
	n.Store.mu.Lock()
	defer n.Store.mu.Unlock()
	for _, st := range n.stocks {
		st.last = st.last.Add(-idleFor)
	}
	for k, since := range n.spare {
		n.spare[k] = since.Add(-idleFor)
	}
	n.wakeKeeper()
}

// TestKeptAheadOverDeath: a process that dies leaves its successor what it kept ahead
// and what Pods have, by the records alone.
func TestKeptAheadOverDeath(t *testing.T) {
	api := newAPI(t)
	config := parse(t, widely)
	n, _ := newKeeping(t, api, newDesk(t, api), "n1", nil)
	n.run()
	first := n.stocked(config, 2)
	has := n.mustAdd(config, "s")[0]
	n.end()
	n.start()
	n.run()
	eventually(t, "what is kept ahead is known", func() error {
		n.Store.mu.Lock()
		defer n.Store.mu.Unlock()
		if len(n.found) > 0 || len(n.spare) == 0 {
			return fmt.Errorf("%d are unclear, %d known", len(n.found), len(n.spare))
		}
		return nil
	})
	for i := range 30 {
		if got := n.mustAdd(config, fmt.Sprint("t", i))[0]; got == has {
			t.Fatalf("%s is given twice", got)
		}
	}
	for i := range 30 {
		n.del(fmt.Sprint("t", i))
	}
	for _, sandbox := range append(first, "s") {
		n.del(sandbox)
	}
	n.idle()
	nothingLeft(t, api, n)
}

// TestRecordsLost: the records are lost under running Pods. What the cluster was told
// of is theirs; what it was not told of stays held until the sandboxes of then have
// ended.
func TestRecordsLost(t *testing.T) {
	api := newAPI(t)
	config := parse(t, widely)
	n, journal := newKeeping(t, api, newDesk(t, api), "n1", nil)
	n.run()
	first := n.stocked(config, 3)
	told := n.mustAdd(config, "told")[0]
	n.tellSoon()
	eventually(t, "the cluster is told", func() error {
		if b := bindings(t, api, "n1")[told]; b.Sandbox != "told" {
			return fmt.Errorf("%s: %+v", told, b)
		}
		return nil
	})
	eventually(t, "another is ahead", func() error {
		if n.States()["ahead"] == 0 {
			return errors.New("none is")
		}
		return nil
	})
	untold := n.mustAdd(config, "untold")[0]
	for _, sandbox := range first {
		n.del(sandbox)
	}
	n.end()
	n.mu.Lock()
	clear(n.boxes)
	n.mu.Unlock()
	*journal = "boot/second"
	n.start()
	n.run()
	eventually(t, "it is known that records are lost", func() error {
		n.Store.mu.Lock()
		defer n.Store.mu.Unlock()
		if len(n.strangers) == 0 {
			return errors.New("it is not")
		}
		return nil
	})
	for i := range 30 {
		if got := n.mustAdd(config, fmt.Sprint("t", i))[0]; got == told || got == untold {
			t.Fatalf("%s is given twice", got)
		}
	}
	for i := range 30 {
		n.del(fmt.Sprint("t", i))
	}
	n.Sweep(t.Context(), n)
	n.overdue()
	n.Sweep(t.Context(), n)
	for _, addr := range []string{told, untold} {
		if _, err := api.Get(t.Context(), v1alpha1.AddressLeaseKind, store.Key{Name: addr}); err != nil {
			t.Errorf("%s is held no more: %v", addr, err)
		}
	}
	n.mu.Lock()
	clear(n.alive)
	n.mu.Unlock()
	n.Sweep(t.Context(), n)
	n.overdue()
	n.Sweep(t.Context(), n)
	n.idle()
	nothingLeft(t, api, n)
}

// TestReboot: after a reboot nobody has what was taken ahead before.
func TestReboot(t *testing.T) {
	api := newAPI(t)
	n, journal := newKeeping(t, api, newDesk(t, api), "n1", nil)
	n.run()
	for _, sandbox := range n.stocked(parse(t, widely), 1) {
		n.del(sandbox)
	}
	n.end()
	*journal = "boot2/third"
	n.mu.Lock()
	clear(n.boxes)
	n.alive["another"] = true
	n.mu.Unlock()
	n.start()
	n.run()
	eventually(t, "what is kept ahead is known", func() error {
		n.Store.mu.Lock()
		defer n.Store.mu.Unlock()
		if len(n.spare) == 0 {
			return fmt.Errorf("it is not, %d are unclear", len(n.found))
		}
		return nil
	})
	n.idle()
	nothingLeft(t, api, n)
}

// TestAdviserGone: nobody says how many addresses may be kept, so none are handed out
// without a request, and all go back.
func TestAdviserGone(t *testing.T) {
	api := newAPI(t)
	config := parse(t, widely)
	var silent atomic.Bool
	n, _ := newKeeping(t, api, newDesk(t, api), "n1", &silent)
	n.run()
	first := n.stocked(config, 2)
	silent.Store(true)
	n.Store.mu.Lock()
	for _, st := range n.stocks {
		st.fresh = st.fresh.Add(-keepFresh - keepEvery)
	}
	n.Store.mu.Unlock()
	kept := n.ahead()
	if got := n.mustAdd(config, "s")[0]; slices.Contains(kept, got) {
		t.Errorf("%s was handed out, of %v", got, kept)
	}
	eventually(t, "nothing is kept ahead", func() error {
		if left := n.ahead(); len(left) > 0 {
			return fmt.Errorf("left are %v", left)
		}
		return nil
	})
	for _, sandbox := range append(first, "s") {
		n.del(sandbox)
	}
	nothingLeft(t, api, n)
}

// TestStaticOfStock: an attachment that asks for an address by name gets it, also if
// its node keeps it ahead.
func TestStaticOfStock(t *testing.T) {
	api := newAPI(t)
	n, _ := newKeeping(t, api, newDesk(t, api), "n1", nil)
	n.run()
	first := n.stocked(parse(t, widely), 1)
	want := n.ahead()[0]
	config, err := ipam.Parse([]byte(`{"name":"n","ipam":`+widely+`,"runtimeConfig":{"ips":["`+want+`/20"]}}`), "")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "addresses", n.mustAdd(config, "s"), []string{want})
	for _, sandbox := range append(first, "s") {
		n.del(sandbox)
	}
	n.idle()
	nothingLeft(t, api, n)
}

// TestFullRange: nodes keep addresses ahead of a range, and Pods of one node take all
// of it; no range is exhausted while others keep some.
func TestFullRange(t *testing.T) {
	api := newAPI(t)
	config := parse(t, `{"type":"whereabouts","range":"10.50.0.0/24"}`) // 254 addresses
	advice := newDesk(t, api)
	var all []*node
	used, kept := 0, 0
	for i := range 3 {
		n, _ := newKeeping(t, api, advice, fmt.Sprint("n", i), nil)
		n.run()
		used += len(n.stocked(config, 2))
		kept += len(n.ahead())
		all = append(all, n)
	}
	if kept < 6 {
		t.Errorf("%d are kept ahead", kept)
	}
	var group sync.WaitGroup
	var given, exhausted atomic.Int32
	for i := range 254 - used + 1 {
		group.Go(func() {
			switch _, err := all[0].add(config, fmt.Sprint("last", i)); {
			case err == nil:
				given.Add(1)
			case errors.Is(err, ipam.ErrExhausted):
				exhausted.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	group.Wait()
	if exhausted.Load() != 1 {
		t.Errorf("%d were given of %d, and %d were told that there are no more", given.Load(), 254-used, exhausted.Load())
	}
}

// TestWrites counts what ADDs and DELs write, all in all: 1.2 times for an ADD at most,
// though addresses are taken ahead, and once for a DEL.
func TestWrites(t *testing.T) {
	for name, pause := range map[string]time.Duration{"a burst": 0, "a rollout": 5 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			api := newAPI(t)
			config := parse(t, widely)
			n, _ := newKeeping(t, api, newDesk(t, api), "n1", nil)
			n.run()
			const pods = 300
			for i := range pods {
				n.mustAdd(config, fmt.Sprint("s", i))
				time.Sleep(pause) // until the next Pod comes
			}
			n.tellSoon()
			bound := func() int { return len(n.bound()) }
			if bound() == 0 {
				t.Fatal("none was taken ahead")
			}
			eventually(t, "all is told", func() error {
				if got := len(bindings(t, api, "n1")); got != bound() {
					return fmt.Errorf("%d are told, of %d", got, bound())
				}
				return nil
			})
			writes, ahead := api.count("create")+api.count("update"), n.States()["ahead"]
			t.Logf("%d writes for %d ADDs, %d of addresses that were there; %d are ahead", writes, pods, bound(), ahead)
			if writes > pods*12/10 {
				t.Errorf("%d writes for %d ADDs", writes, pods)
			}
			before := api.count("delete")
			for i := range pods {
				n.del(fmt.Sprint("s", i))
			}
			if deletes := api.count("delete") - before; deletes != pods {
				t.Errorf("%d deletes for %d DELs", deletes, pods)
			}
			n.idle()
			nothingLeft(t, api, n)
		})
	}
}
