package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/reconcile"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/kube"
)

// nodeAnnotation names the node that keeps an IPAMClaim's addresses, if that node
// gives them out for itself: such a claim has one node for its life.
const nodeAnnotation = "weft.network/node"

// claims keeps the addresses of IPAMClaims that are unique on this node until the
// claim is deleted: on disk, so that neither a restart nor an API server that is away gives
// them to another Pod.
type claims struct {
	api    *kube.Store
	node   string
	kept   *record.Kept
	engine *chain.Engine // set before the loop runs
	loop   *reconcile.Loop
	log    *slog.Logger
	// writing are refusals that are being told.
	writing sync.WaitGroup

	// keeping is held from the look whether an owner's addresses are used to the end
	// of its file, and while one is written.
	keeping sync.Mutex

	// mu guards told: the addresses in status.ips, by claim.
	mu   sync.Mutex
	told map[ipam.Owner]string
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
	c := &claims{api: a.api, node: opt.Node, kept: kept, told: map[ipam.Owner]string{}, log: opt.Log}
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
	if namespace, name, uid, ok := ipam.ParseClaimOwner(owner); ok {
		c.loop.Add(store.Key{Namespace: namespace, Name: name + "/" + uid})
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

// Claim reads one from the API server.
func (c *claims) Claim(ctx context.Context, namespace, name string) (*netattach.IPAMClaim, error) {
	ctx, cancel := context.WithTimeout(ctx, apiPatience)
	defer cancel()
	key := store.Key{Namespace: namespace, Name: name}
	obj, err := c.api.Get(ctx, networks.ClaimKind, key)
	if unserved(err) {
		return nil, chain.ErrNoClaims
	}
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, unanswered(fmt.Errorf("get IPAMClaim %s: %w", key, err))
	}
	return netattach.ClaimFromObject(obj.Object)
}

// Settle makes a claim this node's if it is nobody's. One of another node is refused.
func (c *claims) Settle(ctx context.Context, claim *netattach.IPAMClaim) error {
	ctx, cancel := context.WithTimeout(ctx, apiPatience)
	defer cancel()
	key := store.Key{Namespace: claim.Namespace, Name: claim.Name}
	for {
		obj, err := c.api.Get(ctx, networks.ClaimKind, key)
		if err != nil {
			return unanswered(fmt.Errorf("get IPAMClaim %s: %w", key, err))
		}
		if node := obj.GetAnnotations()[nodeAnnotation]; node == c.node {
			return nil
		} else if node != "" {
			return &hint.Error{
				Field: "IPAMClaim " + key.String(), Problem: "has its addresses on node " + node + ", where alone they are unique",
				Remedy: "run the Pod there, or make the addresses unique in the cluster: ipam of type whereabouts, or host-local with clusterWide",
			}
		}
		mine := map[string]any{"metadata": map[string]any{"annotations": map[string]any{nodeAnnotation: c.node}}}
		_, err = c.api.Patch(ctx, networks.ClaimKind, key, mine, store.Precondition{UID: obj.GetUID(), Revision: obj.GetResourceVersion()})
		if err == nil {
			return nil
		}
		if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) { // else somebody was faster: look again
			return unanswered(fmt.Errorf("take IPAMClaim %s: %w", key, err))
		}
	}
}

// Refused writes into a claim that has no addresses yet why it gets none.
func (c *claims) Refused(claim *netattach.IPAMClaim, reason string, cause error) {
	if len(claim.IPs) > 0 {
		return // the Pod's event says it
	}
	told := *claim
	told.Conditions = []netattach.Condition{{
		Type: netattach.ClaimCondition, Status: "False", Reason: reason, Message: cause.Error(), LastTransitionTime: time.Now().UTC().Format(time.RFC3339),
	}}
	for _, is := range claim.Conditions {
		if is.Type != netattach.ClaimCondition {
			told.Conditions = append(told.Conditions, is)
		} else if is.Status == "False" && is.Reason == reason && is.Message == cause.Error() {
			return
		}
	}
	key := store.Key{Namespace: claim.Namespace, Name: claim.Name}
	c.writing.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), writePatience)
		defer cancel()
		pre := store.Precondition{UID: types.UID(claim.UID), Revision: claim.Revision} // else it was told something newer
		if _, err := c.api.Patch(ctx, networks.ClaimKind, key, told.StatusPatch(), pre, "status"); err != nil && !errors.Is(err, store.ErrConflict) {
			c.log.Warn("an IPAMClaim could not be told why it gets no addresses", "claim", key.String(), "err", err)
		}
	})
}

// reconcile gives a claim's addresses back once it is deleted and no Pod has them.
func (c *claims) reconcile(ctx context.Context, key store.Key) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, writePatience)
	defer cancel()
	name, uid, _ := strings.Cut(key.Name, "/")
	owner := ipam.ClaimOwner(key.Namespace, name, uid)
	key.Name = name
	obj, err := c.api.Get(ctx, networks.ClaimKind, key)
	if err == nil && (uid == "" || string(obj.GetUID()) == uid) {
		return claimsEvery, nil
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return 0, fmt.Errorf("get IPAMClaim %s: %w", key, err)
	}
	c.mu.Lock()
	delete(c.told, owner)
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
		if a.Stage != record.Attached || a.ClaimOwner == "" || a.Leased {
			continue // weft-controller tells of leases
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
		errs = append(errs, c.write(ctx, ipam.Owner(a.ClaimOwner), ips))
	}
	return errors.Join(errs...)
}

// write sets status.ips of a claim, if we have not done so already.
func (c *claims) write(ctx context.Context, owner ipam.Owner, ips []string) error {
	text := strings.Join(ips, ",")
	c.mu.Lock()
	told := c.told[owner] == text
	c.mu.Unlock()
	if told {
		return nil
	}
	namespace, name, uid, _ := ipam.ParseClaimOwner(owner)
	key := store.Key{Namespace: namespace, Name: name}
	_, err := c.api.Patch(ctx, networks.ClaimKind, key, map[string]any{"status": map[string]any{"ips": ips}}, store.Precondition{UID: types.UID(uid)}, "status")
	if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrConflict) { // that claim is gone
		return fmt.Errorf("write status of IPAMClaim %s: %w", key, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told[owner] = text
	return nil
}
