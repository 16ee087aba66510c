package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/vmnet"
)

// reconcileVMI gives an instance its NIC identities and its launcher Pod, and
// keeps it until that Pod is gone. Once the Pod is there the status is the
// agent's.
//
//	(none) -> Pending -> Scheduling       here
//	          Scheduled -> Running -> ... the agent of the Pod's node
func (c *Controllers) reconcileVMI(ctx context.Context, key store.Key) (time.Duration, error) {
	vmi, err := c.get(ctx, kubevirt.InstanceKind, key)
	if err != nil || vmi == nil {
		return 0, err
	}
	pod, err := c.get(ctx, PodKind, store.Key{Namespace: key.Namespace, Name: PodName(vmi)})
	if err != nil {
		return 0, err
	}
	if vmi.GetDeletionTimestamp() != nil {
		return 0, c.endVMI(ctx, vmi, pod)
	}
	if !slices.Contains(vmi.GetFinalizers(), finalizer) {
		next := vmi.DeepCopy()
		next.SetFinalizers(append(next.GetFinalizers(), finalizer))
		if vmi, err = c.cfg.Store.Update(ctx, next); err != nil {
			return 0, fmt.Errorf("add finalizer to %s: %w", key, err)
		}
	}
	switch phase := phaseOf(vmi); {
	case phase == kubevirt.Succeeded, phase == kubevirt.Failed:
		return 0, nil
	case pod == nil && (phase == kubevirt.Scheduled || phase == kubevirt.Running):
		return 0, c.setPhase(ctx, vmi, kubevirt.Failed, kubevirt.Condition{Type: kubevirt.Ready, Reason: "PodDeleted", Message: "its launcher Pod was deleted"})
	}
	inst, _, err := kubevirt.FromVMI(vmi)
	if err != nil {
		return 0, c.setPhase(ctx, vmi, kubevirt.Pending, invalid(err))
	}
	identities, err := c.ensureIdentities(ctx, vmi, inst)
	var refused *hint.Error
	if errors.As(err, &refused) {
		// Nobody wakes us when the other side gives way: look again.
		return identityRetry, c.setPhase(ctx, vmi, kubevirt.Pending, invalid(err))
	}
	if err != nil {
		return 0, err
	}
	if pod != nil {
		return 0, c.keepLeases(ctx, pod, identities)
	}
	if err := c.createPod(ctx, vmi, inst, identities); err != nil {
		return 0, err
	}
	return 0, c.setPhase(ctx, vmi, kubevirt.Scheduling, kubevirt.Condition{Type: kubevirt.Ready, Reason: "Scheduling", Message: "its launcher Pod is being attached"})
}

const identityRetry = 5 * time.Second

func invalid(err error) kubevirt.Condition {
	return kubevirt.Condition{Type: kubevirt.Ready, Reason: "Invalid", Message: err.Error()}
}

// endVMI lets the instance go once its Pod has.
func (c *Controllers) endVMI(ctx context.Context, vmi, pod *store.Object) error {
	if pod != nil {
		return c.remove(ctx, pod)
	}
	next := vmi.DeepCopy()
	next.SetFinalizers(slices.DeleteFunc(next.GetFinalizers(), func(f string) bool { return f == finalizer }))
	if len(next.GetFinalizers()) == len(vmi.GetFinalizers()) {
		return nil
	}
	if _, err := c.cfg.Store.Update(ctx, next); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("remove finalizer of %s: %w", store.KeyOf(vmi), err)
	}
	return nil
}

func (c *Controllers) setPhase(ctx context.Context, vmi *store.Object, phase kubevirt.Phase, condition kubevirt.Condition) error {
	next := vmi.DeepCopy()
	if err := kubevirt.SetPhase(next, phase, c.cfg.Now()); err != nil {
		return fmt.Errorf("set phase of %s: %w", store.KeyOf(vmi), err)
	}
	if err := kubevirt.SetCondition(next, condition, c.cfg.Now()); err != nil {
		return fmt.Errorf("set condition of %s: %w", store.KeyOf(vmi), err)
	}
	if _, err := c.cfg.Store.UpdateStatus(ctx, next); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("write status of %s: %w", store.KeyOf(vmi), err)
	}
	return nil
}

// identityOwner is the VM, or the instance that has none: an identity lives as
// long as it does.
func identityOwner(vmi *store.Object, inst *kubevirt.Instance) metav1.OwnerReference {
	yes := true
	if inst.Owner != nil {
		for _, ref := range vmi.GetOwnerReferences() {
			if ref.Kind == kubevirt.MachineKind.Kind {
				return ref
			}
		}
	}
	return metav1.OwnerReference{
		APIVersion: kubevirt.InstanceKind.GroupVersion().String(), Kind: kubevirt.InstanceKind.Kind,
		Name: vmi.GetName(), UID: vmi.GetUID(), Controller: &yes,
	}
}

// ensureIdentities gives every interface its MAC and slot, once. Identities by
// network name.
func (c *Controllers) ensureIdentities(ctx context.Context, vmi *store.Object, inst *kubevirt.Instance) (map[string]*v1alpha1.NICIdentity, error) {
	all, err := c.identities(ctx, "")
	if err != nil {
		return nil, err
	}
	slots := map[string]int{}
	var networks []string
	for _, iface := range inst.Interfaces {
		if iface.State == vmnet.Absent {
			continue
		}
		networks = append(networks, iface.Name)
		if id, ok := own(all, inst, iface.Name); ok {
			slots[iface.Name] = id.Spec.Slot
		}
	}
	slots = vmnet.AssignSlots(slots, networks)
	found := map[string]*v1alpha1.NICIdentity{}
	var errs []error
	for i, iface := range inst.Interfaces {
		if iface.State == vmnet.Absent {
			continue
		}
		mac, err := c.macOf(inst, iface, i, all)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		id, err := c.ensureIdentity(ctx, vmi, inst, iface.Name, mac, slots[iface.Name], all)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found[iface.Name] = id
	}
	return found, errors.Join(errs...)
}

func own(all map[store.Key]*v1alpha1.NICIdentity, inst *kubevirt.Instance, network string) (*v1alpha1.NICIdentity, bool) {
	id, ok := all[store.Key{Namespace: inst.Namespace, Name: v1alpha1.IdentityName(inst.Name, network)}]
	return id, ok
}

// macOf gives the MAC of an interface: the spec's, else the one it has, else a
// stable one. A MAC another VM has is refused.
func (c *Controllers) macOf(inst *kubevirt.Instance, iface kubevirt.Interface, index int, all map[store.Key]*v1alpha1.NICIdentity) (netstate.MAC, error) {
	mac := vmnet.StableMAC(strings.Join([]string{c.cfg.MACSeed, inst.Namespace, inst.Name}, "/"), iface.Name)
	if id, ok := own(all, inst, iface.Name); ok {
		mac = id.Spec.MAC
	}
	if iface.MAC != "" {
		parsed, err := netstate.ParseMAC(iface.MAC)
		if err != nil {
			return "", err
		}
		mac = parsed
	}
	for _, other := range all {
		if other.Spec.MAC == mac && (other.Namespace != inst.Namespace || other.Spec.VM != inst.Name) {
			return "", &hint.Error{
				Field: fmt.Sprintf("spec.domain.devices.interfaces[%d].macAddress", index), Value: string(mac),
				Problem: fmt.Sprintf("is the MAC of VM %s/%s on network %s", other.Namespace, other.Spec.VM, other.Spec.Network),
				Remedy:  "choose another, or leave it out to get a stable one",
			}
		}
	}
	return mac, nil
}

func (c *Controllers) ensureIdentity(ctx context.Context, vmi *store.Object, inst *kubevirt.Instance, network string, mac netstate.MAC, slot int, all map[store.Key]*v1alpha1.NICIdentity) (*v1alpha1.NICIdentity, error) {
	id, exists := own(all, inst, network)
	if exists && id.Spec.MAC == mac {
		return id, nil
	}
	if !exists {
		id = &v1alpha1.NICIdentity{}
		id.Name, id.Namespace = v1alpha1.IdentityName(inst.Name, network), inst.Namespace
		id.OwnerReferences = []metav1.OwnerReference{identityOwner(vmi, inst)}
		id.Spec = v1alpha1.NICIdentitySpec{VM: inst.Name, Network: network, Slot: slot}
	}
	id.Spec.MAC = mac
	return id, c.writeIdentity(ctx, id, exists)
}

func (c *Controllers) writeIdentity(ctx context.Context, id *v1alpha1.NICIdentity, exists bool) error {
	obj, err := id.Object()
	if err != nil {
		return err
	}
	write := c.cfg.Store.Create
	if exists {
		write = c.cfg.Store.Update
	}
	if _, err := write(ctx, obj); err != nil {
		return fmt.Errorf("write NIC identity %s/%s: %w", id.Namespace, id.Name, err)
	}
	return nil
}

// keepLeases writes the addresses the agent reports into the identities that
// have none yet.
func (c *Controllers) keepLeases(ctx context.Context, pod *store.Object, identities map[string]*v1alpha1.NICIdentity) error {
	text := pod.GetAnnotations()[v1alpha1.LeasesAnnotation]
	if text == "" {
		return nil
	}
	var leases map[string][]v1alpha1.Lease // by network
	if err := json.Unmarshal([]byte(text), &leases); err != nil {
		return fmt.Errorf("read annotation %s of %s: %w", v1alpha1.LeasesAnnotation, store.KeyOf(pod), err)
	}
	for network, id := range identities {
		if slices.Equal(id.Spec.Leases, leases[network]) || len(leases[network]) == 0 {
			continue
		}
		id.Spec.Leases = leases[network]
		if err := c.writeIdentity(ctx, id, true); err != nil {
			return err
		}
	}
	return nil
}

func (c *Controllers) createPod(ctx context.Context, vmi *store.Object, inst *kubevirt.Instance, identities map[string]*v1alpha1.NICIdentity) error {
	plan := v1alpha1.VMPlan{UID: string(vmi.GetUID())}
	macs := map[string]string{}
	for _, iface := range inst.Interfaces {
		id, ok := identities[iface.Name]
		if !ok {
			continue
		}
		network, _ := inst.Network(iface.Name) // FromVMI has checked that it is there
		macs[iface.Name] = string(id.Spec.MAC)
		plan.NICs = append(plan.NICs, v1alpha1.PlanNIC{
			Network: iface.Name, Link: netstate.IfName(network.PodLink()), MAC: id.Spec.MAC, Slot: id.Spec.Slot,
		})
	}
	text, err := plan.Text()
	if err != nil {
		return err
	}
	pod, err := kubevirt.LauncherPod(inst, kubevirt.Launcher{
		Suffix: PodSuffix(vmi), Image: "weft-launcher", MACs: macs,
		Annotations: map[string]string{v1alpha1.VMPlanAnnotation: text},
	})
	if err != nil {
		return err
	}
	if _, err := c.cfg.Store.Create(ctx, pod); err != nil && !errors.Is(err, store.ErrExists) {
		return fmt.Errorf("create launcher Pod of %s: %w", store.KeyOf(vmi), err)
	}
	return nil
}
