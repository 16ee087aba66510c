package cluster

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
)

// TestPools: what metrics tell of ranges.
func TestPools(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	nad := func(name, config string) {
		c.make(networks.DefinitionKind, "a", name, func(obj *store.Object) { obj.Object["spec"] = map[string]any{"config": config} })
	}
	nad("lan", `{"type":"macvlan","ipam":{"type":"whereabouts","range":"10.0.0.0/29","gateway":"10.0.0.6","ipRanges":[{"range":"fd00::/64"}]}}`)
	nad("local", `{"type":"macvlan","ipam":{"type":"host-local","subnet":"10.0.0.0/29"}}`)
	nad("broken", `{`)
	pod := c.pod("x", "n1")
	c.lease("10.0.0.9", "n1", v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "a", Name: "x", UID: pod.GetUID()})
	for _, addr := range []string{"10.0.0.1", "10.0.0.2", "fd00::1"} {
		c.leaseIn("whereabouts:", addr, "n1", v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "a", Name: "x", UID: pod.GetUID()})
	}
	c.leaseIn("whereabouts:", "10.0.0.3", "n1", v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerClaim, Namespace: "a", Name: "claim", UID: c.claimOf("claim")})
	c.leaseIn("whereabouts:", "10.0.0.4", "n1", v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerQuarantine, Name: "02:00:00:00:00:99"})
	control, _ := c.controller(c)
	want := []string{
		`weft_controller_leading 1`, `weft_leases{readable="true"} 6`,
		`weft_pool_addresses{network="a/lan",range="10.0.0.1-10.0.0.5",state="free"} 1`,
		`weft_pool_addresses{network="a/lan",range="10.0.0.1-10.0.0.5",state="used"} 2`,
		`weft_pool_addresses{network="a/lan",range="10.0.0.1-10.0.0.5",state="reserved"} 1`,
		`weft_pool_addresses{network="a/lan",range="10.0.0.1-10.0.0.5",state="conflict"} 1`,
		`weft_pool_addresses{network="a/lan",range="fd00::1-fd00::ffff:ffff:ffff:ffff",state="used"} 1`,
	}
	var got string
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		answer := httptest.NewRecorder()
		control.pages().ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
		got = answer.Body.String()
		missing := ""
		for _, line := range want {
			if !strings.Contains(got, "\n"+line+"\n") {
				missing += line + "\n"
			}
		}
		if missing == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("missing:\n%sin\n%s", missing, got)
		}
	}
	if strings.Contains(got, "a/local") {
		t.Errorf("host-local is no pool of the cluster:\n%s", got)
	}
}
