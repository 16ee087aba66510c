package v1alpha1_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/netstate"
)

func TestMACLease(t *testing.T) {
	lease := v1alpha1.MACLease{Spec: v1alpha1.MACLeaseSpec{
		MAC: "02:00:00:00:00:0a", Network: "demo/lan", Interface: "pod1",
		Owner: v1alpha1.LeaseOwner{Kind: "VirtualMachine", Namespace: "demo", Name: "web", UID: "u"},
	}}
	got, err := v1alpha1.MACLeaseFromObject(lease.Object())
	if err != nil {
		t.Fatal(err)
	}
	lease.Name = "02-00-00-00-00-0a.demo.lan"
	if diff := cmp.Diff(lease, *got); diff != "" {
		t.Errorf("as it was written (-), as it is read (+):\n%s", diff)
	}
	obj := lease.Object()
	obj.Object["spec"] = "x"
	if _, err := v1alpha1.MACLeaseFromObject(obj); err == nil {
		t.Error("a lease that is a text is read")
	}
	obj.Object["spec"] = map[string]any{"mac": 1}
	if _, err := v1alpha1.MACLeaseFromObject(obj); err == nil {
		t.Error("a number is read as a MAC")
	}
}

// TestMACLeaseNames: no two are the same, and all are names.
func TestMACLeaseNames(t *testing.T) {
	long := strings.Repeat("x", 250)
	met := map[string]string{}
	for _, network := range []string{"a/b.c", "a/b", "ab/c", "a/" + long, "a/" + long + "y", "b/" + long} {
		for _, mac := range []netstate.MAC{"02:00:00:00:00:01", "02:00:00:00:00:02"} {
			name := v1alpha1.MACLeaseName(network, mac)
			if other := met[name]; other != "" {
				t.Errorf("%s and %s meet in %s", other, network, name)
			}
			if met[name] = network; len(name) > 253 {
				t.Errorf("%s is too long", name)
			}
		}
	}
}
