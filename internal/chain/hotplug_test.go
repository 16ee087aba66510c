package chain

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

const plainBridge = `{"cniVersion":"1.0.0","type":"bridge","bridge":"p0","ipam":{"type":"host-local","subnet":"10.22.0.0/24"}}`

func TestHotplug(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/plain", plainBridge)
	w.nads.add("demo/c", chained(w.rec(), ""))
	w.add("a", "plain")
	box, err := w.engine.Attach(t.Context(), "a", netattach.Selection{Namespace: "demo", Name: "plain"})
	if err != nil {
		t.Fatal(err)
	}
	w.same("free number", box.Attachments[2].Interface, "net2")
	for range 2 { // the second time it is there already
		if _, err = w.engine.Attach(t.Context(), "a", netattach.Selection{Namespace: "demo", Name: "c", Interface: "x0"}); err != nil {
			t.Fatal(err)
		}
	}
	w.same("links", w.links(w.pod("a")), []string{"eth0", "net1", "net2", "x0"})
	w.same("calls", w.verbs(), []string{"ADD alpha x0"})
	if _, err = w.engine.Attach(t.Context(), "a", netattach.Selection{Namespace: "demo", Name: "plain", Interface: "x0"}); err == nil || !strings.Contains(err.Error(), "already the interface of demo/c") {
		t.Errorf("taken name: %v", err)
	}
	if _, err = w.engine.Attach(t.Context(), "a", netattach.Selection{Namespace: "demo", Name: "nowhere"}); !errors.Is(err, ErrUnknownNetwork) {
		t.Errorf("unknown: %v", err)
	}
	if _, err = w.engine.Attach(t.Context(), "z", netattach.Selection{Namespace: "demo", Name: "plain"}); !errors.Is(err, record.ErrNotFound) {
		t.Errorf("no such sandbox: %v", err)
	}
	w.restart() // a hotplugged network is as much in the record as any other
	if err := w.engine.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if box, err = w.engine.Detach(t.Context(), "a", "net1"); err != nil {
			t.Fatal(err)
		}
	}
	w.same("links", w.links(w.pod("a")), []string{"eth0", "net2", "x0"})
	w.same("record", len(box.Attachments), 3)
	w.in(w.pod("a"), "ping", "-c1", "-W2", "-q", "10.88.0.1")
	if err := w.engine.Check(t.Context(), "a"); err != nil {
		t.Errorf("check: %v", err)
	}
	w.end("a")
	w.podEmpty("a")
}

func TestKilledInHotplug(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/c", chained(w.rec(), ""))
	selection := netattach.Selection{Namespace: "demo", Name: "c", Interface: "x0", DefaultRoute: []netip.Addr{}}
	w.add("a", "")
	walk(t, func(n int) bool {
		at := stopAt(w.engine, n, errKilled)
		_, err := w.engine.Attach(t.Context(), "a", selection)
		if killed := at() != ""; killed != errors.Is(err, errKilled) {
			t.Fatalf("killed before %q: %v", at(), err)
		}
		w.restart()
		if err := w.engine.Restore(t.Context()); err != nil {
			t.Fatal(err)
		}
		if at() != "" && at() != "result written" {
			w.same("links after a crash before "+at(), w.links(w.pod("a")), []string{"eth0"})
			w.same("foreign state after a crash before "+at(), w.pluginState(), []string{})
		}
		checkAgreement(t, w, "a")
		if _, err := w.engine.Attach(t.Context(), "a", selection); err != nil {
			t.Fatal(err)
		}
		more := stopAt(w.engine, n, errKilled)
		_, _ = w.engine.Detach(t.Context(), "a", "x0") // killed, or not
		w.restart()
		if err := w.engine.Restore(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := w.engine.Detach(t.Context(), "a", "x0"); err != nil {
			t.Fatal(err)
		}
		w.same("links after a crash before "+more(), w.links(w.pod("a")), []string{"eth0"})
		w.same("foreign state after a crash before "+more(), w.pluginState(), []string{})
		checkAgreement(t, w, "a")
		return (at() != "" || more() != "") && !t.Failed()
	})
	w.end("a")
}

// TestMovedAddresses plays what the wiring of a bridge-bound VM does.
func TestMovedAddresses(t *testing.T) {
	t.Parallel()
	needPlugin(t, "ptp")
	w := newWorld(t)
	w.nads.add("demo/plain", plainBridge)
	w.nads.add("demo/p2p", `{"cniVersion":"1.0.0","name":"p2p","plugins":[{"type":"ptp","ipam":{"type":"host-local","dataDir":"`+w.dir+`/host-local","subnet":"10.7.0.0/24"}},{"type":"alpha","dir":"`+w.rec()+`"}]}`)
	w.add("a", "plain,p2p")
	_, err := w.engine.SetMoved(t.Context(), "a", map[netstate.IfName][]netip.Prefix{
		"net1": {netip.MustParsePrefix("10.22.0.2/24")}, "net2": {netip.MustParsePrefix("10.7.0.2/24")},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.in(w.pod("a"), "ip", "addr", "flush", "dev", "net1")
	w.in(w.pod("a"), "ip", "addr", "flush", "dev", "net2")
	if err := w.engine.Check(t.Context(), "a"); err != nil {
		t.Errorf("check with moved addresses: %v", err)
	}
	// A hotplug meanwhile must not give the link its addresses back.
	if _, err := w.engine.Attach(t.Context(), "a", netattach.Selection{Namespace: "demo", Name: "plain", Interface: "x0"}); err != nil {
		t.Fatal(err)
	}
	w.same("net1 after a hotplug", w.addrs(w.pod("a"), "net1"), []string{})
	// The plugin's DEL finds what its ADD made.
	seen := w.namespaceWatch("a", "net2")
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if !seen() {
		t.Error("the address was not put back before DEL")
	}
	w.podEmpty("a")
	w.empty()
}

// namespaceWatch says later whether link got an address since.
func (w *world) namespaceWatch(id, link string) func() bool {
	w.t.Helper()
	w.engine.beforeStep = func(step string) error {
		if step == "del ptp" && len(w.addrs(w.pod(id), link)) > 0 {
			w.engine.beforeStep = nil
		}
		return nil
	}
	return func() bool { return w.engine.beforeStep == nil }
}

func TestCheckFindsEveryDifference(t *testing.T) {
	t.Parallel()
	changes := map[string][]string{
		"address gone":   {"ip", "addr", "del", "10.88.0.2/24", "dev", "eth0"},
		"route gone":     {"ip", "-6", "route", "del", "default"},
		"link down":      {"ip", "link", "set", "eth0", "down"},
		"MTU":            {"ip", "link", "set", "eth0", "mtu", "1400"},
		"MAC":            {"ip", "link", "set", "eth0", "address", "02:00:00:00:00:99"},
		"link gone":      {"ip", "link", "del", "eth0"},
		"link made anew": {"sh", "-c", "ip link del eth0; ip link add eth0 type bridge"},
	}
	w := newWorld(t)
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			w.t = t
			w.add("a", "")
			if err := w.engine.Check(t.Context(), "a"); err != nil {
				t.Errorf("before: %v", err)
			}
			w.in(w.pod("a"), change...)
			err := w.engine.Check(t.Context(), "a")
			if !errors.Is(err, ErrChanged) {
				t.Errorf("got %v", err)
			}
			if err := w.engine.Del(t.Context(), "a"); err != nil {
				t.Errorf("del: %v", err)
			}
		})
	}
	w.t = t
	w.add("b", "")
	w.in(w.host, "nft", "flush", "ruleset")
	if err := w.engine.Check(t.Context(), "b"); !errors.Is(err, ErrChanged) {
		t.Errorf("masquerade table gone: %v", err)
	}
	w.unmount("b")
	if err := w.engine.Check(t.Context(), "b"); !errors.Is(err, ErrChanged) {
		t.Errorf("namespace gone: %v", err)
	}
	w.end("b")
}

// TestRefusals is what a user gets wrong; nothing may be left of any.
func TestRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/plain", plainBridge)
	w.nads.add("demo/small", `{"type":"bridge","bridge":"p0","ipam":{"type":"whereabouts","range":"10.30.0.0/29","exclude":["10.30.0.2/32"],"range_end":"10.30.0.3"}}`)
	w.nads.add("demo/nomaster", `{"type":"macvlan","master":"eth7"}`)
	w.nads.add("demo/strict", `{"type":"alpha","dir":"`+w.rec()+`","gives":{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.5/24"}]}}`)
	w.add("holder", `[{"name":"plain","ips":["10.22.0.50"],"mac":"02:00:00:00:00:05"}]`)
	tests := []struct {
		name, annotation string
		want             []string
	}{
		{"address in use", `[{"name":"plain","ips":["10.22.0.50"]}]`, []string{`networks[0].ips[0] "10.22.0.50": is in use`, `held by Pod demo/pod-holder on net1`}},
		{"address outside the range", `[{"name":"plain","ips":["10.23.0.50"]}]`, []string{`networks[0].ips[0] "10.23.0.50": is out of range`, "choose an address of"}},
		{"address excluded", `[{"name":"small","ips":["10.30.0.2"]}]`, []string{`networks[0].ips[0] "10.30.0.2": is excluded by`}},
		{"range exhausted", `small,small,small`, []string{`network demo/small: spec.config.ipam`, "are held"}},
		{"no such master", "nomaster", []string{`network demo/nomaster: spec.config.master "eth7": there is no such link on this machine`, "uplink"}},
		{"MAC of another Pod", `[{"name":"plain","mac":"02:00:00:00:00:05"}]`, []string{`networks[0].mac "02:00:00:00:00:05": is already the MAC of interface net1 of Pod demo/pod-holder on network demo/plain`}},
		{"ips a plugin ignores", `[{"name":"strict","ips":["10.9.0.7"]}]`, []string{`networks[0].ips[0] "10.9.0.7": network demo/strict gave another address`}},
		{"interface twice", "plain@x0,plain@x0", []string{`networks[1].interface "x0"`}},
		{"interface too long", "plain@sixteen-bytes-xx", []string{`is longer than the 15 bytes`}},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.t = t
			id := fmt.Sprint("r", i)
			w.refused(id, tt.annotation, tt.want...)
			w.podEmpty(id)
			if _, err := w.records.Load(id); !errors.Is(err, record.ErrNotFound) {
				t.Errorf("record: %v", err)
			}
			w.same("addresses held", len(w.memory.Leases()), 3)
		})
	}
	w.t = t
	if _, err := w.engine.Add(t.Context(), w.request("nons", "")); err == nil || !strings.Contains(err.Error(), "is no network namespace") {
		t.Errorf("no namespace: %v", err)
	}
	w.end("holder")
}

// TestClaim keeps the addresses of a claim over the life of sandboxes.
// someClaims are those that exist; asking for another node's is an error.
type someClaims map[string]error

func (c someClaims) Claim(_ context.Context, namespace, name string) (*netattach.IPAMClaim, error) {
	if _, there := c[namespace+"/"+name]; !there {
		return nil, nil
	}
	return &netattach.IPAMClaim{Namespace: namespace, Name: name}, nil
}

func (c someClaims) Settle(_ context.Context, claim *netattach.IPAMClaim) error {
	return c[claim.Namespace+"/"+claim.Name]
}

func (someClaims) Refused(*netattach.IPAMClaim, string, error) {}

// TestClaimOfHotplug: a network that is plugged in goes by the same rules as one
// that is there from the start.
func TestClaimOfHotplug(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/plain", plainBridge)
	elsewhere := errors.New("on another node")
	w.engine.Claims = someClaims{"demo/mine": nil, "demo/theirs": elsewhere}
	w.add("a", "plain")
	before := len(w.memory.Leases())
	attach := func(claim string) error {
		_, err := w.engine.Attach(t.Context(), "a", netattach.Selection{Name: "plain", Namespace: "demo", IPAMClaimReference: claim})
		return err
	}
	if err := attach("theirs"); !errors.Is(err, elsewhere) {
		t.Errorf("a claim of another node: %v", err)
	}
	if err := attach("none"); err == nil || !strings.Contains(err.Error(), "there is no IPAMClaim demo/none") {
		t.Errorf("a claim that does not exist: %v", err)
	}
	w.same("addresses held", len(w.memory.Leases()), before)
	if err := attach("mine"); err != nil {
		t.Error(err)
	}
	held, err := w.memory.Held(t.Context(), ipam.ClaimOwner("demo", "mine", ""))
	if err != nil || len(held) != 1 {
		t.Errorf("held: %v, %v", held, err)
	}
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
}

func TestClaim(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/plain", plainBridge)
	w.nads.add("demo/full", `{"type":"bridge","bridge":"p0","ipam":{"type":"whereabouts","range":"10.30.0.0/30"}}`)
	claim := `[{"name":"plain","ipam-claim-reference":"vm.plain"}]`
	w.add("a", claim)
	w.same("address", w.addrs(w.pod("a"), "net1"), []string{"10.22.0.2/24"})
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.add("b", "plain")
	w.same("another Pod's", w.addrs(w.pod("b"), "net1"), []string{"10.22.0.3/24"})
	w.add("c", claim)
	w.same("the claim's again", w.addrs(w.pod("c"), "net1"), []string{"10.22.0.2/24"})
	// A claim that got nowhere keeps nothing it had not before.
	w.refused("d", `[{"name":"plain","ipam-claim-reference":"new"},{"name":"full"},{"name":"full"},{"name":"full"}]`, "are held")
	held, err := w.memory.Held(t.Context(), ipam.ClaimOwner("demo", "new", ""))
	if err != nil || len(held) > 0 {
		t.Errorf("held: %v, %v", held, err)
	}
	for _, id := range []string{"b", "c"} {
		if err := w.engine.Del(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	w.same("held in the end", len(w.memory.Leases()), 1)
}

// TestManyAtOnce adds and deletes Pods that share bridges from many goroutines.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/plain", plainBridge)
	w.nads.add("demo/c", chained(w.rec(), ""))
	const pods, rounds = 8, 3
	for i := range pods {
		w.namespace(fmt.Sprint("p", i))
	}
	var group sync.WaitGroup
	for i := range pods {
		group.Go(func() {
			id := fmt.Sprint("p", i)
			for range rounds {
				if _, err := w.engine.Add(t.Context(), w.request(id, "plain,c")); err != nil {
					t.Errorf("add %s: %v", id, err)
					return
				}
				if err := w.engine.Check(t.Context(), id); err != nil {
					t.Errorf("check %s: %v", id, err)
				}
				if err := w.engine.Del(t.Context(), id); err != nil {
					t.Errorf("del %s: %v", id, err)
					return
				}
			}
		})
	}
	group.Wait()
	for i := range pods {
		w.podEmpty(fmt.Sprint("p", i))
	}
	w.empty()
}

// TestSameSandboxAtOnce calls Add of one sandbox from many sides.
func TestSameSandboxAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/c", chained(w.rec(), ""))
	w.namespace("a")
	var group sync.WaitGroup
	for range 6 {
		group.Go(func() {
			if _, err := w.engine.Add(t.Context(), w.request("a", "c")); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	w.same("calls", w.verbs(), []string{"ADD alpha net1"})
	w.end("a")
}

func TestIsolationHoldsForHotplug(t *testing.T) {
	w := newWorld(t)
	w.nads.add("other/plain", `{"cniVersion":"1.0.0","type":"bridge","bridge":"br9"}`)
	w.namespace("a")
	req := w.request("a", "")
	req.Isolation = &record.Isolation{Namespaces: []string{"default"}}
	if _, err := w.engine.Add(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	w.restart() // it stands in the record
	_, err := w.engine.Attach(t.Context(), "a", netattach.Selection{Namespace: "other", Name: "plain", Field: "networks[0]"})
	if err == nil || !strings.Contains(err.Error(), "isolated by namespace") {
		t.Errorf("a network of another namespace is attached: %v", err)
	}
	w.end("a")
}
