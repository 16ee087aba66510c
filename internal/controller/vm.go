package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/internal/store"
)

// RestartAnnotation on a VirtualMachine names the instance (UID) that shall end
// so that a new one takes its place.
const RestartAnnotation = "weft.network/restart"

// reconcileVM brings a VirtualMachine's instance in line with its run strategy.
func (c *Controllers) reconcileVM(ctx context.Context, key store.Key) (time.Duration, error) {
	vm, err := c.get(ctx, kubevirt.MachineKind, key)
	if err != nil || vm == nil || vm.GetDeletionTimestamp() != nil {
		return 0, err // its instance goes with it: it owns it
	}
	vmi, err := c.get(ctx, kubevirt.InstanceKind, key)
	if err != nil {
		return 0, err
	}
	machine, _, readErr := kubevirt.FromVM(vm)
	var after time.Duration
	if readErr == nil {
		if after, err = c.driveVM(ctx, vm, vmi, machine); err != nil {
			return 0, err
		}
	}
	return after, c.writeVMStatus(ctx, vm, vmi, machine, readErr)
}

// crashPause is how long a crashed machine stays down before it is started
// again, so that one that crashes at once does not keep the node busy.
const crashPause = 5 * time.Second

func (c *Controllers) driveVM(ctx context.Context, vm, vmi *store.Object, machine *kubevirt.Machine) (time.Duration, error) {
	if vmi == nil {
		if c.stopping.Load() || !wantsInstance(vm, machine.RunStrategy) {
			return 0, nil
		}
		if _, err := c.cfg.Store.Create(ctx, machine.VMI()); err != nil && !errors.Is(err, store.ErrExists) {
			return 0, fmt.Errorf("create instance of VM %s: %w", store.KeyOf(vm), err)
		}
		return 0, nil
	}
	if !controlledBy(vmi, vm) {
		return 0, nil // somebody's own instance of that name; the status says so
	}
	phase := phaseOf(vmi)
	ended := phase == kubevirt.Succeeded || phase == kubevirt.Failed
	if phase == kubevirt.Failed && machine.RunStrategy != kubevirt.Halted {
		if wait := crashPause - c.cfg.Now().Sub(phaseSince(vmi)); wait > 0 {
			return wait, nil
		}
	}
	switch {
	case machine.RunStrategy == kubevirt.Halted,
		vm.GetAnnotations()[RestartAnnotation] == string(vmi.GetUID()),
		ended && machine.RunStrategy == kubevirt.Always,
		phase == kubevirt.Failed && machine.RunStrategy == kubevirt.RerunOnFailure:
		return 0, c.remove(ctx, vmi)
	}
	return 0, c.followCables(ctx, vmi, machine.VMI())
}

// followCables takes the state of each interface over from the VM's template,
// which is all of it that a running instance follows.
func (c *Controllers) followCables(ctx context.Context, vmi, template *store.Object) error {
	next := vmi.DeepCopy()
	changed, err := kubevirt.CopyLinkStates(next, template)
	if err != nil {
		return fmt.Errorf("set interface states of %s: %w", store.KeyOf(vmi), err)
	}
	if !changed {
		return nil
	}
	if _, err := c.cfg.Store.Update(ctx, next); err != nil {
		return fmt.Errorf("set interface states of %s: %w", store.KeyOf(vmi), err)
	}
	return nil
}

// phaseSince is when the instance came into its phase; zero if that is not told.
func phaseSince(vmi *store.Object) time.Time {
	list, _, _ := unstructured.NestedSlice(vmi.Object, "status", "phaseTransitionTimestamps") // only weft writes it
	if len(list) == 0 {
		return time.Time{}
	}
	last, _ := list[len(list)-1].(map[string]any)
	text, _ := last["phaseTransitionTimestamp"].(string)
	since, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}
	}
	return since
}

func wantsInstance(vm *store.Object, strategy kubevirt.RunStrategy) bool {
	switch strategy {
	case kubevirt.Always, kubevirt.RerunOnFailure:
		return true
	case kubevirt.Once:
		created, _, _ := unstructured.NestedBool(vm.Object, "status", "created") // absent: not yet
		return !created
	default:
		return false
	}
}

func (c *Controllers) writeVMStatus(ctx context.Context, vm, vmi *store.Object, machine *kubevirt.Machine, readErr error) error {
	next := vm.DeepCopy()
	if next.Object["status"] == nil {
		next.Object["status"] = map[string]any{}
	}
	printable, ready := "Stopped", kubevirt.Condition{Type: kubevirt.Ready, Reason: "VMINotExists", Message: "no instance runs"}
	switch {
	case readErr != nil:
		printable = "Invalid"
		ready = kubevirt.Condition{Type: kubevirt.Ready, Reason: "Invalid", Message: readErr.Error()}
	case vmi != nil && !controlledBy(vmi, vm):
		printable = "Conflict"
		ready = kubevirt.Condition{
			Type: kubevirt.Ready, Reason: "Invalid",
			Message: "an instance of this name exists that is not this VM's; delete it or rename the VM",
		}
	case vmi != nil:
		printable, ready = c.printable(vmi)
	case wantsInstance(vm, machine.RunStrategy):
		printable = "Starting"
	}
	fields := map[string]any{"printableStatus": printable, "created": vmi != nil || printable == "Starting", "ready": ready.Status, "observedGeneration": vm.GetGeneration()}
	status, ok := next.Object["status"].(map[string]any)
	if !ok {
		return fmt.Errorf("status of VM %s is no object", store.KeyOf(vm))
	}
	maps.Copy(status, fields)
	if err := kubevirt.SetCondition(next, ready, c.cfg.Now()); err != nil {
		return fmt.Errorf("write status of VM %s: %w", store.KeyOf(vm), err)
	}
	if _, err := c.cfg.Store.UpdateStatus(ctx, next); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("write status of VM %s: %w", store.KeyOf(vm), err)
	}
	return nil
}

// guestNetworkReady is the condition the agent sets on an instance.
const guestNetworkReady = "GuestNetworkReady"

// printable says of a VM what its instance says of itself. A VM is ready when
// its guest has its networks.
func (c *Controllers) printable(vmi *store.Object) (string, kubevirt.Condition) {
	own, _ := kubevirt.FindCondition(vmi, kubevirt.Ready)
	ready, told := kubevirt.FindCondition(vmi, guestNetworkReady)
	if !told || !own.Status {
		ready = own
	}
	ready.Type = kubevirt.Ready
	if ready.Reason == "" && !ready.Status {
		ready.Reason = "Starting"
	}
	switch phase := phaseOf(vmi); {
	case vmi.GetDeletionTimestamp() != nil:
		return "Stopping", ready
	case phase == kubevirt.Running:
		return "Running", ready
	case phase == kubevirt.Succeeded, phase == kubevirt.Failed:
		return string(phase), ready
	default:
		return "Starting", ready
	}
}
