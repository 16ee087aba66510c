package local

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/networks"
)

// The kinds weft takes on one machine.
var (
	Namespace = schema.GroupVersionKind{Version: "v1", Kind: "Namespace"}
	Pod       = schema.GroupVersionKind{Version: "v1", Kind: "Pod"}
	NAD       = networks.DefinitionKind
	IPAMClaim = networks.ClaimKind
	VMI       = schema.GroupVersionKind{Group: "kubevirt.io", Version: "v1", Kind: "VirtualMachineInstance"}
	VM        = schema.GroupVersionKind{Group: "kubevirt.io", Version: "v1", Kind: "VirtualMachine"}
	// Identity is the NIC identity of a VM's interface, weft's own kind.
	Identity = schema.GroupVersionKind{Group: "weft.network", Version: "v1alpha1", Kind: "NICIdentity"}
)

// KindInfo says how people name a kind and in what order it is applied.
type KindInfo struct {
	GVK        schema.GroupVersionKind
	Names      []string // accepted by `weft get`, first one is printed
	Namespaced bool
	// ByUser: may stand in a manifest.
	ByUser bool
}

// Kinds in the order they are applied; deleted in reverse.
var Kinds = []KindInfo{
	{GVK: Namespace, Names: []string{"namespace", "namespaces", "ns"}, ByUser: true},
	{GVK: NAD, Names: []string{"nad", "nads", "net-attach-def", "net-attach-defs", "networkattachmentdefinition", "networkattachmentdefinitions"}, Namespaced: true, ByUser: true},
	{GVK: IPAMClaim, Names: []string{"ipamclaim", "ipamclaims"}, Namespaced: true, ByUser: true},
	{GVK: Pod, Names: []string{"pod", "pods", "po"}, Namespaced: true, ByUser: true},
	{GVK: VM, Names: []string{"vm", "vms", "virtualmachine", "virtualmachines"}, Namespaced: true, ByUser: true},
	{GVK: VMI, Names: []string{"vmi", "vmis", "virtualmachineinstance", "virtualmachineinstances"}, Namespaced: true, ByUser: true},
	{GVK: Identity, Names: []string{"nicidentity", "nicidentities"}, Namespaced: true},
}

// KindNamed finds a kind by any of the names people use.
func KindNamed(name string) (KindInfo, error) {
	lower := strings.ToLower(name)
	for _, k := range Kinds {
		if slices.Contains(k.Names, lower) || strings.EqualFold(k.GVK.Kind, name) {
			return k, nil
		}
	}
	return KindInfo{}, &hint.Error{Field: "kind", Value: name, Problem: "weft does not know this kind", Remedy: "use one of " + kindNames()}
}

// kindOf finds a kind by what a manifest says.
func kindOf(gvk schema.GroupVersionKind) (KindInfo, int, bool) {
	for i, k := range Kinds {
		if k.GVK == gvk {
			return k, i, true
		}
	}
	return KindInfo{}, 0, false
}

func kindNames() string {
	names := make([]string, 0, len(Kinds))
	for _, k := range Kinds {
		names = append(names, k.Names[0])
	}
	return strings.Join(names, ", ")
}
