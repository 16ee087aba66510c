package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/elect"
	"github.com/weftnet/weft/internal/garbage"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
)

// outOfService is the taint by which people say that nothing runs on a node
// (k8s.io/api core/v1, TaintNodeOutOfService).
const outOfService = "node.kubernetes.io/out-of-service"

// heartbeats is the namespace where each kubelet renews a Lease of its node's name.
const heartbeats = "kube-node-lease"

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
	// compared is when owners were looked at of whom memory tells nothing.
	compared time.Time
	// nodes are what this pass read of nodes.
	nodes map[string]nodeFacts
}

type nodeFacts struct {
	node  garbage.Node
	heard string
}

func newCollector(c *controller, s *state, writer store.Store) *collector {
	return &collector{
		api: c.api, writer: writer, state: s, grace: c.Grace, every: c.Compare, log: c.Log, freed: c.count.Freed,
		sights: map[owner]garbage.Sight{},
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
	c.nodes = map[string]nodeFacts{}
	compare := time.Since(c.compared) >= c.every
	if compare {
		c.compared = time.Now()
	}
	doubtful := c.book.Owners(func(o owner) bool {
		if o.Kind == v1alpha1.OwnerPod && o.UID != "" {
			return !c.pods.Live(o.UID)
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
		if node := c.node(ctx, o.node); !sight.Since.IsZero() && node == (nodeFacts{garbage.There, sight.Heard}) {
			sight.NodeGone = time.Time{}
			still[o] = sight // the node is as silent as before: the rest need not be asked for
			continue
		}
		facts := c.facts(ctx, o)
		after, verdict := garbage.Judge(time.Now(), c.grace, sight, facts)
		switch {
		case verdict == garbage.Keep, after == garbage.Sight{}:
		case verdict == garbage.Free && !c.free(ctx, o, facts):
			// Begin anew: it is not as it was.
		default:
			still[o] = after
		}
	}
	c.sights = still
}

// facts reads what the API server knows of an owner and its node.
func (c *collector) facts(ctx context.Context, o owner) garbage.Facts {
	node := c.node(ctx, o.node)
	facts := garbage.Facts{Node: node.node, Heard: node.heard}
	switch {
	case o.Kind == v1alpha1.OwnerPod && o.UID == "":
		facts.Owner = garbage.Nameless
	case o.Kind == v1alpha1.OwnerPod:
		facts.Owner = c.pod(ctx, o)
	case o.Kind == v1alpha1.OwnerClaim:
		facts.Owner = c.claim(ctx, o)
	default: // whose end is told by others
		facts.Owner = garbage.Live
	}
	return facts
}

func (c *collector) pod(ctx context.Context, o owner) garbage.Owner {
	pod, err := c.get(ctx, o.Namespace, o.Name, func(ctx context.Context, key store.Key) (*store.Object, error) {
		return c.api.Get(ctx, podKind, key)
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return garbage.Ended
	case err != nil:
		return garbage.Unknown
	case !slices.Contains(uidsOf(pod), o.UID) || terminal(pod):
		return garbage.Ended
	}
	return garbage.Live
}

func (c *collector) claim(ctx context.Context, o owner) garbage.Owner {
	claim, err := c.get(ctx, o.Namespace, o.Name, func(ctx context.Context, key store.Key) (*store.Object, error) {
		return c.api.Get(ctx, networks.ClaimKind, key)
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return garbage.Absent
	case err != nil:
		return garbage.Unknown
	case o.UID != "" && claim.GetUID() != o.UID:
		return garbage.Absent
	}
	return garbage.Live
}

// node reads of a node whether it is gone, and what changes when its kubelet is
// heard from; once in a pass.
func (c *collector) node(ctx context.Context, name string) nodeFacts {
	if facts, ok := c.nodes[name]; ok {
		return facts
	}
	var facts nodeFacts
	node, err := c.get(ctx, "", name, func(ctx context.Context, key store.Key) (*store.Object, error) {
		return c.api.Get(ctx, nodeKind, key)
	})
	switch {
	case errors.Is(err, store.ErrNotFound), err == nil && tainted(node):
		facts.node = garbage.Gone
	case err == nil:
		facts.node = garbage.There
		beat, err := c.get(ctx, heartbeats, name, func(ctx context.Context, key store.Key) (*store.Object, error) {
			return c.api.Get(ctx, elect.LeaseKind, key)
		})
		if err == nil {
			spec, _ := beat.Object["spec"].(map[string]any)
			facts.heard = fmt.Sprint(beat.GetUID(), " ", spec["renewTime"])
		}
	}
	c.nodes[name] = facts
	return facts
}

func tainted(node *store.Object) bool {
	spec, _ := node.Object["spec"].(map[string]any)
	taints, _ := spec["taints"].([]any)
	for _, taint := range taints {
		if taint, ok := taint.(map[string]any); ok && taint["key"] == outOfService {
			return true
		}
	}
	return false
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
		if err != nil || now.UID != is.uid || ownerOf(now) != o {
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
