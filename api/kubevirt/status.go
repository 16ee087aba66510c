package kubevirt

import (
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	v1 "kubevirt.io/api/core/v1"
)

// Phase is the life stage of an instance.
//
//	Pending -> Scheduling -> Scheduled -> Running -> Succeeded
//	   |           |             |           |
//	   +-----------+-------------+-----------+----> Failed
type Phase string

// Phases of an instance.
const (
	Pending    = Phase(v1.Pending)
	Scheduling = Phase(v1.Scheduling)
	Scheduled  = Phase(v1.Scheduled)
	Running    = Phase(v1.Running)
	Succeeded  = Phase(v1.Succeeded)
	Failed     = Phase(v1.Failed)
)

// Condition types weft sets on an instance.
const (
	Ready             = string(v1.VirtualMachineInstanceReady)
	Synchronized      = string(v1.VirtualMachineInstanceSynchronized)
	AgentConnected    = string(v1.VirtualMachineInstanceAgentConnected)
	LiveMigratable    = string(v1.VirtualMachineInstanceIsMigratable)
	SoftwareEmulation = string(v1.VirtualMachineInstanceSoftwareEmulation)
)

// Sources of what a status says of an interface, in the order they are written.
const (
	SourceDomain = "domain"
	SourceGuest  = "guest-agent"
	SourceMultus = "multus-status"
)

// InterfaceStatus is one entry of status.interfaces.
type InterfaceStatus struct {
	// Name of the network; empty for an interface only the guest knows.
	Name string
	MAC  string
	// IPs, the one shown first in front.
	IPs []netip.Addr
	// PodInterfaceName is the link in the Pod, InterfaceName the guest's.
	PodInterfaceName, InterfaceName string
	// InfoSource lists who said so, joined by ", ".
	InfoSource string
	QueueCount int
	// LinkState is up, down or empty (no machine).
	LinkState string
}

// InterfacesStatus gives the list as status.interfaces holds it.
func InterfacesStatus(list []InterfaceStatus) []any {
	out := make([]any, 0, len(list))
	for _, s := range list {
		entry := map[string]any{}
		put := func(key, value string) {
			if value != "" {
				entry[key] = value
			}
		}
		put("name", s.Name)
		put("mac", s.MAC)
		put("podInterfaceName", s.PodInterfaceName)
		put("interfaceName", s.InterfaceName)
		put("infoSource", s.InfoSource)
		put("linkState", s.LinkState)
		if len(s.IPs) > 0 {
			ips := make([]any, len(s.IPs))
			for i, ip := range s.IPs {
				ips[i] = ip.String()
			}
			entry["ipAddress"], entry["ipAddresses"] = ips[0], ips
		}
		if s.QueueCount > 0 {
			entry["queueCount"] = int64(s.QueueCount)
		}
		out = append(out, entry)
	}
	return out
}

// OrderIPs gives IPv4 addresses before IPv6 ones, otherwise as they were,
// without doubles.
func OrderIPs(ips []netip.Addr) []netip.Addr {
	var v4, v6 []netip.Addr
	for _, ip := range ips {
		list := &v6
		if ip.Unmap().Is4() {
			list = &v4
		}
		if !slices.Contains(*list, ip) {
			*list = append(*list, ip)
		}
	}
	return append(v4, v6...)
}

// Condition is one entry of status.conditions.
type Condition struct {
	Type            string
	Status          bool
	Reason, Message string
}

// SetInterfaces writes status.interfaces of a VMI.
func SetInterfaces(vmi *unstructured.Unstructured, list []InterfaceStatus) error {
	return unstructured.SetNestedSlice(vmi.Object, InterfacesStatus(list), "status", "interfaces")
}

// SetPhase writes status.phase of a VMI, and when it came to it if it is new.
func SetPhase(vmi *unstructured.Unstructured, phase Phase, now time.Time) error {
	old, _, err := unstructured.NestedString(vmi.Object, "status", "phase")
	if err != nil {
		return err
	}
	if old == string(phase) {
		return nil
	}
	if err := unstructured.SetNestedField(vmi.Object, string(phase), "status", "phase"); err != nil {
		return err
	}
	times, _, err := unstructured.NestedSlice(vmi.Object, "status", "phaseTransitionTimestamps")
	if err != nil {
		return err
	}
	times = append(times, map[string]any{"phase": string(phase), "phaseTransitionTimestamp": stamp(now)})
	return unstructured.SetNestedSlice(vmi.Object, times, "status", "phaseTransitionTimestamps")
}

// SetCondition writes one condition of a VMI or VM. Its transition time moves
// only when its status does, so writing the same twice changes nothing.
func SetCondition(obj *unstructured.Unstructured, c Condition, now time.Time) error {
	list, _, err := unstructured.NestedSlice(obj.Object, "status", "conditions")
	if err != nil {
		return err
	}
	status := "False"
	if c.Status {
		status = "True"
	}
	entry := map[string]any{"type": c.Type, "status": status, "lastProbeTime": nil, "lastTransitionTime": stamp(now)}
	if c.Reason != "" {
		entry["reason"] = c.Reason
	}
	if c.Message != "" {
		entry["message"] = c.Message
	}
	i := conditionIndex(list, c.Type)
	if i < 0 {
		list = append(list, entry)
	} else {
		if old, ok := list[i].(map[string]any); ok && old["status"] == status {
			entry["lastTransitionTime"] = old["lastTransitionTime"]
		}
		list[i] = entry
	}
	return unstructured.SetNestedSlice(obj.Object, list, "status", "conditions")
}

// DropCondition takes a condition off a VMI or VM.
func DropCondition(obj *unstructured.Unstructured, kind string) error {
	list, found, err := unstructured.NestedSlice(obj.Object, "status", "conditions")
	if err != nil || !found {
		return err
	}
	i := conditionIndex(list, kind)
	if i < 0 {
		return nil
	}
	return unstructured.SetNestedSlice(obj.Object, slices.Delete(list, i, i+1), "status", "conditions")
}

// FindCondition gives a condition as it stands; ok is false if obj has none of
// that type, or a status of another shape.
func FindCondition(obj *unstructured.Unstructured, kind string) (c Condition, ok bool) {
	list, _, err := unstructured.NestedSlice(obj.Object, "status", "conditions")
	if err != nil {
		return Condition{}, false
	}
	i := conditionIndex(list, kind)
	if i < 0 {
		return Condition{}, false
	}
	entry, _ := list[i].(map[string]any) // conditionIndex has seen it
	c = Condition{Type: kind, Status: entry["status"] == "True"}
	c.Reason, _ = entry["reason"].(string)   // absent: none
	c.Message, _ = entry["message"].(string) // absent: none
	return c, true
}

func conditionIndex(list []any, kind string) int {
	return slices.IndexFunc(list, func(entry any) bool {
		condition, ok := entry.(map[string]any)
		return ok && condition["type"] == kind
	})
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
