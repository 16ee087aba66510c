package bench

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
)

// TestNodes: what is compared gives Pods the same, and takes it back.
func TestNodes(t *testing.T) {
	api := newKubeAPI(t)
	bin := buildPrograms(t)
	for i, make := range []func(testing.TB, *kubeAPI, programs, int) *node{weftNode, floorNode, thickNode, thinNode} {
		n := make(t, api, bin, i)
		n.start()
		for _, l := range []load{{nativePrimary, "bridge", 3, 1}, {nativePrimary, "macvlan", 1, 1}, {foreignPrimary, "bridge", 2, 1}} {
			if n.name == floorName && l.primary == foreignPrimary {
				continue // it has the primary alone
			}
			pods := api.pods(n.name, l.kind, l.n, 1)
			boxes := n.sandboxes(l.primary, pods)
			ns, err := linux.OpenNS(boxes[0].netns)
			if err != nil {
				t.Fatal(err)
			}
			n.atOnce("ADD", boxes)
			n.told(pods, 1+l.n)
			want := []netstate.IfName{"eth0"}
			if n.name == floorName {
				want = nil
			}
			for i := range 1 + l.n - len(want) {
				want = append(want, netstate.IfName(fmt.Sprintf("net%d", i+1)))
			}
			if got := inside(t, ns); !slices.Equal(got, want) {
				t.Errorf("%s: %+v gives the Pod %v, want %v", n.name, l, got, want)
			}
			addresses := strings.Count(run(t, ns, "ip", "-4", "-o", "addr", "show", "scope", "global"), "\n")
			if addresses != len(want) {
				t.Errorf("%s: %+v gives the Pod %d addresses, want %d", n.name, l, addresses, len(want))
			}
			n.atOnce("DEL", boxes)
			if got := inside(t, ns); len(got) > 0 {
				t.Errorf("%s: %+v leaves %v", n.name, l, got)
			}
			if err := ns.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// inside lists the links of a Pod, by name.
func inside(t *testing.T, ns *linux.NS) []netstate.IfName {
	t.Helper()
	var names []netstate.IfName
	for _, l := range links(t, ns) {
		if l.Name != "lo" {
			names = append(names, l.Name)
		}
	}
	slices.Sort(names)
	return names
}
