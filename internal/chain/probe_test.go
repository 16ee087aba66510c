package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
)

// The stranger of these tests is the machine outside of newWorld, whose kernel answers.
const lanRange = `"ipam":{"type":"whereabouts","range":"192.0.2.9-192.0.2.11/24","ipRanges":[{"range":"fd02::9-fd02::11/64"}]%s}`

// probed is a leased world on whose LAN a machine uses 192.0.2.9 to .10 and fd02::9 to
// ::10, of a range that has one more of each, and who was told of it.
type probed struct {
	*leased
	mac       string
	strangers []Stranger
}

func newProbed(t *testing.T) *probed {
	t.Helper()
	w := &probed{leased: newLeased(t)}
	outside := w.pod("outside")
	w.in(outside, "ip", "addr", "add", "192.0.2.10/24", "dev", "lan")
	for _, addr := range []string{"fd02::9", "fd02::a", "fd02::b", "fd02::c", "fd02::d", "fd02::e", "fd02::f", "fd02::10"} {
		w.in(outside, "ip", "addr", "add", addr+"/64", "dev", "lan", "nodad")
	}
	var list []struct {
		Address string `json:"address"`
	}
	w.json(outside, &list, "ip", "-j", "link", "show", "dev", "lan")
	w.mac = list[0].Address
	options := w.cluster
	w.cluster = func(o *Options) {
		options(o)
		o.Strange = func(s Stranger) { w.strangers = append(w.strangers, s) }
	}
	w.restart()
	w.nads.add("demo/lan", `{"cniVersion":"1.0.0","type":"macvlan","master":"uplink",`+fmt.Sprintf(lanRange, "")+`}`)
	return w
}

// quarantined lists the addresses in quarantine, with who uses them.
func (w *leased) quarantined() (out []string) {
	w.t.Helper()
	list, _, err := w.api.List(context.Background(), v1alpha1.AddressLeaseKind, store.Selector{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, obj := range list {
		l, err := v1alpha1.LeaseFromObject(obj)
		if err != nil {
			w.t.Fatal(err)
		}
		if l.Spec.Owner.Kind == v1alpha1.OwnerQuarantine {
			out = append(out, fmt.Sprintf("%s %s", l.Spec.IP, l.Spec.Owner.Name))
			if l.Spec.Since.IsZero() || l.Spec.Node == "" || l.Spec.Sandbox != "" {
				w.t.Errorf("quarantine of %s: %+v", l.Spec.IP, l.Spec)
			}
		}
	}
	slices.Sort(out)
	return out
}

// TestStrangerHasAddress: an address that another machine uses is given to nobody, and
// the Pod gets one that is free; on a macvlan, and on a bridge to the outside.
func TestStrangerHasAddress(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"macvlan", "bridge"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newProbed(t)
			// One address of each family is free.
			w.nads.add("demo/lan", `{"cniVersion":"1.0.0","type":"macvlan","master":"uplink",`+strings.Replace(fmt.Sprintf(lanRange, ""), "fd02::9-fd02::11", "fd02::f-fd02::11", 1)+`}`)
			if kind == "bridge" {
				w.in(w.host, "ip", "link", "add", "br7", "type", "bridge")
				w.in(w.host, "ip", "link", "set", "br7", "up")
				w.in(w.host, "ip", "link", "set", "uplink", "master", "br7")
				w.nads["demo/lan"].Config = strings.Replace(w.nads["demo/lan"].Config, `"macvlan","master":"uplink"`, `"bridge","bridge":"br7"`, 1)
			}
			w.add("a", "lan")
			w.same("addresses", w.addrs(w.pod("a"), "net1"), []string{"192.0.2.11/24", "fd02::11/64"})
			taken := w.quarantined()
			for _, s := range w.strangers {
				if string(s.MAC) != w.mac || !s.Quarantined || s.Pod.Name != "pod-a" || s.Network != "demo/lan" || s.Interface != "net1" {
					t.Errorf("told of %+v", s)
				}
				if !slices.Contains(taken, s.Addr.String()+" "+w.mac) {
					t.Errorf("%s is not in quarantine: %v", s.Addr, taken)
				}
			}
			w.same("conflicts told", len(w.strangers), len(taken))
			if box, err := w.engine.Get("a"); err != nil || len(box.Attachments[1].Leases) != 2 {
				t.Errorf("record: %+v, %v", box, err)
			}
			// Everybody meets who is left, and nobody gets what is in quarantine, also after
			// a restart.
			w.restart()
			err := w.refused("b", "lan", "all 3 addresses of ")
			if !errors.Is(err, ipam.ErrExhausted) {
				t.Errorf("got %v", err)
			}
			if got := w.quarantined(); len(got) < 2 {
				t.Errorf("in quarantine: %v", got)
			}
			if err := w.engine.Del(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			w.podEmpty("a")
			w.same("leases", len(w.held()), len(w.quarantined()))
		})
	}
}

// TestStrangerHasFixedAddress: who asks for one address is told who has it, and the
// next try may get it.
func TestStrangerHasFixedAddress(t *testing.T) {
	t.Parallel()
	w := newProbed(t)
	const fixed = `[{"name":"lan","ips":["192.0.2.10/24","fd02::11/64"]}]`
	w.nads["demo/lan"].Config = strings.Replace(w.nads["demo/lan"].Config, `"macvlan",`, `"macvlan","capabilities":{"ips":true},`, 1)
	err := w.refused("a", fixed, `"192.0.2.10": is in use by `+w.mac, "demo/lan")
	if !errors.Is(err, ipam.ErrTaken) {
		t.Errorf("got %v", err)
	}
	w.same("told", len(w.strangers), 1)
	w.nothing("a")
	w.in(w.pod("outside"), "ip", "addr", "del", "192.0.2.10/24", "dev", "lan")
	if _, err := w.engine.Add(t.Context(), w.request("a", fixed)); err != nil {
		t.Fatal(err)
	}
	w.same("addresses", w.addrs(w.pod("a"), "net1"), []string{"192.0.2.10/24", "fd02::11/64"})
}

// TestWhoIsAsked: addresses of networks on which nobody else is are not asked for, nor
// those of who does not want it; a network's own word goes before.
func TestWhoIsAsked(t *testing.T) {
	t.Parallel()
	w := newProbed(t)
	one := func(kind, ipam string) string { return `{"cniVersion":"1.0.0",` + kind + `,"ipam":{` + ipam + `}}` }
	const (
		macvlan   = `"type":"macvlan","master":"uplink"`
		own       = `"type":"bridge","bridge":"own0"`
		taken     = `"type":"whereabouts","range":"192.0.2.9-192.0.2.9/24"`
		local     = `"type":"host-local","ranges":[[{"subnet":"192.0.2.0/24","rangeStart":"192.0.2.9","rangeEnd":"192.0.2.9"}]]`
		static    = `"type":"static","addresses":[{"address":"192.0.2.9/24"}]`
		ask, hush = `,"addressProbe":true`, `,"addressProbe":false`
	)
	for name, tt := range map[string]struct{ conf, want string }{
		"alone on a bridge":        {one(own, taken), ""},
		"does not want it":         {one(macvlan, taken+hush), ""},
		"each node for itself":     {one(macvlan, local), ""},
		"that wants it":            {one(macvlan, local+ask), `"192.0.2.9": is in use by`},
		"static that wants it":     {one(macvlan, static+ask), `"192.0.2.9": is in use by`},
		"static":                   {one(macvlan, static), ""},
		"alone, and wants it":      {one(own, taken+ask), ""},
		"the cluster's on the LAN": {one(macvlan, taken), "1 by strangers"},
	} {
		id := strings.NewReplacer(" ", "-", ",", "", "'", "").Replace(name)
		w.unquarantine()
		w.nads.add("demo/lan", tt.conf)
		if tt.want != "" {
			w.refused(id, "lan", tt.want)
			continue
		}
		w.add(id, "lan")
		w.same(name, w.addrs(w.pod(id), "net1"), []string{"192.0.2.9/24"})
		if err := w.engine.Del(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
}

// TestGatewayProbe: a gateway that does not answer fails the attachment where that is
// wanted, and one that is there does not.
func TestGatewayProbe(t *testing.T) {
	t.Parallel()
	w := newProbed(t)
	conf := func(kind, gateway string) string {
		return `{"cniVersion":"1.0.0",` + kind + `,"ipam":{"type":"whereabouts","range":"192.0.2.64/24","range_start":"192.0.2.64","gatewayProbe":true,"gateway":"` + gateway + `"}}`
	}
	const macvlan = `"type":"macvlan","master":"uplink"`
	w.nads.add("demo/lan", conf(macvlan, "192.0.2.8"))
	w.refused("a", "lan", `ipam.gateway "192.0.2.8": does not answer`, "gatewayProbe")
	w.nothing("a")
	w.nads.add("demo/lan", conf(macvlan, "192.0.2.9"))
	w.add("b", "lan")
	w.nads.add("demo/lan", conf(`"type":"bridge","bridge":"own0","isGateway":true`, "192.0.2.8"))
	w.add("c", "lan") // the bridge is it
	w.nads.add("demo/lan6", `{"cniVersion":"1.0.0",`+macvlan+`,"ipam":{"type":"host-local","gatewayProbe":true,"ranges":[[{"subnet":"fd02::/64","gateway":"fd02::9","rangeStart":"fd02::100"}]]}}`)
	w.add("d", "lan6")
}

// TestProbedKilledInAdd: whatever step is the last, nothing is lost of a Pod whose
// address somebody else uses.
func TestProbedKilledInAdd(t *testing.T) {
	t.Parallel()
	w := newProbed(t)
	w.nads.add("demo/lan", `{"cniVersion":"1.0.0","type":"macvlan","master":"uplink","ipam":{"type":"whereabouts","range":"192.0.2.50-192.0.2.51/24"}}`)
	// The stranger uses the one that the node tries first.
	w.add("first", "lan")
	tried := w.addrs(w.pod("first"), "net1")[0]
	if err := w.engine.Del(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	w.in(w.pod("outside"), "ip", "addr", "add", tried, "dev", "lan")
	free := map[string]string{"192.0.2.50/24": "192.0.2.51/24", "192.0.2.51/24": "192.0.2.50/24"}[tried]
	w.restart()
	w.namespace("a")
	var steps []string
	walk(t, func(n int) bool {
		at := stopAt(w.engine, n, errKilled)
		_, err := w.engine.Add(t.Context(), w.request("a", "lan"))
		if at() != "" && !errors.Is(err, errKilled) || at() == "" && err != nil {
			t.Fatalf("killed before %q: %v", at(), err)
		}
		steps = append(steps, at())
		w.restart()
		if err := w.engine.Restore(t.Context()); err != nil {
			t.Fatalf("restore after a crash before %s: %v", at(), err)
		}
		if at() != "" && at() != "result written" {
			w.podEmpty("a")
			w.same("leases after a crash before "+at(), len(w.held()), len(w.quarantined()))
		}
		if _, err := w.engine.Add(t.Context(), w.request("a", "lan")); err != nil {
			t.Fatalf("add after a crash before %s: %v", at(), err)
		}
		w.same("addresses", w.addrs(w.pod("a"), "net1"), []string{free})
		if err := w.engine.Del(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		w.podEmpty("a")
		w.same("leases", len(w.held()), len(w.quarantined()))
		w.unquarantine()
		return at() != "" && !t.Failed()
	})
	t.Logf("killed before each of: %s", strings.Join(steps, ", "))
	if !testing.Short() && !slices.Contains(steps, "quarantined") {
		t.Error("never killed after an address was put in quarantine")
	}
}

// unquarantine has everything be free again.
func (w *probed) unquarantine() {
	w.t.Helper()
	list, _, err := w.api.List(context.Background(), v1alpha1.AddressLeaseKind, store.Selector{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, obj := range list {
		if err := w.api.Delete(context.Background(), v1alpha1.AddressLeaseKind, store.KeyOf(obj), store.Precondition{}); err != nil {
			w.t.Fatal(err)
		}
	}
	w.restart()
}

// TestAnnounced: neighbours that knew another machine under an address learn at once
// that a Pod has it.
func TestAnnounced(t *testing.T) {
	t.Parallel()
	w := newProbed(t)
	w.nads.add("demo/lan", `{"cniVersion":"1.0.0","type":"macvlan","master":"uplink","ipam":{"type":"whereabouts","range":"192.0.2.40-192.0.2.40/24","ipRanges":[{"range":"fd02::40-fd02::40/64"}]}}`)
	outside := w.pod("outside")
	const before = "02:00:00:00:00:77"
	for _, addr := range []string{"192.0.2.40", "fd02::40"} {
		w.in(outside, "ip", "neigh", "add", addr, "lladdr", before, "dev", "lan", "nud", "stale")
	}
	box := w.add("a", "lan")
	var mac string
	for _, l := range box.Attachments[1].Links {
		mac = string(l.MAC)
	}
	for _, addr := range []string{"192.0.2.40", "fd02::40"} {
		got := ""
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if got = w.in(outside, "ip", "neigh", "show", addr); strings.Contains(got, mac) {
				break
			}
		}
		if !strings.Contains(got, mac) {
			t.Errorf("neighbour knows %s as %s, want %s", addr, got, mac)
		}
	}
}
