package cluster

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/vmnet"
)

// vmKind is a kind of KubeVirt, as far as it is looked at.
func vmKind(kind, plural string) string {
	return fmt.Sprintf(`{"metadata":{"name":"%[2]s.kubevirt.io"},"spec":{"group":"kubevirt.io","scope":"Namespaced",
		"names":{"kind":%[1]q,"plural":%[2]q,"singular":%[3]q},
		"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`,
		kind, plural, strings.ToLower(kind))
}

const (
	crdsPath   = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	claimsPath = "/apis/k8s.cni.cncf.io/v1alpha1/namespaces/default/ipamclaims"
	vmsPath    = "/apis/kubevirt.io/v1/namespaces/default/virtualmachines"
)

// asAgent makes a request with what weft's agent of a node may do.
func (l *lab) asAgent(ctx context.Context, node, method, path, body string) (int, string) {
	l.t.Helper()
	request, err := http.NewRequestWithContext(ctx, method, l.Server+path, strings.NewReader(body))
	if err != nil {
		l.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	request.Header.Set("Impersonate-User", "system:serviceaccount:kube-system:weft")
	request.Header.Set("Impersonate-Extra-Authentication.kubernetes.io%2Fnode-Name", node)
	response, err := l.client.Do(request)
	if err != nil {
		l.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// claimObject reads a claim.
func (l *lab) claimObject(name string) *netattach.IPAMClaim {
	l.t.Helper()
	var obj map[string]any
	l.ask("GET", claimsPath+"/"+name, "", &obj)
	claim, err := netattach.ClaimFromObject(obj)
	if err != nil {
		l.t.Fatal(err)
	}
	return claim
}

// leaseOf is the lease of a claim as an agent writes it.
func leaseOf(addr, claim, uid, revision string, holders ...string) string {
	if revision != "" {
		revision = fmt.Sprintf(`,"resourceVersion":%q`, revision)
	}
	return fmt.Sprintf(`{"apiVersion":"weft.network/v1alpha1","kind":"AddressLease","metadata":{"name":%q,"labels":{"weft.network/owner-uid":%q}%s},
		"spec":{"ip":%[1]q,"scope":"whereabouts:","pool":"10.8.0.0/24","of":1,"owner":{"kind":"IPAMClaim","namespace":"default","name":%[4]q,"uid":%[2]q},"holders":[%[5]s]}}`,
		addr, uid, revision, claim, strings.Join(holders, ","))
}

func holder(pod, uid, node string) string {
	return fmt.Sprintf(`{"pod":%q,"podUID":%q,"vm":"web","node":%q,"sandbox":"s-%[1]s"}`, pod, uid, node)
}

// TestVMsOfACluster is the real program on a real API with the objects of VMs: it makes
// the kind IPAMClaim and claims with what its ServiceAccount may do, tells what agents
// take, and gives that back with the VM. Agents do what they may, and nothing else.
func TestVMsOfACluster(t *testing.T) {
	l := newLab(t)
	for kind, plural := range map[string]string{"VirtualMachine": "virtualmachines", "VirtualMachineInstance": "virtualmachineinstances"} {
		l.create(crdsPath, vmKind(kind, plural))
	}
	l.create(crdsPath, `{"metadata":{"name":"network-attachment-definitions.k8s.cni.cncf.io"},"spec":{"group":"k8s.cni.cncf.io","scope":"Namespaced",
		"names":{"kind":"NetworkAttachmentDefinition","plural":"network-attachment-definitions","singular":"network-attachment-definition"},
		"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}}]}}`)
	l.create("/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions",
		`{"apiVersion":"k8s.cni.cncf.io/v1","kind":"NetworkAttachmentDefinition","metadata":{"name":"lan"},"spec":{"config":"{\"cniVersion\":\"1.0.0\",\"type\":\"bridge\",\"ipam\":{\"type\":\"whereabouts\",\"range\":\"10.8.0.0/24\"}}"}}`)
	a := l.controller("a", 10981, "--mac-range="+labMACs)
	l.leads(a)
	l.create(vmsPath, `{"apiVersion":"kubevirt.io/v1","kind":"VirtualMachine","metadata":{"name":"web"},"spec":{"template":{"spec":{
		"networks":[{"name":"a_b","multus":{"networkName":"lan"}},{"name":"a.b","multus":{"networkName":"lan"}}]}}}}`)
	one, two := netattach.ClaimOfVM("web", string(vmnet.PodIfName("a_b"))), netattach.ClaimOfVM("web", string(vmnet.PodIfName("a.b")))
	l.eventually("each NIC has a claim", func() error {
		for _, name := range []string{one, two} {
			if claim := l.claimObject(name); claim.UID == "" || !slices.Contains(claim.Finalizers, claimFinalizer) {
				return fmt.Errorf("claim %s: %+v", name, claim)
			}
		}
		return nil
	})
	api := l.objects()
	l.macsMade(api, one, two)
	uid := l.claimObject(one).UID
	src, dst := l.launcher("src", "n1"), l.launcher("dst", "n2")
	l.agentsMay(one, uid, holder("src", string(src), "n1"), holder("dst", string(dst), "n2"))
	l.eventually("the claim tells", func() error {
		claim := l.claimObject(one)
		if fmt.Sprint(claim.IPs, claim.OwnerPod) != "[10.8.0.5/24]src" || len(claim.Conditions) != 1 || claim.Conditions[0].Reason != netattach.ClaimAllocated {
			return fmt.Errorf("%+v", claim)
		}
		return nil
	})
	// As Kubernetes' garbage collector does when the VM is deleted.
	l.ask("DELETE", vmsPath+"/web", "", nil)
	for _, name := range []string{one, two} {
		l.ask("DELETE", claimsPath+"/"+name, "", nil)
		l.ask("DELETE", identitiesPath+"/"+name, "", nil)
	}
	l.eventually("the claim without an address goes", func() error {
		if claim := l.claimObject(two); claim.UID != "" {
			return fmt.Errorf("%+v", claim)
		}
		return nil
	})
	if got := l.held(); !slices.Equal(got, []string{"10.8.0.5"}) {
		t.Errorf("while a launcher has it: %v", got)
	}
	for _, pod := range []string{"src", "dst"} {
		l.ask("DELETE", podsPath+"/"+pod+"?gracePeriodSeconds=0", "", nil)
	}
	l.becomes()
	l.eventually("the claim goes", func() error {
		if claim := l.claimObject(one); claim.UID != "" || len(api.macLeases(t)) > 0 {
			return fmt.Errorf("%+v, MACs %v", claim, api.macLeases(t))
		}
		return nil
	})
	l.signal(a, syscall.SIGKILL)
	l.macsNeverTwice(api)
}

func (l *lab) launcher(name, node string) types.UID {
	l.t.Helper()
	if node == "n2" {
		l.create("/api/v1/nodes", `{"metadata":{"name":"n2"},"spec":{"taints":[{"key":"node.kubernetes.io/out-of-service","effect":"NoExecute"}]}}`)
	}
	return l.create(podsPath, fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"nodeName":%q,"terminationGracePeriodSeconds":0,"containers":[{"name":"c","image":"x"}]}}`, name, node))
}

// agentsMay has agents of two nodes take an address of a claim, and try what they may
// not do.
func (l *lab) agentsMay(claim, uid, source, target string) {
	l.t.Helper()
	do := func(what, node, method, path, body, refused string) {
		l.t.Helper()
		l.eventually(what, func() error { // a policy takes effect some time after it was made
			code, answer := l.asAgent(l.t.Context(), node, method, path, body)
			if (code >= 300) != (refused != "") || !strings.Contains(answer, refused) {
				return fmt.Errorf("%d: %s", code, answer)
			}
			return nil
		})
	}
	revision := func() string {
		var obj struct {
			Metadata struct {
				ResourceVersion string `json:"resourceVersion"`
			} `json:"metadata"`
		}
		l.ask("GET", leasesPath+"/10.8.0.5", "", &obj)
		return obj.Metadata.ResourceVersion
	}
	const no = "AddressLeases of that node only"
	status := func(ips string) string {
		return fmt.Sprintf(`{"status":{"ips":[%s],"conditions":[{"type":"IPsAllocated","status":"False","reason":"SubnetExhausted","message":"x","lastTransitionTime":"2026-11-22T00:00:00Z"}]}}`, ips)
	}
	do("why a claim gets no address", "n1", "PATCH", claimsPath+"/"+claim+"/status", status(""), "")
	do("a lease for another node's Pod", "n2", "POST", leasesPath, leaseOf("10.8.0.5", claim, uid, "", source), no)
	do("a lease", "n1", "POST", leasesPath, leaseOf("10.8.0.5", claim, uid, "", source), "")
	do("take another node's Pod off", "n2", "PUT", leasesPath+"/10.8.0.5", leaseOf("10.8.0.5", claim, uid, revision(), target), no)
	do("give it to another claim", "n1", "PUT", leasesPath+"/10.8.0.5", leaseOf("10.8.0.5", claim, "other", revision(), source), no)
	do("a second holder", "n2", "PUT", leasesPath+"/10.8.0.5", leaseOf("10.8.0.5", claim, uid, revision(), source, target), "")
	do("give back the lease of a claim", "n1", "DELETE", leasesPath+"/10.8.0.5", "", no)
	do("the addresses of a claim of the cluster", "n1", "PATCH", claimsPath+"/"+claim+"/status", status(`"10.8.0.9/24"`), "IPAMClaims of its own node")
}
