package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/garbage"
	"github.com/weftnet/weft/internal/inventory"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
)

// claimFinalizer keeps an IPAMClaim that is deleted until nobody has its addresses,
// and these are given back.
const claimFinalizer = "weft.network/addresses"

// claims looks after IPAMClaims that have addresses in the cluster: tells in their
// status which, and who has them, and gives them back when the claim is deleted and
// no Pod has them any more. Holders that ended without their node saying so it takes
// off, by the same judgement as the collector's.
//
// What is in memory only says which claims to look at.
type claims struct {
	api, writer store.Store
	*state
	grace time.Duration
	log   *slog.Logger
	freed func(reason string)
	wake  chan struct{} // one: something has changed

	sights map[holding]garbage.Sight
	// said is what we told claims last: an older kind of theirs may not keep all of it.
	said map[types.UID]string
	// idle are leases of Pod names that no Pod has, by name and UID, since when.
	idle map[[2]string]time.Time

	// mu guards what follows.
	mu     sync.Mutex
	known  map[types.UID]knownClaim
	round  uint32 // of lists
	synced bool
}

// holding is a holder of a claim's addresses.
type holding struct {
	owner  owner
	pod    types.UID
	holder v1alpha1.LeaseHolder
}

// knownClaim is a claim as it was seen.
type knownClaim struct {
	netattach.IPAMClaim
	owners []types.UID
	ofVM   bool // made by us
	round  uint32
}

func newClaims(c *controller, s *state, writer store.Store) *claims {
	k := &claims{
		api: c.api, writer: writer, state: s, grace: c.Grace, log: c.Log, freed: c.count.Freed, wake: make(chan struct{}, 1),
		sights: map[holding]garbage.Sight{}, said: map[types.UID]string{}, idle: map[[2]string]time.Time{}, known: map[types.UID]knownClaim{},
	}
	s.book.claimed = k.poke
	return k
}

// Begin begins a list.
func (k *claims) Begin() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.round++
}

// Put takes note of a claim.
func (k *claims) Put(obj *store.Object) {
	claim, err := netattach.ClaimFromObject(obj.Object)
	if err != nil {
		k.log.Warn("an IPAMClaim cannot be read", "claim", store.KeyOf(obj).String(), "err", err)
		return
	}
	is := knownClaim{IPAMClaim: *claim, ofVM: obj.GetLabels()[vmLabel] != ""}
	for _, owner := range obj.GetOwnerReferences() {
		is.owners = append(is.owners, owner.UID)
	}
	k.mu.Lock()
	is.round = k.round
	k.known[obj.GetUID()] = is
	k.mu.Unlock()
	k.poke()
}

// Gone takes note that a claim is no more.
func (k *claims) Gone(obj *store.Object) {
	k.mu.Lock()
	delete(k.known, obj.GetUID())
	k.mu.Unlock()
	k.poke()
}

// Complete ends a list: what did not come is not there.
func (k *claims) Complete() {
	k.mu.Lock()
	for uid, is := range k.known {
		if is.round != k.round {
			delete(k.known, uid)
		}
	}
	k.synced = true
	k.mu.Unlock()
	k.poke()
}

// poke has Run look.
func (k *claims) poke() {
	select {
	case k.wake <- struct{}{}:
	default: // it is about to
	}
}

// all gives the claims there are; ok is false as long as they are not known.
func (k *claims) all() (list map[types.UID]knownClaim, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	list = make(map[types.UID]knownClaim, len(k.known))
	for uid, is := range k.known {
		list[uid] = is
	}
	return list, k.synced
}

// String names the task.
func (*claims) String() string { return "keeper of claims' addresses" }

// Run looks after claims until ctx ends.
func (k *claims) Run(ctx context.Context) error {
	look := time.NewTicker(min(lookEvery, max(k.grace/4, 100*time.Millisecond)))
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			k.expire(ctx)
			k.loosen(ctx)
		case <-k.wake:
			gather(ctx)
		}
		k.pass(ctx)
	}
}

// gatherFor is for how long changes are gathered before they are looked at: they come
// by the hundred when machines start.
const gatherFor = 50 * time.Millisecond

func gather(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(gatherFor):
	}
}

// pass brings all claims in line with the leases there are.
func (k *claims) pass(ctx context.Context) {
	known, ok := k.all()
	if !ok || !k.book.Synced() || !k.pods.Synced() {
		return
	}
	byClaim := k.book.Claims()
	maps.DeleteFunc(k.said, func(uid types.UID, _ string) bool { return len(byClaim[uid]) == 0 })
	for uid, leases := range byClaim {
		claim, there := known[uid]
		var err error
		switch {
		case !there:
			err = k.free(ctx, leases, func() (bool, error) { return k.gone(ctx, leases[0].owner.LeaseOwner) })
		case claim.Deleting:
			err = k.free(ctx, leases, func() (bool, error) { return true, nil })
		default:
			err = k.keep(ctx, claim, leases)
		}
		k.told(ctx, leases[0].owner.Namespace+"/"+leases[0].owner.Name, err)
	}
	for uid, claim := range known {
		if claim.Deleting && len(byClaim[uid]) == 0 && slices.Contains(claim.Finalizers, claimFinalizer) {
			k.told(ctx, claim.Namespace+"/"+claim.Name, k.finish(ctx, claim))
		}
	}
}

// told tells of an error that another look may not have.
func (k *claims) told(ctx context.Context, claim string, err error) {
	if err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) {
		k.log.Warn("an IPAMClaim could not be looked after; it is tried again", "claim", claim, "err", err)
	}
}

// gone says whether a claim is no more: one of its name has another UID.
func (k *claims) gone(ctx context.Context, o v1alpha1.LeaseOwner) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	obj, err := k.api.Get(ctx, networks.ClaimKind, store.Key{Namespace: o.Namespace, Name: o.Name})
	if errors.Is(err, store.ErrNotFound) {
		return true, nil
	}
	return err == nil && o.UID != "" && obj.GetUID() != o.UID, err
}

// free gives the leases of a claim back that ends, once no Pod has any of them.
func (k *claims) free(ctx context.Context, leases []*held, ended func() (bool, error)) error {
	for _, is := range leases {
		if len(is.claim.holders) > 0 {
			return nil
		}
	}
	if is, err := ended(); err != nil || !is {
		return err
	}
	for _, is := range leases {
		if err := k.freeOne(ctx, is); err != nil {
			return err
		}
	}
	return nil
}

// freeOne gives one lease back, if it has no holder still.
func (k *claims) freeOne(ctx context.Context, is *held) error {
	_, now, err := k.read(ctx, is)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil || len(now.Spec.Holders) > 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	err = k.writer.Delete(ctx, leaseKind, store.Key{Name: is.name}, store.Precondition{UID: now.UID, Revision: now.ResourceVersion})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("give back %s: %w", is.addr, err)
	}
	k.log.Info("an address that was kept was given back", "address", is.addr, "scope", is.scope, "owner", is.owner.Kind+" "+is.owner.Namespace+"/"+is.owner.Name, "uid", is.owner.UID)
	if is.owner.Kind == v1alpha1.OwnerSticky {
		k.freed("sticky-over")
	} else {
		k.freed("claim-deleted")
	}
	return nil
}

// read reads a lease that is still its claim's.
func (k *claims) read(ctx context.Context, is *held) (*store.Object, *v1alpha1.AddressLease, error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	obj, err := k.api.Get(ctx, leaseKind, store.Key{Name: is.name})
	if err != nil {
		return nil, nil, fmt.Errorf("read lease of %s: %w", is.addr, err)
	}
	now, err := v1alpha1.LeaseFromObject(obj)
	if err == nil && (now.UID != is.uid || ownerOf(now) != is.owner) {
		err = fmt.Errorf("lease of %s: %w", is.addr, store.ErrConflict)
	}
	return obj, now, err
}

// keep tells a claim of its addresses, and gives back what it has beyond these.
func (k *claims) keep(ctx context.Context, claim knownClaim, leases []*held) error {
	want := claim.IPAMClaim
	if len(want.IPs) == 0 {
		want.IPs = together(leases)
	}
	if len(want.IPs) == 0 {
		return nil // they are being taken
	}
	want.OwnerPod = ""
	var beyond []*held
	for _, is := range leases {
		if !slices.ContainsFunc(want.IPs, func(text string) bool { return sameAddress(text, is.addr) }) {
			beyond = append(beyond, is)
		} else if len(is.claim.holders) > 0 {
			want.OwnerPod = is.claim.holders[0].Pod
		}
	}
	allocated := slices.ContainsFunc(claim.Conditions, isAllocated)
	uid, text := leases[0].owner.UID, fmt.Sprint(want.IPs, want.OwnerPod)
	missing := !slices.Contains(claim.Finalizers, claimFinalizer) || !slices.Equal(want.IPs, claim.IPs)
	if missing || k.said[uid] != text && (want.OwnerPod != claim.OwnerPod || !allocated) {
		if err := k.write(ctx, &want); err != nil {
			return err
		}
		k.said[uid] = text
	}
	if len(claim.IPs) == 0 {
		return nil // what is beyond is known when the cluster knows what is not
	}
	for _, is := range beyond {
		if len(is.claim.holders) == 0 {
			if err := k.freeOne(ctx, is); err != nil {
				return err
			}
		}
	}
	return nil
}

func isAllocated(c netattach.Condition) bool {
	return c.Type == netattach.ClaimCondition && c.Status == "True"
}

// write has a claim kept until its addresses are given back, and then tells it of them.
func (k *claims) write(ctx context.Context, want *netattach.IPAMClaim) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	obj, err := k.api.Get(ctx, networks.ClaimKind, store.Key{Namespace: want.Namespace, Name: want.Name})
	if err != nil || string(obj.GetUID()) != want.UID || obj.GetDeletionTimestamp() != nil {
		return err
	}
	if finalizers := obj.GetFinalizers(); !slices.Contains(finalizers, claimFinalizer) {
		obj.SetFinalizers(append(finalizers, claimFinalizer))
		if obj, err = k.writer.Update(ctx, obj); err != nil {
			return fmt.Errorf("write finalizer: %w", err)
		}
	}
	now, err := netattach.ClaimFromObject(obj.Object)
	if err != nil {
		return err
	}
	if len(now.IPs) > 0 && !slices.Equal(now.IPs, want.IPs) {
		return fmt.Errorf("status.ips: %w", store.ErrConflict) // they are written once
	}
	if slices.Equal(now.IPs, want.IPs) && now.OwnerPod == want.OwnerPod && slices.ContainsFunc(now.Conditions, isAllocated) {
		return nil // it was told, which we have not heard yet
	}
	next := *now
	next.IPs, next.OwnerPod = want.IPs, want.OwnerPod
	next.Conditions = slices.DeleteFunc(next.Conditions, func(c netattach.Condition) bool { return c.Type == netattach.ClaimCondition && !isAllocated(c) })
	if !slices.ContainsFunc(next.Conditions, isAllocated) {
		next.Conditions = append(next.Conditions, netattach.Condition{
			Type: netattach.ClaimCondition, Status: "True", Reason: netattach.ClaimAllocated, Message: "the addresses are the claim's until it is deleted",
			LastTransitionTime: time.Now().UTC().Format(time.RFC3339),
		})
	}
	status, _ := next.StatusPatch()["status"].(map[string]any)
	if status["ownerPod"] == nil {
		delete(status, "ownerPod")
	}
	obj.Object["status"] = status
	if _, err := k.writer.UpdateStatus(ctx, obj); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

// finish lets a claim go that has no lease in the cluster, which the API server is
// asked for once more.
func (k *claims) finish(ctx context.Context, claim knownClaim) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	left, _, err := k.api.List(ctx, leaseKind, store.Selector{Labels: map[string]string{v1alpha1.OwnerUIDLabel: claim.UID}})
	if err != nil || len(left) > 0 {
		return err // they are given back first
	}
	obj, err := k.api.Get(ctx, networks.ClaimKind, store.Key{Namespace: claim.Namespace, Name: claim.Name})
	if err != nil || string(obj.GetUID()) != claim.UID {
		return err
	}
	obj.SetFinalizers(slices.DeleteFunc(obj.GetFinalizers(), func(name string) bool { return name == claimFinalizer }))
	if _, err := k.writer.Update(ctx, obj); err != nil {
		return fmt.Errorf("take finalizer off: %w", err)
	}
	return nil
}

// together gives the addresses of a claim as its status has them, IPv4 first; nil:
// they are not all there yet. If two Pods took some at once there are too many: those
// that a Pod has come first.
func together(leases []*held) []string {
	of := 0
	for _, is := range leases {
		of = max(of, is.claim.of)
	}
	list := slices.DeleteFunc(slices.Clone(leases), func(is *held) bool { return is.claim.untried })
	if of == 0 || len(list) < of {
		return nil
	}
	slices.SortFunc(list, func(a, b *held) int {
		if had := min(len(b.claim.holders), 1) - min(len(a.claim.holders), 1); had != 0 {
			return had
		}
		return a.addr.Compare(b.addr)
	})
	count := map[string]int{}
	var chosen, rest []*held
	for _, is := range list {
		if pool := is.scope + " " + is.claim.pool; count[pool] == 0 {
			count[pool]++
			chosen = append(chosen, is)
		} else {
			rest = append(rest, is) // of a range that gives several
		}
	}
	chosen = append(chosen, rest...)[:of]
	slices.SortFunc(chosen, func(a, b *held) int { return a.addr.Compare(b.addr) })
	var ips []string
	for _, is := range chosen {
		bits := is.addr.BitLen()
		if pool, err := netip.ParsePrefix(is.claim.pool); err == nil {
			bits = pool.Bits()
		}
		ips = append(ips, netip.PrefixFrom(is.addr, bits).String())
	}
	return ips
}

// sameAddress says whether a text of status.ips is an address, with or without the
// length of its prefix.
func sameAddress(text string, addr netip.Addr) bool {
	text, _, _ = strings.Cut(text, "/")
	parsed, err := netip.ParseAddr(text)
	return err == nil && parsed.Unmap() == addr
}

// expire takes holders off whose Pods have ended, if their nodes do not.
func (k *claims) expire(ctx context.Context) {
	if !k.book.Synced() || !k.pods.Synced() {
		return
	}
	look := inventory.NewLook(k.api)
	still := map[holding]garbage.Sight{}
	verdicts := map[holding]garbage.Verdict{}
	all := k.book.Claims()
	all[""] = append(all[""], k.book.Sticky()...)
	for _, leases := range all {
		for _, is := range leases {
			for _, h := range is.claim.holders {
				if h.PodUID != "" && k.pods.Live(h.PodUID) {
					continue
				}
				who := holding{is.owner, h.PodUID, h}
				verdict, judged := verdicts[who]
				if !judged {
					facts := look.Facts(ctx, v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: is.owner.Namespace, Name: h.Pod, UID: h.PodUID}, h.Node)
					var after garbage.Sight
					after, verdict = garbage.Judge(time.Now(), k.grace, k.sights[who], facts)
					verdicts[who] = verdict
					if verdict != garbage.Keep {
						still[who] = after
					}
				}
				if verdict == garbage.Free {
					k.told(ctx, is.owner.Namespace+"/"+is.owner.Name, k.takeOff(ctx, is, h))
				}
			}
		}
	}
	k.sights = still
}

// loosen gives the addresses of Pod names back that had no Pod for as long as their
// network says, from when we first saw it.
func (k *claims) loosen(ctx context.Context) {
	if !k.book.Synced() {
		return
	}
	still := map[[2]string]time.Time{}
	for _, is := range k.book.Sticky() {
		if len(is.claim.holders) > 0 {
			continue
		}
		key := [2]string{is.name, string(is.uid)}
		since, seen := k.idle[key]
		if !seen {
			since = time.Now()
		}
		if still[key] = since; time.Since(since) >= is.claim.sticky {
			k.told(ctx, is.owner.Namespace+"/"+is.owner.Name, k.freeOne(ctx, is))
		}
	}
	k.idle = still
}

// takeOff takes one holder off a lease.
func (k *claims) takeOff(ctx context.Context, is *held, h v1alpha1.LeaseHolder) error {
	obj, now, err := k.read(ctx, is)
	if err != nil || !slices.Contains(now.Spec.Holders, h) {
		return err
	}
	spec, _ := obj.Object["spec"].(map[string]any)
	spec["holders"] = v1alpha1.HolderList(slices.DeleteFunc(now.Spec.Holders, func(other v1alpha1.LeaseHolder) bool { return other == h }))
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	if _, err := k.writer.Update(ctx, obj); err != nil {
		return fmt.Errorf("take Pod %s off %s: %w", h.Pod, is.addr, err)
	}
	k.log.Info("a Pod that has ended has a kept address no more", "address", is.addr, "owner", is.owner.Kind+" "+is.owner.Namespace+"/"+is.owner.Name, "pod", h.Pod, "uid", h.PodUID, "node", h.Node)
	return nil
}
