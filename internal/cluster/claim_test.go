package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/vmnet"
)

// claimOf makes a claim.
func (c *cluster) claimOf(name string) types.UID {
	c.t.Helper()
	return c.make(networks.ClaimKind, "a", name, func(obj *store.Object) {
		obj.Object["spec"] = map[string]any{"network": "lan", "interface": "net1"}
	}).GetUID()
}

// claimed makes the lease of a claim, as an agent does.
func (c *cluster) claimed(addr, pool, claim string, uid types.UID, of int, holders ...v1alpha1.LeaseHolder) {
	c.t.Helper()
	c.leaseOf(v1alpha1.AddressLeaseSpec{
		IP: netip.MustParseAddr(addr), Scope: "s", Pool: pool, Of: of, Holders: holders,
		Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerClaim, Namespace: "a", Name: claim, UID: uid},
	})
}

// leaseOf makes one of an owner that is of no node.
func (c *cluster) leaseOf(spec v1alpha1.AddressLeaseSpec) {
	c.t.Helper()
	lease := v1alpha1.AddressLease{Spec: spec}
	lease.Name = strings.ReplaceAll(spec.IP.String(), ":", "-")
	lease.Labels = map[string]string{v1alpha1.OwnerUIDLabel: string(spec.Owner.UID)}
	if _, err := c.Create(c.t.Context(), lease.Object()); err != nil {
		c.t.Fatal(err)
	}
}

// holds makes a Pod, and gives it as a holder.
func (c *cluster) holds(name, node string) v1alpha1.LeaseHolder {
	c.t.Helper()
	pod := c.make(podKind, "a", name, func(obj *store.Object) { obj.Object["spec"] = map[string]any{"nodeName": node} })
	return v1alpha1.LeaseHolder{Pod: name, PodUID: pod.GetUID(), Node: node, Sandbox: "s-" + name, Interface: "net1"}
}

// setHolders writes who has an address, as agents do.
func (c *cluster) setHolders(addr string, holders ...v1alpha1.LeaseHolder) {
	c.t.Helper()
	c.eventually("write holders", func() error {
		obj, err := c.Get(c.t.Context(), leaseKind, store.Key{Name: addr})
		if err != nil {
			return err
		}
		spec, _ := obj.Object["spec"].(map[string]any)
		spec["holders"] = v1alpha1.HolderList(holders)
		_, err = c.Update(c.t.Context(), obj)
		return err
	})
}

func (c *cluster) eventually(what string, is func() error) {
	c.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := is()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: %v", what, err)
		}
	}
}

// claimTells waits until a claim's status says this: addresses, Pod, and the reason of its
// condition.
func (c *cluster) claimTells(name, want string) {
	c.t.Helper()
	c.eventually("status of "+name, func() error {
		obj, err := c.Get(c.t.Context(), networks.ClaimKind, store.Key{Namespace: "a", Name: name})
		if err != nil {
			return err
		}
		claim, err := netattach.ClaimFromObject(obj.Object)
		if err != nil {
			return err
		}
		got := fmt.Sprint(claim.IPs, " ", claim.OwnerPod)
		for _, condition := range claim.Conditions {
			got += " " + condition.Status + " " + condition.Reason
		}
		if got != want {
			return fmt.Errorf("it says %q, want %q", got, want)
		}
		return nil
	})
}

// claims gives the names of claims.
func (c *cluster) claims() (names []string) {
	c.t.Helper()
	list, _, err := c.List(context.Background(), networks.ClaimKind, store.Selector{})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, obj := range list {
		names = append(names, obj.GetName())
	}
	slices.Sort(names)
	return names
}

func (c *cluster) claimsBecome(want ...string) {
	c.t.Helper()
	slices.Sort(want)
	c.eventually("claims", func() error {
		if got := c.claims(); !slices.Equal(got, want) {
			return fmt.Errorf("there are %q, want %q", got, want)
		}
		return nil
	})
}

// TestClaimTellsItsAddresses: once, when all are there, and who has them now.
func TestClaimTellsItsAddresses(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	uid := c.claimOf("keeps")
	c.control(c)
	first, second := c.holds("first", "n1"), c.holds("second", "n1")
	c.claimed("fd00::5", "fd00::/64", "keeps", uid, 2, first)
	c.stays("fd00--5")
	c.claimTells("keeps", "[] ")
	c.claimed("10.0.0.5", "10.0.0.0/24", "keeps", uid, 2, first)
	const ips = "[10.0.0.5/24 fd00::5/64] "
	c.claimTells("keeps", ips+"first True SuccessfulAllocation")
	for _, addr := range []string{"10.0.0.5", "fd00--5"} {
		c.setHolders(addr, first, second)
	}
	c.claimTells("keeps", ips+"first True SuccessfulAllocation")
	for _, addr := range []string{"10.0.0.5", "fd00--5"} {
		c.setHolders(addr, second)
	}
	c.claimTells("keeps", ips+"second True SuccessfulAllocation")
	c.setHolders("10.0.0.5")
	c.setHolders("fd00--5")
	c.claimTells("keeps", ips+" True SuccessfulAllocation")
	// An address that somebody took for it at the same time is not kept.
	c.claimed("10.0.0.6", "10.0.0.0/24", "keeps", uid, 2)
	c.becomes("10.0.0.5", "fd00--5")
	c.remove(networks.ClaimKind, "a", "keeps")
	c.becomes()
	c.claimsBecome()
}

// TestUntriedAddress: a claim is told of an address when the first Pod has found that
// nobody else uses it, and not of one that a stranger does.
func TestUntriedAddress(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	uid := c.claimOf("keeps")
	c.control(c)
	pod := c.holds("pod", "n1")
	write := func(addr string, change func(spec map[string]any)) {
		t.Helper()
		c.eventually("write "+addr, func() error {
			obj, err := c.Get(t.Context(), leaseKind, store.Key{Name: addr})
			if err == nil {
				change(obj.Object["spec"].(map[string]any))
				_, err = c.Update(t.Context(), obj)
			}
			return err
		})
	}
	const bad, good = "10.0.0.5", "10.0.0.6"
	untried := v1alpha1.AddressLeaseSpec{
		IP: netip.MustParseAddr(bad), Scope: "s", Pool: "10.0.0.0/24", Of: 1, Untried: true, Holders: []v1alpha1.LeaseHolder{pod},
		Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerClaim, Namespace: "a", Name: "keeps", UID: uid},
	}
	c.leaseOf(untried)
	c.stays(bad)
	c.claimTells("keeps", "[] ")
	write(bad, func(spec map[string]any) {
		spec["owner"], spec["node"] = map[string]any{"kind": v1alpha1.OwnerQuarantine, "name": "02:00:00:00:00:99"}, "n1"
		delete(spec, "holders")
		delete(spec, "untried")
	})
	untried.IP = netip.MustParseAddr(good)
	c.leaseOf(untried)
	c.stays(bad, good)
	c.claimTells("keeps", "[] ")
	write(good, func(spec map[string]any) { delete(spec, "untried") })
	c.claimTells("keeps", "["+good+"/24] pod True SuccessfulAllocation")
}

// TestClaimDeletedWhileItsVMRuns: the claim waits for the Pods that have its address,
// a migration's both, and is then given back before it goes.
func TestClaimDeletedWhileItsVMRuns(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	uid := c.claimOf("keeps")
	c.control(c)
	source, target := c.holds("source", "n1"), c.holds("target", "n1")
	c.claimed("10.0.0.5", "10.0.0.0/24", "keeps", uid, 1, source, target)
	c.claimTells("keeps", "[10.0.0.5/24] source True SuccessfulAllocation")
	c.remove(networks.ClaimKind, "a", "keeps")
	c.stays("10.0.0.5")
	c.setHolders("10.0.0.5", target)
	c.stays("10.0.0.5")
	c.claimsBecome("keeps")
	c.setHolders("10.0.0.5")
	c.becomes()
	c.claimsBecome()
}

// TestClaimIsGone: somebody took the finalizer off, and made one of that name anew.
func TestClaimIsGone(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	c.claimOf("keeps")
	pod := c.holds("pod", "n1")
	c.claimed("10.0.0.5", "10.0.0.0/24", "keeps", "another", 1, pod)
	c.control(c)
	c.stays("10.0.0.5")
	c.setHolders("10.0.0.5")
	c.becomes()
	c.claimsBecome("keeps")
}

// TestClaimHolderEnds: a Pod that has ended is taken off when its node was heard from,
// or is gone; until then the claim's address is nobody else's, as TestNodeIsSilent has
// it of Pods.
func TestClaimHolderEnds(t *testing.T) {
	t.Parallel()
	for name, goes := range map[string]func(*cluster){
		"it comes back": func(c *cluster) { c.pause.Delete("n1") },
		"it is deleted": func(c *cluster) { c.remove(nodeKind, "", "n1") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.node("n1")
			uid := c.claimOf("keeps")
			pod, runs := c.holds("pod", "n1"), c.holds("runs", "n1")
			c.claimed("10.0.0.5", "10.0.0.0/24", "keeps", uid, 1, pod, runs)
			c.pause.Store("n1", true)
			c.control(c)
			c.claimTells("keeps", "[10.0.0.5/24] pod True SuccessfulAllocation")
			c.remove(podKind, "a", "pod")
			c.stays("10.0.0.5")
			c.claimTells("keeps", "[10.0.0.5/24] pod True SuccessfulAllocation")
			goes(c)
			c.claimTells("keeps", "[10.0.0.5/24] runs True SuccessfulAllocation")
			c.remove(networks.ClaimKind, "a", "keeps")
			c.stays("10.0.0.5")
		})
	}
}

// vm makes a VM, or changes it, with NICs as NAME=NETWORK.
func vmSpecOf(nics ...string) map[string]any {
	var list []any
	for _, nic := range nics {
		name, network, _ := strings.Cut(nic, "=")
		list = append(list, map[string]any{"name": name, "multus": map[string]any{"networkName": network}})
	}
	return map[string]any{"networks": append(list, map[string]any{"name": "default", "pod": map[string]any{}})}
}

// TestVMClaims: a VM has a claim for each NIC, whatever the NIC is called and however
// many there are of a network, as long as the VM has the NIC.
func TestVMClaims(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	for name, config := range map[string]string{
		"lan":     `{"cniVersion":"1.0.0","type":"bridge","ipam":{"type":"whereabouts","range":"10.0.0.0/24"}}`,
		"loose":   `{"cniVersion":"1.0.0","type":"bridge","allowPersistentIPs":false,"ipam":{"type":"whereabouts","range":"10.1.0.0/24"}}`,
		"node":    `{"cniVersion":"1.0.0","type":"bridge","ipam":{"type":"host-local","subnet":"10.2.0.0/24"}}`,
		"foreign": `{"cniVersion":"1.0.0","type":"sriov","ipam":{"type":"whereabouts","range":"10.3.0.0/24"}}`,
	} {
		c.make(networks.DefinitionKind, "a", name, func(obj *store.Object) { obj.Object["spec"] = map[string]any{"config": config} })
	}
	c.control(c)
	vm := c.make(machineKind, "a", "web", func(obj *store.Object) {
		obj.Object["spec"] = map[string]any{"template": map[string]any{"spec": vmSpecOf("a_b=lan", "a.b=a/lan", "l=loose", "n=node", "f=foreign", "x=missing")}}
	})
	bare := c.make(instanceKind, "a", "bare", func(obj *store.Object) { obj.Object["spec"] = vmSpecOf("blue=lan") })
	name := func(vm, network string) string { return netattach.ClaimOfVM(vm, string(vmnet.PodIfName(network))) }
	c.claimsBecome(name("web", "a_b"), name("web", "a.b"), name("bare", "blue"))

	// A NIC goes from the VM while the launcher has it.
	obj, err := c.Get(t.Context(), networks.ClaimKind, store.Key{Namespace: "a", Name: name("web", "a_b")})
	if err != nil {
		t.Fatal(err)
	}
	holder := c.holds("launcher", "n1")
	c.claimed("10.0.0.5", "10.0.0.0/24", name("web", "a_b"), obj.GetUID(), 1, holder)
	c.claimTells(name("web", "a_b"), "[10.0.0.5/24] launcher True SuccessfulAllocation")
	vm = vm.DeepCopy()
	vm.SetResourceVersion("")
	vm.Object["spec"] = map[string]any{"template": map[string]any{"spec": vmSpecOf("a.b=lan")}}
	if _, err := c.Update(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	c.eventually("the claim of the NIC is deleted", func() error {
		obj, err := c.Get(t.Context(), networks.ClaimKind, store.Key{Namespace: "a", Name: name("web", "a_b")})
		if err == nil && obj.GetDeletionTimestamp() == nil {
			err = fmt.Errorf("it is there")
		}
		return err
	})
	c.stays("10.0.0.5")
	c.setHolders("10.0.0.5")
	c.becomes()
	c.claimsBecome(name("web", "a.b"), name("bare", "blue"))

	// VMs go, and what is theirs.
	c.remove(machineKind, "a", "web")
	c.claimsBecome(name("bare", "blue"))
	c.remove(instanceKind, "a", bare.GetName())
	c.claimsBecome()
}

// TestStickyName: the address of a Pod name is kept without a Pod for as long as its
// lease says, and while a Pod has it.
func TestStickyName(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	sticky := func(addr, name string, seconds int, holders ...v1alpha1.LeaseHolder) {
		lease := v1alpha1.AddressLease{Spec: v1alpha1.AddressLeaseSpec{
			IP: netip.MustParseAddr(addr), Scope: "s", Interface: "net1", StickyFor: seconds, Holders: holders,
			Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerSticky, Namespace: "a", Name: name},
		}}
		lease.Name = addr
		if _, err := c.Create(t.Context(), lease.Object()); err != nil {
			t.Fatal(err)
		}
	}
	pod := c.holds("db-0", "n1")
	sticky("10.0.0.1", "db-0", 1, pod)
	sticky("10.0.0.2", "db-1", 3600)
	sticky("10.0.0.3", "db-2", 1)
	c.control(c)
	c.becomes("10.0.0.1", "10.0.0.2")
	c.remove(podKind, "a", "db-0") // by force: its node is asked first
	c.becomes("10.0.0.2")
}
