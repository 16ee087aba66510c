// Package lease gives addresses that are unique in a cluster. Each is held by an
// AddressLease object, and that the API server makes no second one of a name is
// the only lock. It is an ipam.Store for the attachments of one node, and keeps
// that node's leases: what nobody uses any more is given back, also if the API
// server was away when it ended.
//
// What stands in memory is a view of this node's own leases. What other nodes hold
// is learned when they were faster.
//
// It has no journal of its own. An attachment's record says that addresses may be
// taken for its sandbox before the first is; a lease names node and sandbox, so
// what a lost record knew is found by listing. Only what could not be given back
// lies in files, until it is.
package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/adviser"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/whereabouts"
)

// How long the API server is waited for.
const (
	// takePatience is for one address, with all tries.
	takePatience = 10 * time.Second
	// askPatience is for one request.
	askPatience = 5 * time.Second
	// releasePatience is for one address at the end of an attachment: beyond it the
	// release is kept for later.
	releasePatience = 2 * time.Second
	// askAgain is between looks at what another goroutine does.
	askAgain = 20 * time.Millisecond
	// awayFor is how long releases are kept for later without asking, after an API
	// server did not answer.
	awayFor = 2 * time.Second
)

// Options are what a Store is made of.
type Options struct {
	API store.Store
	// Node is this node's name.
	Node string
	// Dir keeps what is to be given back when the API server is there again.
	Dir string
	// Adviser is asked for addresses first; nil: this node chooses alone.
	Adviser Adviser
	// Giving is the ConfigMap that says who gives addresses of Whereabouts' networks;
	// zero: weft does.
	Giving store.Key
	// Keeper is asked how many addresses may be kept ahead of Pods, and Journal names
	// the records that tell who has those; nil: none are.
	Keeper  Keeper
	Journal func() (string, error)
	// Epochs says whether the cluster may be believed that an address is free; nil: always.
	Epochs *Epochs
	Log    *slog.Logger
}

// Store is what one node holds.
type Store struct {
	Options
	// memory is what this node holds of all scopes, and what it is about to hold or
	// to give back, so that nothing is handed out twice here.
	memory *ipam.Memory
	kept   *record.Kept
	wake   chan struct{} // one: there is something to give back
	// questions are those that the adviser is asked.
	questions questions
	jitter    time.Duration

	// files guards the files of kept; syncing is held while leases are listed.
	files, syncing sync.Mutex

	// mu guards what follows.
	mu     sync.Mutex
	leases map[key]*held
	// synced: the API server has the kind, and our leases of before are known.
	// chosen: addresses come from leases, though Whereabouts is there.
	synced, chosen bool
	// giving is who gives addresses of Whereabouts' networks; nil: to be read.
	giving *whereabouts.Giving
	// askedAt is when the kind was not served, deferredAt when it was, and addresses
	// were left to Whereabouts.
	askedAt, deferredAt time.Time
	// gone are owners that ended before our leases were known.
	gone map[ipam.Owner]bool
	// touched are the leases that changed since a listing began; nil: none runs.
	touched map[key]bool
	// away is until when the API server counts as away, lostAt is when its answer to a
	// create was lost the last time.
	away, lostAt time.Time
	// others are the addresses other nodes are believed to hold.
	others map[ipam.Scope]map[netip.Addr]learned
	// walks are where to look next in each range, and looks when it was looked at.
	walks map[walkKey]uint64
	looks map[walkKey]time.Time
	// counts are who held the addresses of a range when it was looked at.
	counts map[walkKey]map[string]int
	// silent are nodes that keep addresses ahead of it, and do not answer.
	silent map[walkKey][]adviser.Keeps
	// leaves are sandboxes to be taken off the holders of claims' addresses.
	leaves map[leaving]bool

	// stocks are what is kept ahead, see prefetch.go. found are leases of ours that
	// nobody is known to have, with the journal that knew, and spare those of them that
	// nobody has. strangers are the sandboxes that may have the others.
	stocks    map[walkKey]*stock
	found     map[key]string
	spare     map[key]time.Time
	strangers map[string]bool
	journal   string        // empty: not known yet
	taken     chan struct{} // one: something was taken of a range
	// published is what NodeAddresses says, see bindings.go; nil: it is to be read.
	// unpublished is how many leases it does not tell of, since when.
	published        *v1alpha1.NodeAddresses
	unpublished      int
	unpublishedSince time.Time
	crowded          bool // it is as large as it may be
}

var _ ipam.Store = (*Store)(nil)

// key is an address in its scope.
type key struct {
	scope ipam.Scope
	addr  netip.Addr
}

func keyOf(l ipam.Lease) key { return key{l.Scope, l.Addr} }

// held is a lease of this node.
type held struct {
	owner ipam.Owner
	// uid and revision of its object; empty: it is not known to be there.
	uid      types.UID
	revision string
	// unused is since when nobody uses it; zero: somebody does.
	unused time.Time
	// told is when it was told the last time that another has the address in the
	// cluster; zero: none has.
	told time.Time
	// shared: more than one Pod had the address when this node took it.
	shared bool
	// untried: no Pod of its claim has used the address.
	untried bool
	// since is when it was put in quarantine.
	since time.Time
	// bound: it was the node's, taken ahead, and is its owner's now.
	bound bool
	// release is not nil once it is to be given back.
	release *release
}

// release is a lease on its way back.
type release struct {
	done chan struct{} // closed when it is back
	busy bool          // being done now
}

// New makes the store of a node, and takes up what an earlier one could not give
// back.
func New(options Options) (*Store, error) {
	kept, err := record.OpenKept(options.Dir)
	if err != nil {
		return nil, err
	}
	s := &Store{
		Options: options, memory: ipam.NewMemory(), kept: kept, wake: make(chan struct{}, 1), jitter: rand.N(listEvery / 2), //nolint:gosec // no secret
		leases: map[key]*held{}, gone: map[ipam.Owner]bool{}, others: map[ipam.Scope]map[netip.Addr]learned{},
		walks: map[walkKey]uint64{}, looks: map[walkKey]time.Time{}, counts: map[walkKey]map[string]int{}, silent: map[walkKey][]adviser.Keeps{},
		leaves:    map[leaving]bool{},
		questions: questions{next: map[walkKey]*question{}},
		stocks:    map[walkKey]*stock{}, found: map[key]string{}, spare: map[key]time.Time{}, taken: make(chan struct{}, 1),
	}
	list, err := kept.List()
	if err != nil {
		s.Log.Error("addresses to be given back cannot all be read; they are found by their sandboxes", "dir", filepath.Clean(options.Dir), "err", err)
	}
	for _, l := range list {
		if s.loadLeaving(l) {
			continue
		}
		lease := ipam.Lease{Scope: ipam.Scope(l.Scope), Addr: l.Addr, Owner: ipam.Owner(l.Owner)}
		if err := s.memory.Hold(lease); err != nil {
			s.Log.Error("address to be given back", "address", l.Addr, "err", err)
			continue
		}
		s.leases[keyOf(lease)] = &held{owner: lease.Owner, release: &release{done: make(chan struct{})}}
	}
	return s, nil
}

// TakeFrom takes an address that is unique on this machine.
func (s *Store) TakeFrom(ctx context.Context, scope ipam.Scope, r ipam.Range, owner ipam.Owner) (netip.Addr, error) {
	return s.memory.TakeFrom(ctx, scope, r, owner)
}

// Take notes who has an address here.
func (s *Store) Take(_ context.Context, lease ipam.Lease) error { return s.memory.Hold(lease) }

// Hold notes that an attachment has an address in the cluster, since before this
// process began.
func (s *Store) Hold(lease ipam.Lease) error {
	s.mu.Lock()
	if h := s.leases[keyOf(lease)]; h != nil && h.owner == s.nodeOwner() && h.release == nil {
		s.bindLocked(keyOf(lease), h, lease.Owner)
		s.mu.Unlock()
		return nil
	}
	old := s.supersedeLocked(lease)
	s.mu.Unlock()
	if old != "" {
		s.write(old)
	}
	if err := s.memory.Hold(lease); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leases[keyOf(lease)] == nil {
		s.leases[keyOf(lease)] = &held{owner: lease.Owner}
	}
	return nil
}

// supersedeLocked forgets that an address is to be given back for another owner than
// the one that has it now: that was done, and we died before it was written down. It
// gives the other; empty: there is none.
func (s *Store) supersedeLocked(lease ipam.Lease) ipam.Owner {
	h := s.leases[keyOf(lease)]
	if h == nil || h.owner == lease.Owner || h.release == nil || h.release.busy || lease.Owner == s.nodeOwner() {
		return ""
	}
	delete(s.leases, keyOf(lease))
	close(h.release.done)
	_ = s.memory.Release(context.Background(), ipam.Lease{Scope: lease.Scope, Addr: lease.Addr, Owner: h.owner}) // fails never
	return h.owner
}

// Held lists what an owner holds, but for what is on its way back.
func (s *Store) Held(ctx context.Context, owner ipam.Owner) ([]ipam.Lease, error) {
	all, err := s.memory.Held(ctx, owner)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []ipam.Lease
	for _, lease := range all {
		if h := s.leases[keyOf(lease)]; h == nil || h.release == nil {
			out = append(out, lease)
		}
	}
	return out, nil
}

// Of gives the store as one attachment takes addresses of it that are unique in
// the cluster.
func (s *Store) Of(box *record.Sandbox, a *record.Attachment, config ipam.Config) ipam.Store {
	taker := s.taker(box, a)
	for _, set := range config.Sets {
		for _, r := range set.Ranges {
			taker.pools = append(taker.pools, r.Subnet)
		}
	}
	taker.of, taker.stickyFor = len(config.Sets)+len(config.Static), int(config.StickyFor/time.Second)
	taker.probes = config.AddressProbe == nil || *config.AddressProbe
	return taker
}

func (s *Store) taker(box *record.Sandbox, a *record.Attachment) *taker {
	return &taker{Store: s, sandbox: box.ID, ifName: string(a.Interface), network: a.Network, pod: box.Pod, vm: box.VM, of: len(a.Leases)}
}

// taker is the store of one attachment.
type taker struct {
	*Store
	sandbox, ifName, network string
	pod                      record.Pod
	vm                       string // whose launcher the Pod is
	of                       int    // addresses the attachment gets
	stickyFor                int    // seconds
	probes                   bool   // whether strangers are asked for addresses
	// pools are the subnets addresses are taken from.
	pools []netip.Prefix
	// asserts: what it takes is in use already.
	asserts bool
}

var _ ipam.Store = (*taker)(nil)

// Take holds an address for the attachment, in the cluster.
func (t *taker) Take(ctx context.Context, lease ipam.Lease) error {
	if err := t.Epochs.closedNow(); err != nil {
		return err
	}
	if nodeless(lease.Owner) {
		return t.takeClaimed(ctx, lease)
	}
	for {
		if err := t.makeRoom(ctx, lease); err != nil {
			return err
		}
		if err := t.memory.Hold(lease); err != nil {
			return err
		}
		there, returning := t.keepBack(lease)
		if there {
			return nil
		}
		if returning == nil {
			break
		}
		select {
		case <-returning:
		case <-time.After(askAgain): // or the try to give it back failed
		case <-ctx.Done():
			return unanswered(ctx.Err())
		}
	}
	if _, err := t.permitted(ctx, lease.Scope); err != nil {
		return errors.Join(err, t.memory.Release(ctx, lease))
	}
	return t.settle(ctx, lease, t.create(ctx, lease, t.poolOf(lease), true))
}

// poolOf gives the subnet a fixed address is of; empty: none of the network's.
func (t *taker) poolOf(lease ipam.Lease) string {
	for _, p := range t.pools {
		if p.Contains(lease.Addr) {
			return p.String()
		}
	}
	return ""
}

// settle clears up after a create that failed.
func (t *taker) settle(ctx context.Context, lease ipam.Lease, err error) error {
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, ipam.ErrUnanswered):
		return errors.Join(err, t.memory.Release(ctx, lease))
	case nodeless(lease.Owner):
		t.forget(lease)
		t.leaveLater(leaving{t.sandbox, lease})
	default:
		t.doubt(lease)
	}
	return err
}

// keepBack says whether the owner of a lease has it already. One that is to be given
// back is kept, if that has not begun; else returning tells when it is back.
func (s *Store) keepBack(lease ipam.Lease) (there bool, returning <-chan struct{}) {
	s.mu.Lock()
	h := s.leases[keyOf(lease)]
	switch {
	case h == nil || h.release == nil:
		s.mu.Unlock()
		return h != nil, nil
	case h.release.busy:
		s.mu.Unlock()
		return false, h.release.done
	}
	delete(s.leases, keyOf(lease))
	close(h.release.done)
	s.mu.Unlock()
	s.write(lease.Owner)
	return false, nil
}

// spec gives the content of a lease.
func (t *taker) spec(lease ipam.Lease, pool string) v1alpha1.AddressLeaseSpec {
	spec := v1alpha1.AddressLeaseSpec{IP: lease.Addr, Scope: string(lease.Scope), Pool: pool, Network: t.network}
	if namespace, name, uid, ok := ipam.ParseClaimOwner(lease.Owner); ok {
		spec.Owner = v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerClaim, Namespace: namespace, Name: name, UID: types.UID(uid)}
		spec.Of, spec.Untried, spec.Holders = t.of, t.probes, []v1alpha1.LeaseHolder{t.holder()}
		return spec
	}
	if namespace, pod, ifName, ok := ipam.ParseStickyOwner(lease.Owner); ok {
		spec.Owner, spec.Interface = v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerSticky, Namespace: namespace, Name: pod}, ifName
		spec.StickyFor, spec.Untried, spec.Holders = t.stickyFor, t.probes, []v1alpha1.LeaseHolder{t.holder()}
		return spec
	}
	spec.Node = t.Node
	if namespace, name, ok := ipam.ParseNICOwner(lease.Owner); ok {
		spec.Owner = v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerNIC, Namespace: namespace, Name: name}
		return spec
	}
	if lease.Owner == t.nodeOwner() {
		spec.Owner, spec.Journal = v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerNode, Name: t.Node}, t.journal
		return spec
	}
	spec.Sandbox, spec.Interface = t.sandbox, t.ifName
	spec.Owner = v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: t.pod.Namespace, Name: t.pod.Name, UID: types.UID(t.pod.UID)}
	return spec
}

// create makes the object of a lease that is held in memory. An answer that is lost
// is asked for again, by the same name: the object tells whose it is. named: say
// who holds it, if somebody does.
func (t *taker) create(ctx context.Context, lease ipam.Lease, pool string, named bool) error {
	ctx, cancel := context.WithTimeout(ctx, takePatience)
	defer cancel()
	if t.asserts {
		_, err := t.createObject(ctx, lease, pool, named)
		return err
	}
	pass, err := t.Epochs.enter(ctx)
	if err != nil {
		return err
	}
	late, err := t.createObject(ctx, lease, pool, named)
	if err != nil {
		return err
	}
	return t.Epochs.leave(ctx, pass, late)
}

// createObject is create in whatever epoch. late: an answer was lost.
func (t *taker) createObject(ctx context.Context, lease ipam.Lease, pool string, named bool) (late bool, err error) {
	lock, err := t.lock(ctx, lease, pool)
	if err == nil {
		late, err = t.createLease(ctx, lease, pool, named, lock != nil)
	}
	if err == nil {
		err = t.confirm(ctx, lease, lock)
	}
	if err != nil && lock != nil && !lock.others && !errors.Is(err, ipam.ErrUnanswered) {
		_ = t.unlock(ctx, lease) // what is left the controller finds
	}
	return late, err
}

// createLease makes the object itself. reserved: its address is, beside Whereabouts.
func (t *taker) createLease(ctx context.Context, lease ipam.Lease, pool string, named, reserved bool) (late bool, err error) {
	is := Document(t.spec(lease, pool))
	if reserved {
		is.Labels[v1alpha1.ReservedLabel] = "true"
	}
	document := is.Object()
	lost := false
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		made, err := t.ask(ctx, func(ctx context.Context) (*store.Object, error) { return t.API.Create(ctx, document) })
		if errors.Is(err, store.ErrExists) && !lost && !named {
			return lost, &ipam.TakenError{Addr: lease.Addr}
		}
		if errors.Is(err, store.ErrExists) {
			made, err = t.mine(ctx, lease)
			if errors.Is(err, store.ErrNotFound) {
				continue // it has just come free
			}
		}
		switch _, refused := errors.AsType[*hint.Error](err); {
		case err == nil:
			t.note(lease, made, lost)
			return lost, nil
		case errors.Is(err, ipam.ErrTaken):
			return lost, err
		case refused && !lost:
			t.forgetGiving() // it may be another by now
			return lost, err
		}
		lost = true
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return lost, unanswered(err)
		}
	}
}

// ask asks the API server once.
func (s *Store) ask(ctx context.Context, request func(context.Context) (*store.Object, error)) (*store.Object, error) {
	asking, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	return request(asking)
}

// mine reads the object of a lease, and has the attachment in it.
func (t *taker) mine(ctx context.Context, lease ipam.Lease) (*store.Object, error) {
	if nodeless(lease.Owner) {
		return t.join(ctx, lease)
	}
	return t.ours(ctx, lease)
}

// ours reads the object of a lease. The error is a TakenError if it is another's.
func (s *Store) ours(ctx context.Context, lease ipam.Lease) (*store.Object, error) {
	obj, err := s.ask(ctx, func(ctx context.Context) (*store.Object, error) {
		return s.API.Get(ctx, v1alpha1.AddressLeaseKind, store.Key{Name: Name(lease.Scope, lease.Addr)})
	})
	if err != nil {
		return nil, err
	}
	is, err := v1alpha1.LeaseFromObject(obj)
	if err != nil {
		return nil, &ipam.TakenError{Addr: lease.Addr, HolderName: "object AddressLease " + obj.GetName() + ", which cannot be read"}
	}
	// What the node took ahead is whose this process says.
	if owner := ownerOf(is.Spec); is.Spec.Node != s.Node || owner != lease.Owner && owner != s.nodeOwner() || is.Spec.IP != lease.Addr || is.Spec.Scope != string(lease.Scope) {
		return nil, &ipam.TakenError{Addr: lease.Addr, Holder: ownerOf(is.Spec), HolderName: HolderName(is.Spec)}
	}
	return obj, nil
}

// note notes the object of a lease. lost: another request for it may be under way.
func (s *Store) note(lease ipam.Lease, obj *store.Object, lost bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &held{owner: lease.Owner, uid: obj.GetUID(), revision: obj.GetResourceVersion(), shared: severalHold(obj)}
	s.leases[keyOf(lease)] = h
	spec, _ := obj.Object["spec"].(map[string]any)
	h.untried, _ = spec["untried"].(bool)
	owner, _ := spec["owner"].(map[string]any)
	if owner["kind"] == v1alpha1.OwnerNode && lease.Owner != s.nodeOwner() {
		s.boundNowLocked(h) // a late request of before made it
	}
	if lost {
		s.lostAt = time.Now()
	}
	s.touchLocked(keyOf(lease))
	s.away = time.Time{}
}

func (s *Store) touchLocked(k key) {
	if s.touched != nil {
		s.touched[k] = true
	}
}

// doubt has an address given back of which nobody knows whether it was taken.
func (s *Store) doubt(lease ipam.Lease) {
	s.mu.Lock()
	s.leases[keyOf(lease)] = &held{owner: lease.Owner, release: &release{done: make(chan struct{})}}
	s.lostAt = time.Now()
	s.away = s.lostAt.Add(awayFor)
	s.mu.Unlock()
	s.Log.Warn("the API server did not say whether an address was taken; it is given back if it was", "address", lease.Addr, "owner", lease.Owner)
	s.poke()
}

// unanswered says that the API server did not answer; the runtime tries again.
func unanswered(err error) error {
	return &hint.Error{
		Field: "API server", Problem: "did not answer", Err: fmt.Errorf("%w: %w", ipam.ErrUnanswered, err),
		Remedy: "see that it can be reached from this node; the runtime tries again",
	}
}
