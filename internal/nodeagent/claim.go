package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/reconcile"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/kube"
)

// nodeAnnotation names the node that keeps an IPAMClaim's addresses. Addresses
// are given out by each node for itself, so a claim has one node for its life.
const nodeAnnotation = "weft.network/node"

// claims keeps the addresses of IPAMClaims on this node until the claim is
// deleted: on disk, so that neither a restart nor an API server that is away gives
// them to another Pod.
type claims struct {
	api    *kube.Store
	node   string
	kept   *record.Kept
	engine *chain.Engine // set before the loop runs
	loop   *reconcile.Loop

	// keeping is held from the look whether an owner's addresses are used to the end
	// of its file, and while one is written.
	keeping sync.Mutex

	// mu guards told: the addresses in status.ips, by claim.
	mu   sync.Mutex
	told map[store.Key]string
}

// claimsEvery is how often a claim is looked for that may have been deleted: too
// few have any to watch them all.
const claimsEvery = 30 * time.Second

var _ chain.Claims = (*claims)(nil)

func newClaims(a *agent, opt Options) (*claims, error) {
	kept, err := record.OpenKept(filepath.Join(opt.State, "claims"))
	if err != nil {
		return nil, err
	}
	c := &claims{api: a.api, node: opt.Node, kept: kept, told: map[store.Key]string{}}
	c.loop = reconcile.NewLoop("claims", 1, opt.Log, c.reconcile)
	return c, nil
}

// hold takes what claims have, whether a Pod has it or not.
func (c *claims) hold(ctx context.Context, engine *chain.Engine) error {
	c.engine = engine
	list, err := c.kept.List()
	var leases []ipam.Lease
	for _, l := range list {
		leases = append(leases, ipam.Lease{Scope: ipam.Scope(l.Scope), Addr: l.Addr, Owner: ipam.Owner(l.Owner)})
		c.wake(ipam.Owner(l.Owner))
	}
	return errors.Join(err, engine.Hold(ctx, leases...))
}

func (c *claims) wake(owner ipam.Owner) {
	if namespace, name, ok := ipam.ParseClaimOwner(owner); ok {
		c.loop.Add(store.Key{Namespace: namespace, Name: name})
	}
}

// keep writes down what a claim has.
func (c *claims) keep(owner ipam.Owner, leases []ipam.Lease) error {
	var list []record.Lease
	for _, l := range leases {
		list = append(list, record.Lease{Scope: string(l.Scope), Addr: l.Addr, Owner: string(l.Owner)})
	}
	c.keeping.Lock()
	err := c.kept.Save(string(owner), list)
	c.keeping.Unlock()
	if err != nil {
		return err
	}
	c.wake(owner)
	return nil
}

// Exists says whether there is such a claim, and makes it this node's if it is
// nobody's. One of another node is refused.
func (c *claims) Exists(ctx context.Context, namespace, name string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, apiPatience)
	defer cancel()
	key := store.Key{Namespace: namespace, Name: name}
	for {
		claim, err := c.api.Get(ctx, networks.ClaimKind, key)
		if errors.Is(err, store.ErrNotFound) {
			return false, nil
		}
		if err != nil {
			return false, unanswered(fmt.Errorf("get IPAMClaim %s: %w", key, err))
		}
		if claim.GetDeletionTimestamp() != nil {
			return false, nil
		}
		if node := claim.GetAnnotations()[nodeAnnotation]; node == c.node {
			return true, nil
		} else if node != "" {
			return false, &hint.Error{
				Field: "IPAMClaim " + key.String(), Problem: "has its addresses on node " + node, Remedy: "run the Pod there, or delete the claim and create it anew: weft does not keep addresses over several nodes yet",
			}
		}
		mine := map[string]any{"metadata": map[string]any{"annotations": map[string]any{nodeAnnotation: c.node}}}
		_, err = c.api.Patch(ctx, networks.ClaimKind, key, mine, store.Precondition{UID: claim.GetUID(), Revision: claim.GetResourceVersion()})
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) { // else somebody was faster: look again
			return false, unanswered(fmt.Errorf("take IPAMClaim %s: %w", key, err))
		}
	}
}

// reconcile gives a claim's addresses back once it is deleted and no Pod has them.
func (c *claims) reconcile(ctx context.Context, key store.Key) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, writePatience)
	defer cancel()
	owner := ipam.ClaimOwner(key.Namespace, key.Name)
	_, err := c.api.Get(ctx, networks.ClaimKind, key)
	if err == nil {
		return claimsEvery, nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return 0, fmt.Errorf("get IPAMClaim %s: %w", key, err)
	}
	c.mu.Lock()
	delete(c.told, key)
	c.mu.Unlock()
	c.keeping.Lock()
	defer c.keeping.Unlock()
	settled, err := c.engine.Trim(ctx, owner)
	if err != nil {
		return 0, fmt.Errorf("give back addresses of IPAMClaim %s: %w", key, err)
	}
	if !settled {
		return claimsEvery, nil
	}
	return 0, c.kept.Remove(string(owner))
}

// tell writes into the claims a Pod names which addresses they have.
func (c *claims) tell(ctx context.Context, box *record.Sandbox) error {
	var errs []error
	for _, a := range box.Attachments {
		if a.Stage != record.Attached || a.Selection == nil || a.Selection.IPAMClaimReference == "" {
			continue
		}
		result, err := chain.Result(a)
		if err != nil || result == nil {
			errs = append(errs, err)
			continue
		}
		var ips []string
		for _, ip := range result.IPs {
			ips = append(ips, ip.Address.String())
		}
		errs = append(errs, c.write(ctx, store.Key{Namespace: box.Pod.Namespace, Name: a.Selection.IPAMClaimReference}, ips))
	}
	return errors.Join(errs...)
}

// write sets status.ips of a claim, if we have not done so already.
func (c *claims) write(ctx context.Context, key store.Key, ips []string) error {
	text := strings.Join(ips, ",")
	c.mu.Lock()
	told := c.told[key] == text
	c.mu.Unlock()
	if told {
		return nil
	}
	_, err := c.api.Patch(ctx, networks.ClaimKind, key, map[string]any{"status": map[string]any{"ips": ips}}, store.Precondition{}, "status")
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("write status of IPAMClaim %s: %w", key, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told[key] = text
	return nil
}
