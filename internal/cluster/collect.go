package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/garbage"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/inventory"
	"github.com/weftnet/weft/internal/store"
)

const (
	// lookEvery is how often owners that seem to have ended are looked at, at most.
	lookEvery = 5 * time.Second
	// askPatience is for one request.
	askPatience = 10 * time.Second
)

// collector gives back the addresses of owners that ended. What is in memory only
// says whom to look at; what is done rests on what the API server says then.
type collector struct {
	api, writer store.Store
	*state
	grace, every time.Duration
	log          *slog.Logger
	// freed counts addresses given back.
	freed func(reason string)

	sights map[owner]garbage.Sight
	// last is what was read of them then.
	last map[owner]garbage.Facts
	// compared is when owners were looked at of whom memory tells nothing.
	compared time.Time
}

func newCollector(c *controller, s *state, writer store.Store) *collector {
	return &collector{
		api: c.api, writer: writer, state: s, grace: c.Grace, every: c.Compare, log: c.Log, freed: c.count.Freed,
		sights: map[owner]garbage.Sight{}, last: map[owner]garbage.Facts{},
	}
}

// String names the task.
func (*collector) String() string { return "collector of addresses" }

// Run collects until ctx ends.
func (c *collector) Run(ctx context.Context) error {
	look := time.NewTicker(min(lookEvery, max(c.grace/4, 100*time.Millisecond)))
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			if c.book.Synced() && c.pods.Synced() {
				c.pass(ctx)
			}
		}
	}
}

// pass looks at all owners that may have ended.
func (c *collector) pass(ctx context.Context) {
	look := inventory.NewLook(c.api)
	compare := time.Since(c.compared) >= c.every
	if compare {
		c.compared = time.Now()
	}
	doubtful := c.book.Owners(func(o owner) bool {
		if o.Kind == v1alpha1.OwnerPod && o.UID != "" {
			return !c.pods.Live(o.UID)
		}
		if o.Kind == v1alpha1.OwnerWhereabouts || o.Kind == v1alpha1.OwnerClaim || o.Kind == v1alpha1.OwnerSticky { // see collectStrays, claims
			return false
		}
		_, seen := c.sights[o]
		return compare || seen
	})
	still := make(map[owner]garbage.Sight, len(doubtful))
	for _, o := range doubtful {
		if ctx.Err() != nil {
			return
		}
		sight := c.sights[o]
		if !sight.Since.IsZero() && time.Since(sight.Since) < c.grace {
			still[o] = sight
			continue
		}
		if node := look.Node(ctx, o.node); !sight.Since.IsZero() && node.Node == garbage.There && node.Heard == sight.Heard {
			sight.NodeGone, c.last[o] = time.Time{}, garbage.Facts{Owner: c.last[o].Owner, Node: node.Node, Heard: node.Heard}
			still[o] = sight // the node is as silent as before: the rest need not be asked for
			continue
		}
		facts := look.Facts(ctx, o.LeaseOwner, o.node)
		if o.Kind == v1alpha1.OwnerNode {
			c.gone.note(o.node, facts.Node)
		}
		after, verdict := garbage.Judge(time.Now(), inventory.GraceOf(o.LeaseOwner, c.grace), sight, facts)
		c.last[o] = facts
		switch {
		case verdict == garbage.Keep, after == garbage.Sight{}:
		case verdict == garbage.Free && !c.free(ctx, o, facts):
			// Begin anew: it is not as it was.
		default:
			still[o] = after
		}
	}
	c.sights = still
	c.publish()
	if compare {
		c.forgetTellers(ctx, look)
	}
}

// publish tells whom this pass leaves in doubt.
func (c *collector) publish() {
	maps.DeleteFunc(c.last, func(o owner, _ garbage.Facts) bool { return c.sights[o] == garbage.Sight{} })
	list := make([]doubt, 0, len(c.sights))
	for o, sight := range c.sights {
		list = append(list, doubt{o, sight, c.last[o]})
	}
	c.doubted.Store(&list)
}

func (c *collector) get(
	ctx context.Context, namespace, name string, get func(context.Context, store.Key) (*store.Object, error),
) (*store.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	return get(ctx, store.Key{Namespace: namespace, Name: name})
}

// free gives the addresses of an owner back, all if they are as they were seen, or
// none. What fails in between is done at the next look. false: they are not.
func (c *collector) free(ctx context.Context, o owner, facts garbage.Facts) bool {
	leases := c.book.Leases(o)
	slices.SortFunc(leases, func(a, b *held) int { return strings.Compare(a.name, b.name) })
	revisions := make([]string, len(leases))
	for i, is := range leases {
		obj, err := c.get(ctx, "", is.name, func(ctx context.Context, key store.Key) (*store.Object, error) {
			return c.api.Get(ctx, leaseKind, key)
		})
		if err != nil {
			return false
		}
		now, err := v1alpha1.LeaseFromObject(obj)
		if err != nil || now.UID != is.uid || c.book.ownerOf(now) != o {
			return false
		}
		revisions[i] = now.ResourceVersion
	}
	for i, is := range leases {
		if err := c.delete(ctx, is, revisions[i]); err != nil {
			if ctx.Err() == nil {
				c.log.Warn("an address that nobody has could not be given back; it is tried again", "address", is.addr, "err", err)
			}
			return !errors.Is(err, store.ErrConflict)
		}
		c.log.Info("an address that nobody has was given back", "address", is.addr, "scope", is.scope,
			"owner", o.Kind+" "+o.Namespace+"/"+o.Name, "uid", o.UID, "node", o.node, "reason", reason(facts))
		c.freed(reason(facts))
	}
	return true
}

func (c *collector) delete(ctx context.Context, is *held, revision string) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	err := c.writer.Delete(ctx, leaseKind, store.Key{Name: is.name}, store.Precondition{UID: is.uid, Revision: revision})
	if errors.Is(err, store.ErrNotFound) {
		return nil // the node was faster
	}
	if refused, ok := errors.AsType[*hint.Error](err); ok {
		return fmt.Errorf("the API server refuses it: %w", refused)
	}
	return err
}

// reason is why addresses were given back, for people and for metrics.
func reason(facts garbage.Facts) string {
	if facts.Node == garbage.Gone {
		return "node-gone"
	}
	return "owner-ended"
}
