package cluster

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
	"unique"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/garbage"
	"github.com/weftnet/weft/internal/inventory"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
)

// bindings makes leases in the book Pods' that nodes took ahead of them.
type bindings struct {
	*book
	// listed are the nodes of the list that is being read.
	listed map[string]bool
}

// Begin begins a list.
func (b *bindings) Begin() { b.listed = map[string]bool{} }

// Put takes note of what a node tells.
func (b *bindings) Put(obj *store.Object) {
	if b.listed != nil {
		b.listed[obj.GetName()] = true
	}
	all, err := v1alpha1.NodeAddressesFromObject(obj)
	if err != nil {
		return // what was told stays, and the leases are the node's
	}
	b.tell(obj.GetName(), append([]v1alpha1.Binding{}, all.Spec.Bindings...)) // not nil
}

// Gone takes note that a node tells nothing any more.
func (b *bindings) Gone(obj *store.Object) { b.tell(obj.GetName(), nil) }

// Complete ends a list.
func (b *bindings) Complete() {
	for _, node := range b.tellers() {
		if !b.listed[node] {
			b.tell(node, nil)
		}
	}
	b.listed = nil
}

func (b *book) tellers() (nodes []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for node := range b.nodes {
		nodes = append(nodes, node)
	}
	return nodes
}

// tell replaces what a node told. A lease that became a Pod's stays that Pod's.
func (b *book) tell(node string, list []v1alpha1.Binding) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, uid := range b.nodes[node] {
		delete(b.bound, uid)
	}
	delete(b.nodes, node)
	uids := make([]types.UID, 0, len(list))
	for _, binding := range list {
		is := b.leases[binding.Lease]
		if is != nil && (is.uid != binding.UID || is.owner.node != node) {
			continue // of a lease that is gone, or not the node's to tell of
		}
		uids = append(uids, binding.UID)
		b.bound[binding.UID] = binding
		if is != nil && is.owner.Kind == v1alpha1.OwnerNode {
			b.disownLocked(is)
			is.owner.LeaseOwner, is.reserved = binding.Owner, false
			is.where, is.sandbox = unique.Make(where{is.where.Value().pool, binding.Interface}), binding.Sandbox
			b.ownLocked(is)
			if b.changed != nil {
				b.changed(is)
			}
		}
	}
	if list != nil {
		b.nodes[node] = uids
	}
}

// bindLocked makes a node's lease the Pod's that has it.
func (b *book) bindLocked(lease *v1alpha1.AddressLease) {
	if binding, ok := b.bound[lease.UID]; ok && slices.Contains(b.nodes[lease.Spec.Node], lease.UID) {
		lease.Bind(binding)
	}
}

// ownerOf gives whose a lease is.
func (b *book) ownerOf(lease *v1alpha1.AddressLease) owner {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bindLocked(lease)
	return ownerOf(lease)
}

// goneFor is how long a node counts as gone after the last look at it.
const goneFor = 2 * time.Minute

// goneNodes are nodes that are gone and keep addresses ahead: they are to keep none.
type goneNodes struct{ seen sync.Map }

// note takes note of a look at a node.
func (g *goneNodes) note(node string, is garbage.Node) {
	switch is {
	case garbage.Gone:
		g.seen.Store(node, time.Now())
	case garbage.There:
		g.seen.Delete(node)
	case garbage.Unasked:
	}
}

func (g *goneNodes) has(node string) bool {
	at, ok := g.seen.Load(node)
	seen, _ := at.(time.Time)
	return ok && time.Since(seen) < goneFor
}

// keptBy says which leases a node keeps ahead.
func (b *book) keptBy(node string) map[string]bool {
	out := map[string]bool{}
	for _, is := range b.Leases(nodeOwner(node)) {
		out[is.scope+" "+is.addr.String()] = true
	}
	return out
}

// keeping counts, by node, the addresses of spans in a scope that nodes keep ahead.
func (b *book) keeping(scope string, spans []ipam.Span) map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	count := map[string]int{}
	for node := range b.keepers {
		for _, is := range b.owners[nodeOwner(node)] {
			if is.scope == scope && slices.ContainsFunc(spans, func(span ipam.Span) bool { return span.Contains(is.addr) }) {
				count[node]++
			}
		}
	}
	return count
}

func nodeOwner(node string) owner {
	return owner{v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerNode, Name: node}, node}
}

// forgetTellers deletes what nodes told that are gone, once they hold nothing.
func (c *collector) forgetTellers(ctx context.Context, look *inventory.Look) {
	holding := map[string]bool{}
	c.book.Owners(func(o owner) bool {
		holding[o.node] = true
		return false
	})
	for _, node := range c.book.tellers() {
		if holding[node] || look.Node(ctx, node).Node != garbage.Gone {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, askPatience)
		err := c.writer.Delete(ctx, v1alpha1.NodeAddressesKind, store.Key{Name: node}, store.Precondition{})
		cancel()
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			c.log.Debug("what a node that is gone told of its addresses is not deleted", "node", node, "err", err) // at the next look
		}
	}
}
