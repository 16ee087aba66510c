package local

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/agent"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/controller"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/instance"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/launcher"
	"github.com/weftnet/weft/internal/qemu"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/vmnet"
)

// validate holds a manifest against the rules of its kind.
func validate(obj *store.Object) (warnings []string, err error) {
	switch obj.GroupVersionKind() {
	case NAD:
		nad, err := netattach.FromObject(obj.Object)
		if err != nil {
			return nil, err
		}
		conf, err := netattach.ParseConfig([]byte(nad.Config), nad.Name)
		if err != nil {
			return nil, err
		}
		for _, warning := range chain.Warnings(conf) {
			warnings = append(warnings, "spec.config "+warning)
		}
		return warnings, nil
	case Pod:
		_, err := netattach.ParseNetworks(obj.GetAnnotations()[netattach.NetworksAnnotation], obj.GetNamespace())
		_, defaultErr := netattach.ParseDefaultNetwork(obj.GetAnnotations()[netattach.DefaultNetworkAnnotation], obj.GetNamespace())
		return nil, errors.Join(err, defaultErr)
	case VMI:
		_, found, err := kubevirt.FromVMI(obj)
		return texts(found), err
	case VM:
		_, found, err := kubevirt.FromVM(obj)
		return texts(found), err
	default:
		return nil, nil
	}
}

func texts(warnings []kubevirt.Warning) []string {
	var out []string
	for _, w := range warnings {
		out = append(out, w.String())
	}
	return out
}

// backend answers what the socket API asks beside objects.
type backend struct {
	*agent.Node
	instance    instance.Instance
	store       store.Store
	controllers *controller.Controllers
	prune       func(ctx context.Context) ([]string, error)
	// collect frees what removed images have left; inUse tells by digest.
	collect func(ctx context.Context, inUse func(digest string) bool) error
	// addresses are those held on this machine, and records say by whom.
	addresses *ipam.Memory
	records   *record.Store
}

var _ Backend = (*backend)(nil)

// DomainXML gives the machine of an instance as libvirt would have it.
func (b *backend) DomainXML(ctx context.Context, key store.Key) (string, error) {
	vmi, err := b.store.Get(ctx, VMI, key)
	if err != nil {
		return "", fmt.Errorf("vmi %s: %w", key, err)
	}
	spec, err := launcher.ReadSpec(b.instance.VMDir(key.Namespace, key.Name))
	if err != nil {
		return "", &hint.Error{Field: "vmi", Value: key.String(), Problem: "has no machine yet", Err: err, Remedy: "weft describe vmi " + key.Name + " says what it waits for"}
	}
	if inst, _, err := kubevirt.FromVMI(vmi); err == nil {
		for i, nic := range spec.Machine.NICs {
			for _, iface := range inst.Interfaces {
				if iface.Name == nic.Network { // cables may have changed since it was started
					spec.Machine.NICs[i].LinkUp = iface.State != vmnet.Down
				}
			}
		}
	}
	return qemu.DomainXML(spec.Machine, "")
}

// GuestExec runs a program in a guest.
func (b *backend) GuestExec(ctx context.Context, key store.Key, command []string) (ExecReply, error) {
	if len(command) == 0 {
		return ExecReply{}, &hint.Error{Field: "COMMAND", Problem: "is missing", Remedy: "write it after --"}
	}
	result, err := b.Node.GuestExec(ctx, key, qemu.Command{Path: command[0], Args: command[1:]})
	if err != nil {
		return ExecReply{}, err
	}
	code := result.ExitCode
	if result.Signal != 0 {
		code = 128 + result.Signal // as a shell says it
	}
	return ExecReply{ExitCode: code, Stdout: result.Stdout, Stderr: result.Stderr}, nil
}

// VMAction starts, stops or restarts a VM by changing what is wanted.
func (b *backend) VMAction(ctx context.Context, key store.Key, action string) error {
	vm, err := b.store.Get(ctx, VM, key)
	if errors.Is(err, store.ErrNotFound) {
		return &hint.Error{
			Field: "vm", Value: key.String(), Problem: "there is no VirtualMachine of that name", Err: err,
			Remedy: "only a VirtualMachine can be started, stopped and restarted; delete and apply a bare VirtualMachineInstance",
		}
	}
	if err != nil {
		return err
	}
	next := vm.DeepCopy()
	unstructured.RemoveNestedField(next.Object, "spec", "running")
	strategy, _, _ := unstructured.NestedString(next.Object, "spec", "runStrategy") // absent with spec.running
	switch action {
	case "start":
		strategy = string(kubevirt.Always)
	case "stop":
		strategy = string(kubevirt.Halted)
	case "restart":
		vmi, err := b.store.Get(ctx, VMI, key)
		if err != nil {
			return &hint.Error{Field: "vm", Value: key.String(), Problem: "does not run", Err: err, Remedy: "weft vm start " + key.Name}
		}
		setAnnotation(next, controller.RestartAnnotation, string(vmi.GetUID()))
		if strategy == "" {
			strategy = string(kubevirt.Always)
		}
	default:
		return &hint.Error{Field: "action", Value: action, Problem: "is none", Remedy: "use start, stop or restart"}
	}
	if err := unstructured.SetNestedField(next.Object, strategy, "spec", "runStrategy"); err != nil {
		return fmt.Errorf("change VM %s: %w", key, err)
	}
	if _, err := b.store.Update(ctx, next); err != nil {
		return fmt.Errorf("change VM %s: %w", key, err)
	}
	return nil
}

// downPatience bounds how long down waits for guests to shut down.
const downPatience = 5 * time.Minute

// refusedPatience bounds how long down lets a plugin refuse to take back what it did.
const refusedPatience = 20 * time.Second

// Down stops every VM and Pod and removes what they have.
func (b *backend) Down(ctx context.Context, request DownRequest) (DownReply, error) {
	b.controllers.Stop()
	if request.Force {
		if err := b.Abandon(ctx); err != nil {
			return DownReply{}, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, downPatience)
	defer cancel()
	var reply DownReply
	kinds := []schema.GroupVersionKind{VMI, Pod}
	if request.All {
		kinds = []schema.GroupVersionKind{VM, VMI, Pod, NAD, IPAMClaim, Identity, Namespace}
	}
	for _, gvk := range kinds {
		names, err := b.deleteAll(ctx, gvk)
		if err != nil {
			return reply, err
		}
		reply.Removed = append(reply.Removed, names...)
	}
	for _, gvk := range []schema.GroupVersionKind{VMI, Pod} {
		if err := b.awaitNone(ctx, gvk, request.Force); err != nil {
			return reply, err
		}
	}
	pruned, err := b.prune(ctx)
	reply.Removed = append(reply.Removed, pruned...)
	if err != nil {
		return reply, err
	}
	if err := b.collect(ctx, func(string) bool { return false }); err != nil { // no machine runs any more
		return reply, err
	}
	reply.Kept, err = b.kept(ctx)
	return reply, err
}

func (b *backend) deleteAll(ctx context.Context, gvk schema.GroupVersionKind) ([]string, error) {
	objects, _, err := b.store.List(ctx, gvk, store.Selector{})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", gvk.Kind, err)
	}
	var names []string
	var errs []error
	for _, obj := range objects {
		err := b.store.Delete(ctx, gvk, store.KeyOf(obj), store.Precondition{})
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			errs = append(errs, err)
			continue
		}
		names = append(names, gvk.Kind+" "+store.KeyOf(obj).String())
	}
	return names, errors.Join(errs...)
}

func (b *backend) awaitNone(ctx context.Context, gvk schema.GroupVersionKind, force bool) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	refused := time.Time{}
	for {
		left, _, err := b.store.List(ctx, gvk, store.Selector{})
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("list %s: %w", gvk.Kind, err)
		}
		if err == nil && len(left) == 0 {
			return nil
		}
		if force || !slices.ContainsFunc(left, detachFailed) {
			refused = time.Time{}
		} else if refused.IsZero() {
			refused = time.Now()
		}
		switch {
		case ctx.Err() != nil:
			return errors.Join(notGone(gvk, left), ctx.Err())
		case !refused.IsZero() && time.Since(refused) > refusedPatience:
			return &hint.Error{
				Problem: "what plugins did could not be taken back", Err: notGone(gvk, slices.DeleteFunc(left, func(obj *store.Object) bool { return !detachFailed(obj) })),
				Remedy: "mend what the plugins say and run weft down again, or weft down --force to leave behind what they did",
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func detachFailed(obj *store.Object) bool {
	return ConditionReason(obj, "Terminating") == "DetachFailed"
}

func notGone(gvk schema.GroupVersionKind, left []*store.Object) error {
	var errs []error
	for _, obj := range left {
		_, why := Condition(obj, "Terminating")
		errs = append(errs, fmt.Errorf("%s %s is not gone: %s", gvk.Kind, store.KeyOf(obj), why))
	}
	return errors.Join(errs...)
}

// kept says what stays on disk.
func (b *backend) kept(ctx context.Context) ([]string, error) {
	var kept []string
	for _, gvk := range []schema.GroupVersionKind{VM, NAD, IPAMClaim, Identity} {
		objects, _, err := b.store.List(ctx, gvk, store.Selector{})
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", gvk.Kind, err)
		}
		for _, obj := range objects {
			kept = append(kept, gvk.Kind+" "+store.KeyOf(obj).String())
		}
	}
	slices.Sort(kept)
	return append(kept, "images in "+b.instance.ImageDir()+" (weft down --all --purge deletes them)"), nil
}
