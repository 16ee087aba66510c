package chain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/record"
)

// drifts are what people and programs do to a link of a Pod, and what is told of
// it.
var drifts = map[string]struct {
	change []string
	told   string
	// final: no repair, since nothing is there that bears our mark.
	final bool
}{
	"address deleted": {[]string{"ip", "addr", "del", "10.7.0.2/24", "dev", "net1"}, "ip addr add 10.7.0.2/24 dev net1", false},
	"route removed":   {[]string{"ip", "route", "del", "default"}, "ip route add", false},
	"link down":       {[]string{"ip", "link", "set", "net1", "down"}, "ip link set net1 up", false},
	"MTU changed":     {[]string{"ip", "link", "set", "net1", "mtu", "1400"}, "ip link set net1 mtu 1500", false},
	"MAC changed":     {[]string{"ip", "link", "set", "net1", "address", "02:00:00:00:00:99"}, "ip link set net1 address", false},
	"link removed":    {[]string{"ip", "link", "del", "net1"}, "link net1, which is gone", true},
	"link replaced":   {[]string{"sh", "-c", "ip link del net1; ip link add net1 type bridge"}, "another link has that name", true},
	"mark taken off":  {[]string{"ip", "link", "set", "net1", "down", "alias", "other"}, "link net1", true},
}

func told(findings []Finding) string {
	var text []string
	for _, f := range findings {
		if len(f.Lacks) > 0 {
			text = append(text, f.String())
		}
	}
	return strings.Join(text, "\n")
}

func anything(*record.Attachment) bool { return true }

// networksOfDrift are one network by our plugin and by another's: net1.
func networksOfDrift(t *testing.T, w *world) {
	needPlugin(t, "ptp")
	w.nads.add("demo/native", `{"cniVersion":"1.0.0","type":"bridge","bridge":"d0","isDefaultGateway":true,"ipam":{"type":"host-local","subnet":"10.7.0.0/24"}}`)
	w.nads.add("demo/foreign", `{"cniVersion":"1.0.0","name":"p2p","type":"ptp","ipam":{"type":"host-local","dataDir":"`+w.dir+`/host-local","subnet":"10.7.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}}`)
}

func TestDrift(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.defaults = `{"cniVersion":"1.0.0","name":"default","type":"bridge","bridge":"weft0"}`
	w.restart()
	networksOfDrift(t, w)
	for _, network := range []string{"native", "foreign"} {
		for name, tt := range drifts {
			if network == "foreign" && name == "mark taken off" {
				continue // it has none
			}
			t.Run(network+" "+name, func(t *testing.T) {
				w.t = t
				if err := os.RemoveAll(filepath.Join(w.dir, "host-local")); err != nil { // which goes on from its last address
					t.Fatal(err)
				}
				box := w.add("a", network)
				if _, found, err := w.engine.Inspect(t.Context(), "a"); err != nil || told(found) != "" {
					t.Errorf("before: %s (%v)", told(found), err)
				}
				w.in(w.pod("a"), tt.change...)
				_, found, err := w.engine.Inspect(t.Context(), "a")
				if err != nil || !strings.Contains(told(found), tt.told) || strings.Contains(told(found), "eth0") {
					t.Errorf("it tells %q (%v), want %q", told(found), err, tt.told)
				}
				if err := w.engine.Check(t.Context(), "a"); !errors.Is(err, ErrChanged) {
					t.Errorf("check: %v", err)
				}
				before := w.in(w.pod("a"), "ip", "-br", "addr")
				done, err := w.engine.Repair(t.Context(), "a", anything)
				if tt.final || network == "foreign" {
					if !errors.Is(err, ErrNotOurs) || len(done) > 0 {
						t.Errorf("repair did %v (%v)", done, err)
					}
					w.same("what the Pod has after a repair that is not ours", w.in(w.pod("a"), "ip", "-br", "addr"), before)
				} else {
					if err != nil || len(done) != 1 || !strings.Contains(told(done), tt.told) {
						t.Errorf("repair did %v (%v)", done, err)
					}
					w.whole("a", box)
				}
				w.end("a")
			})
		}
	}
	w.t = t
}

// whole wants a sandbox as it was made, and a repair that finds nothing to do.
func (w *world) whole(id string, was *record.Sandbox) {
	w.t.Helper()
	if err := w.engine.Check(w.t.Context(), id); err != nil {
		w.t.Errorf("check after the repair: %v", err)
	}
	if done, err := w.engine.Repair(w.t.Context(), id, anything); err != nil || len(done) > 0 {
		w.t.Errorf("a second repair did %v (%v)", done, err)
	}
	box, err := w.engine.Get(id)
	if err != nil {
		w.t.Fatal(err)
	}
	w.same("links in the record", fmt.Sprint(box.Attachments[1].Links), fmt.Sprint(was.Attachments[1].Links))
}

// TestDriftOfForeignPrimary: of a primary network by another's plugin it is told
// that its link or address is gone, and not what its vendor may change.
func TestDriftOfForeignPrimary(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	networksOfDrift(t, w)
	w.namespace("a")
	req := w.request("a", "")
	req.Default = &DefaultNetwork{Namespace: "demo", Name: "foreign"}
	if _, err := w.engine.Add(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		change []string
		told   string
	}{
		{[]string{"ip", "link", "set", "eth0", "mtu", "1400"}, ""},
		{[]string{"ip", "link", "set", "eth0", "address", "02:00:00:00:00:99"}, ""},
		{[]string{"ip", "route", "del", "default"}, ""},
		{[]string{"ip", "addr", "add", "10.7.0.200/24", "dev", "eth0"}, ""},
		{[]string{"ip", "addr", "del", "10.7.0.2/24", "dev", "eth0"}, "interface eth0 (network demo/foreign) lacks: ip addr add 10.7.0.2/24 dev eth0"},
		{[]string{"ip", "addr", "add", "10.7.0.2/24", "dev", "eth0"}, ""},
		{[]string{"ip", "link", "set", "eth0", "down"}, "interface eth0 (network demo/foreign) lacks: ip link set eth0 up"},
		{[]string{"ip", "link", "set", "eth0", "up"}, ""},
		{[]string{"ip", "link", "del", "eth0"}, "interface eth0 (network demo/foreign) lacks: link eth0, which is gone"},
	} {
		w.in(w.pod("a"), tt.change...)
		if _, found, err := w.engine.Inspect(t.Context(), "a"); err != nil || told(found) != tt.told {
			t.Errorf("%v: it tells %q (%v), want %q", tt.change, told(found), err, tt.told)
		}
	}
	if err := w.engine.Check(t.Context(), "a"); !errors.Is(err, ErrChanged) {
		t.Errorf("check: %v", err)
	}
	w.end("a")
}

// TestDriftOnTheHost: what a Pod stands on is gone, and comes back.
func TestDriftOnTheHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	networksOfDrift(t, w)
	w.add("a", "native")
	w.add("b", "native")
	w.in(w.host, "ip", "link", "del", "d0")
	for _, id := range []string{"a", "b"} {
		_, found, err := w.engine.Inspect(t.Context(), id)
		if err != nil || !strings.Contains(told(found), "d0") {
			t.Errorf("%s: it tells %q (%v)", id, told(found), err)
		}
		if _, err := w.engine.Repair(t.Context(), id, anything); err != nil {
			t.Errorf("repair: %v", err)
		}
	}
	w.in(w.pod("a"), "ping", "-c1", "-W5", "10.7.0.3")
	for _, id := range []string{"a", "b"} {
		if err := w.engine.Check(t.Context(), id); err != nil {
			t.Errorf("check: %v", err)
		}
		if err := w.engine.Del(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	w.empty()
}

// TestFlushedRules: a firewall's restart takes all tables, so all Pods lose their
// way out; a repair of one of them gives it back to all.
func TestFlushedRules(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, id := range []string{"a", "b"} {
		w.add(id, "")
	}
	w.in(w.host, "nft", "flush", "ruleset")
	for _, id := range []string{"a", "b"} {
		if _, found, err := w.engine.Inspect(t.Context(), id); err != nil || !strings.Contains(told(found), "nft replace table inet weft_masquerade_chaintest") {
			t.Errorf("%s: it tells %q (%v)", id, told(found), err)
		}
	}
	if done, err := w.engine.Repair(t.Context(), "a", anything); err != nil || len(done) != 1 {
		t.Errorf("repair did %v (%v)", done, err)
	}
	for _, id := range []string{"a", "b"} {
		if err := w.engine.Check(t.Context(), id); err != nil {
			t.Errorf("check after the repair: %v", err)
		}
		if _, found, err := w.engine.Inspect(t.Context(), id); err != nil || told(found) != "" {
			t.Errorf("%s: after the repair it tells %q (%v)", id, told(found), err)
		}
	}
	if rules := w.in(w.host, "nft", "list", "ruleset"); !strings.Contains(rules, "10.88.0.0/24") || !strings.Contains(rules, "masquerade") {
		t.Errorf("the host has\n%s", rules)
	}
	for _, id := range []string{"a", "b"} {
		if err := w.engine.Del(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	w.empty()
}

// TestOthersWorkIsNoDrift has a plugin after ours change the link: that is how
// it was made, and nobody's to repair.
func TestOthersWorkIsNoDrift(t *testing.T) {
	t.Parallel()
	needPlugin(t, "tuning")
	w := newWorld(t)
	w.nads.add("demo/tuned", `{"cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"t0","ipam":{"type":"host-local","subnet":"10.6.0.0/24"}},
		{"type":"tuning","mtu":1300,"mac":"02:00:00:00:00:77","promisc":true}]}`)
	w.add("a", "tuned")
	w.same("MTU", strings.Contains(w.in(w.pod("a"), "ip", "link", "show", "net1"), "mtu 1300"), true)
	_, found, err := w.engine.Inspect(t.Context(), "a")
	if err != nil || told(found) != "" {
		t.Errorf("it tells %q (%v)", told(found), err)
	}
	w.in(w.pod("a"), "ip", "addr", "flush", "dev", "net1")
	if _, found, err = w.engine.Inspect(t.Context(), "a"); err != nil || !strings.Contains(told(found), "ip addr add 10.6.0.2/24") || strings.Contains(told(found), "mtu") {
		t.Errorf("without the address it tells %q (%v)", told(found), err)
	}
	if done, err := w.engine.Repair(t.Context(), "a", anything); !errors.Is(err, ErrNotOurs) || len(done) > 0 {
		t.Errorf("repair did %v (%v)", done, err)
	}
	w.end("a")
}

// TestNoRepairInLaunchers: whoever rewires, or may be about to, is left alone,
// on all its links.
func TestNoRepairInLaunchers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	networksOfDrift(t, w)
	w.add("a", "native")
	w.in(w.pod("a"), "ip", "link", "add", "k6t-net1", "type", "bridge") // the first step
	w.in(w.pod("a"), "ip", "addr", "flush", "dev", "net1")
	if done, err := w.engine.Repair(t.Context(), "a", anything); !errors.Is(err, ErrNotOurs) || len(done) > 0 {
		t.Errorf("in the middle of a rewiring, repair did %v (%v)", done, err)
	}
	w.in(w.pod("a"), "ip", "link", "del", "k6t-net1")
	w.rewire("a", "net1")
	w.in(w.pod("a"), "ip", "addr", "flush", "dev", "eth0")
	before := w.in(w.pod("a"), "ip", "-br", "addr")
	_, found, err := w.engine.Inspect(t.Context(), "a")
	if err != nil || !slices.ContainsFunc(found, func(f Finding) bool { return f.Rewired == "net1-nic" && len(f.Lacks) == 0 }) || !strings.Contains(told(found), "eth0") {
		t.Errorf("found %+v (%v)", found, err)
	}
	if done, err := w.engine.Repair(t.Context(), "a", anything); !errors.Is(err, ErrNotOurs) || len(done) > 0 {
		t.Errorf("after a rewiring, repair did %v (%v)", done, err)
	}
	w.same("what the Pod has", w.in(w.pod("a"), "ip", "-br", "addr"), before)
	w.end("a")
}

func BenchmarkInspect(b *testing.B) {
	w := newWorld(b)
	w.nads.add("demo/plain", plainBridge)
	w.add("a", "plain,plain,plain")
	b.ResetTimer()
	for b.Loop() {
		if _, _, err := w.engine.Inspect(b.Context(), "a"); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	if err := w.engine.Del(b.Context(), "a"); err != nil {
		b.Fatal(err)
	}
}
