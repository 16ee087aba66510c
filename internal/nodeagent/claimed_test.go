package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/test/kubelab"
)

// claimLab is a lab whose network lan has addresses of the cluster, and the kind
// IPAMClaim. No controller runs.
func claimLab(t *testing.T) *lab {
	t.Helper()
	l := leaseLab(t)
	l.claimKind()
	t.Cleanup(func() { // others use the cluster
		ctx, cancel := context.WithTimeout(context.Background(), kubelab.Patience)
		defer cancel()
		list, _, err := l.api.List(ctx, v1alpha1.AddressLeaseKind, store.Selector{})
		for _, obj := range list {
			err = errors.Join(err, l.api.Delete(ctx, v1alpha1.AddressLeaseKind, store.KeyOf(obj), store.Precondition{}))
		}
		if err != nil {
			t.Error(err)
		}
	})
	return l
}

// by gives a Pod on lan by a claim.
func (l *lab) by(claim string) *pod {
	l.t.Helper()
	p := l.pod(fmt.Sprintf(`[{"name":"lan","ipam-claim-reference":%q}]`, claim))
	p.sandbox(true)
	return p
}

func (l *lab) claimed(name string) *netattach.IPAMClaim {
	l.t.Helper()
	obj, err := l.api.Get(l.t.Context(), networks.ClaimKind, store.Key{Namespace: l.ns, Name: name})
	if err != nil {
		l.t.Fatal(err)
	}
	claim, err := netattach.ClaimFromObject(obj.Object)
	if err != nil {
		l.t.Fatal(err)
	}
	return claim
}

// gives writes status.ips of a claim, as the controller does.
func (l *lab) gives(name string, ips ...string) {
	l.t.Helper()
	status := map[string]any{"status": map[string]any{"ips": ips}}
	if _, err := l.api.Patch(l.t.Context(), networks.ClaimKind, store.Key{Namespace: l.ns, Name: name}, status, store.Precondition{}, "status"); err != nil {
		l.t.Fatal(err)
	}
}

// removeClaim deletes a claim.
func (l *lab) removeClaim(name string) {
	l.t.Helper()
	if err := l.api.Delete(l.t.Context(), networks.ClaimKind, store.Key{Namespace: l.ns, Name: name}, store.Precondition{}); err != nil {
		l.t.Fatal(err)
	}
}

// holders tells who has the addresses of claims: of each the claim, and the sandboxes.
func (l *lab) holders() []string {
	l.t.Helper()
	list, _, err := l.api.List(l.t.Context(), v1alpha1.AddressLeaseKind, store.Selector{})
	if err != nil {
		l.t.Fatal(err)
	}
	var out []string
	for _, obj := range list {
		one, err := v1alpha1.LeaseFromObject(obj)
		if err != nil {
			l.t.Fatal(err)
		}
		text := one.Spec.IP.String() + " " + one.Spec.Owner.Name
		for _, h := range one.Spec.Holders {
			text += " " + h.Sandbox + "@" + h.Node
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return out
}

func (l *lab) held(want ...string) {
	l.t.Helper()
	if got := l.holders(); !slices.Equal(got, want) {
		l.t.Errorf("held: %q, want %q", got, want)
	}
}

// TestLeaseOfClaim: the lease of an IPAMClaim outlasts its Pods and the agent, names
// who has it, and is another claim's when one of that name is made anew.
func TestLeaseOfClaim(t *testing.T) {
	l := claimLab(t)
	l.claim("keeps")
	first := l.by("keeps")
	if err := first.add(); err != nil {
		t.Fatal(err)
	}
	address := first.addresses()["net1"]
	l.held(address + " keeps " + first.now.ContainerID + "@n1")
	code(t, l.by("keeps").add(), types.ErrInvalidNetworkConfig, "ipam-claim-reference", "is in use by Pod "+first.key.String())
	first.end()
	l.held(address + " keeps")
	l.kill()
	l.start()
	second := l.by("keeps")
	second.has(address)
	l.kill()
	second.end() // which weft-cni keeps
	l.start()
	l.eventually("the DEL is done", func() error {
		if got := l.holders(); !slices.Equal(got, []string{address + " keeps"}) {
			return fmt.Errorf("held: %q", got)
		}
		return nil
	})
	if claim := l.claimed("keeps"); len(claim.IPs) > 0 || l.claimNode("keeps") != "" {
		t.Errorf("an agent told of leases: %v, node %q", claim.IPs, l.claimNode("keeps"))
	}
	l.removeClaim("keeps")
	l.claim("keeps")
	other := l.by("keeps")
	if err := other.add(); err != nil {
		t.Fatal(err)
	}
	if got := other.addresses()["net1"]; got == address {
		t.Errorf("a claim of that name has the address of the one before: %s", got)
	}
	other.end()
	l.nothingLeft()
}

func (l *lab) claimNode(name string) string {
	l.t.Helper()
	obj, err := l.api.Get(l.t.Context(), networks.ClaimKind, store.Key{Namespace: l.ns, Name: name})
	if err != nil {
		l.t.Fatal(err)
	}
	return obj.GetAnnotations()[nodeAnnotation]
}

// TestClaimHasAddresses: status.ips is what a Pod gets, or it is told why it cannot.
func TestClaimHasAddresses(t *testing.T) {
	l := claimLab(t)
	for _, name := range []string{"has", "beyond", "taken", "primary", "both"} {
		l.claim(name)
	}
	l.gives("has", "10.71.0.77/24")
	p := l.by("has")
	p.has("10.71.0.77")
	l.gives("beyond", "10.99.0.1/24")
	code(t, l.by("beyond").add(), types.ErrInvalidNetworkConfig, `IPAMClaim `+l.ns+`/beyond: status.ips[0] "10.99.0.1"`, "is out of range")
	l.gives("taken", "10.71.0.77/24")
	code(t, l.by("taken").add(), types.ErrInvalidNetworkConfig, "is in use", "IPAMClaim "+l.ns+"/has")
	code(t, l.by("none").add(), types.ErrInvalidNetworkConfig, "there is no IPAMClaim "+l.ns+"/none", "create it")
	both := l.pod(`[{"name":"lan","ipam-claim-reference":"both","ips":["10.71.0.78"]}]`)
	both.sandbox(true)
	code(t, both.add(), types.ErrInvalidNetworkConfig, "ipam-claim-reference", "stands beside ips")
	primary := l.podWith(map[string]string{netattach.DefaultNetworkAnnotation: fmt.Sprintf(`[{"name":"lan","namespace":%q,"ipam-claim-reference":"primary"}]`, l.ns)})
	primary.sandbox(true)
	code(t, primary.add(), types.ErrInvalidNetworkConfig, "ipam-claim-reference", "is asked of the default network")
	p.end()
	l.nothingLeft()
}

// TestClaimIsTold: a claim says why it gets no address.
func TestClaimIsTold(t *testing.T) {
	l := claimLab(t)
	l.nad("tiny", `{"cniVersion":"1.0.0","type":"bridge","bridge":"tiny0","ipam":{"type":"whereabouts","range":"10.73.0.0/30"}}`)
	full := []*pod{l.pod("tiny"), l.pod("tiny")}
	for _, p := range full {
		p.sandbox(true)
		if err := p.add(); err != nil {
			t.Fatal(err)
		}
	}
	l.claim("late")
	p := l.pod(`[{"name":"tiny","ipam-claim-reference":"late"}]`)
	p.sandbox(true)
	if err := p.add(); err == nil || !strings.Contains(err.Error(), "are held") {
		t.Errorf("ADD: %v", err)
	}
	l.eventually("the claim is told", func() error {
		claim := l.claimed("late")
		if len(claim.Conditions) != 1 || claim.Conditions[0].Reason != netattach.ClaimExhausted || claim.Conditions[0].Status != "False" {
			return fmt.Errorf("conditions %+v", claim.Conditions)
		}
		return nil
	})
	full[0].end()
	if err := p.add(); err != nil {
		t.Error(err)
	}
	p.end()
	full[1].end()
	l.nothingLeft()
}

// launcher gives a Pod as virt-controller makes it: two NICs on one network.
func (l *lab) launcher(vm string) *pod {
	l.t.Helper()
	p := l.podWith(map[string]string{
		"kubevirt.io/domain":         vm,
		netattach.NetworksAnnotation: `[{"name":"lan","interface":"pod3a7b1c2d4e5"},{"name":"lan","interface":"pod0f9e8d7c6b5"},{"name":"loose","interface":"pod11111111111"}]`,
	})
	p.sandbox(true)
	return p
}

// TestLauncher: a launcher Pod has the addresses of its VM's NICs, by claims that it
// need not name, and waits for those that are not there yet.
func TestLauncher(t *testing.T) {
	l := claimLab(t)
	l.nad("loose", `{"cniVersion":"1.0.0","type":"bridge","bridge":"loose0","allowPersistentIPs":false,"ipam":{"type":"whereabouts","range":"10.74.0.0/24"}}`)
	const one, two = "web.1.pod3a7b1c2d4e5", "web.1.pod0f9e8d7c6b5"
	first := l.launcher("web.1")
	code(t, first.add(), types.ErrTryAgainLater, "NICIdentity "+l.ns+"/"+one, "is not there yet", "weft-controller")
	keeps := map[string]string{"pod3a7b1c2d4e5": "02:00:00:00:00:0a", "pod0f9e8d7c6b5": "02:00:00:00:00:0b", "pod11111111111": "02:00:00:00:00:0c"}
	for nic, mac := range keeps {
		l.identity("web.1."+nic, mac)
	}
	l.claim(one)
	code(t, first.add(), types.ErrTryAgainLater, two, "is not there yet", "weft-controller")
	l.claim(two)
	if err := first.add(); err != nil {
		t.Fatal(err)
	}
	had := first.addresses()
	if had["pod3a7b1c2d4e5"] == had["pod0f9e8d7c6b5"] || len(had) != 5 {
		t.Errorf("the launcher has %v", had)
	}
	first.wears(keeps)
	first.check()
	first.end()
	between := l.pod("lan,loose")
	between.sandbox(true)
	if err := between.add(); err != nil {
		t.Fatal(err)
	}
	second := l.launcher("web.1")
	if err := second.add(); err != nil {
		t.Fatal(err)
	}
	now := second.addresses()
	for _, name := range []string{"pod3a7b1c2d4e5", "pod0f9e8d7c6b5"} {
		if now[name] != had[name] {
			t.Errorf("%s has %s after the VM's restart, want %s", name, now[name], had[name])
		}
	}
	// A network that is plugged in goes by the same rule.
	l.claim("web.1.pod22222222222")
	l.identity("web.1.pod22222222222", "02:00:00:00:00:0d")
	second.annotate(netattach.NetworksAnnotation, strings.TrimSuffix(second.annotations[netattach.NetworksAnnotation], "]")+`,{"name":"lan","interface":"pod22222222222"}]`)
	l.eventually("it is plugged in", func() error {
		if second.addresses()["pod22222222222"] == "" {
			return errors.New("not yet")
		}
		return nil
	})
	plugged := second.addresses()["pod22222222222"]
	keeps["pod22222222222"] = "02:00:00:00:00:0d"
	second.wears(keeps)
	second.end()
	between.end()
	if got := l.holders(); !slices.Contains(got, plugged+" web.1.pod22222222222") || len(got) != 3 {
		t.Errorf("held: %q", got)
	}
	l.nothingLeft()
}

// TestClaimSurvivesKills kills weft-node before each step of an ADD and a DEL of a Pod
// whose addresses are a claim's: it has the same each time, and is taken off.
func TestClaimSurvivesKills(t *testing.T) {
	l := claimLab(t)
	l.claim("keeps")
	l.kill()
	address := ""
	l.steps(func(env string) bool {
		p := l.by("keeps")
		l.start(env)
		err := p.add()
		killed := err != nil
		if killed {
			code(t, err, types.ErrTryAgainLater, "agent")
			l.kill()
			l.start()
			if err := p.add(); err != nil {
				t.Fatalf("ADD after %s: %v", env, err)
			}
		}
		if address == "" {
			address = p.addresses()["net1"]
		}
		l.held(address + " keeps " + p.now.ContainerID + "@n1")
		p.check()
		l.kill()
		l.start(env)
		p.end()
		if l.leftovers() != nil { // killed in DEL, which weft-cni kept
			killed = true
			l.kill()
			l.start()
		}
		l.eventually("the sandbox is taken off", func() error {
			if got := l.holders(); !slices.Equal(got, []string{address + " keeps"}) {
				return fmt.Errorf("held: %q", got)
			}
			return nil
		})
		l.nothingLeft()
		l.kill()
		return killed
	})
}

// TestClaimWithoutAPI: a DEL succeeds while the API server is away, and the sandbox is
// taken off later, by another process too.
func TestClaimWithoutAPI(t *testing.T) {
	l := claimLab(t)
	l.claim("keeps")
	p := l.by("keeps")
	if err := p.add(); err != nil {
		t.Fatal(err)
	}
	address := p.addresses()["net1"]
	l.proxy.Spoil(func(*http.Request) kubelab.Fault { return kubelab.Fault{Away: true} })
	l.proxy.Cut()
	p.end()
	l.held(address + " keeps " + p.now.ContainerID + "@n1")
	l.kill()
	l.start()
	l.proxy.Spoil(nil)
	l.eventually("the sandbox is taken off", func() error {
		if got := l.holders(); !slices.Equal(got, []string{address + " keeps"}) {
			return fmt.Errorf("held: %q", got)
		}
		return nil
	})
	l.nothingLeft()
}

// TestStickyPod: the Pods of one name have one address, those of others none of it.
func TestStickyPod(t *testing.T) {
	l := claimLab(t)
	l.nad("sts", `{"cniVersion":"1.0.0","type":"bridge","bridge":"sts0","ipam":{"type":"whereabouts","range":"10.75.0.0/24","stickyFor":"1h"}}`)
	l.nad("odd", `{"cniVersion":"1.0.0","type":"bridge","bridge":"odd0","ipam":{"type":"whereabouts","range":"10.76.0.0/24","stickyFor":"soon"}}`)
	annotations := map[string]string{netattach.NetworksAnnotation: "sts"}
	first := l.podNamed("db-0", annotations)
	first.sandbox(true)
	if err := first.add(); err != nil {
		t.Fatal(err)
	}
	address := first.addresses()["net1"]
	l.held(address + " db-0 " + first.now.ContainerID + "@n1")
	first.end()
	l.held(address + " db-0")
	other := l.podNamed("web", annotations)
	other.sandbox(true)
	if err := other.add(); err != nil {
		t.Fatal(err)
	}
	first.sandbox(true)
	first.has(address)
	first.check()
	first.end()
	other.end()
	l.held(address + " db-0")
	code(t, l.attachTo("odd"), types.ErrInvalidNetworkConfig, `ipam.stickyFor "soon"`, "is no duration")
	l.nothingLeft()
}

func (l *lab) attachTo(networks string) error {
	l.t.Helper()
	p := l.pod(networks)
	p.sandbox(true)
	return p.add()
}
