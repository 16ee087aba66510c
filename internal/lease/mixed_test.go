package lease

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/weftnet/weft/api/v1alpha1"
	api "github.com/weftnet/weft/api/whereabouts"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/whereabouts"
)

const wbNamespace = "kube-system"

// mixed is a cluster in which Whereabouts gives addresses of one range as weft does.
type mixed struct {
	t    *testing.T
	api  *faults
	pool netip.Prefix
	// election is held by the one of Whereabouts' calls that leads.
	election sync.Mutex
}

var givingKey = store.Key{Namespace: "weft", Name: whereabouts.ConfigMap}

func newMixed(t *testing.T, api *faults, pool string) *mixed {
	t.Helper()
	m := &mixed{t: t, api: api, pool: netip.MustParsePrefix(pool)}
	m.gives(whereabouts.Mixed)
	return m
}

// gives says who gives addresses.
func (m *mixed) gives(by whereabouts.Giver) {
	m.t.Helper()
	obj := &store.Object{Object: map[string]any{"data": whereabouts.Giving{By: by, Namespace: wbNamespace}.Data()}}
	obj.SetGroupVersionKind(configMapKind)
	obj.SetNamespace(givingKey.Namespace)
	obj.SetName(givingKey.Name)
	_, err := m.api.Store.Create(m.t.Context(), obj)
	if errors.Is(err, store.ErrExists) {
		_, err = m.api.Store.Update(m.t.Context(), obj)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *mixed) node(name string) *node {
	m.t.Helper()
	n := newNode(m.t, m.api, name)
	n.equip = func(s *Store) { s.Giving = givingKey }
	n.equip(n.Store)
	return n
}

func (m *mixed) config() ipam.Config {
	return parse(m.t, `{"type":"whereabouts","range":"`+m.pool.String()+`"}`)
}

// oldAdd does what Whereabouts does to give an address, in its order: the lowest that is
// not in the pool and not reserved is put into the pool, and then reserved.
func (m *mixed) oldAdd(pod string) (string, error) {
	m.election.Lock()
	defer m.election.Unlock()
	ctx, skip := context.Background(), map[string]bool{}
	for range 100 {
		obj, err := m.poolObject(ctx)
		if err != nil {
			return "", err
		}
		pool, err := api.IPPoolFromObject(obj.Object)
		if err != nil {
			return "", err
		}
		addr, offset := m.pool.Addr().Next(), ""
		for ; ; addr = addr.Next() {
			if !m.pool.Contains(addr.Next()) {
				return "", ipam.ErrExhausted
			}
			if offset, err = api.Offset(m.pool, addr); err != nil {
				return "", err
			}
			if _, taken := pool.Allocations[offset]; !taken && !skip[offset] {
				break
			}
		}
		name, ref := api.ReservationName("", addr), "demo/"+pod
		is, err := m.api.Store.Get(ctx, reservationKind, store.Key{Namespace: wbNamespace, Name: name})
		if err == nil {
			if r, _ := api.ReservationFromObject(is.Object); r.PodRef != ref {
				skip[offset] = true
				continue
			}
		} else if !errors.Is(err, store.ErrNotFound) {
			return "", err
		}
		reserved := err == nil
		if pool.Allocations == nil {
			pool.Allocations = map[string]api.Allocation{}
		}
		pool.Allocations[offset] = api.Allocation{ContainerID: "old-" + pod, PodRef: ref, IfName: "net1"}
		if _, err := m.api.Store.Update(ctx, &store.Object{Object: pool.Object()}); err != nil {
			continue
		}
		if !reserved {
			r := api.Reservation{Meta: api.Meta{Namespace: wbNamespace, Name: name}, PodRef: ref, IfName: "net1"}
			if _, err := m.api.Store.Create(ctx, &store.Object{Object: r.Object()}); err != nil {
				return "", err
			}
		}
		return addr.String(), nil
	}
	return "", errors.New("a hundred addresses in a row are reserved")
}

func (m *mixed) poolObject(ctx context.Context) (*store.Object, error) {
	key := store.Key{Namespace: wbNamespace, Name: api.PoolName("", "", m.pool)}
	obj, err := m.api.Store.Get(ctx, poolKind, key)
	if errors.Is(err, store.ErrNotFound) {
		p := api.IPPool{Meta: api.Meta{Namespace: key.Namespace, Name: key.Name}, Range: m.pool.String()}
		obj, err = m.api.Store.Create(ctx, &store.Object{Object: p.Object()})
	}
	return obj, err
}

// oldDel does what Whereabouts does at the end of a Pod: what stands in the pool for it
// is taken out, and the reservation of that address deleted, whoever's it is.
func (m *mixed) oldDel(pod string) {
	m.election.Lock()
	defer m.election.Unlock()
	ctx := context.Background()
	for {
		obj, err := m.poolObject(ctx)
		if err != nil {
			m.t.Error(err)
			return
		}
		pool, err := api.IPPoolFromObject(obj.Object)
		if err != nil {
			m.t.Error(err)
			return
		}
		for offset, a := range pool.Allocations {
			if a.ContainerID != "old-"+pod {
				continue
			}
			addr, _, err := api.AddrAt(m.pool, offset)
			delete(pool.Allocations, offset)
			if err == nil {
				_, err = m.api.Store.Update(ctx, &store.Object{Object: pool.Object()})
			}
			if err == nil {
				err = m.api.Store.Delete(ctx, reservationKind, store.Key{Namespace: wbNamespace, Name: api.ReservationName("", addr)}, store.Precondition{})
			}
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				m.t.Error(err)
			}
			return
		}
		return
	}
}

// reserves gives the reservations there are, as text, sorted.
func (m *mixed) reserves() []string {
	m.t.Helper()
	list, _, err := m.api.Store.List(context.Background(), reservationKind, store.Selector{})
	if err != nil {
		m.t.Fatal(err)
	}
	out := []string{}
	for _, obj := range list {
		r, err := api.ReservationFromObject(obj.Object)
		if err != nil {
			m.t.Fatal(err)
		}
		out = append(out, fmt.Sprint(r.Name, " ", r.PodRef, map[bool]string{true: " deleted"}[r.Deleting], map[bool]string{true: " unlocked"}[whereabouts.Ours(r.Meta) && !whereabouts.Locks(r)]))
	}
	slices.Sort(out)
	return out
}

// TestMixedReservesFirst: an address of a range that Whereabouts gives addresses of is
// reserved as long as it is leased, and taken from the far end. What Whereabouts has in
// either of its objects is taken.
func TestMixedReservesFirst(t *testing.T) {
	m := newMixed(t, newAPI(t), "10.0.0.0/28")
	n, config := m.node("n1"), m.config()
	for i := 1; i <= 3; i++ {
		if got, err := m.oldAdd(fmt.Sprint("o", i)); err != nil || got != fmt.Sprint("10.0.0.", i) {
			t.Fatal(got, err)
		}
	}
	same(t, "first", n.mustAdd(config, "a"), []string{"10.0.0.14"})
	same(t, "reserved", m.reserves(), []string{"10.0.0.1 demo/o1", "10.0.0.14 demo/pod-a@n1", "10.0.0.2 demo/o2", "10.0.0.3 demo/o3"})
	same(t, "leased", objects(t, m.api), []string{"10.0.0.14 n1 a/net1"})

	// In the pool alone, as after Whereabouts' reconciler was wrong about a network_name.
	pool, err := m.poolObject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	is, _ := api.IPPoolFromObject(pool.Object)
	is.Allocations["13"] = api.Allocation{ContainerID: "x", PodRef: "demo/x"}
	if _, err := m.api.Store.Update(t.Context(), &store.Object{Object: is.Object()}); err != nil {
		t.Fatal(err)
	}
	second := n.mustAdd(config, "b")[0]
	if held := m.reserves(); second == "10.0.0.13" || slices.ContainsFunc(held, func(r string) bool { return strings.HasPrefix(r, "10.0.0.13 ") }) {
		t.Errorf("what is in the pool stays reserved: %q", held)
	}

	// Whoever deletes a reservation of ours by name does not free its address: the
	// runtime does after an ADD of Whereabouts that lost the race.
	for _, pod := range []string{"pod-a", "pod-a@n1"} {
		if err := m.api.Store.Delete(t.Context(), reservationKind, store.Key{Namespace: wbNamespace, Name: "10.0.0.14"}, store.Precondition{}); err != nil {
			t.Fatal(err)
		}
		if held := m.reserves(); !slices.Contains(held, "10.0.0.14 demo/pod-a@n1 deleted") {
			t.Fatalf("%s: reserved are %q", pod, held)
		}
	}
	taken := map[string]bool{"10.0.0.13": true, "10.0.0.14": true, second: true, "10.0.0.1": true, "10.0.0.2": true, "10.0.0.3": true}
	for i := 0; ; i++ {
		// The name of a Pod that weft gave an address to, on an old node: it is another one.
		pod := fmt.Sprint("q", i)
		if i == 0 {
			pod = "pod-a"
		}
		got, err := m.oldAdd(pod)
		if errors.Is(err, ipam.ErrExhausted) {
			break
		}
		if err != nil || taken[got] {
			t.Fatalf("Whereabouts gave %s, %v", got, err)
		}
		taken[got] = true
	}
	if _, err := n.add(config, "full"); !errors.Is(err, ipam.ErrExhausted) || !strings.Contains(err.Error(), "Whereabouts") {
		t.Errorf("of a full range: %v", err)
	}
	m.oldDel("q3")
	eventually(t, "what comes free is given", func() error {
		_, err := n.add(config, "late")
		return err
	})
	for _, sandbox := range []string{"a", "b", "late"} {
		n.del(sandbox)
	}
	nothingLeft(t, m.api, n)
	for _, r := range m.reserves() {
		if strings.Contains(r, "@") {
			t.Errorf("left is %s", r)
		}
	}
}

// TestMixedRefuses names networks in which Whereabouts makes no reservations.
func TestMixedRefuses(t *testing.T) {
	m := newMixed(t, newAPI(t), "10.0.0.0/28")
	n := m.node("n1")
	_, err := n.add(parse(t, `{"type":"whereabouts","range":"10.0.0.0/28","enable_overlapping_ranges":false}`), "a")
	h, ok := errors.AsType[*hint.Error](err)
	if !ok || h.Remedy == "" || !strings.Contains(err.Error(), "demo/lan: ipam.enable_overlapping_ranges") {
		t.Errorf("got %v", err)
	}
	nothingLeft(t, m.api, n)
	same(t, "reserved", m.reserves(), []string{})
}

// TestMixedClaim: who else has a claim's address keeps it reserved, when another may not
// have it.
func TestMixedClaim(t *testing.T) {
	m := newMixed(t, newAPI(t), "10.0.0.0/28")
	a, b, config := m.node("n1"), m.node("n2"), m.config()
	claim := ipam.ClaimOwner("demo", "db", "u1")
	got, err := a.addFor(config, "a", claim)
	if err != nil || got[0] != "10.0.0.14" {
		t.Fatal(got, err)
	}
	want := []string{"10.0.0.14 demo/db@n1"}
	same(t, "reserved", m.reserves(), want)
	taker := b.Of(&record.Sandbox{ID: "b"}, &record.Attachment{Network: "demo/lan", Interface: "net1"}, config)
	err = taker.Take(t.Context(), ipam.Lease{Scope: config.Sets[0].Scope, Addr: netip.MustParseAddr(got[0]), Owner: claim})
	if !errors.Is(err, ipam.ErrTaken) {
		t.Errorf("another Pod has it by the same claim: %v", err)
	}
	same(t, "reserved still", m.reserves(), want)
}

// TestMixedDeaths kills the node's process at each of its requests, once before the
// request is done and once after it, in ADD and in DEL. What is left is freed by who
// comes next, but for reservations without a lease, which weft-controller finds; no
// address is given twice.
func TestMixedDeaths(t *testing.T) {
	t.Parallel()
	for _, done := range []bool{false, true} {
		least := 9 // reserve, pool, lease, confirm; lease, look, delete, look, unlock
		for at := 1; mixedDeath(t, at, done); at++ {
			least--
		}
		if least > 0 {
			t.Errorf("there were %d requests less than there must be", least)
		}
	}
}

// mixedDeath is a death at one request. false: there were not as many.
func mixedDeath(t *testing.T, at int, done bool) bool {
	t.Helper()
	m := newMixed(t, newAPI(t), "10.0.0.0/29")
	n, other, config := m.node("n1"), m.node("n2"), m.config()
	lives := map[string]string{other.mustAdd(config, "other")[0]: "other"}
	ctx, kill := context.WithCancel(t.Context())
	defer kill()
	n.ctx = ctx
	var count atomic.Int64
	m.api.set(func(string, string) fault {
		switch now := int(count.Add(1)); {
		case now == at && done:
			kill()
			return fault{after: errAway}
		case now >= at:
			kill()
			return fault{before: errAway}
		}
		return fault{}
	})
	if _, err := n.add(config, "a"); err == nil {
		_ = n.End(ctx, ipam.AttachmentOwner("a", "net1")) // its links are gone, and the record is not
	}
	died := int(count.Load()) >= at
	m.api.set(nil)
	n.ctx = nil
	n.start()
	for i := range 8 {
		if addr, err := m.oldAdd(fmt.Sprint("o", i)); err == nil {
			if lives[addr] != "" {
				t.Fatalf("killed at %d (%v): Whereabouts gave %s, which %s has", at, done, addr, lives[addr])
			}
			lives[addr] = "old"
		}
	}
	n.del("a")
	n.Sweep(t.Context(), n)
	n.overdue()
	n.Sweep(t.Context(), n)
	eventually(t, "what it had is given back", func() error {
		if !n.drain(t.Context()) {
			return errors.New("not all")
		}
		return nil
	})
	other.del("other")
	nothingLeft(t, m.api, n, other)
	for _, r := range m.reserves() {
		if strings.Contains(r, "@n2") || strings.Contains(r, "unlocked") { // weft-controller looks for locks
			t.Errorf("killed at %d (%v): left is %s", at, done, r)
		}
	}
	return died
}

// TestMixedNeverTwice has nodes and an old Whereabouts take and give back addresses of one
// range that is full now and then, with an API that fails for the nodes.
func TestMixedNeverTwice(t *testing.T) {
	mixedChurn(t, newAPI(t), 12)
}

func mixedChurn(t *testing.T, with *faults, rounds int) {
	t.Helper()
	if testing.Short() {
		rounds = 5
	}
	m := newMixed(t, with, "10.50.0.0/27")
	config := m.config()
	var all []*node
	for i := range 3 {
		n := m.node(fmt.Sprint("n", i))
		n.run()
		all = append(all, n)
	}
	var h history
	var group sync.WaitGroup
	var taken, old, full, failed atomic.Int64
	m.api.set(func(verb, _ string) fault {
		switch dice := rand.IntN(100); { //nolint:gosec // a test
		case dice < 3 && verb != "list":
			return fault{after: errLost}
		case dice < 6:
			return fault{before: errAway}
		}
		return fault{}
	})
	client := 0
	churn := func(count *atomic.Int64, add func(sandbox string) (string, error), del func(sandbox string)) {
		client++
		me := client
		group.Go(func() {
			for r := range rounds {
				sandbox := fmt.Sprintf("s%d-%d", me, r)
				start := time.Now()
				addr, err := add(sandbox)
				switch {
				case errors.Is(err, ipam.ErrExhausted):
					full.Add(1)
				case errors.Is(err, ipam.ErrUnanswered), errors.Is(err, store.ErrExists):
					failed.Add(1)
				case err != nil:
					t.Error(err)
				default:
					count.Add(1)
					h.note(me, step{addr, sandbox, true}, start)
					time.Sleep(rand.N(5 * time.Millisecond)) //nolint:gosec // how long a Pod lives
					start = time.Now()
				}
				del(sandbox)
				if err == nil {
					h.note(me, step{addr, sandbox, false}, start)
				}
			}
		})
	}
	for _, n := range all {
		for range 5 {
			churn(&taken, func(sandbox string) (string, error) {
				got, err := n.add(config, sandbox)
				return strings.Join(got, ""), err
			}, n.del)
		}
	}
	for range 12 {
		churn(&old, m.oldAdd, m.oldDel)
	}
	group.Wait()
	m.api.set(nil)
	nothingLeft(t, m.api, all...)
	t.Logf("weft gave %d, Whereabouts %d; %d found the range full, %d had no answer", taken.Load(), old.Load(), full.Load(), failed.Load())
	if taken.Load() < int64(5*rounds) || old.Load() < int64(4*rounds) {
		t.Error("too few were given for a test")
	}
	if result, _ := porcupine.CheckOperationsVerbose(model, h.ops, patience); result != porcupine.Ok {
		t.Errorf("the history is %s", result)
	}
	for _, r := range m.reserves() {
		if !strings.Contains(r, "@") {
			t.Errorf("Whereabouts left %s", r)
		}
	}
}

// TestMixedSlowNode: a node that was too slow finds that its reservation ended, and does
// not use the address; one that is in time keeps it.
func TestMixedSlowNode(t *testing.T) {
	m := newMixed(t, newAPI(t), "10.0.0.0/28")
	n, config := m.node("n1"), m.config()
	name := store.Key{Namespace: wbNamespace, Name: "10.0.0.14"}
	change := func(f func(r *api.Reservation)) func(verb, at string) fault {
		return func(verb, at string) fault {
			if verb == "create" && at == Name(config.Sets[0].Scope, netip.MustParseAddr("10.0.0.14")) {
				if obj, err := m.api.Store.Get(t.Context(), reservationKind, name); err == nil && obj.GetKind() == api.ReservationKind {
					if r, err := api.ReservationFromObject(obj.Object); err == nil && whereabouts.Locks(r) && !whereabouts.Unleased(r) {
						f(r)
					}
				}
			}
			return fault{}
		}
	}
	m.api.set(change(func(r *api.Reservation) { // weft-controller looked
		if _, err := m.api.Store.Update(t.Context(), &store.Object{Object: whereabouts.MarkUnleased(r, true).Object()}); err != nil {
			t.Error(err)
		}
	}))
	same(t, "in time", n.mustAdd(config, "a"), []string{"10.0.0.14"})
	obj, err := m.api.Store.Get(t.Context(), reservationKind, name)
	if err != nil {
		t.Fatal(err)
	}
	if r, _ := api.ReservationFromObject(obj.Object); whereabouts.Unleased(r) || !whereabouts.LocksFor(r, "a/net1") {
		t.Errorf("it is still marked: %+v", r)
	}
	n.del("a")
	n.walks = map[walkKey]uint64{}
	m.api.set(change(func(r *api.Reservation) { // and looked again
		if err := Unreserve(t.Context(), m.api.Store, r); err != nil {
			t.Error(err)
		}
	}))
	if got, err := n.add(config, "b"); !errors.Is(err, ipam.ErrUnanswered) {
		t.Errorf("too late: %v, %v", got, err)
	}
	m.api.set(nil)
	n.run()
	nothingLeft(t, m.api, n)
}

// TestMixedEnds: a node that has not heard that weft gives addresses alone is told by the
// API server, and then reserves none.
func TestMixedEnds(t *testing.T) {
	m := newMixed(t, newAPI(t), "10.0.0.0/28")
	n, config := m.node("n1"), m.config()
	n.mustAdd(config, "a")
	m.gives(whereabouts.ByWeft)
	m.api.set(func(verb, name string) fault {
		if verb == "create" && name == "10.0.0.13" && n.Store.giving != nil {
			return fault{before: forbidden}
		}
		return fault{}
	})
	if _, err := n.add(config, "b"); !errors.Is(err, error(forbidden)) {
		t.Errorf("the API server refuses: %v", err)
	}
	m.api.set(nil)
	got := n.mustAdd(config, "b")[0]
	if all := m.reserves(); len(all) != 1 {
		t.Errorf("reserved are %q", all)
	}
	is, err := m.api.Store.Get(t.Context(), v1alpha1.AddressLeaseKind, store.Key{Name: got})
	if err != nil || is.GetLabels()[v1alpha1.ReservedLabel] != "" {
		t.Errorf("%v, %v", is, err)
	}
}
