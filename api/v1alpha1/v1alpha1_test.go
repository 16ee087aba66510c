package v1alpha1_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/hint"
)

func TestIdentityRoundTrip(t *testing.T) {
	id := &v1alpha1.NICIdentity{Spec: v1alpha1.NICIdentitySpec{
		VM: "web", Network: "lan_1", MAC: "02:00:00:00:00:0a", Slot: 3,
		Leases: []v1alpha1.Lease{{Scope: "net:lan", Addr: netip.MustParseAddr("10.9.0.2")}, {Scope: "net:lan", Addr: netip.MustParseAddr("fd00::2")}},
	}}
	id.Name, id.Namespace = v1alpha1.IdentityName("web", "lan_1"), "lab"
	obj, err := id.Object()
	if err != nil {
		t.Fatal(err)
	}
	if obj.GroupVersionKind() != v1alpha1.NICIdentityKind {
		t.Errorf("kind %s", obj.GroupVersionKind())
	}
	back, err := v1alpha1.FromObject(obj)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(id.Spec, back.Spec, cmpopts.EquateComparable(netip.Addr{})); diff != "" || back.Name != id.Name || back.Namespace != "lab" {
		t.Errorf("%s/%s (-want +got):\n%s", back.Namespace, back.Name, diff)
	}
}

// TestIdentityName: names that Kubernetes would not take neither fail nor meet.
func TestIdentityName(t *testing.T) {
	seen := map[string]string{}
	for _, network := range []string{"a_b", "a-b", "A-b", "a.b", "ab"} {
		name := v1alpha1.IdentityName("web", network)
		if other, taken := seen[name]; taken || strings.ContainsAny(name, "_ABC") {
			t.Errorf("%s of network %s is that of %q, or no name", name, network, other)
		}
		seen[name] = network
	}
}

func TestParseVMPlan(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"not JSON", `{"nics":`, "is not the JSON weft wrote"},
		{"nothing", "", "is not the JSON weft wrote"},
		{"other types", `{"nics":{"a":1}}`, "is not the JSON weft wrote"},
		{"MAC", `{"nics":[{"mac":"02:00:00:00:00:01"},{"mac":"x"}]}`, `nics[1].mac "x": is no MAC address`},
		{"slot too high", `{"nics":[{"mac":"02:00:00:00:00:01","slot":32}]}`, `nics[0].slot "32": is not a root port`},
		{"slot negative", `{"nics":[{"mac":"02:00:00:00:00:01","slot":-1}]}`, `nics[0].slot "-1": is not a root port`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := v1alpha1.ParseVMPlan(tt.text)
			h, ok := errors.AsType[*hint.Error](err)
			if !ok || h.Remedy == "" || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want a hint with %q", err, tt.want)
			}
		})
	}
}

// FuzzParseVMPlan: any Pod author can write the annotation. What is read is as
// weft itself would write it.
func FuzzParseVMPlan(f *testing.F) {
	plan := &v1alpha1.VMPlan{UID: "u", NICs: []v1alpha1.PlanNIC{{Network: "lan", Link: "pod1", MAC: "02:00:00:00:00:01", Slot: 31}}}
	text, err := plan.Text()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(`{"nics":[{"mac":"02-00-00-00-00-0A","slot":1e1}]}`)
	f.Add(`{"nics":null}`)
	f.Fuzz(func(t *testing.T, text string) {
		plan, err := v1alpha1.ParseVMPlan(text)
		if err != nil {
			return
		}
		written, err := plan.Text()
		if err != nil {
			t.Fatal(err)
		}
		again, err := v1alpha1.ParseVMPlan(written)
		if err != nil {
			t.Fatalf("%s: %v", written, err)
		}
		if diff := cmp.Diff(plan, again, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("(-first +second):\n%s", diff)
		}
	})
}

func TestLeaseRoundTrip(t *testing.T) {
	lease := &v1alpha1.AddressLease{Spec: v1alpha1.AddressLeaseSpec{
		IP: netip.MustParseAddr("fd00::5"), Scope: "whereabouts:blue", Pool: "fd00::/64", Network: "demo/lan", Interface: "net1", Sandbox: "s1", Node: "n1",
		Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "demo", Name: "web", UID: "u1"},
	}}
	lease.Name, lease.Labels = "blue-fd00--5", map[string]string{v1alpha1.NodeLabel: "n1"}
	obj := lease.Object()
	if obj.GroupVersionKind() != v1alpha1.AddressLeaseKind || obj.GetName() != lease.Name {
		t.Errorf("%s %s", obj.GroupVersionKind(), obj.GetName())
	}
	back, err := v1alpha1.LeaseFromObject(obj)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(lease, back, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	obj.Object["spec"].(map[string]any)["ip"] = "nope"
	if _, err := v1alpha1.LeaseFromObject(obj); err == nil || !strings.Contains(err.Error(), "address lease blue-fd00--5") {
		t.Errorf("a lease of no address: %v", err)
	}
}
