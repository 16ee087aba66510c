package lease

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
)

// settleEvery is how often a node goes on with what an epoch asks of it.
const settleEvery = time.Second

// Settle does this node's part of each epoch until ctx ends.
func (s *Store) Settle(ctx context.Context, users Users) {
	again := time.NewTicker(settleEvery)
	defer again.Stop()
	told := ""
	for {
		err := s.settleEpoch(ctx, users)
		if err != nil && ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			s.Log.Warn("this node's part of a new epoch of addresses is not done yet", "err", err)
		} else if err == nil {
			told = ""
		}
		select {
		case <-ctx.Done():
			return
		case <-s.Epochs.wake:
		case <-again.C:
		}
	}
}

// settleEpoch does what is to be done now.
func (s *Store) settleEpoch(ctx context.Context, users Users) error {
	e := s.Epochs
	e.mu.Lock()
	open := e.openLocked()
	e.mu.Unlock()
	if !open {
		if err := e.read(ctx); err != nil { // a watch that says nothing would keep it so
			return err
		}
	}
	e.mu.Lock()
	absent, lost, cluster, mine := e.absent, e.lost, e.cluster, e.memory
	e.mu.Unlock()
	switch {
	case lost != 0:
		return e.tell(ctx, v1alpha1.AddressEpochSpec{Epoch: mine.Epoch, Node: e.node, Lost: lost})
	case absent || mine.Epoch == 0 || mine.Epoch != cluster.Epoch:
		return nil
	case mine.Stage == "":
		if err := s.clean(ctx, users); err != nil {
			return err
		}
		return e.reach(ctx, mine.Epoch, v1alpha1.EpochAsserting)
	case mine.Stage == v1alpha1.EpochAsserting && cluster.Stage != v1alpha1.EpochCleaning:
		if err := s.assertAll(ctx, users); err != nil {
			return err
		}
		return e.reach(ctx, mine.Epoch, v1alpha1.EpochOpen)
	}
	return e.tell(ctx, v1alpha1.AddressEpochSpec{Epoch: mine.Epoch, Stage: mine.Stage, Node: e.node})
}

// clean gives back what nobody on this node uses: an older copy brings back addresses
// that were given back since, and by now may be others'.
func (s *Store) clean(ctx context.Context, users Users) error {
	if err := s.Sync(ctx); err != nil {
		return err
	}
	if err := s.nameJournal(); err != nil {
		return err
	}
	if _, err := s.judgeFound(ctx); err != nil {
		return err
	}
	for _, lease := range s.standing() {
		if nodeless(lease.Owner) || s.wanted(ctx, lease, users) {
			continue
		}
		users.IfUnused(lease, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if h := s.leases[keyOf(lease)]; h != nil && h.owner == lease.Owner && h.release == nil {
				h.release = &release{done: make(chan struct{})}
			}
		})
	}
	s.emptyStock()
	if !s.drain(ctx) {
		return errors.New("not all addresses that nobody uses could be given back")
	}
	return nil
}

// emptyStock gives back what is kept ahead of Pods, but for what may be a Pod's that no
// record tells of.
func (s *Store) emptyStock() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, h := range s.leases {
		if _, doubtful := s.found[k]; h.owner == s.nodeOwner() && !doubtful {
			delete(s.spare, k)
			s.returnReadyLocked(k.scope, k.addr)
		}
	}
}

// assertAll takes all anew that attachments of this node have and the cluster does not
// know of. What is another's by now is told.
func (s *Store) assertAll(ctx context.Context, users Users) error {
	if err := s.Sync(ctx); err != nil {
		return err
	}
	all := s.standing()
	s.mu.Lock()
	for _, lease := range all {
		if h := s.leases[keyOf(lease)]; h != nil && h.uid == "" {
			h.told = time.Time{}
		}
	}
	s.mu.Unlock()
	for _, lease := range all {
		s.assert(ctx, lease, users)
		// A quarantine that is lost is found again by who asks next.
		_, quarantined := ipam.ParseQuarantineOwner(lease.Owner)
		if s.unasserted(lease) && (quarantined || !s.wanted(ctx, lease, users)) {
			users.IfUnused(lease, func() { s.drop(ctx, lease) })
		}
	}
	for _, lease := range all {
		if s.unasserted(lease) {
			return fmt.Errorf("%s of %s could not be taken anew yet", lease.Addr, lease.Owner)
		}
	}
	return nil
}

// succeed has the lease of an address say that the attachment has it, if it says so of
// one of this node that has ended: an older copy of the store brings such back.
func (t *taker) succeed(ctx context.Context, lease ipam.Lease, pool string, users Users) bool {
	obj, err := t.ask(ctx, func(ctx context.Context) (*store.Object, error) {
		return t.API.Get(ctx, v1alpha1.AddressLeaseKind, store.Key{Name: Name(lease.Scope, lease.Addr)})
	})
	if err != nil {
		return false // again, at the next look
	}
	is, err := v1alpha1.LeaseFromObject(obj)
	if err != nil || is.Spec.Node != t.Node || is.Spec.IP != lease.Addr || is.Spec.Scope != string(lease.Scope) {
		return false
	}
	was := ipam.Lease{Scope: lease.Scope, Addr: lease.Addr, Owner: ownerOf(is.Spec)}
	if nodeless(was.Owner) || nodeless(lease.Owner) || t.wanted(ctx, was, users) || !users.IfUnused(was, func() {}) {
		return false
	}
	is.Spec = t.spec(lease, pool)
	is.Labels = labels(is.Spec)
	next := is.Object()
	next.SetUID(obj.GetUID())
	next.SetResourceVersion(obj.GetResourceVersion())
	made, err := t.ask(ctx, func(ctx context.Context) (*store.Object, error) { return t.API.Update(ctx, next) })
	if err == nil {
		t.note(lease, made, false)
	}
	return err == nil
}

// unasserted says whether an address is held here, and neither in the cluster nor, as
// far as is known, by another.
func (s *Store) unasserted(lease ipam.Lease) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.leases[keyOf(lease)]
	return h != nil && h.owner == lease.Owner && h.release == nil && h.uid == "" && h.told.IsZero()
}

// drop forgets an address that nobody uses, and that the cluster does not know of.
func (s *Store) drop(ctx context.Context, lease ipam.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.leases[keyOf(lease)]; h != nil && h.owner == lease.Owner && h.uid == "" {
		delete(s.leases, keyOf(lease))
		_ = s.memory.Release(ctx, lease) // of a map
	}
}

// standing gives all leases that are not on their way back, nor kept ahead.
func (s *Store) standing() (all []ipam.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, h := range s.leases {
		if h.release == nil && h.owner != s.nodeOwner() {
			all = append(all, ipam.Lease{Scope: k.scope, Addr: k.addr, Owner: h.owner})
		}
	}
	return all
}

// reach notes that this node has done its part of a stage, and tells.
func (e *Epochs) reach(ctx context.Context, epoch int64, stage v1alpha1.EpochStage) error {
	e.mu.Lock()
	is := e.lost == 0 && e.memory.Epoch == epoch
	e.mu.Unlock()
	if !is {
		return nil // meanwhile there is another one
	}
	if err := e.tell(ctx, v1alpha1.AddressEpochSpec{Epoch: epoch, Stage: stage, Node: e.node}); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.lost == 0 && e.memory.Epoch == epoch {
		e.memory.Stage = stage
		e.keepLocked()
		e.log.Info("this node's addresses are right in a new epoch", "epoch", epoch, "stage", stage)
	}
	e.poke()
	return nil
}

// tell writes this node's own epoch, unless it stands there.
func (e *Epochs) tell(ctx context.Context, want v1alpha1.AddressEpochSpec) error {
	e.mu.Lock()
	same := e.written == fmt.Sprint(want, e.turn) // a new connection may be to an older copy
	turn := e.turn
	e.mu.Unlock()
	if same {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	name := v1alpha1.NodeEpoch(e.node)
	obj, err := e.api.Get(ctx, v1alpha1.AddressEpochKind, store.Key{Name: name})
	is := &v1alpha1.AddressEpoch{}
	is.Name = name
	switch {
	case errors.Is(err, store.ErrNotFound):
		is.Spec = want
		_, err = e.api.Create(ctx, is.Object())
	case err == nil:
		if is, err = v1alpha1.EpochFromObject(obj); err == nil && fmt.Sprint(is.Spec) != fmt.Sprint(want) {
			is.Spec = want
			_, err = e.api.Update(ctx, is.Object())
		}
	}
	if err != nil {
		return fmt.Errorf("tell how far node %s is in epoch %d: %w", e.node, want.Epoch, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.written = fmt.Sprint(want, turn)
	return nil
}
