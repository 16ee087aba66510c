package cniserver

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/record"
)

// TestLeasesWithoutAgent: while the agent is away nobody takes an address that only
// this node would know of, and what a sandbox held is left for the agent.
func TestLeasesWithoutAgent(t *testing.T) {
	n := newNode(t)
	n.stop()
	dir := filepath.Join(n.state, LeaseDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, LeaseMark), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	list := n.list("1.0.0", fmt.Sprintf(`,"agentWait":"0s","instance":"cnitest","stateDir":%q,"runDir":%q,
		"delegates":[{"cniVersion":"1.0.0","name":"main","type":"bridge","bridge":"main0","ipam":{"type":"whereabouts","range":"10.94.0.0/24"}}]`,
		n.state, filepath.Join(n.state, "run")))
	pod := n.pod("plain", nil)
	pod.CapabilityArgs = map[string]any{"io.kubernetes.cri.pod-annotations": map[string]string{"a": "b"}}
	host, err := linux.OpenNS(n.host)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	err = host.Do(func() error {
		_, err := n.runtime.AddNetworkList(t.Context(), list, pod)
		return err
	})
	wantError(t, err, types.ErrTryAgainLater, "AddressLeases", "agent is away")

	memory := agentLeases{dir: dir, memory: newMemory(t, "s1/net1", "10.94.0.7", "fd94::7")}
	if err := memory.End(t.Context(), "s1/net1", "s2/"); err != nil {
		t.Fatal(err)
	}
	kept, err := record.OpenKept(dir)
	if err != nil {
		t.Fatal(err)
	}
	left, err := kept.List()
	if err != nil {
		t.Fatal(err)
	}
	var addrs []netip.Addr
	for _, l := range left {
		addrs = append(addrs, l.Addr)
	}
	if want := []netip.Addr{netip.MustParseAddr("10.94.0.7"), netip.MustParseAddr("fd94::7")}; !slices.Equal(addrs, want) {
		t.Errorf("left for the agent is %v, want %v", addrs, want)
	}
}

// newMemory holds addresses for an owner.
func newMemory(t *testing.T, owner ipam.Owner, addresses ...string) *ipam.Memory {
	t.Helper()
	memory := ipam.NewMemory()
	for _, text := range addresses {
		if err := memory.Hold(ipam.Lease{Scope: "whereabouts:", Addr: netip.MustParseAddr(text), Owner: owner}); err != nil {
			t.Fatal(err)
		}
	}
	return memory
}
