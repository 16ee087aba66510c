package dhcp

import (
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/weftnet/weft/internal/netstate"
)

// Protocol is one of the protocols served on a NIC.
type Protocol string

// The protocols of a transaction.
const (
	DHCPv4 Protocol = "dhcp4"
	DHCPv6 Protocol = "dhcp6"
	RA     Protocol = "ra"
)

// historyLen is how many transactions are kept per NIC: a few boots.
const historyLen = 32

// Exchange is one kind of request and what it was met with; Answer is "" for
// silence.
type Exchange struct {
	Protocol Protocol
	Request  string
	Answer   string
}

// Transaction is one request of a guest and its answer, for `weft describe`.
type Transaction struct {
	Time time.Time
	Exchange
	// Client is the MAC the request came from.
	Client netstate.MAC
	// XID is the client's transaction id; 0 for router advertisements.
	XID uint32
	// Requested is the address the client asked for or holds, Given the one it
	// got; zero: none.
	Requested, Given netip.Addr
	// Reason says why, if the answer is not the plain yes.
	Reason string
}

// Stats counts what one NIC's server did since it was made.
type Stats struct {
	// Exchanges counts requests by kind and answer, and unsolicited router
	// advertisements under the request "".
	Exchanges map[Exchange]uint64
	// Malformed counts frames that are no message of their protocol.
	Malformed uint64
	// SendErrors counts answers the device did not take.
	SendErrors uint64
	// Opened counts how often the socket was opened: more than once if the device
	// was made anew.
	Opened uint64
}

// history remembers. It is safe for concurrent use.
type history struct {
	mu sync.Mutex // guards all below
	// ring holds the latest transactions, the oldest at next once it is full.
	ring  []Transaction
	next  int
	stats Stats
}

func (h *history) add(t Transaction) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.countLocked(t.Exchange)
	if len(h.ring) < historyLen {
		h.ring = append(h.ring, t)
		return
	}
	h.ring[h.next] = t
	h.next = (h.next + 1) % historyLen
}

func (h *history) count(e Exchange) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.countLocked(e)
}

func (h *history) countLocked(e Exchange) {
	if h.stats.Exchanges == nil {
		h.stats.Exchanges = make(map[Exchange]uint64)
	}
	h.stats.Exchanges[e]++
}

// note changes the plain counters.
func (h *history) note(change func(*Stats)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(&h.stats)
}

// transactions gives a copy, oldest first.
func (h *history) transactions() []Transaction {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append(append([]Transaction(nil), h.ring[h.next:]...), h.ring[:h.next]...)
}

func (h *history) snapshot() Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	stats := h.stats
	stats.Exchanges = maps.Clone(stats.Exchanges)
	return stats
}
