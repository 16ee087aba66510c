package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/store"
)

// lastAppliedAnnotation holds the manifest an object was last applied from, so
// that a second apply knows what the user took out and what changed nothing.
const lastAppliedAnnotation = "weft.network/last-applied"

// Action is what apply or delete did to an object.
type Action string

// Actions.
const (
	Created    Action = "created"
	Configured Action = "configured"
	Unchanged  Action = "unchanged"
	Deleted    Action = "deleted"
	Absent     Action = "absent" // was not there to delete
	Refused    Action = "refused"
)

// Result says what happened to one object.
type Result struct {
	Kind   string
	Key    store.Key
	Action Action
	// Kept says what a deletion leaves behind on purpose.
	Kept []string `json:",omitempty"`
	// Error is the whole text, empty if the object was taken.
	Error string `json:",omitempty"`
	// Warnings tell what of the object has no effect.
	Warnings []string `json:",omitempty"`
}

// Applier brings manifests into a store.
type Applier struct {
	Store store.Store
	// Validate holds an object against its kind's rules before it is stored.
	Validate func(obj *store.Object) (warnings []string, err error)
}

// Apply stores one object: creates it, or changes what its manifest changed.
func (a *Applier) Apply(ctx context.Context, obj *store.Object) Result {
	result := Result{Kind: obj.GetKind(), Key: store.KeyOf(obj)}
	var err error
	if result.Warnings, err = a.Validate(obj); err == nil {
		result.Action, err = a.apply(ctx, obj)
	}
	if err != nil {
		result.Action = Refused
		result.Error = err.Error()
	}
	return result
}

func (a *Applier) apply(ctx context.Context, obj *store.Object) (Action, error) {
	manifest, err := asJSON(obj)
	if err != nil {
		return Refused, err
	}
	if err := a.ensureNamespace(ctx, obj.GetNamespace()); err != nil {
		return Refused, err
	}
	const attempts = 5 // a controller may write between our get and update
	for range attempts {
		action, err := a.applyOnce(ctx, obj, manifest)
		if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrExists) {
			continue
		}
		return action, err
	}
	return Refused, fmt.Errorf("apply %s %s: %w", obj.GetKind(), store.KeyOf(obj), store.ErrConflict)
}

func (a *Applier) applyOnce(ctx context.Context, obj *store.Object, manifest []byte) (Action, error) {
	have, err := a.Store.Get(ctx, obj.GroupVersionKind(), store.KeyOf(obj))
	if errors.Is(err, store.ErrNotFound) {
		created := obj.DeepCopy()
		setAnnotation(created, lastAppliedAnnotation, string(manifest))
		if _, err := a.Store.Create(ctx, created); err != nil {
			return Refused, fmt.Errorf("create %s %s: %w", obj.GetKind(), store.KeyOf(obj), err)
		}
		return Created, nil
	}
	if err != nil {
		return Refused, fmt.Errorf("get %s %s: %w", obj.GetKind(), store.KeyOf(obj), err)
	}
	if have.GetDeletionTimestamp() != nil {
		return Refused, &hint.Error{
			Field: obj.GetKind(), Value: store.KeyOf(obj).String(), Problem: "is still being deleted",
			Remedy: "wait until it is gone (weft get shows why it stays), then apply again",
		}
	}
	last := have.GetAnnotations()[lastAppliedAnnotation]
	if bytes.Equal([]byte(last), manifest) {
		return Unchanged, nil
	}
	merged, err := mergeManifest(have, obj, last)
	if err != nil {
		return Refused, err
	}
	if err := refuseImmutable(have, merged); err != nil {
		return Refused, err
	}
	setAnnotation(merged, lastAppliedAnnotation, string(manifest))
	if _, err := a.Store.Update(ctx, merged); err != nil {
		return Refused, fmt.Errorf("update %s %s: %w", obj.GetKind(), store.KeyOf(obj), err)
	}
	return Configured, nil
}

// mergeManifest gives have with everything obj says, and without the labels
// and annotations the last manifest had and this one has not. What controllers
// wrote stays.
func mergeManifest(have, obj *store.Object, last string) (*store.Object, error) {
	before := &store.Object{Object: map[string]any{}}
	if last != "" {
		if err := json.Unmarshal([]byte(last), &before.Object); err != nil {
			return nil, fmt.Errorf("read annotation %s: %w", lastAppliedAnnotation, err)
		}
	}
	merged := have.DeepCopy()
	merged.SetLabels(mergeMap(have.GetLabels(), before.GetLabels(), obj.GetLabels()))
	merged.SetAnnotations(mergeMap(have.GetAnnotations(), before.GetAnnotations(), obj.GetAnnotations()))
	for key := range merged.Object {
		if _, still := obj.Object[key]; !still && key != "status" && key != "metadata" {
			delete(merged.Object, key)
		}
	}
	for key, value := range obj.DeepCopy().Object {
		if key != "metadata" {
			merged.Object[key] = value
		}
	}
	return merged, nil
}

func mergeMap(have, before, now map[string]string) map[string]string {
	merged := maps.Clone(have)
	if merged == nil {
		merged = map[string]string{}
	}
	for key := range before {
		delete(merged, key)
	}
	maps.Copy(merged, now)
	return merged
}

// refuseImmutable names a change weft cannot carry out on a living object.
func refuseImmutable(have, merged *store.Object) error {
	kind := have.GroupVersionKind()
	changed := func(path ...string) bool {
		a, _, _ := unstructured.NestedFieldNoCopy(have.Object, path...)
		b, _, _ := unstructured.NestedFieldNoCopy(merged.Object, path...)
		left, _ := json.Marshal(a)
		right, _ := json.Marshal(b)
		return !bytes.Equal(left, right)
	}
	refusal := func(field, remedy string) error {
		return &hint.Error{Field: field, Problem: "cannot be changed while the " + kind.Kind + " exists", Remedy: remedy}
	}
	switch kind {
	case Pod:
		for _, key := range []string{netattach.NetworksAnnotation, netattach.DefaultNetworkAnnotation} {
			if changed("metadata", "annotations", key) {
				return refusal("metadata.annotations["+key+"]", "run weft delete pod "+have.GetName()+" and apply again")
			}
		}
	case VMI:
		if changed("spec") && !kubevirt.OnlyLinkStatesDiffer(have, merged) {
			return refusal("spec", "run weft delete vmi "+have.GetName()+" and apply again, or use a VirtualMachine; only the state (up, down) of interfaces can be changed in place")
		}
	}
	return nil
}

// ensureNamespace makes the namespace if nobody did: on one machine there is
// nobody else to ask for it.
func (a *Applier) ensureNamespace(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	_, err := a.Store.Get(ctx, Namespace, store.Key{Name: name})
	if err == nil {
		return nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("get namespace %s: %w", name, err)
	}
	obj := newObject(Namespace, store.Key{Name: name})
	if _, err := a.Store.Create(ctx, obj); err != nil && !errors.Is(err, store.ErrExists) {
		return fmt.Errorf("create namespace %s: %w", name, err)
	}
	return nil
}

// Delete asks for the deletion of one object; it goes when its finalizers have.
func (a *Applier) Delete(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) Result {
	result := Result{Kind: gvk.Kind, Key: key, Action: Deleted}
	if gvk == Namespace {
		if err := a.emptyNamespace(ctx, key.Name); err != nil {
			result.Action, result.Error = Refused, err.Error()
			return result
		}
	}
	had, err := a.Store.Get(ctx, gvk, key)
	if err == nil {
		err = a.Store.Delete(ctx, gvk, key, store.Precondition{})
	}
	switch {
	case errors.Is(err, store.ErrNotFound):
		result.Action = Absent
	case err != nil:
		result.Action, result.Error = Refused, err.Error()
	default:
		result.Kept = keptBy(had)
	}
	return result
}

// keptBy says what outlives an object that is deleted.
func keptBy(obj *store.Object) []string {
	var kept []string
	path := []string{"spec"}
	switch obj.GroupVersionKind() {
	case VM:
		path = []string{"spec", "template", "spec"}
	case VMI:
		for _, owner := range obj.GetOwnerReferences() {
			kept = append(kept, fmt.Sprintf("%s %s, with MACs and addresses", owner.Kind, owner.Name))
		}
	default:
		return nil
	}
	volumes, _, _ := unstructured.NestedSlice(obj.Object, append(path, "volumes")...) // it was taken, so it is well-formed
	for _, item := range volumes {
		volume, _ := item.(map[string]any)
		if disk, ok := volume["hostDisk"].(map[string]any); ok {
			kept = append(kept, fmt.Sprintf("hostDisk %v", disk["path"]))
		}
	}
	return kept
}

func (a *Applier) emptyNamespace(ctx context.Context, namespace string) error {
	var errs []error
	for i := len(Kinds) - 1; i >= 0; i-- {
		if !Kinds[i].Namespaced {
			continue
		}
		objects, _, err := a.Store.List(ctx, Kinds[i].GVK, store.Selector{Namespace: namespace})
		if err != nil {
			return fmt.Errorf("list %s in namespace %s: %w", Kinds[i].GVK.Kind, namespace, err)
		}
		for _, obj := range objects {
			err := a.Store.Delete(ctx, Kinds[i].GVK, store.KeyOf(obj), store.Precondition{})
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func setAnnotation(obj *store.Object, key, value string) {
	annotations := maps.Clone(obj.GetAnnotations())
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[key] = value
	obj.SetAnnotations(annotations)
}

func newObject(gvk schema.GroupVersionKind, key store.Key) *store.Object {
	obj := &store.Object{Object: map[string]any{}}
	obj.SetGroupVersionKind(gvk)
	obj.SetNamespace(key.Namespace)
	obj.SetName(key.Name)
	return obj
}
