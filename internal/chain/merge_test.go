package chain

import (
	"net/netip"
	"testing"

	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/nft"
)

// TestMergePlans: links and tables keep whose they are, and the whole shares nothing
// with its parts, which are kept in records.
func TestMergePlans(t *testing.T) {
	plan := func(name netstate.IfName, alias string) netstate.Plan {
		p := netstate.Plan{Alias: alias}
		p.Pod.Links = append(make([]netstate.Link, 0, 8), netstate.Link{Name: name, Presence: netstate.Owned})
		p.Pod.Addrs = append(make([]netstate.Addr, 0, 8), netstate.Addr{Link: name, Prefix: netip.MustParsePrefix("10.0.0.1/24")})
		p.Host.Links = []netstate.Link{{Name: "br0", Presence: netstate.Shared, Alias: "shared"}, {Name: "eth0", Presence: netstate.Existing}}
		p.Host.Tables = []nft.Table{{Name: "t-" + string(name)}}
		return p
	}
	a, b := plan("net1", "one"), plan("net2", "two")
	wantA, wantB := a.String(), b.String()
	all := mergePlans(a, b)
	for i, want := range []string{"one", "two"} {
		if l := all.Pod.Links[i]; l.Alias != want {
			t.Errorf("link %s is marked %q, want %q", l.Name, l.Alias, want)
		}
		if table := all.Host.Tables[i]; table.Alias != want {
			t.Errorf("table %s is marked %q, want %q", table.Name, table.Alias, want)
		}
		if l := all.Host.Links[2*i]; l.Alias != "shared" {
			t.Errorf("a shared link is marked %q", l.Alias)
		}
		if l := all.Host.Links[2*i+1]; l.Alias != "" {
			t.Errorf("a stranger's link is marked %q", l.Alias)
		}
	}
	all.Pod.Links[0].Name, all.Pod.Addrs[0].Link = "changed", "changed"
	_ = append(all.Pod.Links[:1], netstate.Link{Name: "grown"})
	if a.String() != wantA || b.String() != wantB || a.Pod.Links[:2][1].Name != "" {
		t.Errorf("the parts have changed:\n%s\n%s", a, b)
	}
	if empty := mergePlans(); len(empty.Pod.Links) > 0 {
		t.Errorf("nothing gives %s", empty)
	}
}
