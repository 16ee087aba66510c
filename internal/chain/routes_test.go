package chain

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// twoStack is a bridge network with default routes of its own in both families.
const twoStack = `{"cniVersion":"1.0.0","type":"bridge","bridge":"two0","isDefaultGateway":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.20.0.0/24"}],[{"subnet":"fd20::/64"}]]}}`

// checkAgreement holds kernel, result, record and status against each other.
func checkAgreement(t *testing.T, w *world, id string) {
	t.Helper()
	box, err := w.records.Load(id)
	if err != nil {
		t.Fatal(err)
	}
	status, err := Status(box)
	if err != nil {
		t.Fatal(err)
	}
	var inRecord, inResult, inStatus []string
	for i, a := range box.Attachments {
		for _, r := range a.HasDefaults {
			inRecord = append(inRecord, r.Via.String()+" dev "+string(a.Interface))
		}
		result, err := Result(a)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range result.Routes {
			if !isDefault(r) {
				continue
			}
			if r.GW == nil && len(a.HasDefaults) == 1 { // by the gateway of its address
				r.GW = toIP(a.HasDefaults[0].Via)
			}
			inResult = append(inResult, r.GW.String()+" dev "+string(a.Interface))
		}
		for _, gw := range status[i].Gateway {
			inStatus = append(inStatus, gw+" dev "+status[i].Interface)
		}
	}
	kernel := w.defaultsOf(w.pod(id))
	for _, list := range [][]string{kernel, inRecord, inResult, inStatus} {
		slices.Sort(list)
	}
	w.same("record and kernel", inRecord, kernel)
	w.same("result and kernel", inResult, kernel)
	w.same("status and kernel", inStatus, kernel)
	if err := w.engine.Check(t.Context(), id); err != nil {
		t.Errorf("check: %v", err)
	}
}

func TestDefaultRoutePerFamily(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, annotation string
		want             []string
	}{
		{"nobody asks: the first one wins", `two`, []string{"10.88.0.1 dev eth0", "fd88::1 dev eth0"}},
		{"v4 only", `[{"name":"two","default-route":["10.20.0.1"]}]`, []string{"10.20.0.1 dev net1", "fd88::1 dev eth0"}},
		{"v6 only", `[{"name":"two","default-route":["fd20::1"]}]`, []string{"10.88.0.1 dev eth0", "fd20::1 dev net1"}},
		{"both", `[{"name":"two","default-route":["10.20.0.99","fd20::99"]}]`, []string{"10.20.0.99 dev net1", "fd20::99 dev net1"}},
		{"by two networks", `[{"name":"two","default-route":["10.20.0.1"]},{"name":"six","default-route":["fd21::1"]}]`, []string{"10.20.0.1 dev net1", "fd21::1 dev net2"}},
		{"the network's own", `[{"name":"two","default-route":[]}]`, []string{"10.20.0.1 dev net1", "fd20::1 dev net1"}},
		{"empty list on a network without", `[{"name":"plain","default-route":[]}]`, []string{"10.88.0.1 dev eth0", "fd88::1 dev eth0"}},
	}
	w := newWorld(t)
	w.nads.add("demo/two", twoStack)
	w.nads.add("demo/six", `{"cniVersion":"1.0.0","type":"bridge","bridge":"six0","isGateway":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"fd21::/64"}]]}}`)
	w.nads.add("demo/plain", `{"cniVersion":"1.0.0","type":"bridge","bridge":"p0","ipam":{"type":"host-local","subnet":"10.22.0.0/24"}}`)
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.t = t
			id := string(rune('a' + i))
			w.add(id, tt.annotation)
			got := w.defaultsOf(w.pod(id))
			w.same("default routes", got, tt.want)
			checkAgreement(t, w, id)
			if err := w.engine.Del(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		})
	}
	w.t = t
	w.empty()
}

// TestDefaultRouteOverForeign moves the default route away from a network that
// a real foreign plugin made, and onto it.
func TestDefaultRouteOverForeign(t *testing.T) {
	t.Parallel()
	needPlugin(t, "ptp")
	w := newWorld(t)
	ptp := `{"cniVersion":"1.0.0","name":"p2p","type":"ptp","ipam":{"type":"host-local","dataDir":"` + w.dir + `/host-local","subnet":"10.7.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}}`
	w.nads.add("demo/two", twoStack)
	w.nads.add("demo/p2p", ptp)
	w.add("native-first", `[{"name":"p2p","default-route":["10.7.0.1"]}]`)
	w.same("onto it", w.defaultsOf(w.pod("native-first")), []string{"10.7.0.1 dev net1", "fd88::1 dev eth0"})
	checkAgreement(t, w, "native-first")
	w.defaults = ptp
	w.restart()
	w.add("foreign-first", `[{"name":"two","default-route":["10.20.0.1"]}]`)
	w.same("away from it", w.defaultsOf(w.pod("foreign-first")), []string{"10.20.0.1 dev net1", "fd20::1 dev net1"})
	box, err := w.records.Load("foreign-first")
	if err != nil {
		t.Fatal(err)
	}
	w.same("record of the foreign one", len(box.Attachments[0].HasDefaults), 0)
	for _, id := range []string{"native-first", "foreign-first"} {
		if err := w.engine.Del(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	w.empty()
}

func TestDefaultRouteMovesWithHotplug(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/two", twoStack)
	w.add("a", "")
	before := w.defaultsOf(w.pod("a"))
	if _, err := w.engine.Attach(t.Context(), "a", netattach.Selection{Namespace: "demo", Name: "two", Interface: "x0", DefaultRoute: []netip.Addr{netip.MustParseAddr("10.20.0.1")}}); err != nil {
		t.Fatal(err)
	}
	w.same("with it", w.defaultsOf(w.pod("a")), []string{"10.20.0.1 dev x0", "fd88::1 dev eth0"})
	checkAgreement(t, w, "a")
	if _, err := w.engine.Detach(t.Context(), "a", "x0"); err != nil {
		t.Fatal(err)
	}
	w.same("without it again", w.defaultsOf(w.pod("a")), before)
	checkAgreement(t, w, "a")
	// A failing hotplug leaves the routes as they were, too.
	w.nads.add("demo/broken", strings.Replace(twoStack, `"type":"bridge"`, `"plugins":[{"type":"bridge"`, 1)+`,{"type":"alpha","dir":"`+w.rec()+`","behave":{"ADD":"fail"}}]}`)
	if _, err := w.engine.Attach(t.Context(), "a", netattach.Selection{Namespace: "demo", Name: "broken", Interface: "x0", DefaultRoute: []netip.Addr{netip.MustParseAddr("10.20.0.1")}}); err == nil {
		t.Fatal("attached")
	}
	w.same("after a failure", w.defaultsOf(w.pod("a")), before)
	w.same("links after a failure", w.links(w.pod("a")), []string{"eth0"})
	checkAgreement(t, w, "a")
	w.end("a")
}

func TestUnreachableGateway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/two", twoStack)
	w.nads.add("demo/l2", `{"type":"bridge","bridge":"l0"}`)
	w.refused("a", `[{"name":"two","default-route":["10.21.0.1"]}]`, `networks[0].default-route[0] "10.21.0.1": is in no subnet of network demo/two (10.20.0.0/24, fd20::/64); name a gateway on that network`)
	w.refused("b", `[{"name":"l2","default-route":["10.21.0.1"]}]`, `the interface has no address`)
	w.empty()
}

func TestSteer(t *testing.T) {
	t.Parallel()
	route := func(gw string, metric int) netstate.Route {
		via := netip.MustParseAddr(gw)
		dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if via.Is6() {
			dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		return netstate.Route{Dst: dst, Via: via, Metric: metric}
	}
	own := func(routes ...netstate.Route) *record.Attachment { return &record.Attachment{Defaults: routes} }
	asks := func(a *record.Attachment, gws ...string) *record.Attachment {
		a.Selection = &netattach.Selection{DefaultRoute: []netip.Addr{}}
		for _, gw := range gws {
			a.Selection.DefaultRoute = append(a.Selection.DefaultRoute, netip.MustParseAddr(gw))
		}
		raw, _ := json.Marshal(map[string]any{"cniVersion": "1.0.0", "ips": []any{map[string]any{"address": "10.0.0.5/8"}, map[string]any{"address": "fd00::5/8"}}})
		a.Result = raw
		return a
	}
	tests := []struct {
		name string
		list []*record.Attachment
		want string
	}{
		{"none", []*record.Attachment{own(), own()}, "[[] []]"},
		{"same metric: first", []*record.Attachment{own(route("10.0.0.1", 0)), own(route("10.0.0.2", 0))}, "[[10.0.0.1] []]"},
		{"two metrics: both", []*record.Attachment{own(route("10.0.0.1", 0)), own(route("10.0.0.2", 100))}, "[[10.0.0.1] [10.0.0.2]]"},
		{"IPv6 without metric is 1024", []*record.Attachment{own(route("fd00::1", 0)), own(route("fd00::2", 1024))}, "[[fd00::1] []]"},
		{"explicit", []*record.Attachment{own(route("10.0.0.1", 0), route("fd00::1", 0)), asks(own(), "10.0.0.9")}, "[[fd00::1] [10.0.0.9]]"},
		{"explicit before empty list", []*record.Attachment{asks(own(route("10.0.0.1", 0))), asks(own(), "10.0.0.9")}, "[[] [10.0.0.9]]"},
		{"empty list keeps its own", []*record.Attachment{own(route("10.0.0.1", 0)), asks(own(route("10.0.0.2", 0)))}, "[[] [10.0.0.2]]"},
		{"empty list without own", []*record.Attachment{own(route("10.0.0.1", 0)), asks(own())}, "[[10.0.0.1] []]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := steer(tt.list, true)
			if err != nil {
				t.Fatal(err)
			}
			text := make([]string, len(got))
			for i, routes := range got {
				var vias []string
				for _, r := range routes {
					vias = append(vias, r.Via.String())
				}
				text[i] = "[" + strings.Join(vias, " ") + "]"
			}
			if joined := "[" + strings.Join(text, " ") + "]"; joined != tt.want {
				t.Errorf("got %s, want %s", joined, tt.want)
			}
		})
	}
}
