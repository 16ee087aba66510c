package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/internal/launcher"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/store"
)

// Restore makes up for whatever ended the agent before: half-made attachments
// are finished or rolled back, sandboxes whose Pod is gone are removed. It must
// be done before Run.
func (n *Node) Restore(ctx context.Context) error {
	if err := n.holdKept(ctx); err != nil {
		return err
	}
	if err := n.cfg.Engine.Restore(ctx); err != nil {
		// What could not be rolled back stays in its record and is tried again.
		n.cfg.Log.Error("restore attachments", "err", err)
	}
	pods, _, err := n.cfg.Store.List(ctx, podKind, store.Selector{})
	if err != nil {
		return fmt.Errorf("list Pods: %w", err)
	}
	sandboxes, namespaces := map[string]bool{}, map[string]bool{}
	for _, pod := range pods {
		sandboxes[n.cfg.SandboxID(string(pod.GetUID()))] = true
		namespaces[n.cfg.NetNS(pod.GetNamespace(), pod.GetName())] = true
		if pod.GetAnnotations()[kubevirt.DomainAnnotation] != "" {
			n.returning[store.KeyOf(pod)] = true
		}
	}
	ids, err := n.cfg.Records.IDs()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if sandboxes[id] {
			continue
		}
		if err := n.cfg.Engine.Del(ctx, id); err != nil {
			n.cfg.Log.Error("remove sandbox without Pod", "sandbox", id, "err", err)
		}
	}
	for _, pod := range pods {
		if err := n.disown(ctx, pod); err != nil {
			return err
		}
	}
	return n.sweepNamespaces(namespaces)
}

// disown takes back what the status of a Pod and its instance says of a sandbox
// or a machine that did not survive, before anybody reads it.
func (n *Node) disown(ctx context.Context, pod *store.Object) error {
	if pod.GetDeletionTimestamp() != nil {
		return nil
	}
	key := store.KeyOf(pod)
	stands := isNS(n.cfg.NetNS(key.Namespace, key.Name))
	if !stands && isTrue(pod, podNetworked) {
		if err := n.writeCondition(ctx, pod, kubevirt.Condition{Type: podNetworked, Reason: "SandboxGone", Message: "its network namespace is gone and is being made anew"}); err != nil {
			return err
		}
	}
	name := pod.GetAnnotations()[kubevirt.DomainAnnotation]
	if name == "" {
		return nil
	}
	if stands {
		process, err := launcher.Adopt(ctx, n.cfg.VMDir(key.Namespace, name))
		if err == nil {
			return process.Close() // adopted in earnest later
		}
		if !errors.Is(err, launcher.ErrNotRunning) {
			return err
		}
	}
	vmi, err := n.get(ctx, kubevirt.InstanceKind, store.Key{Namespace: key.Namespace, Name: name})
	if err != nil || vmi == nil || !ownedBy(pod, vmi) || !isTrue(vmi, kubevirt.Ready) {
		return err
	}
	const message = "its machine ended while no agent ran"
	return n.writeStatus(ctx, vmi.DeepCopy(),
		kubevirt.Condition{Type: kubevirt.Ready, Reason: "MachineGone", Message: message},
		kubevirt.Condition{Type: guestNetworkReady, Reason: "MachineNotRunning", Message: message})
}

func isTrue(obj *store.Object, condition string) bool {
	c, _ := kubevirt.FindCondition(obj, condition)
	return c.Status
}

// sweepNamespaces removes our namespaces that are not in keep.
func (n *Node) sweepNamespaces(keep map[string]bool) error {
	entries, err := os.ReadDir(n.cfg.NetNSDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list network namespaces: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		path := filepath.Join(n.cfg.NetNSDir, entry.Name())
		if n.cfg.OwnsNetNS(entry.Name()) && !keep[path] {
			errs = append(errs, linux.DeleteNS(path))
		}
	}
	return errors.Join(errs...)
}

// PruneAll removes everything of ours that no Pod holds: shared bridges, host
// tables, namespaces. Call it when there are no Pods left.
func (n *Node) PruneAll(ctx context.Context) ([]string, error) {
	if err := n.sweepNamespaces(nil); err != nil {
		return nil, err
	}
	return n.cfg.Plane.Prune(ctx, func(string) bool { return false })
}
