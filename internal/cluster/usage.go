package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/garbage"
	"github.com/weftnet/weft/internal/inventory"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
)

var poolKind = v1alpha1.AddressPoolKind

// tellEvery is how often an AddressPool is written, at most.
const tellEvery = 5 * time.Second

// doubt is an owner that seems to have ended, at the last look at it.
type doubt struct {
	owner
	sight garbage.Sight
	facts garbage.Facts
}

// reason is why the owner has its addresses still.
func (d doubt) reason(now time.Time, grace time.Duration) (garbage.Reason, time.Time) {
	reason, until := garbage.Explain(now, inventory.GraceOf(d.LeaseOwner, grace), d.sight, d.facts)
	if reason == garbage.Nobody { // until the next look
		reason = garbage.Grace
	}
	return reason, until
}

// waiting counts the addresses of owners that seem to have ended, by reason.
func (s *state) waiting(now time.Time, grace time.Duration) map[string]int {
	count := map[string]int{}
	for _, reason := range []garbage.Reason{garbage.Grace, garbage.NodeSilent, garbage.NodeKeeps, garbage.Unanswered} {
		count[string(reason)] = 0
	}
	for _, doubt := range s.doubts() {
		reason, _ := doubt.reason(now, grace)
		count[string(reason)] += len(s.book.Leases(doubt.owner))
	}
	return count
}

// teller writes how full pools are into their AddressPools. Nobody decides anything
// by those.
type teller struct {
	api, writer store.Store
	*state
	grace, every time.Duration
	log          *slog.Logger

	// known are the AddressPools there are, as of the last list or write; nil: they
	// are to be listed. listed is when they were.
	known  map[string]*v1alpha1.AddressPool
	listed time.Time
	// told are overlaps of which there are events.
	told map[string]bool
	// failed is what went wrong the last time.
	failed string
}

func newTeller(c *controller, s *state, writer store.Store) *teller {
	return &teller{api: c.api, writer: writer, state: s, grace: c.Grace, every: c.Compare, log: c.Log, told: map[string]bool{}}
}

// String names the task.
func (*teller) String() string { return "writer of address pools" }

// Run tells until ctx ends.
func (t *teller) Run(ctx context.Context) error {
	tick := time.NewTicker(min(tellEvery, max(t.every, 100*time.Millisecond)))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if _, known := t.ranges.All(); !known || !t.book.Synced() {
			continue
		}
		err := t.tell(ctx)
		if err != nil {
			t.known = nil // something is not as it was
		}
		text := fmt.Sprint(err)
		if err != nil && ctx.Err() == nil && text != t.failed {
			t.log.Warn("how full ranges are cannot be told; it is tried again", "err", err)
		}
		t.failed = text
	}
}

// tell writes what changed.
func (t *teller) tell(ctx context.Context) error {
	if t.known == nil || time.Since(t.listed) > t.every {
		if err := t.list(ctx); err != nil {
			return err
		}
	}
	wanted := map[string]bool{}
	ended := t.ended(time.Now())
	for _, pool := range t.usage() {
		wanted[pool.Name] = true
		if err := t.write(ctx, pool.Name, statusOf(pool, ended)); err != nil {
			return err
		}
		t.overlap(ctx, pool.Pool)
	}
	for _, name := range slices.Sorted(maps.Keys(t.known)) {
		if wanted[name] {
			continue
		}
		is := t.known[name]
		err := t.writer.Delete(ctx, poolKind, store.Key{Name: name}, store.Precondition{UID: is.UID, Revision: is.ResourceVersion})
		if err != nil && !errors.Is(err, store.ErrNotFound) { // gone already
			return fmt.Errorf("delete address pool %s: %w", name, err)
		}
		delete(t.known, name)
	}
	return nil
}

// list reads which AddressPools there are.
func (t *teller) list(ctx context.Context) error {
	known := map[string]*v1alpha1.AddressPool{}
	_, err := each(ctx, t.api, poolKind, func(obj *store.Object) {
		pool, err := v1alpha1.PoolFromObject(obj)
		if err != nil { // it is written anew
			pool = &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: obj.GetName(), UID: obj.GetUID(), ResourceVersion: obj.GetResourceVersion()}}
		}
		known[pool.Name] = pool
	})
	if err != nil {
		return fmt.Errorf("list address pools: %w", err)
	}
	t.known, t.listed = known, time.Now()
	return nil
}

// write makes an AddressPool tell a status.
func (t *teller) write(ctx context.Context, name string, status v1alpha1.AddressPoolStatus) error {
	is := t.known[name]
	if is != nil && reflect.DeepEqual(is.Status, status) {
		return nil
	}
	if is == nil {
		empty, err := (&v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: name}}).Object()
		if err != nil {
			return err
		}
		made, err := t.writer.Create(ctx, empty)
		if err != nil {
			return fmt.Errorf("make address pool: %w", err)
		}
		is = &v1alpha1.AddressPool{ObjectMeta: metav1.ObjectMeta{Name: name, UID: made.GetUID(), ResourceVersion: made.GetResourceVersion()}}
		t.known[name] = is
	}
	next := &v1alpha1.AddressPool{ObjectMeta: is.ObjectMeta, Status: status}
	obj, err := next.Object()
	if err != nil {
		return err
	}
	made, err := t.writer.UpdateStatus(ctx, obj)
	if err != nil {
		return fmt.Errorf("write address pool: %w", err)
	}
	next.ResourceVersion = made.GetResourceVersion()
	t.known[name] = next
	return nil
}

// statusOf gives what is told of a pool.
func statusOf(pool counted, ended map[string][]v1alpha1.EndedAddress) v1alpha1.AddressPoolStatus {
	whole := func(count float64) int64 { return int64(min(math.Round(count), v1alpha1.MostCounted)) }
	status := v1alpha1.AddressPoolStatus{
		Scope: string(pool.Scope), Range: pool.Range.String(), Networks: pool.Networks, Size: v1alpha1.Counted(pool.Range.Size()),
		Used: whole(pool.used), Reserved: whole(pool.reserved), Conflicts: whole(pool.conflicts), Overlaps: pool.Overlaps,
	}
	status.Free = status.Size
	if pool.free < v1alpha1.MostCounted {
		status.Free = whole(pool.free)
	}
	status.Full = v1alpha1.FullOf(status.Free, status.Size)
	for _, is := range ended[string(pool.Scope)] {
		if len(status.Ended) < v1alpha1.MostEnded && pool.Range.Contains(is.IP) {
			status.Ended = append(status.Ended, is)
		}
	}
	return status
}

// ended gives the addresses of owners that seem to have ended, by scope.
func (t *teller) ended(now time.Time) map[string][]v1alpha1.EndedAddress {
	out := map[string][]v1alpha1.EndedAddress{}
	for _, doubt := range t.doubts() {
		reason, until := doubt.reason(now, t.grace)
		for _, is := range t.book.Leases(doubt.owner) {
			out[is.scope] = append(out[is.scope], v1alpha1.EndedAddress{
				IP: is.addr, Owner: inventory.OwnerName(doubt.LeaseOwner), Node: doubt.node,
				Since: told(doubt.sight.Since), NodeGone: told(doubt.sight.NodeGone), Until: told(until), Reason: string(reason),
			})
		}
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b v1alpha1.EndedAddress) int { return a.IP.Compare(b.IP) })
	}
	return out
}

// told gives a time as objects have it; nil: there is none.
func told(at time.Time) *metav1.Time {
	if at.IsZero() {
		return nil
	}
	return &metav1.Time{Time: at.Local().Truncate(time.Second)}
}

// overlap tells of pools that could give the same address again, once.
func (t *teller) overlap(ctx context.Context, pool inventory.Pool) {
	for _, problem := range pool.Overlaps {
		for _, network := range pool.Networks {
			if t.told[network+" "+problem] {
				continue
			}
			t.told[network+" "+problem] = true
			t.log.Warn("two networks could give the same address", "network", network, "problem", problem)
			namespace, name, _ := strings.Cut(network, "/")
			key := store.Key{Namespace: namespace, Name: name}
			if err := warn(ctx, t.writer, about{networks.DefinitionKind, key, t.ranges.UID(key)}, "OverlappingRanges", problem); err != nil {
				t.log.Debug("event is not written", "network", network, "err", err) // the log and the AddressPool have it
			}
		}
	}
}
