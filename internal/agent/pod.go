package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

type kindOf = schema.GroupVersionKind

var podKind = schema.GroupVersionKind{Version: "v1", Kind: "Pod"}

// finalizer keeps a Pod until its sandbox is gone. It is put on before the
// first thing of the sandbox is made.
const finalizer = "weft.network/sandbox"

// Conditions of a Pod. The first is Kubernetes' own word for "its sandbox and
// network stand".
const (
	podNetworked  = "PodReadyToStartContainers"
	podTerminated = "Terminating"
)

// reconcilePod brings one Pod's sandbox in line with its object.
func (n *Node) reconcilePod(ctx context.Context, key store.Key) (time.Duration, error) {
	defer n.returned(key)
	pod, err := n.get(ctx, podKind, key)
	if err != nil || pod == nil {
		n.noteFailing(key, false)
		return 0, err
	}
	if pod.GetDeletionTimestamp() != nil {
		n.noteFailing(key, false)
		return 0, n.endPod(ctx, pod)
	}
	if !slices.Contains(pod.GetFinalizers(), finalizer) {
		next := pod.DeepCopy()
		next.SetFinalizers(append(next.GetFinalizers(), finalizer))
		if pod, err = n.cfg.Store.Update(ctx, next); err != nil {
			return 0, fmt.Errorf("add finalizer to Pod %s: %w", key, err)
		}
	}
	sandbox, attachErr := n.attach(ctx, pod)
	n.noteFailing(key, attachErr != nil)
	if attachErr != nil {
		return 0, errors.Join(attachErr, n.writeFailure(ctx, pod, attachErr))
	}
	if err := n.writeClaims(ctx, sandbox); err != nil {
		return 0, err
	}
	if vm := pod.GetAnnotations()[kubevirt.DomainAnnotation]; vm != "" {
		return n.reconcileMachine(ctx, pod, sandbox, vm)
	}
	return 0, n.writePod(ctx, pod, sandbox, nil)
}

// attach makes the namespace and everything in it that the Pod asks for.
func (n *Node) attach(ctx context.Context, pod *store.Object) (*record.Sandbox, error) {
	netns, id := n.cfg.NetNS(pod.GetNamespace(), pod.GetName()), n.cfg.SandboxID(string(pod.GetUID()))
	owners, err := n.addressOwners(ctx, pod)
	if err != nil {
		return nil, err
	}
	if !isNS(netns) {
		// What the record says of another namespace of that name is gone with it.
		if err := n.cfg.Engine.Del(ctx, id); err != nil {
			return nil, err
		}
		if err := linux.CreateNS(netns); err != nil {
			return nil, err
		}
	}
	sandbox, err := n.cfg.Engine.Add(ctx, chain.Request{
		ID: id, NetNS: netns, Annotations: pod.GetAnnotations(), DefaultNamespace: pod.GetNamespace(),
		Pod:     record.Pod{Namespace: pod.GetNamespace(), Name: pod.GetName(), UID: string(pod.GetUID())},
		Durable: pod.GetAnnotations()[kubevirt.DomainAnnotation] != "", Owners: owners,
	})
	if err == nil {
		return sandbox, nil
	}
	// The namespace of what was rolled back is empty: no half of a Pod stays.
	// With a record left, it is still needed to finish the roll-back.
	if _, loadErr := n.cfg.Engine.Get(id); errors.Is(loadErr, record.ErrNotFound) {
		err = errors.Join(err, linux.DeleteNS(netns))
	}
	return nil, err
}

// isNS says whether a namespace stands at path.
func isNS(path string) bool {
	ns, err := linux.OpenNS(path)
	if err != nil {
		return false
	}
	_ = ns.Close() // opened for reading only: nothing to lose
	return true
}

// endPod takes everything of a Pod away, then lets its object go.
func (n *Node) endPod(ctx context.Context, pod *store.Object) error {
	if !slices.Contains(pod.GetFinalizers(), finalizer) {
		return nil
	}
	err := n.removeSandbox(ctx, pod)
	if err != nil {
		return errors.Join(err, n.writeCondition(ctx, pod, kubevirt.Condition{
			Type: podTerminated, Reason: "DetachFailed", Message: err.Error(),
		}))
	}
	next := pod.DeepCopy()
	next.SetFinalizers(slices.DeleteFunc(next.GetFinalizers(), func(f string) bool { return f == finalizer }))
	if _, err := n.cfg.Store.Update(ctx, next); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("remove finalizer of Pod %s: %w", store.KeyOf(pod), err)
	}
	return nil
}

func (n *Node) removeSandbox(ctx context.Context, pod *store.Object) error {
	if vm := pod.GetAnnotations()[kubevirt.DomainAnnotation]; vm != "" {
		if err := n.endMachine(ctx, pod, vm); err != nil {
			return err
		}
	}
	del := n.cfg.Engine.Del
	if n.abandons.Load() {
		del = n.cfg.Engine.Abandon
	}
	if err := del(ctx, n.cfg.SandboxID(string(pod.GetUID()))); err != nil {
		return err
	}
	return linux.DeleteNS(n.cfg.NetNS(pod.GetNamespace(), pod.GetName()))
}

// writePod writes what the sandbox has into annotations and status.
func (n *Node) writePod(ctx context.Context, pod *store.Object, sandbox *record.Sandbox, more map[string]string) error {
	statuses, err := chain.Status(sandbox)
	if err != nil {
		return err
	}
	text, err := netattach.MarshalStatus(statuses)
	if err != nil {
		return err
	}
	next := pod.DeepCopy()
	annotations := maps.Clone(next.GetAnnotations())
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[netattach.StatusAnnotation] = text
	maps.Copy(annotations, more)
	next.SetAnnotations(annotations)
	if next, err = n.cfg.Store.Update(ctx, next); err != nil {
		return fmt.Errorf("write network-status of Pod %s: %w", store.KeyOf(pod), err)
	}
	return n.writePodStatus(ctx, next, statuses)
}

// containersNotRun is what one machine without Kubernetes does about containers.
const containersNotRun = "weft makes the Pod's network on this machine; its containers are not run, use weft exec"

func (n *Node) writePodStatus(ctx context.Context, pod *store.Object, statuses []netattach.NetworkStatus) error {
	next := pod.DeepCopy()
	fields := map[string]any{"phase": "Pending"}
	launcher := pod.GetAnnotations()[kubevirt.DomainAnnotation] != ""
	if launcher {
		fields["phase"] = "Running"
	}
	for _, s := range statuses {
		if !s.Default || len(s.IPs) == 0 {
			continue
		}
		ips := make([]any, 0, len(s.IPs))
		for _, ip := range s.IPs {
			ips = append(ips, map[string]any{"ip": ip})
		}
		fields["podIP"], fields["podIPs"] = s.IPs[0], ips
	}
	if err := setStatusFields(next, fields); err != nil {
		return err
	}
	conditions := []kubevirt.Condition{{Type: podNetworked, Status: true}}
	if !launcher {
		conditions = append(conditions,
			kubevirt.Condition{Type: "ContainersReady", Reason: "ContainersNotRun", Message: containersNotRun},
			kubevirt.Condition{Type: kubevirt.Ready, Reason: "ContainersNotRun", Message: containersNotRun})
	}
	return n.writeStatus(ctx, next, conditions...)
}

// writeFailure says in the Pod, and for a launcher Pod in its instance, why the
// sandbox does not stand.
func (n *Node) writeFailure(ctx context.Context, pod *store.Object, cause error) error {
	next := pod.DeepCopy()
	if err := setStatusFields(next, map[string]any{"phase": "Pending"}); err != nil {
		return err
	}
	err := n.writeStatus(ctx, next, kubevirt.Condition{Type: podNetworked, Reason: "NetworkFailed", Message: cause.Error()})
	if vm := pod.GetAnnotations()[kubevirt.DomainAnnotation]; vm != "" {
		err = errors.Join(err, n.writeInstanceFailure(ctx, store.Key{Namespace: pod.GetNamespace(), Name: vm}, "NetworkFailed", cause))
	}
	return err
}

func (n *Node) writeCondition(ctx context.Context, obj *store.Object, condition kubevirt.Condition) error {
	return n.writeStatus(ctx, obj.DeepCopy(), condition)
}

// writeStatus sets conditions on obj, which is the caller's own, and stores its status.
func (n *Node) writeStatus(ctx context.Context, obj *store.Object, conditions ...kubevirt.Condition) error {
	for _, condition := range conditions {
		if err := kubevirt.SetCondition(obj, condition, n.cfg.Now()); err != nil {
			return fmt.Errorf("set condition of %s: %w", store.KeyOf(obj), err)
		}
	}
	if _, err := n.cfg.Store.UpdateStatus(ctx, obj); err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("write status of %s %s: %w", obj.GetKind(), store.KeyOf(obj), err)
	}
	return nil
}

func setStatusFields(obj *store.Object, fields map[string]any) error {
	for name, value := range fields {
		if err := unstructured.SetNestedField(obj.Object, value, "status", name); err != nil {
			return fmt.Errorf("write status of %s: %w", store.KeyOf(obj), err)
		}
	}
	return nil
}
