package nodeagent

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/test/kubelab"
)

// identity makes that of a VM's NIC, as the controller does.
func (l *lab) identity(name, mac string) {
	l.t.Helper()
	l.make(v1alpha1.NICIdentityKind.Kind, v1alpha1.GroupVersion.String(), l.ns, name, map[string]any{"spec": map[string]any{"vm": "web.1", "network": "x", "mac": mac}})
}

// wears wants links of the Pod to have these MACs.
func (p *pod) wears(want map[string]string) {
	p.t.Helper()
	text := p.in(p.now.NetNS, "ip", "-br", "link")
	for name, mac := range want {
		found := false
		for line := range strings.Lines(text) {
			found = found || strings.HasPrefix(line, name+"@") && strings.Contains(line, mac)
		}
		if !found {
			p.t.Errorf("%s has not MAC %s:\n%s", name, mac, text)
		}
	}
}

// TestDuplicateMACRefused: if that is wanted, a MAC is given only to whom the controller gave
// it, Pods of that name and launchers of that VM.
func TestDuplicateMACRefused(t *testing.T) {
	l := newLab(t)
	l.c.LeaseKind(t)
	l.flags = []string{"--refuse-duplicate-macs"}
	l.start()
	l.nad("plain", `{"cniVersion":"1.0.0","type":"bridge","bridge":"plain0"}`)
	const mac, of = "02:00:00:00:00:1f", `[{"name":"plain","mac":"02:00:00:00:00:1f"}]`
	asks := func(name string, annotations map[string]string) *pod {
		annotations[netattach.NetworksAnnotation] = of
		p := l.podNamed(name, annotations)
		p.sandbox(true)
		return p
	}
	name := v1alpha1.MACLeaseName(l.ns+"/plain", mac)
	lease := func(kind, owner string) {
		ctx, cancel := context.WithTimeout(context.Background(), kubelab.Patience)
		defer cancel()
		if err := l.api.Delete(ctx, v1alpha1.MACLeaseKind, store.Key{Name: name}, store.Precondition{}); err != nil && !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
		}
		if kind == "" {
			return
		}
		one := v1alpha1.MACLease{Spec: v1alpha1.MACLeaseSpec{MAC: mac, Network: l.ns + "/plain", Owner: v1alpha1.LeaseOwner{Kind: kind, Namespace: l.ns, Name: owner, UID: "u"}}}
		if _, err := l.api.Create(ctx, one.Object()); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { lease("", "") }) // others use the cluster
	mine := asks("mine", map[string]string{})
	code(t, mine.add(), types.ErrTryAgainLater, "MACLease "+name, "is not there yet")
	lease(v1alpha1.OwnerPod, "other")
	code(t, mine.add(), types.ErrInvalidNetworkConfig, mac, "that of Pod "+l.ns+"/other", "--refuse-duplicate-macs")
	lease(v1alpha1.OwnerPod, "mine")
	if err := mine.add(); err != nil {
		t.Fatal(err)
	}
	mine.wears(map[string]string{"net1": mac})
	mine.end()
	lease("VirtualMachine", "web")
	mine.sandbox(true)
	code(t, mine.add(), types.ErrInvalidNetworkConfig, mac, "that of VirtualMachine "+l.ns+"/web")
	source, target := asks("source", map[string]string{"kubevirt.io/domain": "web"}), asks("target", map[string]string{"kubevirt.io/domain": "web"})
	for _, p := range []*pod{source, target} {
		if err := p.add(); err != nil {
			t.Fatal(err)
		}
		p.wears(map[string]string{"net1": mac})
	}
	source.end()
	target.end()
	l.nothingLeft()
}
