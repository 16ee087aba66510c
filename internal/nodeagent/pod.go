package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/cniserver"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

// The cache is a moment behind: a Pod the runtime knows may not have come yet.
const podPatience = 200 * time.Millisecond

// Annotations of a Pod, from memory, after a while from the API server.
func (a *agent) Annotations(ctx context.Context, namespace, name, uid string) (map[string]string, error) {
	key := store.Key{Namespace: namespace, Name: name}
	waiting, cancel := context.WithTimeout(ctx, podPatience)
	defer cancel()
	pod, err := a.cache.Await(waiting, podKind, key, func(pod *store.Object) bool { return isPod(pod, uid) })
	if err == nil {
		return pod.GetAnnotations(), nil
	}
	asking, cancel := context.WithTimeout(ctx, apiPatience)
	defer cancel()
	pod, err = a.api.Get(asking, podKind, key)
	if err != nil {
		return nil, unanswered(fmt.Errorf("get Pod %s: %w", key, err))
	}
	if !isPod(pod, uid) {
		return nil, &hint.Error{
			Field: "Pod " + key.String(), Value: uid, Problem: fmt.Sprintf("has been replaced by one with UID %s", pod.GetUID()),
			Remedy: "nothing: the runtime ends the old one's sandbox", Err: cniserver.ErrTryAgain,
		}
	}
	return pod.GetAnnotations(), nil
}

// staticPod is the annotation of mirror Pods, whose UID the kubelet's own
// differs from (k8s.io/kubernetes/pkg/kubelet/types).
const staticPod = "kubernetes.io/config.mirror"

// isPod says whether this is the Pod the runtime speaks of.
func isPod(pod *store.Object, uid string) bool {
	annotations := pod.GetAnnotations()
	return uid == "" || string(pod.GetUID()) == uid || annotations[staticPod] == uid
}

// reconcile brings a Pod's attachments in line with its annotation, and its
// network-status with its attachments.
func (a *agent) reconcile(ctx context.Context, key store.Key) (time.Duration, error) {
	if later := a.giveWay(key); later > 0 {
		return later, nil
	}
	pod, err := a.cache.Get(ctx, podKind, key)
	if errors.Is(err, store.ErrNotFound) {
		a.takeFresh(key, "")
		return a.forget(key), nil
	}
	if err != nil {
		return 0, fmt.Errorf("read Pod %s: %w", key, err)
	}
	box, err := a.sandbox(pod)
	if err != nil || box == nil || ending(box) || pod.GetDeletionTimestamp() != nil {
		return 0, err
	}
	if !a.watches(key, pod.GetUID()) {
		a.looks.Add(key)
	}
	box, changeErr := a.change(ctx, pod, box)
	return 0, errors.Join(changeErr, a.writeStatus(ctx, pod, box), a.claims.tell(ctx, box))
}

// ending says that a sandbox is being taken back, or resists: nothing is attached to
// it any more, and the Pod's status stays as it was.
func ending(box *record.Sandbox) bool {
	return !slices.ContainsFunc(box.Attachments, func(a *record.Attachment) bool { return a.Stage == record.Attached })
}

// change attaches what the annotation has newly and detaches what it no longer
// has.
func (a *agent) change(ctx context.Context, pod *store.Object, box *record.Sandbox) (*record.Sandbox, error) {
	wanted, err := netattach.ParseNetworks(pod.GetAnnotations()[netattach.NetworksAnnotation], pod.GetNamespace())
	if err != nil {
		return box, err // nothing is taken off for a slip of the pen
	}
	attach, detach := compare(wanted, box.Attachments)
	resists := map[string]bool{} // networks, of which another try would leave one more
	var errs []error
	for _, name := range detach {
		network := box.Find(name).Network
		next, err := a.engine.Detach(ctx, box.ID, name)
		if err != nil {
			errs, resists[network] = append(errs, err), true
			continue
		}
		box = next
		a.log.Info("detached", "pod", store.KeyOf(pod).String(), "interface", name)
	}
	for _, selection := range attach {
		if resists[selection.FullName()] {
			continue
		}
		next, err := a.engine.Attach(ctx, box.ID, selection)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		box = next
		a.log.Info("attached", "pod", store.KeyOf(pod).String(), "network", selection.FullName())
	}
	return box, errors.Join(errs...)
}

// writeStatus writes network-status, if it says anything else now.
func (a *agent) writeStatus(ctx context.Context, pod *store.Object, box *record.Sandbox) error {
	statuses, err := chain.Status(box)
	if err != nil {
		return err
	}
	text, err := netattach.MarshalStatus(statuses)
	if err != nil {
		return err
	}
	if pod.GetAnnotations()[netattach.StatusAnnotation] == text {
		return nil
	}
	changes := map[string]any{"metadata": map[string]any{"annotations": map[string]any{netattach.StatusAnnotation: text}}}
	ctx, cancel := context.WithTimeout(ctx, writePatience)
	defer cancel()
	_, err = a.api.Patch(ctx, podKind, store.KeyOf(pod), changes, store.Precondition{UID: pod.GetUID()})
	if errors.Is(err, store.ErrNotFound) {
		return nil // that Pod is gone
	}
	if err != nil {
		return fmt.Errorf("write network-status of Pod %s: %w", store.KeyOf(pod), err)
	}
	a.tellAttached(ctx, pod, box)
	return nil
}
