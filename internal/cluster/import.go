package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/store"
	takeover "github.com/weftnet/weft/internal/whereabouts"
)

// What the controller is told to do about Whereabouts; empty: nothing.
const (
	// TakeOver makes leases of what Whereabouts gave, and has weft give the rest.
	TakeOver = "takeOver"
	// HandBack makes Whereabouts' objects of the leases, and has it give the rest.
	HandBack = "handBack"
	// Mixed has both give addresses, on different nodes.
	Mixed = "mixed"
)

var wishes = map[string]takeover.Giver{TakeOver: takeover.ByWeft, HandBack: takeover.ByWhereabouts, Mixed: takeover.Mixed}

// settleFor is how long nothing may be written by who gave addresses so far, before
// what it gave is read: API servers learn of the ConfigMap one after another, and
// nodes hand out what they keep ahead until nobody told them to for ten seconds
// (lease.keepFresh).
const settleFor = 15 * time.Second

// beside sees to it that Whereabouts and weft give no address twice, see
// takeover.Giver. What it does at each step it does again if it was cut short: what
// is there already is left as it is.
type beside struct {
	*controller
	*state
	writer store.Store

	// seen is what the ConfigMap said the last time, and since when.
	seen  takeover.Giving
	since time.Time
	told  string // the last problem
	// strays are the leases that were to be given back at the last look, since when.
	strays map[string]time.Time
	looked time.Time
	locks  locks
}

// String names the task.
func (*beside) String() string { return "beside Whereabouts" }

// Run goes from step to step until ctx ends.
func (b *beside) Run(ctx context.Context) error {
	for pause := firstPause; ; {
		wait, err := b.turn(ctx)
		switch {
		case err == nil:
			pause, b.told = firstPause, ""
		case ctx.Err() == nil:
			wait, pause = pause, min(2*pause, lastPause)
			if err.Error() != b.told {
				b.told = err.Error()
				b.Log.Warn("addresses of Whereabouts' networks: the next step fails; it is tried again", "givenBy", b.seen.By, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// turn does what is next, and says how long that is enough.
func (b *beside) turn(ctx context.Context) (time.Duration, error) {
	if !b.book.Synced() || !b.pods.Synced() {
		return firstPause, nil
	}
	now, err := b.giving(ctx)
	if err != nil {
		return 0, err
	}
	b.keepable.Store(now.By == "" || now.By == takeover.ByWeft)
	b.gives.Store(&now)
	if now != b.seen || b.since.IsZero() {
		b.seen, b.since = now, time.Now()
	}
	to := cmp.Or(wishes[b.Whereabouts], now.To, now.By)
	switch {
	case to == "" || to == takeover.ByWhereabouts && now.By == "":
		return b.Compare, b.defend(ctx)
	case to == now.By && now.By == takeover.Mixed:
		return min(b.Grace, b.Compare), errors.Join(b.stay(ctx), b.keepLocks(ctx))
	case to == now.By:
		return b.Compare, b.stay(ctx)
	}
	return b.pass(ctx, now, to)
}

// pass brings those who give addresses to others a step nearer.
func (b *beside) pass(ctx context.Context, now takeover.Giving, to takeover.Giver) (time.Duration, error) {
	if served, err := b.serves(ctx); err != nil || !served {
		return b.Compare, err // there is nothing of Whereabouts
	}
	if now.By != takeover.ByNobody || now.To != to {
		if err := b.ready(ctx, to); err != nil {
			return 0, err
		}
		if now.By == takeover.ByWhereabouts && to == takeover.Mixed { // who goes on to give them
			return 0, b.declare(ctx, takeover.Giving{By: to})
		}
		return 0, b.declare(ctx, takeover.Giving{By: takeover.ByNobody, To: to})
	}
	if rest := b.settle - time.Since(b.since); rest > 0 {
		return rest, nil
	}
	var err error
	if to == takeover.ByWeft {
		err = b.fenced(ctx)
	}
	if err == nil {
		err = b.take(ctx)
	}
	if err == nil && to == takeover.ByWeft {
		err = b.unlockAll(ctx)
	}
	if err == nil && to != takeover.ByWeft { // what is weft's, Whereabouts must know of
		err = b.handBack(ctx)
	}
	if err != nil {
		return 0, err
	}
	return 0, b.declare(ctx, takeover.Giving{By: to})
}

// stay does what is to be done now and then.
func (b *beside) stay(ctx context.Context) error {
	if time.Since(b.looked) < b.Compare {
		return nil
	}
	b.looked = time.Now()
	return b.collectStrays(ctx)
}

// defend has nodes leave addresses to Whereabouts where it holds some, and weft none
// of its networks.
func (b *beside) defend(ctx context.Context) error {
	if b.book.OfWhereabouts() {
		return nil
	}
	facts, err := b.objects(ctx, "")
	if unserved(err) {
		return nil
	}
	if err != nil || !inUse(facts.Pools) {
		return err
	}
	return b.declare(ctx, takeover.Giving{By: takeover.ByWhereabouts})
}

// serves says whether the API server has Whereabouts' kinds.
func (b *beside) serves(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	_, _, err := b.api.List(ctx, reservationKind, store.Selector{Namespace: b.WhereaboutsNamespace, Labels: map[string]string{"no": "such"}})
	if unserved(err) {
		return false, nil
	}
	return err == nil, err
}

// unserved says that the API server has no such kind, as store/kube tells it.
func unserved(err error) bool {
	h, ok := errors.AsType[*hint.Error](err)
	return ok && h.Field == "kind"
}

func (b *beside) key() store.Key {
	return store.Key{Namespace: b.Namespace, Name: takeover.ConfigMap}
}

// giving reads who gives addresses.
func (b *beside) giving(ctx context.Context) (takeover.Giving, error) {
	obj, err := b.get(ctx, b.key())
	if errors.Is(err, store.ErrNotFound) {
		return takeover.Giving{}, nil
	}
	if err != nil {
		return takeover.Giving{}, fmt.Errorf("read who gives addresses: %w", err)
	}
	data, _ := obj.Object["data"].(map[string]any)
	text, _ := data[disagreementsKey].(string)
	b.disagreements.Store(int64(strings.Count(text, "\n")))
	return takeover.ParseGiving(data), nil
}

func (b *beside) get(ctx context.Context, key store.Key) (*store.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	return b.api.Get(ctx, configMapKind, key)
}

// disagreementsKey is where in the ConfigMap stands what did not fit together.
const disagreementsKey = "disagreements"

// declare writes who gives addresses from now on.
func (b *beside) declare(ctx context.Context, giving takeover.Giving) error {
	giving.Namespace = b.WhereaboutsNamespace
	if err := b.write(ctx, giving.Data(), "to"); err != nil {
		return fmt.Errorf("write who gives addresses: %w", err)
	}
	b.Log.Info("who gives addresses of Whereabouts' networks", "givenBy", giving.By, "to", giving.To)
	return nil
}

// write puts values into the ConfigMap, and takes the key gone out of it unless it
// is among them.
func (b *beside) write(ctx context.Context, values map[string]any, gone string) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	obj, err := b.get(ctx, b.key())
	missing := errors.Is(err, store.ErrNotFound)
	switch {
	case missing:
		obj = &store.Object{Object: map[string]any{}}
		obj.SetGroupVersionKind(configMapKind)
		obj.SetNamespace(b.Namespace)
		obj.SetName(takeover.ConfigMap)
	case err != nil:
		return err
	}
	data, _ := obj.Object["data"].(map[string]any)
	if takeover.ParseGiving(data) != b.seen { // what is written follows from what was seen
		return fmt.Errorf("another controller has written it since: %w", store.ErrConflict)
	}
	if data == nil {
		data = map[string]any{}
	}
	delete(data, gone)
	for key, value := range values {
		data[key] = value
	}
	obj.Object["data"] = data
	if missing {
		_, err = b.writer.Create(ctx, obj)
	} else {
		_, err = b.writer.Update(ctx, obj)
	}
	return err
}

// strayFor is how long this process must have seen that nobody has an imported
// address: how old it is, two clocks say, of which either may be wrong.
const strayFor = time.Hour

// fenced says whether the API server refuses what Whereabouts would write: without
// that it would go on to give addresses on nodes that weft knows nothing of.
func (b *beside) fenced(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	allowed, refused := takeover.Probe(b.WhereaboutsNamespace)
	made, err := b.writer.Create(ctx, &store.Object{Object: allowed})
	if errors.Is(err, store.ErrExists) { // from a try that was cut short
		made, err = b.api.Get(ctx, reservationKind, store.Key{Namespace: b.WhereaboutsNamespace, Name: takeover.ProbeName})
	}
	if err != nil {
		return fmt.Errorf("make a reservation to see whether those of others are refused: %w", err)
	}
	_, err = b.writer.Update(ctx, &store.Object{Object: refused})
	_, is := errors.AsType[*hint.Error](err)
	gone := b.writer.Delete(ctx, reservationKind, store.KeyOf(made), store.Precondition{UID: made.GetUID()})
	if errors.Is(gone, store.ErrNotFound) { // gone already
		gone = nil
	}
	switch {
	case err == nil:
		return errors.Join(gone, &hint.Error{
			Field: "ValidatingAdmissionPolicy weft-whereabouts", Problem: "does not keep Whereabouts from giving addresses while they are imported",
			Remedy: "apply the chart or deploy/weft.yaml of this version; the policy and its binding are in it",
		})
	case !is:
		return errors.Join(gone, err)
	}
	return gone
}

// collectStrays gives back imported addresses of which nobody was found for a long
// time, when they were looked at for a while.
func (b *beside) collectStrays(ctx context.Context) error {
	seen := map[string]time.Time{}
	all, err := b.imported(ctx)
	if err != nil {
		return err
	}
	for _, is := range slices.SortedFunc(maps.Values(all), func(a, b stray) int { return strings.Compare(a.Name, b.Name) }) {
		if !is.orphan() || time.Since(is.since) < b.ImportedFor {
			continue
		}
		ended, err := b.noSuchPod(ctx, is)
		if err != nil {
			return err
		}
		if !ended {
			continue
		}
		since, again := b.strays[string(is.UID)]
		if !again {
			since = time.Now()
		}
		if seen[string(is.UID)] = since; !again || time.Since(since) < min(strayFor, b.ImportedFor) {
			continue
		}
		if err := b.drop(ctx, is); err != nil {
			return err
		}
		b.Log.Warn("an imported address of which nobody was found was given back", "address", is.Spec.IP, "scope", is.Spec.Scope,
			"holder", is.Spec.Owner.Namespace+"/"+is.Spec.Owner.Name, "since", is.since)
		b.count.Freed("imported")
	}
	b.strays = seen
	return nil
}
