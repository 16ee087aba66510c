// Package elect has one of several processes lead, by a Lease of the Kubernetes
// API (coordination.k8s.io/v1), as kube-controller-manager has it: who holds the
// Lease renews it, and who sees it unchanged for the holder's whole term takes it.
//
// Clocks of different machines are never compared. A candidate measures on its own
// clock how long the Lease has stayed as it is; what times stand in it is for
// people. A leader counts its term from before it sent the last renewal, so it ends
// before anybody else can have measured a term.
package elect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/store"
)

// LeaseKind is the kind that elections are held by.
var LeaseKind = schema.GroupVersionKind{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease"}

// How long things take, those of Kubernetes' own programs: a Lease that nobody
// renews is taken after Term; a leader that cannot renew it stops after Renewal; both
// look at it every Retry.
const (
	Term    = 15 * time.Second
	Renewal = 10 * time.Second
	Retry   = 2 * time.Second
)

// releasePatience is how long a leader that ends tries to say so.
const releasePatience = 5 * time.Second

// Config is what an Elector is made of.
type Config struct {
	API store.Store
	// Lease names the object, and Identity this process among all that ever run.
	Lease    store.Key
	Identity string
	// Term is in whole seconds. Zero: the constants above.
	Term, Renewal, Retry time.Duration
	Log                  *slog.Logger
}

// Elector is one candidate.
type Elector struct {
	Config
	// What was last seen of the Lease, and since when on our clock it is so.
	seen   string
	seenAt time.Time
}

// New makes a candidate.
func New(config Config) *Elector {
	if config.Term == 0 {
		config.Term, config.Renewal, config.Retry = Term, Renewal, Retry
	}
	return &Elector{Config: config}
}

// String names the task.
func (e *Elector) String() string { return "election by Lease " + e.Lease.String() }

// Run stands for election until ctx ends. lead is called when this process leads,
// with a ctx that ends with the term; once it has returned others may lead. Its
// error, if it was not the term's end, ends Run.
func (e *Elector) Run(ctx context.Context, lead func(ctx context.Context, term *Period) error) error {
	told := ""
	for ctx.Err() == nil {
		sent := time.Now()
		lease, err := e.try(ctx)
		switch {
		case err != nil && ctx.Err() == nil && err.Error() != told:
			told = err.Error()
			e.Log.Warn("the election cannot be taken part in", "err", err)
		case err == nil && lease != nil:
			told = ""
			if err := e.lead(ctx, lease, sent, lead); err != nil {
				return err
			}
			continue
		case err == nil:
			told = ""
		}
		select {
		case <-ctx.Done():
		case <-time.After(e.Retry + rand.N(e.Retry/5)): // not all at once
		}
	}
	return nil
}

// try takes the Lease if nobody holds it. It gives nil if somebody does.
func (e *Elector) try(ctx context.Context) (*store.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, e.Renewal)
	defer cancel()
	lease, err := e.API.Get(ctx, LeaseKind, e.Lease)
	if errors.Is(err, store.ErrNotFound) {
		lease = &store.Object{}
		lease.SetGroupVersionKind(LeaseKind)
		lease.SetNamespace(e.Lease.Namespace)
		lease.SetName(e.Lease.Name)
		made, err := e.API.Create(ctx, e.held(lease))
		if errors.Is(err, store.ErrExists) {
			return nil, nil // another was faster
		}
		return made, err
	}
	if err != nil {
		return nil, err
	}
	if now := lease.GetResourceVersion() + " " + string(lease.GetUID()); now != e.seen {
		e.seen, e.seenAt = now, time.Now()
	}
	holder, term := holderOf(lease)
	if holder != "" && holder != e.Identity && time.Since(e.seenAt) < max(term, e.Term) {
		return nil, nil
	}
	taken, err := e.API.Update(ctx, e.held(lease))
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound) {
		return nil, nil // another was faster
	}
	return taken, err
}

func holderOf(lease *store.Object) (holder string, term time.Duration) {
	spec, _ := lease.Object["spec"].(map[string]any)
	holder, _ = spec["holderIdentity"].(string)
	switch seconds := spec["leaseDurationSeconds"].(type) {
	case int64:
		term = time.Duration(seconds) * time.Second
	case float64:
		term = time.Duration(seconds) * time.Second
	}
	return holder, term
}

// held gives the Lease as this process holds it from now on.
func (e *Elector) held(lease *store.Object) *store.Object {
	const microTime = "2006-01-02T15:04:05.000000Z07:00" // MicroTime of k8s.io/apimachinery
	lease = lease.DeepCopy()
	spec, _ := lease.Object["spec"].(map[string]any)
	if spec == nil {
		spec = map[string]any{}
	}
	now := time.Now().UTC().Format(microTime)
	if holder, _ := holderOf(lease); holder != e.Identity {
		transitions, _ := spec["leaseTransitions"].(int64)
		spec["acquireTime"], spec["leaseTransitions"] = now, transitions+1
	}
	spec["holderIdentity"], spec["renewTime"], spec["leaseDurationSeconds"] = e.Identity, now, int64(e.Term/time.Second)
	lease.Object["spec"] = spec
	return lease
}

// lead leads with a Lease that was asked for at sent, until the term ends.
func (e *Elector) lead(ctx context.Context, lease *store.Object, sent time.Time, do func(context.Context, *Period) error) error {
	term := &Period{}
	term.extend(sent.Add(e.Renewal))
	leading, end := context.WithCancel(ctx)
	defer end()
	ended := make(chan error, 1)
	e.Log.Info("leads", "identity", e.Identity)
	go func() { ended <- do(leading, term) }()
	for {
		select {
		case err := <-ended:
			e.release(ctx, lease, term)
			return err
		case <-ctx.Done():
			err := <-ended // ctx told it
			e.release(ctx, lease, term)
			return err
		case <-time.After(min(e.Retry, max(0, time.Until(term.end())))):
		}
		next, err := e.renew(ctx, lease, term)
		if next != nil {
			lease = next
		}
		if ctx.Err() != nil || term.Lasts() && !errors.Is(err, errLost) {
			continue
		}
		term.extend(time.Time{})
		end()
		e.Log.Warn("leads no more", "identity", e.Identity, "err", err)
		<-ended // what it says is that it was stopped
		return nil
	}
}

// errLost: another holds the Lease, or nobody.
var errLost = errors.New("the Lease is not held any more")

// renew renews the term, once. It gives the Lease as it is then.
func (e *Elector) renew(ctx context.Context, lease *store.Object, term *Period) (*store.Object, error) {
	ctx, cancel := context.WithDeadline(ctx, term.end())
	defer cancel()
	sent := time.Now()
	next, err := e.API.Update(ctx, e.held(lease))
	switch {
	case err == nil:
		term.extend(sent.Add(e.Renewal))
		return next, nil
	case errors.Is(err, store.ErrNotFound):
		return nil, fmt.Errorf("%w: %w", errLost, err)
	case !errors.Is(err, store.ErrConflict):
		return nil, err
	}
	// Somebody wrote a label, or an answer of ours was lost.
	next, err = e.API.Get(ctx, LeaseKind, e.Lease)
	if err != nil {
		return nil, err
	}
	if holder, _ := holderOf(next); holder != e.Identity {
		return nil, fmt.Errorf("%w: %q has it", errLost, holder)
	}
	return next, nil
}

// release lets others lead at once.
func (e *Elector) release(ctx context.Context, lease *store.Object, term *Period) {
	if !term.Lasts() {
		return
	}
	term.extend(time.Time{})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releasePatience)
	defer cancel()
	err := e.let(ctx, lease)
	if errors.Is(err, store.ErrConflict) { // a renewal that was cut short came through, or a label
		var now *store.Object
		if now, err = e.API.Get(ctx, LeaseKind, e.Lease); err == nil {
			if holder, _ := holderOf(now); holder != e.Identity {
				return
			}
			err = e.let(ctx, now)
		}
	}
	if err != nil {
		e.Log.Warn("who leads next waits for the end of this term", "err", err)
	}
}

// let writes that nobody holds a Lease.
func (e *Elector) let(ctx context.Context, lease *store.Object) error {
	lease = e.held(lease)
	spec, _ := lease.Object["spec"].(map[string]any)
	spec["holderIdentity"] = ""
	_, err := e.API.Update(ctx, lease)
	return err
}
