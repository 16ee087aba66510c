package whereabouts

import "github.com/weftnet/weft/api/whereabouts"

// ConfigMap says, in weft's namespace, who gives addresses of networks with ipam of
// type whereabouts. The controller writes it, nodes read it, and the API server goes
// by it: the policy weft-whereabouts refuses what others than those write. Where it
// is not there, nobody was ever in doubt.
const ConfigMap = "weft-whereabouts"

// Keys of the ConfigMap's data.
const (
	givesKey     = "gives"
	toKey        = "to"
	namespaceKey = "namespace"
)

// Giver is who gives addresses.
//
//	                takeOver
//	Whereabouts ──────▶ Nobody ───▶ Weft      Whereabouts ─────────▶ Mixed
//	     ▲                           │                     mixed       │
//	     └───────── Nobody ◀─────────┘              Nobody ◀───────────┘
//	                handBack                           │  takeOver, handBack
//	                                                   ▼
//	                                           Weft, Whereabouts
//
// From Weft to Mixed the way is that of handBack.
type Giver string

// Givers.
const (
	// ByWhereabouts: nodes without its plugin give none.
	ByWhereabouts Giver = "whereabouts"
	// ByNobody: leases are being made of Whereabouts' objects, or the other way.
	ByNobody Giver = "nobody"
	// ByWeft: all that Whereabouts gave is leased; its plugin is refused new ones.
	ByWeft Giver = "weft"
	// Mixed: both do, weft's nodes each address after they reserved it as Whereabouts
	// does (Lock).
	Mixed Giver = "mixed"
)

// Giving is what the ConfigMap says. The zero value: it is not there.
type Giving struct {
	By Giver
	// To is who will give addresses when it is nobody.
	To Giver
	// Namespace is where Whereabouts' objects are.
	Namespace string
}

// ParseGiving reads the data of the ConfigMap.
func ParseGiving(data map[string]any) Giving {
	text := func(key string) string {
		value, _ := data[key].(string)
		return value
	}
	return Giving{By: Giver(text(givesKey)), To: Giver(text(toKey)), Namespace: text(namespaceKey)}
}

// Data gives it as the data of the ConfigMap.
func (g Giving) Data() map[string]any {
	data := map[string]any{givesKey: string(g.By), namespaceKey: g.Namespace}
	if g.To != "" {
		data[toKey] = string(g.To)
	}
	return data
}

// ProbeName is the name of a reservation that is no address: with it the controller
// finds out whether the API server refuses what Whereabouts writes.
const ProbeName = "weft-probe"

// Probe is a reservation that the policy lets weft's controller make, and the same
// one as Whereabouts would have it, which the policy must refuse.
func Probe(namespace string) (allowed, refused map[string]any) {
	mine := whereabouts.Reservation{Meta: MirrorOptions{Namespace: namespace}.meta(ProbeName)}
	allowed = mine.Object()
	mine.Labels, mine.PodRef = nil, "weft/probe"
	return allowed, mine.Object()
}
