package chain

import (
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// claims knows what the sandboxes of this machine share: bridges, the subnets
// of the one masquerade table, and the MACs that were asked for. It is a digest
// of the records, read once at start and kept up with them.
type claims struct {
	// kernel is held from the look at something shared to the claim on it, and
	// while what nobody claims is deleted, so that no sandbox loses what it has
	// just claimed.
	kernel sync.Mutex

	// table is held while the masquerade table is set; it guards tableHas, what
	// it was last set to, and whether that is known.
	table      sync.Mutex
	tableHas   []netip.Prefix
	tableKnown bool

	// mu guards what follows.
	mu        sync.Mutex
	sandboxes map[string]claim
	// attaching are the sandboxes, by owner of addresses, that are being attached:
	// what they take stands in no record yet.
	attaching map[ipam.Owner][]string
	pods      map[string]record.Pod
}

// claim is what one sandbox claims.
type claim struct {
	shared     []sharedLink
	masquerade []netip.Prefix
	macs       map[macKey]netstate.IfName
	leases     []record.Lease
	leasedBy   []netstate.IfName // of each of leases
	stages     []record.Stage    // of its attachments
	vm         string            // whose launcher it is, with the namespace
}

// sharedLink is a link of the host that several attachments stand on.
type sharedLink struct {
	name  netstate.IfName
	kind  netstate.Kind
	alias string
}

type macKey struct{ network, mac string }

func newClaims() *claims {
	return &claims{sandboxes: map[string]claim{}, attaching: map[ipam.Owner][]string{}, pods: map[string]record.Pod{}}
}

// introduce tells whose a sandbox is, before it claims anything: what it holds
// already may be what another one is refused.
func (c *claims) introduce(id string, pod record.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pods[id] = pod
}

// nameOf is what people call a sandbox: its Pod.
func (c *claims) nameOf(id string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if pod := c.pods[id]; pod.Name != "" {
		return "Pod " + pod.String()
	}
	return "sandbox " + id
}

// holderName is what people call the owner of an address.
func (c *claims) holderName(owner ipam.Owner) string {
	if namespace, name, _, ok := ipam.ParseClaimOwner(owner); ok {
		return "IPAMClaim " + namespace + "/" + name
	}
	if namespace, pod, ifName, ok := ipam.ParseStickyOwner(owner); ok {
		return "Pod name " + namespace + "/" + pod + " on " + ifName
	}
	if namespace, name, ok := ipam.ParseNICOwner(owner); ok {
		return "NICIdentity " + namespace + "/" + name
	}
	if mac, ok := ipam.ParseQuarantineOwner(owner); ok {
		return ipam.QuarantineName(mac)
	}
	id, ifName, _ := strings.Cut(string(owner), "/") // as ipam.AttachmentOwner joins them
	return c.nameOf(id) + " on " + ifName
}

// group is what people call the likes of the owner of an address.
func (c *claims) group(owner ipam.Owner) string {
	if namespace, _, _, ok := ipam.ParseClaimOwner(owner); ok {
		return ipam.Group("IPAMClaim", namespace)
	}
	if namespace, _, ok := ipam.ParseNICOwner(owner); ok {
		return ipam.Group("VM NIC", namespace)
	}
	if _, ok := ipam.ParseQuarantineOwner(owner); ok {
		return "strangers"
	}
	id, _, _ := strings.Cut(string(owner), "/") // as ipam.AttachmentOwner joins them
	c.mu.Lock()
	defer c.mu.Unlock()
	if pod := c.pods[id]; pod.Name != "" {
		return ipam.Group("Pod", pod.Namespace)
	}
	return "sandboxes of no Pod"
}

// set replaces what a sandbox claims by what its record says; nil: nothing.
func (c *claims) set(id string, box *record.Sandbox) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if box == nil || len(box.Attachments) == 0 {
		delete(c.sandboxes, id)
		delete(c.pods, id)
		return
	}
	c.pods[id] = box.Pod
	mine := claim{macs: map[macKey]netstate.IfName{}, vm: vmOf(box)}
	for _, a := range box.Attachments {
		for _, l := range a.Plan.Host.Links {
			if l.Presence == netstate.Shared {
				mine.shared = append(mine.shared, sharedLink{l.Name, l.Kind, l.Alias})
			}
		}
		mine.stages = append(mine.stages, a.Stage)
		mine.masquerade = append(mine.masquerade, a.Masquerade...)
		for _, l := range a.Leases {
			mine.leases, mine.leasedBy = append(mine.leases, l), append(mine.leasedBy, a.Interface)
		}
		if a.Selection != nil && a.Selection.MAC != "" {
			mine.macs[macKey{a.Network, a.Selection.MAC}] = a.Interface
		}
	}
	c.sandboxes[id] = mine
}

// drop forgets a sandbox and gives what it claimed.
func (c *claims) drop(id string) claim {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := c.sandboxes[id]
	delete(c.sandboxes, id)
	delete(c.pods, id)
	return held
}

// vmOf names the VM whose launcher a sandbox is; empty: it is none.
func vmOf(box *record.Sandbox) string {
	if box.VM == "" {
		return ""
	}
	return box.Pod.Namespace + "/" + box.VM
}

// macHolder says who else asked for that MAC on that network. Launchers of one VM have
// the same.
func (c *claims) macHolder(box *record.Sandbox, network, mac string) (sandbox string, ifName netstate.IfName, held bool) {
	vm := vmOf(box)
	c.mu.Lock()
	defer c.mu.Unlock()
	for other, its := range c.sandboxes {
		if ifName, ok := its.macs[macKey{network, mac}]; ok && other != box.ID && (vm == "" || vm != its.vm) {
			return other, ifName, true
		}
	}
	return "", "", false
}

// masquerade gives the subnets of all sandboxes, sorted, each once.
func (c *claims) masquerade() []netip.Prefix {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []netip.Prefix
	for _, its := range c.sandboxes {
		out = append(out, its.masquerade...)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// unclaimed gives those of links that nobody claims any more.
func (c *claims) unclaimed(links []sharedLink) []sharedLink {
	c.mu.Lock()
	defer c.mu.Unlock()
	claimed := map[netstate.IfName]bool{}
	for _, its := range c.sandboxes {
		for _, l := range its.shared {
			claimed[l.name] = true
		}
	}
	var out []sharedLink
	for _, l := range links {
		if !claimed[l.name] && !slices.Contains(out, l) {
			out = append(out, l)
		}
	}
	return out
}

// podSandboxes are the sandboxes of Pods that have a UID.
func (c *claims) podSandboxes() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for id := range c.sandboxes {
		if c.pods[id].UID != "" {
			out = append(out, id)
		}
	}
	return out
}

// knows says whether the sandbox's record was read.
func (c *claims) knows(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.sandboxes[id]
	return ok
}

// claimsShared says whether any sandbox claims the shared link or one that
// stands under the same owner.
func (c *claims) claimsShared(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, its := range c.sandboxes {
		for _, l := range its.shared {
			if string(l.name) == name {
				return true
			}
		}
	}
	return false
}
