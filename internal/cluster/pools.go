package cluster

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/internal/inventory"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/metrics"
	"github.com/weftnet/weft/internal/store"
)

// pools follows the networks, for the ranges they give addresses of. What a network
// leaves to a file on each node is not known here.
type pools struct {
	// mu guards what follows.
	mu       sync.Mutex
	networks map[store.Key]definition
	round    uint32 // of lists
	synced   bool
	// list is made of networks, when it is asked for; nil: it has to be made.
	list []inventory.Pool
}

// definition is what is known of a NetworkAttachmentDefinition.
type definition struct {
	uid      types.UID
	networks []ipam.Network
	ofVMs    bool // VMs keep their addresses
	takesMAC bool // and their MACs
	round    uint32
}

func newPools() *pools { return &pools{networks: map[store.Key]definition{}} }

// Begin begins a list.
func (p *pools) Begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.round++
}

// Put takes note of a network.
func (p *pools) Put(obj *store.Object) {
	networks := inventory.ClusterWide(inventory.NetworksOf(obj))
	keptByVMs, takesMAC := len(networks) > 0 && inventory.KeptByVMs(obj), inventory.TakesMAC(obj)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.networks[store.KeyOf(obj)] = definition{obj.GetUID(), networks, keptByVMs, takesMAC, p.round}
	p.list = nil
}

// Gone takes note that a network was deleted.
func (p *pools) Gone(obj *store.Object) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.networks, store.KeyOf(obj))
	p.list = nil
}

// Complete ends a list: what did not come is not there.
func (p *pools) Complete() {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.networks, func(_ store.Key, is definition) bool { return is.round != p.round })
	p.list, p.synced = nil, true
}

// All gives the pools; ok is false as long as the networks are not known.
func (p *pools) All() (list []inventory.Pool, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.list == nil {
		keys := slices.SortedFunc(maps.Keys(p.networks), func(a, b store.Key) int { return strings.Compare(a.String(), b.String()) })
		var networks []ipam.Network
		for _, key := range keys {
			networks = append(networks, p.networks[key].networks...)
		}
		p.list = inventory.Pools(networks)
	}
	return p.list, p.synced
}

// KeptByVMs says whether VMs keep their addresses of a network; ok is false as long as
// the networks are not known.
func (p *pools) KeptByVMs(key store.Key) (is, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.networks[key].ofVMs, p.synced
}

// TakesMAC says whether a NIC on a network gets the MAC that it is to have.
func (p *pools) TakesMAC(key store.Key) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.networks[key].takesMAC
}

// UID gives that of a network's definition.
func (p *pools) UID(key store.Key) types.UID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.networks[key].uid
}

// counted is a pool and how full it is.
type counted struct {
	inventory.Pool
	size, used, reserved, conflicts, free float64
}

// usage tells how full each pool is.
func (s *state) usage() (out []counted) {
	list, _ := s.ranges.All()
	reserved, quarantined := s.book.Reserved(), s.book.Quarantined()
	now := time.Now()
	for _, pool := range list {
		spans := pool.Range.Usable()
		usage := s.view.Usage(now, string(pool.Scope), spans)
		one := counted{Pool: pool, size: usage.Size, reserved: count(pool.Range, reserved[string(pool.Scope)])}
		strangers := count(pool.Range, quarantined[string(pool.Scope)]) // who stand among the held
		one.conflicts = float64(usage.Conflicts) + strangers
		one.used = max(0, float64(usage.Held)-one.reserved-strangers)
		one.free = max(0, one.size-float64(usage.Held)-float64(usage.Conflicts))
		out = append(out, one)
	}
	return out
}

// count gives how many of some addresses are of a range.
func count(r ipam.Range, addrs []netip.Addr) (sum float64) {
	for _, addr := range addrs {
		if r.Contains(addr) {
			sum++
		}
	}
	return sum
}

// measured is usage for metrics: of each network apart.
func (s *state) measured() (out []metrics.Pool) {
	told := map[[2]string]bool{}
	for _, pool := range s.usage() {
		text := rangeText(pool.Range)
		for _, network := range pool.Networks {
			if told[[2]string{network, text}] { // two that differ in their holes
				continue
			}
			told[[2]string{network, text}] = true
			out = append(out, metrics.Pool{
				Network: network, Range: text, Used: pool.used, Reserved: pool.reserved, Conflicts: pool.conflicts, Free: pool.free,
			})
		}
	}
	return out
}

// rangeText is how metrics call a range: what it gives, or its subnet if that has
// holes.
func rangeText(r ipam.Range) string {
	spans := r.Usable()
	if len(spans) == 1 {
		return spans[0].String()
	}
	return r.Subnet.String()
}
