package chain

import (
	"slices"
	"testing"
)

// TestUnknownKeys: what the plugins of a kind pass over fails no Pod; it is told
// of once, however many Pods there are.
func TestUnknownKeys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/odd", `{"cniVersion":"1.0.0","type":"bridge","bridge":"o0","colour":"red","ipam":{"type":"host-local","subnet":"10.6.0.0/24","range_start":"10.6.0.9"}}`)
	w.nads.add("demo/lan", `{"type":"macvlan","master":"uplink","mastr":"x","ipam":{"type":"static","addresses":[{"address":"10.7.0.2/24"}],"subnet":"10.7.0.0/24"}}`)
	var told []string
	w.engine.Warned = func(network, warning string) { told = append(told, network+" "+warning) }
	w.add("a", "odd,lan")
	w.add("b", "odd")
	w.same("addresses", [][]string{w.addrs(w.pod("a"), "net1"), w.addrs(w.pod("a"), "net2"), w.addrs(w.pod("b"), "net1")}, [][]string{{"10.6.0.2/24"}, {"10.7.0.2/24"}, {"10.6.0.3/24"}})
	slices.Sort(told)
	w.same("warnings", told, []string{
		"demo/lan ipam.subnet: is no key of ipam type static and has no effect", "demo/lan mastr: is no key of this plugin type and has no effect",
		"demo/odd colour: is no key of this plugin type and has no effect", "demo/odd ipam.range_start: is no key of ipam type host-local and has no effect",
	})
	for _, id := range []string{"a", "b"} {
		if err := w.engine.Del(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	w.empty()
}
