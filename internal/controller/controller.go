// Package controller turns VirtualMachines into instances, and instances into
// launcher Pods with NIC identities. It knows only the store: what happens on a
// node is the agent's.
package controller

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/reconcile"
	"github.com/weftnet/weft/internal/store"
)

// finalizer keeps an instance until its launcher Pod is gone.
const finalizer = "weft.network/launcher"

// PodKind is the kind of launcher Pods.
var PodKind = schema.GroupVersionKind{Version: "v1", Kind: "Pod"}

// Config is what the controllers are made from.
type Config struct {
	Store store.Store
	// MACSeed tells this cluster or machine from others, so that two of them on
	// one wire do not make up the same MAC for the same VM name.
	MACSeed string
	Now     func() time.Time
	Log     *slog.Logger
}

// Controllers are the reconcile loops of this package.
type Controllers struct {
	cfg      Config
	machines *reconcile.Loop
	vmis     *reconcile.Loop
	// stopping: no instance is started any more.
	stopping atomic.Bool
}

// Stop keeps VirtualMachines from getting new instances, for good.
func (c *Controllers) Stop() { c.stopping.Store(true) }

// New makes the controllers.
func New(cfg Config) *Controllers {
	c := &Controllers{cfg: cfg}
	c.machines = reconcile.NewLoop("vm controller", 2, cfg.Log, c.reconcileVM)
	c.vmis = reconcile.NewLoop("vmi controller", 2, cfg.Log, c.reconcileVMI)
	return c
}

// Task runs until its context ends.
type Task interface {
	Run(ctx context.Context) error
	String() string
}

// Tasks gives everything that has to run.
func (c *Controllers) Tasks() []Task {
	source := func(gvk schema.GroupVersionKind, loop *reconcile.Loop, keys func(*store.Object) []store.Key) Task {
		return reconcile.Source{Store: c.cfg.Store, GVK: gvk, Loop: loop, Keys: keys}
	}
	return []Task{
		c.machines, c.vmis,
		source(kubevirt.MachineKind, c.machines, nil),
		// By name, which both share: one that is not the VM's own stands in its way.
		source(kubevirt.InstanceKind, c.machines, nil),
		source(kubevirt.InstanceKind, c.vmis, nil),
		source(PodKind, c.vmis, ownerKeys(kubevirt.InstanceKind)),
	}
}

// ownerKeys wakes the owner of an object.
func ownerKeys(owner schema.GroupVersionKind) func(*store.Object) []store.Key {
	return func(obj *store.Object) []store.Key {
		for _, ref := range obj.GetOwnerReferences() {
			if ref.Kind == owner.Kind {
				return []store.Key{{Namespace: obj.GetNamespace(), Name: ref.Name}}
			}
		}
		return nil
	}
}

// controlledBy says whether obj belongs to the very object owner, not to one
// that had its name before.
func controlledBy(obj, owner *store.Object) bool {
	for _, ref := range obj.GetOwnerReferences() {
		if ref.UID == owner.GetUID() {
			return true
		}
	}
	return false
}

// PodName is the name of the launcher Pod of an instance. It follows from the
// instance, so a controller that died after making it finds it again.
func PodName(vmi *store.Object) string {
	return "virt-launcher-" + vmi.GetName() + "-" + PodSuffix(vmi)
}

// PodSuffix tells the launcher Pods of instances of one name apart.
func PodSuffix(vmi *store.Object) string {
	sum := sha256.Sum256([]byte(vmi.GetUID()))
	const shown = 5
	return hex.EncodeToString(sum[:])[:shown]
}

// get gives an object, or nil if there is none.
func (c *Controllers) get(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (*store.Object, error) {
	obj, err := c.cfg.Store.Get(ctx, gvk, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get %s %s: %w", gvk.Kind, key, err)
	}
	return obj, nil
}

// remove deletes an object unless it is gone or going already.
func (c *Controllers) remove(ctx context.Context, obj *store.Object) error {
	if obj.GetDeletionTimestamp() != nil {
		return nil
	}
	err := c.cfg.Store.Delete(ctx, obj.GroupVersionKind(), store.KeyOf(obj), store.Precondition{UID: obj.GetUID()})
	if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("delete %s %s: %w", obj.GetKind(), store.KeyOf(obj), err)
	}
	return nil
}

// identities gives the identities of a namespace; empty: of all.
func (c *Controllers) identities(ctx context.Context, namespace string) (map[store.Key]*v1alpha1.NICIdentity, error) {
	objects, _, err := c.cfg.Store.List(ctx, v1alpha1.NICIdentityKind, store.Selector{Namespace: namespace})
	if err != nil {
		return nil, fmt.Errorf("list NIC identities: %w", err)
	}
	found := make(map[store.Key]*v1alpha1.NICIdentity, len(objects))
	for _, obj := range objects {
		id, err := v1alpha1.FromObject(obj)
		if err != nil {
			return nil, err
		}
		found[store.KeyOf(obj)] = id
	}
	return found, nil
}

func phaseOf(vmi *store.Object) kubevirt.Phase {
	// Only weft writes the status; another type there reads as no phase yet.
	phase, _, _ := unstructured.NestedString(vmi.Object, "status", "phase")
	return kubevirt.Phase(phase)
}
