package restart

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weftnet/weft/test/machine"
)

const claim = `---
apiVersion: k8s.cni.cncf.io/v1alpha1
kind: IPAMClaim
metadata: {name: mine}
spec: {network: blue, interface: net1}
`

func claiming(name string) string {
	return strings.Replace(pod(name), "networks: blue", `networks: '[{"name": "blue", "ipam-claim-reference": "mine"}]'`, 1)
}

// TestClaimOutlivesPod: the addresses of an IPAMClaim go from Pod to Pod, and
// nobody else gets them until the claim is deleted.
func TestClaimOutlivesPod(t *testing.T) {
	m := machine.New(t)
	if out, err := m.Weft("up", "--timeout", "2s", "-f", m.File(network+claiming("early"))); err == nil || !strings.Contains(out, "there is no IPAMClaim default/mine") {
		t.Errorf("a Pod with a claim that is not there: %v\n%s", err, out)
	}
	m.MustWeft("delete", "pod", "early")
	m.MustWeft("up", "-f", m.File(network+claim+claiming("one")))
	want := m.NetworkStatus("one")["net1"].IPs
	ips, _, err := unstructured.NestedStringSlice(m.Get("ipamclaim", "mine"), "status", "ips")
	if err != nil || !slices.Equal(ips, []string{want[0] + "/24", want[1] + "/64"}) {
		t.Errorf("status.ips of the claim is %v (%v), the Pod has %v", ips, err, want)
	}
	if out, err := m.Weft("up", "--timeout", "2s", "-f", m.File(claiming("two"))); err == nil || !strings.Contains(out, `ipam-claim-reference "mine": is in use by Pod default/one`) {
		t.Errorf("a second Pod with the claim: %v\n%s", err, out)
	}
	m.MustWeft("delete", "pod", "two")
	m.MustWeft("delete", "pod", "one")
	m.Kill("weftd") // the claim is known on disk alone
	m.MustWeft("up", "-f", m.File(pod("other")))
	if got := m.NetworkStatus("other")["net1"].IPs; slices.Equal(got, want) {
		t.Errorf("another Pod got the claim's addresses %v", got)
	}
	m.MustWeft("up", "-f", m.File(claiming("three")))
	if got := m.NetworkStatus("three")["net1"].IPs; !slices.Equal(got, want) {
		t.Errorf("the next Pod with the claim has %v, want %v", got, want)
	}
	m.MustWeft("delete", "pod", "three")
	m.MustWeft("delete", "ipamclaim", "mine")
	m.Eventually("the addresses come free", func() (string, error) {
		return m.Weft("up", "--timeout", "3s", "-f", m.File(strings.Replace(pod("heir"), "networks: blue", `networks: '[{"name": "blue", "ips": ["`+want[0]+`"]}]'`, 1)))
	})
}
