package v1alpha1

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
)

const (
	// VMPlanAnnotation on a launcher Pod tells the agent what it needs to know of
	// the VM's NICs beside the networks annotation. Any Pod author can write it:
	// it is read as untrusted input.
	VMPlanAnnotation = "weft.network/vm-plan"
	// LeasesAnnotation is the agent's answer: the addresses the VM's NICs hold.
	LeasesAnnotation = "weft.network/leases"
)

// VMPlan is the content of VMPlanAnnotation.
type VMPlan struct {
	// UID of the instance the Pod belongs to.
	UID  string    `json:"uid"`
	NICs []PlanNIC `json:"nics"`
}

// PlanNIC is the identity of one NIC.
type PlanNIC struct {
	Network string          `json:"network"`
	Link    netstate.IfName `json:"link"` // in the Pod
	MAC     netstate.MAC    `json:"mac"`
	Slot    int             `json:"slot"`
}

// Lease is one address a NIC holds within a scope of uniqueness.
type Lease struct {
	Scope string     `json:"scope"`
	Addr  netip.Addr `json:"addr"`
}

// ParseVMPlan reads and checks a plan.
func ParseVMPlan(text string) (*VMPlan, error) {
	var plan VMPlan
	field := "annotation " + VMPlanAnnotation
	if err := json.Unmarshal([]byte(text), &plan); err != nil {
		return nil, &hint.Error{Field: field, Problem: "is not the JSON weft wrote", Err: err, Remedy: "leave it to weft's controller"}
	}
	const maxSlot = 31 // 32 root ports, see package qemu
	for i, nic := range plan.NICs {
		at := fmt.Sprintf("%s nics[%d]", field, i)
		mac, err := netstate.ParseMAC(string(nic.MAC))
		if err != nil {
			return nil, &hint.Error{Field: at + ".mac", Value: string(nic.MAC), Problem: "is no MAC address", Err: err, Remedy: "leave it to weft's controller"}
		}
		plan.NICs[i].MAC = mac
		if nic.Slot < 0 || nic.Slot > maxSlot {
			return nil, &hint.Error{Field: at + ".slot", Value: fmt.Sprint(nic.Slot), Problem: "is not a root port", Remedy: "leave it to weft's controller"}
		}
	}
	return &plan, nil
}

// Text gives the annotation's value.
func (p *VMPlan) Text() (string, error) {
	text, err := json.Marshal(p)
	if err != nil {
		return "", fmt.Errorf("write VM plan: %w", err)
	}
	return string(text), nil
}
