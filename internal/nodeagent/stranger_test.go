package nodeagent

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/store"
)

// told waits for an event of a Pod, and wants all of some words in it.
func (l *lab) told(pod, reason string, words ...string) {
	l.t.Helper()
	l.eventually("event "+reason+" of "+pod, func() error {
		list, _, err := l.api.List(l.t.Context(), eventKind, store.Selector{Namespace: l.ns})
		if err != nil {
			return err
		}
		var said []string
		for _, event := range list {
			about, _ := event.Object["involvedObject"].(map[string]any)
			message, _ := event.Object["message"].(string)
			if about["name"] != pod || event.Object["reason"] != reason {
				continue
			}
			has := true
			for _, word := range words {
				has = has && strings.Contains(message, word)
			}
			if has {
				return nil
			}
			said = append(said, message)
		}
		return fmt.Errorf("want %q, told is %q", words, said)
	})
}

// outside makes the network out, which has a machine beside the Pods, and gives the
// machine's namespace, in which lan9 is its link.
func (l *lab) outside(addresses string) (namespace string) {
	l.t.Helper()
	host, namespace := l.c.NetNS(), filepath.Join(l.dir, "ns", "outside")
	if err := linux.CreateNS(namespace); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		l.in(host, "ip", "link", "del", "out9")
		if err := linux.DeleteNS(namespace); err != nil {
			l.t.Error(err)
		}
	})
	l.in(host, "ip", "link", "add", "out9", "type", "bridge")
	l.in(host, "ip", "link", "add", "port9", "type", "veth", "peer", "name", "lan9")
	l.in(host, "ip", "link", "set", "lan9", "netns", namespace)
	l.in(host, "ip", "link", "set", "port9", "master", "out9", "up")
	l.in(host, "ip", "link", "set", "out9", "up")
	l.in(namespace, "ip", "link", "set", "lan9", "address", "02:00:00:00:00:99", "up")
	l.nad("out", `{"cniVersion":"1.0.0","type":"bridge","bridge":"out9","ipam":{"type":"whereabouts","range":"`+addresses+`"}}`)
	return namespace
}

// TestStranger: a machine on the network uses an address that a Pod would get, and
// another node's Pod holds one that was taken from a running Pod.
func TestStranger(t *testing.T) {
	l := leaseLab(t)
	outside := l.outside("10.79.0.8-10.79.0.9/24")
	first := l.pod("out")
	first.sandbox(true)
	if err := first.add(); err != nil {
		t.Fatal(err)
	}
	bad := first.addresses()["net1"]
	first.end()
	l.kill()
	l.start() // begins where the first one began
	l.in(outside, "ip", "addr", "add", bad+"/24", "dev", "lan9")
	p := l.pod("out")
	p.sandbox(true)
	if err := p.add(); err != nil {
		t.Fatal(err)
	}
	good := p.addresses()["net1"]
	if good == bad || good == "" {
		t.Fatalf("the Pod has %q", good)
	}
	l.told(p.key.Name, addressConflict, bad, "02:00:00:00:00:99", "gets another address")
	want := fmt.Sprintf("[/ %s %s/net1 %s]", bad, p.now.ContainerID, good)
	if got, err := l.leases(); err != nil || fmt.Sprint(got) != want {
		t.Errorf("leases are %v (%v), want %s", got, err, want)
	}
	// Somebody deletes the lease of the Pod, and another node's Pod gets the address.
	l.kill()
	if err := l.api.Delete(t.Context(), v1alpha1.AddressLeaseKind, store.Key{Name: good}, store.Precondition{}); err != nil {
		t.Fatal(err)
	}
	l.make("Pod", "v1", l.ns, "elsewhere", map[string]any{"spec": map[string]any{
		"nodeName": "n2", "containers": []any{map[string]any{"name": "c", "image": "x"}},
	}})
	other := v1alpha1.AddressLease{Spec: v1alpha1.AddressLeaseSpec{
		IP: netip.MustParseAddr(good), Scope: "whereabouts:", Node: "n2", Network: l.ns + "/out", Interface: "net1", Sandbox: "s2",
		Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: l.ns, Name: "elsewhere"},
	}}
	other.Name = good
	if _, err := l.api.Create(t.Context(), other.Object()); err != nil {
		t.Fatal(err)
	}
	l.start()
	l.told(p.key.Name, addressConflict, good, "Pod "+l.ns+"/elsewhere on net1 of node n2", "Pod "+l.ns+"/"+p.key.Name+" of node n1 on net1")
	l.told("elsewhere", addressConflict, good, "Pod "+l.ns+"/"+p.key.Name+" of node n1 on net1")
	p.end()
	for _, name := range []string{good, bad} { // the other node's, and one that is in quarantine for longer than this test
		if err := l.api.Delete(t.Context(), v1alpha1.AddressLeaseKind, store.Key{Name: name}, store.Precondition{}); err != nil && !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
	}
}

// TestClaimBesideStranger: a machine has the address that a claim would get, which gets
// another one. Later it has the claim's: the Pod is refused, the claim keeps the address
// from others, and its condition says why nobody has it. When a VM migrates, that machine
// is the launcher it comes from, and nobody is asked.
func TestClaimBesideStranger(t *testing.T) {
	l := claimLab(t)
	const mac, nic = "02:00:00:00:00:99", "pod3a7b1c2d4e5"
	outside := l.outside("10.79.0.8-10.79.0.9/24")
	l.claim("kept")
	l.identity("vm1."+nic, "02:00:00:00:00:0a") // a machine with this MAC would not count
	launcher := func(vm string) *pod {
		p := l.podWith(map[string]string{
			"kubevirt.io/domain": vm, netattach.NetworksAnnotation: `[{"name":"out","interface":"` + nic + `","ipam-claim-reference":"kept"}]`,
		})
		p.sandbox(true)
		return p
	}
	before := l.pod("out")
	before.sandbox(true)
	if err := before.add(); err != nil {
		t.Fatal(err)
	}
	bad := before.addresses()["net1"]
	before.end()
	l.kill()
	l.start() // begins where the first one began
	l.in(outside, "ip", "addr", "add", bad+"/24", "dev", "lan9")
	p := launcher("vm1")
	if err := p.add(); err != nil {
		t.Fatalf("beside a stranger: %v", err)
	}
	addr := p.addresses()[nic]
	if addr == bad || addr == "" {
		t.Fatalf("the Pod has %q", addr)
	}
	l.told(p.key.Name, addressConflict, bad, mac, "gets another address")
	has := []string{bad + " " + mac, addr + " kept " + p.now.ContainerID + "@n1"}
	slices.Sort(has)
	l.held(has...)
	p.end()
	if err := l.api.Delete(t.Context(), v1alpha1.AddressLeaseKind, store.Key{Name: bad}, store.Precondition{}); err != nil {
		t.Fatal(err) // that is in quarantine for longer than this test
	}

	// The stranger takes the claim's.
	l.in(outside, "ip", "addr", "add", addr+"/24", "dev", "lan9")
	p = launcher("vm1")
	if err := p.add(); err == nil || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "is in use by "+mac) {
		t.Fatalf("beside a stranger: %v", err)
	}
	l.told(p.key.Name, addressConflict, addr, mac)
	l.held(addr + " kept")
	l.eventually("the claim says why", func() error {
		claim := l.claimed("kept")
		for _, is := range claim.Conditions {
			if is.Type == netattach.ClaimCondition && is.Status == "False" && is.Reason == netattach.ClaimIPConflict && strings.Contains(is.Message, mac) {
				return nil
			}
		}
		return fmt.Errorf("it says %+v", claim)
	})
	l.in(outside, "ip", "addr", "flush", "dev", "lan9")
	if err := p.add(); err != nil {
		t.Fatal(err)
	}
	l.held(addr + " kept " + p.now.ContainerID + "@n1")
	p.end()

	// The VM runs elsewhere, and comes here.
	l.in(outside, "ip", "addr", "add", addr+"/24", "dev", "lan9")
	holders := map[string]any{"spec": map[string]any{"holders": []any{
		map[string]any{"pod": "virt-launcher-a", "podUID": "u", "vm": "vm1", "node": "n2", "sandbox": "elsewhere", "interface": nic},
	}}}
	if _, err := l.api.Patch(t.Context(), v1alpha1.AddressLeaseKind, store.Key{Name: addr}, holders, store.Precondition{}); err != nil {
		t.Fatal(err)
	}
	second := launcher("vm1")
	if err := second.add(); err != nil {
		t.Fatal(err)
	}
	l.held(addr + " kept elsewhere@n2 " + second.now.ContainerID + "@n1")
	second.check()
	second.end()
	l.held(addr + " kept elsewhere@n2")
	l.removeClaim("kept")
}
