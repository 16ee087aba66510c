package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/launcher"
	"github.com/weftnet/weft/internal/qemu"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/status"
	"github.com/weftnet/weft/internal/store"
)

// guestNetworkReady says that every NIC of an instance is seen in the guest, or
// which one is not and why.
const guestNetworkReady = "GuestNetworkReady"

// writeInstance writes what is known of a VM into its status. It is a
// projection: nothing is ever read back from it.
func (n *Node) writeInstance(ctx context.Context, key store.Key, sandbox *record.Sandbox, m *machine) error {
	vmi, err := n.get(ctx, kubevirt.InstanceKind, key)
	if err != nil || vmi == nil {
		return err
	}
	facts := m.statusFacts()
	if facts.Pod, err = podFacts(sandbox, m.inst); err != nil {
		return err
	}
	nics, others := status.JoinVM(requestsOf(m.inst), facts)
	known := m.snapshot()
	phase, ready := phaseOf(known)
	next := vmi.DeepCopy()
	if err := kubevirt.SetPhase(next, phase, n.cfg.Now()); err != nil {
		return fmt.Errorf("set phase of %s: %w", key, err)
	}
	if err := kubevirt.SetInterfaces(next, interfaceStatuses(nics, others)); err != nil {
		return fmt.Errorf("set interfaces of %s: %w", key, err)
	}
	conditions := []kubevirt.Condition{ready, networkCondition(phase, nics, m.awaitsAgent() > 0), {
		Type: kubevirt.AgentConnected, Status: facts.AgentConnected, Reason: reasonIf(!facts.AgentConnected, "NotAnswering"),
	}}
	if n.cfg.Accel == qemu.TCG {
		conditions = append(conditions, kubevirt.Condition{Type: kubevirt.SoftwareEmulation, Status: true, Reason: "NoUsableKVM"})
	}
	return n.writeStatus(ctx, next, conditions...)
}

func reasonIf(yes bool, reason string) string {
	if yes {
		return reason
	}
	return ""
}

func podFacts(sandbox *record.Sandbox, inst *kubevirt.Instance) (map[string]status.PodFact, error) {
	facts := map[string]status.PodFact{}
	for _, request := range requestsOf(inst) {
		for _, a := range sandbox.Attachments {
			if string(a.Interface) != request.PodLink {
				continue
			}
			fact, err := podFact(a)
			if err != nil {
				return nil, err
			}
			facts[request.Network] = fact
		}
	}
	return facts, nil
}

// phaseOf gives the phase of an instance whose machine was found or started.
func phaseOf(facts machineFacts) (kubevirt.Phase, kubevirt.Condition) {
	ready := kubevirt.Condition{Type: kubevirt.Ready}
	switch {
	case facts.exit != nil && facts.exit.Reason == launcher.Shutdown:
		ready.Reason, ready.Message = "GuestShutdown", "the guest shut down"
		return kubevirt.Succeeded, ready
	case facts.exit != nil && facts.exit.Requested:
		ready.Reason, ready.Message = "Stopped", facts.exit.String()
		return kubevirt.Succeeded, ready
	case facts.exit != nil:
		ready.Reason, ready.Message = "MachineFailed", facts.exit.String()
		return kubevirt.Failed, ready
	case facts.runs:
		ready.Status = true
		return kubevirt.Running, ready
	default:
		ready.Reason, ready.Message = "MachineStarting", "the machine is starting"
		return kubevirt.Scheduled, ready
	}
}

// networkCondition names the NICs that have not arrived in the guest. A NIC
// whose network gives no address, and one that is down, need only be plugged.
func networkCondition(phase kubevirt.Phase, nics []status.NIC, awaitsAgent bool) kubevirt.Condition {
	condition := kubevirt.Condition{Type: guestNetworkReady}
	if phase != kubevirt.Running {
		condition.Reason, condition.Message = "MachineNotRunning", "the machine does not run"
		return condition
	}
	var missing []string
	for _, nic := range nics {
		arrived := nic.Stage == status.Seen
		if nic.Stage == status.Plugged && (nic.Request.LinkDown || len(nic.Wire.Offered) == 0) {
			arrived = true
		}
		if !arrived {
			missing = append(missing, nic.Request.Network+": "+nic.Missing)
		}
	}
	if len(missing) > 0 {
		condition.Reason, condition.Message = "WaitingForGuest", strings.Join(missing, "; ")
		return condition
	}
	if awaitsAgent {
		condition.Reason, condition.Message = "WaitingForGuest", "every NIC has its lease; the guest agent has not spoken yet"
		return condition
	}
	condition.Status = true
	return condition
}

// maxUnknown bounds the guest's own interfaces shown, as KubeVirt does.
const maxUnknown = 10

func interfaceStatuses(nics []status.NIC, others []status.GuestFact) []kubevirt.InterfaceStatus {
	var list []kubevirt.InterfaceStatus
	for _, nic := range nics {
		if nic.Pod == nil && nic.Machine == nil {
			continue
		}
		list = append(list, interfaceStatus(nic))
	}
	for _, other := range others[:min(len(others), maxUnknown)] {
		list = append(list, kubevirt.InterfaceStatus{
			MAC: other.MAC, InterfaceName: other.Name, IPs: kubevirt.OrderIPs(status.GlobalOnly(other.Addresses)), InfoSource: status.SourceGuest,
		})
	}
	return list
}

// interfaceStatus shows for a masqueraded NIC the Pod's addresses, by which the
// VM is reached, and for a bridged one the guest's own. Addresses the guest
// reports are shown after; that it reports none clears nothing.
func interfaceStatus(nic status.NIC) kubevirt.InterfaceStatus {
	s := kubevirt.InterfaceStatus{Name: nic.Request.Network, PodInterfaceName: nic.Request.PodLink, InfoSource: nic.InfoSource()}
	var ips []netip.Addr
	if nic.Pod != nil {
		s.MAC = nic.Pod.MAC
		for _, p := range nic.Pod.Addresses {
			ips = append(ips, p.Addr())
		}
	}
	if nic.Wire != nil {
		s.MAC = nic.Wire.MAC // masqueraded, it is not the Pod link's
	}
	if nic.Machine != nil {
		s.MAC, s.QueueCount, s.LinkState = nic.Machine.MAC, nic.Machine.Queues, "up"
		if !nic.Machine.LinkUp {
			s.LinkState = "down"
		}
	}
	if nic.Guest != nil {
		s.InterfaceName = nic.Guest.Name
		if nic.Request.Binding != "masquerade" {
			ips = append(ips, status.GlobalOnly(nic.Guest.Addresses)...)
		}
	}
	s.IPs = kubevirt.OrderIPs(ips)
	return s
}

// writeInstanceFailure says in an instance why its machine does not run.
func (n *Node) writeInstanceFailure(ctx context.Context, key store.Key, reason string, cause error) error {
	vmi, err := n.get(ctx, kubevirt.InstanceKind, key)
	if err != nil || vmi == nil {
		return err
	}
	next := vmi.DeepCopy()
	if err := kubevirt.SetPhase(next, kubevirt.Scheduling, n.cfg.Now()); err != nil {
		return fmt.Errorf("set phase of %s: %w", key, err)
	}
	return n.writeStatus(ctx, next, kubevirt.Condition{Type: kubevirt.Ready, Reason: reason, Message: cause.Error()})
}

// Journey tells how far each NIC of a Pod or instance has come.
func (n *Node) Journey(ctx context.Context, gvk kindOf, key store.Key) (status.Journey, error) {
	obj, err := n.cfg.Store.Get(ctx, gvk, key)
	if err != nil {
		return status.Journey{}, fmt.Errorf("%s %s: %w", strings.ToLower(gvk.Kind), key, err)
	}
	journey := status.Journey{Kind: gvk.Kind, Namespace: key.Namespace, Name: key.Name}
	journey.Phase, _, _ = unstructured.NestedString(obj.Object, "status", "phase") // no phase yet shows as none
	journey.Messages = messagesOf(obj)
	if gvk == podKind {
		return n.podJourney(journey, obj)
	}
	return n.vmJourney(ctx, journey, obj)
}

func messagesOf(obj *store.Object) []string {
	list, _, _ := unstructured.NestedSlice(obj.Object, "status", "conditions") // only weft writes it
	var messages []string
	for _, item := range list {
		condition, _ := item.(map[string]any)
		message, _ := condition["message"].(string)
		if condition["status"] != "True" && message != "" && !slices.Contains(messages, message) {
			messages = append(messages, message)
		}
	}
	return messages
}

func (n *Node) podJourney(journey status.Journey, pod *store.Object) (status.Journey, error) {
	if path := n.cfg.NetNS(journey.Namespace, journey.Name); isNS(path) {
		journey.NetNS = path
	}
	sandbox, err := n.sandbox(pod)
	if err != nil {
		return journey, err
	}
	if sandbox == nil {
		journey.NICs = podRequests(pod)
		return journey, nil
	}
	for _, a := range sandbox.Attachments {
		fact, err := podFact(a)
		if err != nil {
			return journey, err
		}
		nic := status.NIC{
			Request: status.Request{Network: string(a.Interface), Source: a.Network, PodLink: string(a.Interface), Primary: a.Default},
			Stage:   status.Attached, Pod: &fact,
		}
		switch {
		case fact.Failure != "":
			nic.Stage, nic.Missing = status.Requested, fact.Failure
		case fact.MAC == "":
			nic.Missing = "its plugin says that it is there, but the Pod has no link " + string(a.Interface)
			nic.Remedy = "see that plugin's documentation: some give a device that is no link"
		}
		journey.NICs = append(journey.NICs, nic)
	}
	return journey, nil
}

// podRequests are the NICs of a Pod that has none yet; why stands in its
// conditions.
func podRequests(pod *store.Object) []status.NIC {
	request := func(link, source string, primary bool) status.NIC {
		return status.NIC{Stage: status.Requested, Request: status.Request{Network: link, Source: source, PodLink: link, Primary: primary}}
	}
	nics := []status.NIC{request("eth0", "default network", true)}
	// Annotations that cannot be read were refused when they were applied.
	selections, _ := netattach.ParseNetworks(pod.GetAnnotations()[netattach.NetworksAnnotation], pod.GetNamespace())
	for i, s := range selections {
		nics = append(nics, request(cmp.Or(s.Interface, fmt.Sprintf("net%d", i+1)), s.FullName(), false))
	}
	return nics
}

// sandbox gives the record of a Pod's sandbox, or nil if there is none.
func (n *Node) sandbox(pod *store.Object) (*record.Sandbox, error) {
	sandbox, err := n.cfg.Records.Load(n.cfg.SandboxID(string(pod.GetUID())))
	if errors.Is(err, record.ErrNotFound) {
		return nil, nil
	}
	return sandbox, err
}

func (n *Node) vmJourney(ctx context.Context, journey status.Journey, vmi *store.Object) (status.Journey, error) {
	inst, warnings, err := kubevirt.FromVMI(vmi)
	if err != nil {
		journey.Messages = append(journey.Messages, err.Error())
		return journey, nil
	}
	for _, warning := range warnings {
		journey.Messages = append(journey.Messages, warning.String())
	}
	facts := status.Facts{MachineReason: "its Pod is not attached yet"}
	pod, err := n.launcherPod(ctx, vmi)
	if err != nil {
		return journey, err
	}
	if pod != nil {
		n.awaitIntroduction(ctx, store.KeyOf(pod))
		journey.Pod, journey.NetNS = pod.GetName(), n.cfg.NetNS(pod.GetNamespace(), pod.GetName())
		if m := n.machine(store.KeyOf(pod)); m != nil {
			facts = m.statusFacts()
			journey.Messages = append(journey.Messages, m.plan.Warnings...)
			journey.Messages = append(journey.Messages, m.notTold()...)
		}
		sandbox, err := n.sandbox(pod)
		if err != nil {
			return journey, err
		}
		if sandbox != nil {
			if facts.Pod, err = podFacts(sandbox, inst); err != nil {
				return journey, err
			}
		}
	}
	journey.NICs, journey.Others = status.JoinVM(requestsOf(inst), facts)
	return journey, nil
}

func (n *Node) launcherPod(ctx context.Context, vmi *store.Object) (*store.Object, error) {
	pods, _, err := n.cfg.Store.List(ctx, podKind, store.Selector{Namespace: vmi.GetNamespace()})
	if err != nil {
		return nil, fmt.Errorf("list Pods: %w", err)
	}
	for _, pod := range pods {
		if ownedBy(pod, vmi) {
			return pod, nil
		}
	}
	return nil, nil
}
