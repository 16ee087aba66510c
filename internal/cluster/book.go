package cluster

import (
	"net/netip"
	"slices"
	"sync"
	"time"
	"unique"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/adviser"
	"github.com/weftnet/weft/internal/inventory"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
)

var (
	leaseKind = v1alpha1.AddressLeaseKind
	podKind   = inventory.PodKind
)

// owner is whose addresses are given back together: of an owner on a node all or
// none.
type owner struct {
	v1alpha1.LeaseOwner
	node string
}

// held is a lease, as little as is needed of it.
type held struct {
	name  string
	uid   types.UID
	scope string
	addr  netip.Addr
	owner owner
	round uint32
	// where and sandbox are kept for Whereabouts' objects.
	where   unique.Handle[where]
	sandbox string
	// reserved: no sandbox has it at the moment. quarantined: a stranger does.
	reserved, quarantined bool
	claim                 *claimLease // nil: it is no claim's
}

// claimLease is what is known of the lease of a claim, or of a sticky Pod name, beside
// that.
type claimLease struct {
	of      int
	pool    string
	holders []v1alpha1.LeaseHolder
	sticky  time.Duration
	untried bool
}

// where is what many leases have: the range an address is of, and the interface it
// is on.
type where struct{ pool, ifName string }

// book is what is known of all leases. It keeps the adviser's view.
type book struct {
	view *adviser.View
	// claimed is told that something of claims has changed; set before it follows.
	claimed func()

	// mu guards what follows.
	mu     sync.Mutex
	leases map[string]*held
	owners map[owner][]*held
	// keepers are the nodes that keep addresses ahead.
	keepers map[string]bool
	// bound are the Pods that have leases of nodes, by the leases' UIDs, and nodes
	// which UIDs a node's NodeAddresses tells of.
	bound  map[types.UID]v1alpha1.Binding
	nodes  map[string][]types.UID
	round  uint32 // of lists
	synced bool
	bad    int // that cannot be read
	// changed is called under mu with leases that came, changed or went; may be nil.
	changed func(*held)
}

func newBook(view *adviser.View) *book {
	return &book{
		view: view, claimed: func() {}, leases: map[string]*held{}, owners: map[owner][]*held{}, keepers: map[string]bool{},
		bound: map[types.UID]v1alpha1.Binding{}, nodes: map[string][]types.UID{},
	}
}

// same gives one copy of a text that many leases have.
func same(text string) string { return unique.Make(text).Value() }

func ownerOf(lease *v1alpha1.AddressLease) owner {
	o := owner{lease.Spec.Owner, same(lease.Spec.Node)}
	o.Kind, o.Namespace = same(o.Kind), same(o.Namespace)
	return o
}

// Begin begins a list.
func (b *book) Begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.round++
	b.bad = 0
}

// Put takes note of a lease.
func (b *book) Put(obj *store.Object) {
	lease, err := v1alpha1.LeaseFromObject(obj)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.bad++
		return
	}
	b.bindLocked(lease)
	is := &held{
		name: lease.Name, uid: lease.UID, scope: same(lease.Spec.Scope), addr: lease.Spec.IP, owner: ownerOf(lease), round: b.round,
		quarantined: lease.Spec.Owner.Kind == v1alpha1.OwnerQuarantine,
	}
	is.reserved = lease.Spec.Sandbox == "" && !is.quarantined
	if is.owner.Kind == v1alpha1.OwnerClaim || is.owner.Kind == v1alpha1.OwnerSticky {
		is.reserved = len(lease.Spec.Holders) == 0
		is.claim = &claimLease{lease.Spec.Of, same(lease.Spec.Pool), lease.Spec.Holders, time.Duration(lease.Spec.StickyFor) * time.Second, lease.Spec.Untried}
		b.claimed()
	}
	is.where, is.sandbox = unique.Make(where{lease.Spec.Pool, lease.Spec.Interface}), lease.Spec.Sandbox
	old := b.leases[is.name]
	if b.changed != nil && (old == nil || old.uid != is.uid || old.owner != is.owner || old.where != is.where || old.sandbox != is.sandbox) {
		b.changed(is)
	}
	if old != nil {
		if old.scope != is.scope || old.addr != is.addr {
			b.dropLocked(old)
		} else {
			b.disownLocked(old)
		}
	}
	b.leases[is.name] = is
	b.ownLocked(is)
	b.view.Hold(time.Now(), is.scope, is.addr)
}

// Gone takes note that a lease was deleted.
func (b *book) Gone(obj *store.Object) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if is := b.leases[obj.GetName()]; is != nil {
		b.dropLocked(is)
	}
}

// Complete ends a list: what did not come is not there.
func (b *book) Complete() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, is := range b.leases {
		if is.round != b.round {
			b.dropLocked(is)
		}
	}
	b.synced = true
}

func (b *book) dropLocked(is *held) {
	delete(b.leases, is.name)
	if is.claim != nil {
		b.claimed()
	}
	if b.changed != nil {
		b.changed(is)
	}
	b.disownLocked(is)
	b.view.Release(time.Now(), is.scope, is.addr)
}

func (b *book) ownLocked(is *held) {
	b.owners[is.owner] = append(b.owners[is.owner], is)
	if is.owner.Kind == v1alpha1.OwnerNode {
		b.keepers[is.owner.node] = true
	}
}

func (b *book) disownLocked(is *held) {
	rest := slices.DeleteFunc(b.owners[is.owner], func(other *held) bool { return other == is })
	if len(rest) == 0 {
		delete(b.owners, is.owner)
		if is.owner.Kind == v1alpha1.OwnerNode {
			delete(b.keepers, is.owner.node)
		}
	} else {
		b.owners[is.owner] = rest
	}
}

// Synced says whether all leases are known.
func (b *book) Synced() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.synced
}

// Owners gives those that are picked.
func (b *book) Owners(pick func(owner) bool) (out []owner) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for o := range b.owners {
		if pick(o) {
			out = append(out, o)
		}
	}
	return out
}

// Claims gives the leases of claims, by the UID of the claim.
func (b *book) Claims() map[types.UID][]*held {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[types.UID][]*held{}
	for o, leases := range b.owners {
		if o.Kind == v1alpha1.OwnerClaim {
			out[o.UID] = append(out[o.UID], leases...)
		}
	}
	return out
}

// Sticky gives the leases of Pod names.
func (b *book) Sticky() (out []*held) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for o, leases := range b.owners {
		if o.Kind == v1alpha1.OwnerSticky {
			out = append(out, leases...)
		}
	}
	return out
}

// Leases gives those of an owner.
func (b *book) Leases(o owner) []*held {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.owners[o])
}

// Reserved gives the addresses that are held and that nobody has, by scope.
func (b *book) Reserved() map[string][]netip.Addr {
	return b.pick(func(is *held) bool { return is.reserved })
}

// Quarantined gives those that are held because a stranger has them.
func (b *book) Quarantined() map[string][]netip.Addr {
	return b.pick(func(is *held) bool { return is.quarantined })
}

func (b *book) pick(wanted func(*held) bool) map[string][]netip.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[string][]netip.Addr{}
	for _, is := range b.leases {
		if wanted(is) {
			out[is.scope] = append(out[is.scope], is.addr)
		}
	}
	return out
}

// has says whether there is a lease of that name, as far as is known.
func (b *book) has(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.leases[name] != nil
}

// OfWhereabouts says whether an address of one of its networks is held.
func (b *book) OfWhereabouts() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, is := range b.leases {
		if _, _, ok := ipam.ParseWhereaboutsScope(ipam.Scope(is.scope)); ok {
			return true
		}
	}
	return false
}

// pick gives what f makes of each lease, but for what it says no to.
func pick[T any](b *book, f func(*held) (T, bool)) (out []T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, is := range b.leases {
		if one, ok := f(is); ok {
			out = append(out, one)
		}
	}
	return out
}

// Count says how many leases there are, and how many cannot be read.
func (b *book) Count() (all, bad int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.leases), b.bad
}

// pods is which Pods there are, by their UIDs.
type pods struct {
	// mu guards what follows.
	mu     sync.Mutex
	live   map[types.UID]livePod
	round  uint32
	synced bool
	// late are Pods whose object went before their end was known, until when their
	// kubelet may take to end them.
	late map[types.UID]time.Time
}

type livePod struct {
	round    uint32
	patience uint32 // its terminationGracePeriodSeconds
}

func newPods() *pods { return &pods{live: map[types.UID]livePod{}, late: map[types.UID]time.Time{}} }

// Begin begins a list.
func (p *pods) Begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.round++
}

// Put takes note of a Pod.
func (p *pods) Put(obj *store.Object) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, uid := range inventory.UIDsOf(obj) {
		if inventory.Terminal(obj) {
			delete(p.live, uid)
		} else {
			p.live[uid] = livePod{p.round, patienceOf(obj)}
		}
	}
}

// Gone takes note that a Pod was deleted.
func (p *pods) Gone(obj *store.Object) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, uid := range inventory.UIDsOf(obj) {
		if is, ok := p.live[uid]; ok {
			p.goneLocked(uid, is)
		}
	}
}

func (p *pods) goneLocked(uid types.UID, is livePod) {
	delete(p.live, uid)
	p.late[uid] = time.Now().Add(time.Duration(is.patience) * time.Second)
}

// Complete ends a list: what did not come is not there.
func (p *pods) Complete() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for uid, is := range p.live {
		if is.round != p.round {
			p.goneLocked(uid, is)
		}
	}
	for uid, until := range p.late {
		if time.Now().After(until) {
			delete(p.late, uid)
		}
	}
	p.synced = true
}

// Synced says whether all Pods are known.
func (p *pods) Synced() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.synced
}

// Live says whether a Pod is believed to run, or may be ending.
func (p *pods) Live(uid types.UID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, live := p.live[uid]
	return live || time.Now().Before(p.late[uid])
}

// patienceOf gives how long a Pod may take to end, in seconds.
func patienceOf(pod *store.Object) uint32 {
	const longest = 24 * 60 * 60
	spec, _ := pod.Object["spec"].(map[string]any)
	seconds, _ := spec["terminationGracePeriodSeconds"].(int64)
	return uint32(min(max(seconds, 0), longest)) //nolint:gosec // it is within
}
