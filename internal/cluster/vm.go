package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/vmnet"
)

// Kinds of KubeVirt. Their Go types would be most of this program.
var (
	machineKind  = schema.GroupVersionKind{Group: "kubevirt.io", Version: "v1", Kind: "VirtualMachine"}
	instanceKind = schema.GroupVersionKind{Group: "kubevirt.io", Version: "v1", Kind: "VirtualMachineInstance"}
)

// vmLabel names the VM on a claim that we made for it.
const vmLabel = "weft.network/vm"

// machines makes an IPAMClaim for each NIC of a VM on a network whose addresses VMs
// keep. It belongs to the VM, and goes with it; that of a NIC that the VM has no more
// is deleted. A launcher Pod finds it by the names of VM and interface.
type machines struct {
	vms, instances *machineList
	claims         *claims
	wake           chan struct{} // one: something has changed
	// changed is told that something of machines has; set before they are followed.
	changed func()
}

// machineList follows one of the kinds.
type machineList struct {
	poke func()

	// mu guards what follows.
	mu     sync.Mutex
	list   map[types.UID]virtualMachine
	round  uint32
	synced bool
}

// virtualMachine is what is known of a VM or an instance.
type virtualMachine struct {
	key     store.Key
	gvk     schema.GroupVersionKind
	uid     types.UID
	ofVM    types.UID // of an instance: its VM
	nics    []nic
	leaving bool
	obscure bool // cannot be read
	round   uint32
}

// nic is one of a VM's on a secondary network.
type nic struct {
	network store.Key // the NetworkAttachmentDefinition
	ifName  string    // in the launcher Pod
	name    string    // in the VM's spec
	// mac is what the spec asks for, and has what the machine that runs has.
	mac, has netstate.MAC
}

func newMachines(claims *claims) *machines {
	m := &machines{claims: claims, wake: make(chan struct{}, 1), changed: func() {}}
	m.vms = &machineList{poke: m.poke, list: map[types.UID]virtualMachine{}}
	m.instances = &machineList{poke: m.poke, list: map[types.UID]virtualMachine{}}
	return m
}

func (m *machines) poke() {
	m.changed()
	select {
	case m.wake <- struct{}{}:
	default: // it is about to
	}
}

// Begin begins a list.
func (l *machineList) Begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.round++
}

// Put takes note of a machine.
func (l *machineList) Put(obj *store.Object) {
	is := readMachine(obj)
	l.mu.Lock()
	is.round = l.round
	l.list[is.uid] = is
	l.mu.Unlock()
	l.poke()
}

// Gone takes note that a machine is no more.
func (l *machineList) Gone(obj *store.Object) {
	l.mu.Lock()
	delete(l.list, obj.GetUID())
	l.mu.Unlock()
	l.poke()
}

// Complete ends a list: what did not come is not there.
func (l *machineList) Complete() {
	l.mu.Lock()
	for uid, is := range l.list {
		if is.round != l.round {
			delete(l.list, uid)
		}
	}
	l.synced = true
	l.mu.Unlock()
	l.poke()
}

func (l *machineList) all() (list []virtualMachine, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, is := range l.list {
		list = append(list, is)
	}
	return list, l.synced
}

// vmSpec is what is read of a VMI's spec, or of a VM's template.
type vmSpec struct {
	Domain struct {
		Devices struct {
			Interfaces []vmInterface `json:"interfaces"`
		} `json:"devices"`
	} `json:"domain"`
	Networks []struct {
		Name   string `json:"name"`
		Multus *struct {
			NetworkName string `json:"networkName"`
			Default     bool   `json:"default"`
		} `json:"multus"`
	} `json:"networks"`
}

type vmInterface struct {
	Name       string `json:"name"`
	State      string `json:"state"`
	MACAddress string `json:"macAddress"`
}

// readMachine reads a VM or an instance. One that cannot be read keeps the claims it
// has.
func readMachine(obj *store.Object) virtualMachine {
	is := virtualMachine{key: store.KeyOf(obj), gvk: obj.GroupVersionKind(), uid: obj.GetUID(), leaving: obj.GetDeletionTimestamp() != nil}
	var document struct {
		Spec struct {
			vmSpec
			Template struct {
				Spec vmSpec `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
		Status struct {
			Interfaces []struct {
				Name string `json:"name"`
				MAC  string `json:"mac"`
			} `json:"interfaces"`
		} `json:"status"`
	}
	raw, err := json.Marshal(obj.Object)
	if err != nil || json.Unmarshal(raw, &document) != nil {
		is.obscure = true
		return is
	}
	spec := document.Spec.vmSpec
	if is.gvk.Kind == machineKind.Kind {
		spec = document.Spec.Template.Spec
	} else if owner := metav1.GetControllerOfNoCopy(obj); owner != nil && owner.Kind == machineKind.Kind {
		is.ofVM = owner.UID
	}
	asks, has := map[string]string{}, map[string]string{}
	for _, i := range document.Status.Interfaces {
		has[i.Name] = i.MAC
	}
	for _, network := range spec.Networks {
		unplugged := false
		for _, i := range spec.Domain.Devices.Interfaces {
			asks[i.Name] = i.MACAddress
			unplugged = unplugged || i.Name == network.Name && i.State == "absent"
		}
		if network.Multus == nil || network.Multus.Default || unplugged {
			continue
		}
		namespace, name, qualified := strings.Cut(network.Multus.NetworkName, "/")
		if !qualified {
			namespace, name = is.key.Namespace, namespace
		}
		one := nic{network: store.Key{Namespace: namespace, Name: name}, ifName: string(vmnet.PodIfName(network.Name)), name: network.Name}
		one.mac, _ = netstate.ParseMAC(asks[network.Name]) // KubeVirt refuses what is none
		one.has, _ = netstate.ParseMAC(has[network.Name])
		is.nics = append(is.nics, one)
	}
	return is
}

// String names the task.
func (*machines) String() string { return "maker of VMs' claims" }

// Run makes claims until ctx ends.
func (m *machines) Run(ctx context.Context) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C: // networks and claims change, too
		case <-m.wake:
			gather(ctx)
		}
		m.pass(ctx)
	}
}

// pass brings the claims of all VMs in line with their NICs.
func (m *machines) pass(ctx context.Context) {
	vms, vmsKnown := m.vms.all()
	instances, instancesKnown := m.instances.all()
	claims, claimsKnown := m.claims.all()
	if !vmsKnown || !instancesKnown || !claimsKnown {
		return
	}
	there := map[store.Key]bool{}
	ofOwner := map[types.UID][]knownClaim{}
	for _, claim := range claims {
		there[store.Key{Namespace: claim.Namespace, Name: claim.Name}] = true
		for _, owner := range claim.owners {
			if claim.ofVM && !claim.Deleting {
				ofOwner[owner] = append(ofOwner[owner], claim)
			}
		}
	}
	of := map[types.UID][]nic{} // what runs of a VM
	obscure := map[types.UID]bool{}
	for _, instance := range instances {
		obscure[instance.ofVM] = obscure[instance.ofVM] || instance.obscure
		if instance.ofVM == "" {
			vms = append(vms, instance)
			continue
		}
		of[instance.ofVM] = append(of[instance.ofVM], instance.nics...)
	}
	for _, vm := range vms {
		if vm.leaving {
			continue
		}
		wanted := map[string]bool{}
		for _, nic := range append(slices.Clone(vm.nics), of[vm.uid]...) {
			name := netattach.ClaimOfVM(vm.key.Name, nic.ifName)
			wanted[name] = true
			if kept, _ := m.claims.ranges.KeptByVMs(nic.network); kept && !there[store.Key{Namespace: vm.key.Namespace, Name: name}] {
				m.claims.told(ctx, vm.key.Namespace+"/"+name, m.make(ctx, vm, nic, name))
			}
		}
		for _, claim := range ofOwner[vm.uid] {
			if !vm.obscure && !obscure[vm.uid] && !wanted[claim.Name] {
				m.claims.told(ctx, vm.key.Namespace+"/"+claim.Name, m.remove(ctx, claim))
			}
		}
	}
}

// make makes the claim of a NIC.
func (m *machines) make(ctx context.Context, vm virtualMachine, nic nic, name string) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	obj := &store.Object{Object: map[string]any{"spec": map[string]any{"network": nic.network.String(), "interface": nic.ifName}}}
	obj.SetGroupVersionKind(networks.ClaimKind)
	obj.SetNamespace(vm.key.Namespace)
	obj.SetName(name)
	obj.SetLabels(map[string]string{vmLabel: labelValue(vm.key.Name)})
	obj.SetFinalizers([]string{claimFinalizer})
	obj.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: vm.gvk.GroupVersion().String(), Kind: vm.gvk.Kind, Name: vm.key.Name, UID: vm.uid}})
	_, err := m.claims.writer.Create(ctx, obj)
	if err == nil {
		m.claims.log.Info("made the IPAMClaim of a VM's NIC", "claim", vm.key.Namespace+"/"+name, "vm", vm.key.Name, "network", nic.network.String())
	}
	if errors.Is(err, store.ErrExists) { // we have not heard of it yet, or one of that name goes
		return nil
	}
	return err
}

// remove deletes the claim of a NIC that its VM has no more. Its addresses are given
// back when no Pod has them.
func (m *machines) remove(ctx context.Context, claim knownClaim) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	err := m.claims.writer.Delete(ctx, networks.ClaimKind, store.Key{Namespace: claim.Namespace, Name: claim.Name}, store.Precondition{UID: types.UID(claim.UID)})
	if err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}

// labelValue gives a value that a label can have: that of a longer one is a hash.
func labelValue(text string) string {
	if len(validation.IsValidLabelValue(text)) == 0 {
		return text
	}
	sum := sha256.Sum256([]byte(text))
	return "x" + hex.EncodeToString(sum[:16])
}
