package kubevirt_test

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	v1 "kubevirt.io/api/core/v1"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/internal/vmnet"
)

// TestStatus: what is written is what KubeVirt's own types read.
func TestStatus(t *testing.T) {
	vmi := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": "vm"}}}
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	later := start.Add(time.Minute)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(kubevirt.SetInterfaces(vmi, []kubevirt.InterfaceStatus{
		{
			Name: "default", MAC: "02:00:00:00:00:01", IPs: kubevirt.OrderIPs([]netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}),
			PodInterfaceName: "eth0", InterfaceName: "enp1s0", InfoSource: "domain, guest-agent", QueueCount: 2, LinkState: "up",
		},
		{Name: "later", PodInterfaceName: "pod1", InfoSource: "multus-status"},
	}))
	must(kubevirt.SetPhase(vmi, kubevirt.Running, start))
	must(kubevirt.SetPhase(vmi, kubevirt.Running, later))
	must(kubevirt.SetCondition(vmi, kubevirt.Condition{Type: kubevirt.Ready, Status: false, Reason: "Starting"}, start))
	must(kubevirt.SetCondition(vmi, kubevirt.Condition{Type: kubevirt.AgentConnected, Status: true}, start))
	must(kubevirt.SetCondition(vmi, kubevirt.Condition{Type: kubevirt.Ready, Status: true}, later))
	must(kubevirt.SetCondition(vmi, kubevirt.Condition{Type: kubevirt.Ready, Status: true, Message: "again"}, later.Add(time.Hour)))
	must(kubevirt.DropCondition(vmi, kubevirt.AgentConnected))
	must(kubevirt.DropCondition(vmi, kubevirt.LiveMigratable))

	text, err := json.Marshal(vmi.Object["status"])
	must(err)
	var status v1.VirtualMachineInstanceStatus
	must(json.Unmarshal(text, &status))
	want := []v1.VirtualMachineInstanceNetworkInterface{
		{
			Name: "default", MAC: "02:00:00:00:00:01", IP: "10.0.0.1", IPs: []string{"10.0.0.1", "fd00::1"},
			PodInterfaceName: "eth0", InterfaceName: "enp1s0", InfoSource: "domain, guest-agent", QueueCount: 2, LinkState: "up",
		},
		{Name: "later", PodInterfaceName: "pod1", InfoSource: "multus-status"},
	}
	if diff := cmp.Diff(want, status.Interfaces); diff != "" {
		t.Error(diff)
	}
	if status.Phase != v1.Running || len(status.PhaseTransitionTimestamps) != 1 || !status.PhaseTransitionTimestamps[0].PhaseTransitionTimestamp.Time.Equal(start) {
		t.Errorf("got phase %s, %v", status.Phase, status.PhaseTransitionTimestamps)
	}
	if len(status.Conditions) != 1 {
		t.Fatalf("got conditions %v", status.Conditions)
	}
	ready := status.Conditions[0]
	if ready.Status != "True" || ready.Reason != "" || ready.Message != "again" || !ready.LastTransitionTime.Time.Equal(later) {
		t.Errorf("got %+v", ready)
	}
}

func TestGuestDNS(t *testing.T) {
	inst, _, err := kubevirt.FromVMI(parse(t, []byte("spec: {dnsConfig: {nameservers: [192.0.2.1], searches: [own.example]}, domain: {memory: {guest: 64Mi}, devices: {}}}")))
	if err != nil {
		t.Fatal(err)
	}
	node := inst.GuestDNS(vmnet.DNS{Nameservers: []netip.Addr{netip.MustParseAddr("192.0.2.9")}, Domain: "node.example", Search: []string{"node.example"}})
	if got := node.Nameservers; len(got) != 2 || got[0].String() != "192.0.2.9" || node.Search[1] != "own.example" {
		t.Errorf("got %+v", node)
	}
	inst.DNS.Policy = "None"
	if own := inst.GuestDNS(vmnet.DNS{Nameservers: []netip.Addr{netip.MustParseAddr("192.0.2.9")}, Domain: "node.example", Search: []string{"node.example"}}); len(own.Nameservers) != 1 || len(own.Search) != 1 || own.Domain != "" {
		t.Errorf("got %+v", own)
	}
}
