package kubevirt

import (
	"encoding/json"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/vmnet"
)

// Labels and annotations of a launcher Pod; KubeVirt's.
const (
	launcherLabel    = "kubevirt.io"
	launcherValue    = "virt-launcher"
	createdByLabel   = "kubevirt.io/created-by"
	DomainAnnotation = "kubevirt.io/domain"
	// A service mesh must leave the guest's traffic alone on these links.
	istioInterfaces = "traffic.sidecar.istio.io/kubevirtInterfaces"
	istioReroute    = "istio.io/reroute-virtual-interfaces"
	// masqueradeBridge is the value KubeVirt gives both, whatever the link's name.
	masqueradeBridge = "k6t-eth0"
)

// Launcher says what of a launcher Pod does not follow from the instance.
type Launcher struct {
	// Suffix makes the name unique: virt-launcher-VMI-SUFFIX.
	Suffix string
	// Image and Command of the container that runs the machine.
	Image   string
	Command []string
	// MACs by network, for bridged interfaces whose spec asks for none: the Pod
	// link then comes with the MAC that is the VM's.
	MACs map[string]string
	// Annotations added to the Pod's.
	Annotations map[string]string
	NodeName    string
}

// LauncherPod builds the Pod a VM runs in.
func LauncherPod(inst *Instance, l Launcher) (*unstructured.Unstructured, error) {
	annotations, err := podAnnotations(inst, l)
	if err != nil {
		return nil, err
	}
	labels := maps.Clone(inst.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[launcherLabel] = launcherValue
	labels[createdByLabel] = inst.UID
	labels[vmNameLabel] = inst.Name
	yes := true
	grace := inst.TerminationGraceSeconds
	pod := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Name: "virt-launcher-" + inst.Name + "-" + l.Suffix, Namespace: inst.Namespace,
			Labels: labels, Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: InstanceKind.GroupVersion().String(), Kind: InstanceKind.Kind, Name: inst.Name, UID: types.UID(inst.UID),
				Controller: &yes, BlockOwnerDeletion: &yes,
			}},
		},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: &grace,
			Hostname: inst.Hostname, Subdomain: inst.Subdomain, NodeName: l.NodeName,
			DNSPolicy: corev1.DNSPolicy(inst.DNS.Policy), DNSConfig: podDNS(inst.DNS),
			Containers: []corev1.Container{{Name: "compute", Image: l.Image, Command: l.Command}},
		},
	}
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(pod)
	if err != nil {
		return nil, fmt.Errorf("write launcher Pod: %w", err)
	}
	delete(object, "status")
	return &unstructured.Unstructured{Object: object}, nil
}

func podDNS(dns DNSConfig) *corev1.PodDNSConfig {
	if len(dns.Nameservers) == 0 && len(dns.Search) == 0 {
		return nil
	}
	out := &corev1.PodDNSConfig{Searches: dns.Search}
	for _, addr := range dns.Nameservers {
		out.Nameservers = append(out.Nameservers, addr.String())
	}
	return out
}

func podAnnotations(inst *Instance, l Launcher) (map[string]string, error) {
	annotations := map[string]string{}
	maps.Copy(annotations, inst.Annotations)
	maps.Copy(annotations, l.Annotations)
	// Whatever a VMI's annotations say, networks come from its spec alone.
	delete(annotations, netattach.NetworksAnnotation)
	delete(annotations, netattach.DefaultNetworkAnnotation)
	delete(annotations, netattach.StatusAnnotation)
	annotations[DomainAnnotation] = inst.Name
	list, err := NetworksAnnotation(inst, l.MACs)
	if err != nil {
		return nil, err
	}
	if list != "" {
		annotations[netattach.NetworksAnnotation] = list
	}
	for _, network := range inst.Networks {
		if network.Multus != nil && network.Multus.Default {
			annotations[netattach.DefaultNetworkAnnotation] = network.Multus.NetworkName
			break
		}
	}
	for _, iface := range inst.Interfaces {
		if iface.Binding == vmnet.Masquerade {
			annotations[istioInterfaces] = masqueradeBridge
			annotations[istioReroute] = masqueradeBridge
		}
	}
	return annotations, nil
}

// selection is one element of the networks annotation, keys in KubeVirt's order.
type selection struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	MAC       string `json:"mac,omitempty"`
	Interface string `json:"interface"`
}

// NetworksAnnotation is the annotation of the instance's secondary networks, in
// the order of its interfaces, absent ones left out; empty if there is none. A
// MAC of the spec goes in as written; macs, by network, fill in for others.
func NetworksAnnotation(inst *Instance, macs map[string]string) (string, error) {
	var list []selection
	for _, iface := range inst.Interfaces {
		network, ok := inst.Network(iface.Name)
		if !ok || iface.State == vmnet.Absent || network.Multus == nil || network.Multus.Default {
			continue
		}
		namespace, name := network.Multus.Ref(inst.Namespace)
		mac := iface.MAC
		if mac == "" && iface.Binding == vmnet.Bridge {
			mac = macs[iface.Name]
		}
		list = append(list, selection{Name: name, Namespace: namespace, MAC: mac, Interface: network.PodLink()})
	}
	if len(list) == 0 {
		return "", nil
	}
	text, err := json.Marshal(list)
	if err != nil {
		return "", fmt.Errorf("write networks annotation: %w", err)
	}
	return string(text), nil
}
