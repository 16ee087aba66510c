package kubenode

import (
	"fmt"
	"slices"
	"strings"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/vmnet"
)

// machineKinds are KubeVirt's, as far as weft looks at them: there is no KubeVirt here.
const machineKinds = `---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: virtualmachines.kubevirt.io}
spec:
  group: kubevirt.io
  scope: Namespaced
  names: {plural: virtualmachines, singular: virtualmachine, kind: VirtualMachine}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: virtualmachineinstances.kubevirt.io}
spec:
  group: kubevirt.io
  scope: Namespaced
  names: {plural: virtualmachineinstances, singular: virtualmachineinstance, kind: VirtualMachineInstance}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
`

const machineObjects = `---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: vmlan}
spec:
  config: '{"cniVersion":"1.0.0","type":"bridge","bridge":"vml0","ipam":{"type":"whereabouts","range":"10.89.0.0/16"}}'
---
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: web}
spec: {template: {spec: {networks: [{name: a_b, multus: {networkName: vmlan}}, {name: a.b, multus: {networkName: vmlan}}]}}}
`

// launcher is a Pod as KubeVirt's virt-controller makes it for VM web.
func launcher(name, node string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata:
  name: %s
  labels: {kubevirt.io: virt-launcher}
  annotations:
    kubevirt.io/domain: web
    k8s.v1.cni.cncf.io/networks: '[{"name":"vmlan","interface":%q},{"name":"vmlan","interface":%q}]'
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers: [{name: c, image: "lab.local/toolbox:1", imagePullPolicy: Never, command: [sleep, infinity]}]
`, name, vmnet.PodIfName("a_b"), vmnet.PodIfName("a.b"), node)
}

// launched starts a launcher, and gives the addresses of its NICs, and their MACs.
func (w *world) launched(name, node string) (ips, macs []string) {
	w.t.Helper()
	w.apply(launcher(name, node))
	w.kubectl("wait", "--for=condition=Ready", "pod/"+name, "--timeout=120s")
	status := w.status("pod/" + name)
	for _, network := range []string{"a_b", "a.b"} {
		nic := status[string(vmnet.PodIfName(network))]
		ips, macs = append(ips, nic.IPs...), append(macs, nic.MAC)
	}
	return ips, macs
}

// machines is the life of a VM on a cluster with weft's controller: its NICs have the
// addresses and MACs they had after it was stopped, and on the other node too while it
// migrates, until it is deleted.
func (w *world) machines() {
	w.t.Helper()
	w.apply(machineKinds)
	w.kubectl("wait", "--for=condition=Established", "crd/virtualmachines.kubevirt.io", "crd/virtualmachineinstances.kubevirt.io", "crd/ipamclaims.k8s.cni.cncf.io", "--timeout=60s")
	w.apply(machineObjects)
	for _, network := range []string{"a_b", "a.b"} { // a launcher that comes earlier is tried again, which upgrade takes for a fault
		for _, kind := range []string{"ipamclaim/", "nicidentity/"} {
			w.kubectl("wait", "--for=create", kind+netattach.ClaimOfVM("web", string(vmnet.PodIfName(network))), "--timeout=60s")
		}
	}
	first, macs := w.launched("src", "n1")
	if len(first) != 2 || first[0] == first[1] || macs[0] == macs[1] || macs[0] != w.kubectl("get", "nicidentity", netattach.ClaimOfVM("web", string(vmnet.PodIfName("a_b"))), "-o", "jsonpath={.spec.mac}") {
		w.t.Fatalf("the VM has %v, %v", first, macs)
	}
	holders := func(want ...string) {
		w.t.Helper()
		for _, ip := range first {
			w.eventually(fmt.Sprintf("Pods %v have %s", want, ip), func() error {
				if got := strings.Fields(w.kubectl("get", "addrlease", ip, "-o", "jsonpath={.spec.holders[*].pod}")); !slices.Equal(got, want) {
					return fmt.Errorf("it is of %v", got)
				}
				return nil
			})
		}
	}
	if second, theirs := w.launched("dst", "n2"); !slices.Equal(second, first) || !slices.Equal(theirs, macs) {
		w.t.Errorf("the migration's target has %v, %v, want %v, %v", second, theirs, first, macs)
	}
	holders("src", "dst")
	w.kubectl("delete", "pod", "src")
	holders("dst")
	for i, network := range []string{"a_b", "a.b"} {
		claim := netattach.ClaimOfVM("web", string(vmnet.PodIfName(network)))
		w.eventually("claim "+claim+" tells", func() error {
			got := w.kubectl("get", "ipamclaim", claim, "-o", "jsonpath={.status.ips[*]} {.status.ownerPod.name} {.status.conditions[*].reason}")
			if got != first[i]+"/16 dst SuccessfulAllocation" {
				return fmt.Errorf("it says %q", got)
			}
			return nil
		})
	}
	w.kubectl("delete", "pod", "dst")
	holders()
	if again, theirs := w.launched("again", "n1"); !slices.Equal(again, first) || !slices.Equal(theirs, macs) {
		w.t.Errorf("the VM has %v, %v after its stop, want %v, %v", again, theirs, first, macs)
	}
	w.kubectl("delete", "virtualmachine", "web")
	holders("again")
	w.kubectl("delete", "pod", "again")
	w.eventually("nothing is left of the VM", func() error {
		left := strings.Fields(w.kubectl("get", "ipamclaims", "-l", "weft.network/vm=web", "-o", "name") + w.kubectl("get", "addrlease", "-l", "weft.network/pool=10.89.0.0-16", "-o", "name") + w.kubectl("get", "macleases,nicidentities", "-o", "name"))
		if len(left) > 0 {
			return fmt.Errorf("left are %v", left)
		}
		return nil
	})
	w.kubectl("delete", "network-attachment-definition", "vmlan")
}
