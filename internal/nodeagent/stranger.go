package nodeagent

import (
	"fmt"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/record"
)

// addressConflict is the reason of events of Pods whose address somebody else uses.
const addressConflict = "AddressConflict"

// strange tells of a station that uses an address which a Pod was about to get.
func (a *agent) strange(s chain.Stranger) {
	a.count.Conflict()
	if s.Pod.Name == "" {
		return // the log has it
	}
	event := a.about(podKind, podKey(s.Pod), s.Pod.UID)
	event.Type, event.Reason, event.Seed = "Warning", addressConflict, time.Now().String()
	event.Message = fmt.Sprintf("%s of network %s, for %s, is in use by %s, which has no lease of it", s.Addr, s.Network, s.Interface, s.MAC)
	if s.Quarantined {
		event.Message += fmt.Sprintf("; the Pod gets another address, and nobody gets this one for %s", lease.QuarantineFor)
	}
	a.writeLater(event)
}

// Conflict tells of a Pod here whose address is another's in the cluster: an event of
// each of the two names the other.
func (l *leases) Conflict(box *record.Sandbox, at *record.Attachment, holder v1alpha1.AddressLeaseSpec) {
	a := l.agent
	a.count.Conflict()
	here := fmt.Sprintf("Pod %s of node %s on %s", box.Pod, a.node, at.Interface)
	other := lease.HolderName(holder)
	tell := func(pod record.Pod, message string) {
		event := a.about(podKind, podKey(pod), pod.UID)
		event.Type, event.Reason, event.Seed, event.Message = "Warning", addressConflict, time.Now().String(), message
		a.writeLater(event)
	}
	const remedy = "delete one of the two"
	tell(box.Pod, fmt.Sprintf("%s of network %s is also held by %s: its lease was lost while %s had it; %s", holder.IP, at.Network, other, here, remedy))
	if holder.Owner.Kind == v1alpha1.OwnerPod && holder.Owner.Name != "" {
		pod := record.Pod{Namespace: holder.Owner.Namespace, Name: holder.Owner.Name, UID: string(holder.Owner.UID)}
		tell(pod, fmt.Sprintf("%s of network %s is also used by %s, whose lease was lost before; %s", holder.IP, holder.Network, here, remedy))
	}
}
