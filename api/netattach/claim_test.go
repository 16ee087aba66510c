package netattach

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestClaim: an IPAMClaim is read, and its status comes back through a merge
// patch as it was.
func TestClaim(t *testing.T) {
	const text = `{"apiVersion": "k8s.cni.cncf.io/v1alpha1", "kind": "IPAMClaim",
		"metadata": {"name": "vm-a.lan", "namespace": "demo", "uid": "u1", "resourceVersion": "5", "finalizers": ["weft.network/addresses"], "deletionTimestamp": "2026-01-01T00:00:00Z"},
		"spec": {"network": "lan", "interface": "net1"},
		"status": {"ips": ["10.0.0.5/24", "fd00::5/64"], "ownerPod": {"name": "virt-launcher-a"}, "conditions": [
			{"type": "IPsAllocated", "status": "True", "reason": "SuccessfulAllocation", "message": "", "observedGeneration": 2, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}`
	var obj map[string]any
	if err := json.Unmarshal([]byte(text), &obj); err != nil {
		t.Fatal(err)
	}
	claim, err := ClaimFromObject(obj)
	if err != nil {
		t.Fatal(err)
	}
	want := &IPAMClaim{
		Name: "vm-a.lan", Namespace: "demo", UID: "u1", Revision: "5", Finalizers: []string{"weft.network/addresses"}, Deleting: true,
		Network: "lan", Interface: "net1", IPs: []string{"10.0.0.5/24", "fd00::5/64"}, OwnerPod: "virt-launcher-a",
		Conditions: []Condition{{ClaimCondition, "True", ClaimAllocated, "", 2, "2026-01-01T00:00:00Z"}},
	}
	if diff := cmp.Diff(want, claim); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	patched, err := json.Marshal(claim.StatusPatch())
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(patched, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{"status": obj["status"]}, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	empty, err := ClaimFromObject(map[string]any{"metadata": map[string]any{"name": "x"}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{"status": map[string]any{"ips": []any{}, "ownerPod": nil}}, empty.StatusPatch()); diff != "" {
		t.Errorf("a claim of nobody (-want +got):\n%s", diff)
	}
	if _, err := ClaimFromObject(map[string]any{"spec": "x"}); err == nil {
		t.Error("a spec that is a string was read")
	}
}
