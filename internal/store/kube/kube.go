// Package kube is store.Store over the Kubernetes API. Store asks the API
// server each time; Cache follows a few kinds and answers reads from memory,
// for agents that look at the Pods of their node and at all networks.
//
// It does not know what the kinds mean, and starts no cluster.
package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/store"
)

// A write without a revision is tried this often while others are faster, with
// growing pauses of up to so much: each time somebody got on.
const (
	unguardedTries = 50
	unguardedPause = 100 * time.Millisecond
)

// Store is the Kubernetes API as a store.Store.
type Store struct {
	client dynamic.Interface
	raw    rest.Interface

	// mu guards the fields below it.
	mu        sync.Mutex
	resources map[schema.GroupVersionKind]resource
	expired   map[watchFrom]bool
}

var _ store.Store = (*Store)(nil)

// New gives a store that talks to the API server of config. Unless config says
// otherwise, requests are not slowed down here: the server has its own fairness.
func New(config *rest.Config) (*Store, error) {
	config = rest.CopyConfig(config)
	if config.QPS == 0 && config.RateLimiter == nil {
		config.QPS = -1
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("client of the Kubernetes API: %w", err)
	}
	objects, err := dynamic.NewForConfigAndClient(config, client)
	if err != nil {
		return nil, fmt.Errorf("client of the Kubernetes API: %w", err)
	}
	config.GroupVersion = &schema.GroupVersion{}
	config.NegotiatedSerializer = serializer.NewCodecFactory(runtime.NewScheme()).WithoutConversion()
	raw, err := rest.RESTClientForConfigAndClient(config, client)
	if err != nil {
		return nil, fmt.Errorf("client of the Kubernetes API: %w", err)
	}
	return &Store{
		client: objects, raw: raw,
		resources: map[schema.GroupVersionKind]resource{}, expired: map[watchFrom]bool{},
	}, nil
}

// resource is how the API server serves a kind.
type resource struct {
	schema.GroupVersionResource
	namespaced, status bool
}

// resource finds the resource of a kind, by one request for each kind ever.
func (s *Store) resource(ctx context.Context, gvk schema.GroupVersionKind) (resource, error) {
	if gvk.Kind == "" || gvk.Version == "" {
		return resource{}, &hint.Error{
			Field: "kind", Value: gvk.GroupVersion().String() + " " + gvk.Kind, Problem: "kind or apiVersion is missing or malformed",
			Remedy: "give both, such as 'apiVersion: v1' and 'kind: Pod'",
		}
	}
	s.mu.Lock()
	found, ok := s.resources[gvk]
	s.mu.Unlock()
	if ok {
		return found, nil
	}
	path := "/apis/" + gvk.Group + "/" + gvk.Version
	if gvk.Group == "" {
		path = "/api/" + gvk.Version
	}
	data, err := s.raw.Get().AbsPath(path).DoRaw(ctx)
	if err != nil && !isNotFound(err) {
		return resource{}, fmt.Errorf("find the resource of kind %s: %w", gvk.Kind, explain(err))
	}
	var list metav1.APIResourceList
	if err == nil {
		if err := json.Unmarshal(data, &list); err != nil {
			return resource{}, fmt.Errorf("read what the API server has in %s: %w", path, err)
		}
	}
	for _, r := range list.APIResources {
		if r.Kind != gvk.Kind {
			continue
		}
		if _, sub, _ := cut(r.Name); sub == "" {
			found.GroupVersionResource, found.namespaced = gvk.GroupVersion().WithResource(r.Name), r.Namespaced
		} else if sub == "status" {
			found.status = true
		}
	}
	if found.Resource == "" {
		return resource{}, &hint.Error{
			Field: "kind", Value: gvk.Kind, Problem: "the API server does not serve this kind in " + gvk.GroupVersion().String(),
			Remedy: "install its CustomResourceDefinition, or correct kind and apiVersion",
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resources[gvk] = found
	return found, nil
}

// at gives the client of a kind in a namespace; empty: all of them.
func (s *Store) at(r resource, namespace string) dynamic.ResourceInterface {
	if !r.namespaced {
		return s.client.Resource(r.GroupVersionResource)
	}
	return s.client.Resource(r.GroupVersionResource).Namespace(namespace)
}

// object finds the client for one object.
func (s *Store) object(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (dynamic.ResourceInterface, resource, error) {
	r, err := s.resource(ctx, gvk)
	if err != nil {
		return nil, r, err
	}
	if key.Name == "" {
		return nil, r, &hint.Error{Field: "metadata.name", Problem: "is empty", Remedy: "give the object a name"}
	}
	if r.namespaced && key.Namespace == "" {
		return nil, r, &hint.Error{
			Field: "metadata.namespace", Problem: "is empty, but objects of kind " + gvk.Kind + " belong to a namespace", Remedy: "set it",
		}
	}
	return s.at(r, key.Namespace), r, nil
}

// Get reads one object from the API server.
func (s *Store) Get(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (*store.Object, error) {
	client, _, err := s.object(ctx, gvk, key)
	if err != nil {
		return nil, err
	}
	obj, err := client.Get(ctx, key.Name, metav1.GetOptions{})
	if err != nil {
		return nil, failed("get", gvk, key, err)
	}
	return tidy(obj), nil
}

// List reads the selected objects.
func (s *Store) List(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector) ([]*store.Object, string, error) {
	return s.list(ctx, gvk, sel, metav1.ListOptions{})
}

func (s *Store) list(
	ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector, opt metav1.ListOptions,
) ([]*store.Object, string, error) {
	r, err := s.resource(ctx, gvk)
	if err != nil {
		return nil, "", err
	}
	if opt.LabelSelector, err = labelSelector(sel); err != nil {
		return nil, "", err
	}
	list, err := s.at(r, sel.Namespace).List(ctx, opt)
	if err != nil {
		return nil, "", failed("list", gvk, store.Key{Namespace: sel.Namespace}, err)
	}
	objs := make([]*store.Object, len(list.Items))
	for i := range list.Items {
		objs[i] = tidy(&list.Items[i])
	}
	return objs, list.GetResourceVersion(), nil
}

func labelSelector(sel store.Selector) (string, error) {
	if len(sel.Labels) == 0 {
		return "", nil
	}
	selector, err := labels.ValidatedSelectorFromSet(sel.Labels)
	if err != nil {
		return "", &hint.Error{Field: "label selector", Problem: "is malformed", Err: err, Remedy: "use names and values that labels can have"}
	}
	return selector.String(), nil
}

// tidy takes off what only the API server's own bookkeeping needs, which is
// often more than half of an object. A write without it leaves it as it is.
func tidy(obj *store.Object) *store.Object {
	if metadata, ok := obj.Object["metadata"].(map[string]any); ok {
		delete(metadata, "managedFields")
	}
	return obj
}

// Create stores obj. Its status is dropped by the API server.
func (s *Store) Create(ctx context.Context, obj *store.Object) (*store.Object, error) {
	gvk, key := obj.GroupVersionKind(), store.KeyOf(obj)
	client, _, err := s.object(ctx, gvk, key)
	if err != nil {
		return nil, err
	}
	if revision := obj.GetResourceVersion(); revision != "" {
		return nil, &hint.Error{
			Field: "metadata.resourceVersion", Value: revision, Problem: "is set on an object to be created",
			Remedy: "take it out: the API server gives it",
		}
	}
	made, err := client.Create(ctx, obj, metav1.CreateOptions{})
	if isNotFound(err) {
		return nil, &hint.Error{
			Field: "metadata.namespace", Value: key.Namespace, Problem: "there is no such namespace", Err: err,
			Remedy: "create the Namespace first, or name another one",
		}
	}
	if err != nil {
		return nil, failed("create", gvk, key, err)
	}
	return tidy(made), nil
}

// Update replaces everything but status. Without a revision in obj it reads the
// present one first: the API server wants one for kinds of a
// CustomResourceDefinition.
func (s *Store) Update(ctx context.Context, obj *store.Object) (*store.Object, error) {
	return s.replace(ctx, "update", obj)
}

// UpdateStatus replaces status and nothing else.
func (s *Store) UpdateStatus(ctx context.Context, obj *store.Object) (*store.Object, error) {
	return s.replace(ctx, "update status of", obj, "status")
}

func (s *Store) replace(ctx context.Context, verb string, obj *store.Object, subresource ...string) (*store.Object, error) {
	gvk, key := obj.GroupVersionKind(), store.KeyOf(obj)
	client, r, err := s.object(ctx, gvk, key)
	if err != nil {
		return nil, err
	}
	if len(subresource) > 0 && !r.status {
		return nil, &hint.Error{
			Field: "kind", Value: gvk.Kind, Problem: "the API server keeps no status of its own for this kind",
			Remedy: "enable the status subresource in its CustomResourceDefinition",
		}
	}
	guarded := obj.GetResourceVersion() != ""
	for try := 1; ; try++ {
		next := obj
		if !guarded {
			old, err := client.Get(ctx, key.Name, metav1.GetOptions{})
			if err != nil {
				return nil, failed(verb, gvk, key, err)
			}
			if uid := obj.GetUID(); uid != "" && uid != old.GetUID() {
				return nil, fmt.Errorf("%s %s %s: UID is %s: %w", verb, gvk.Kind, key, old.GetUID(), store.ErrConflict)
			}
			next = withRevision(obj, old.GetResourceVersion())
		}
		made, err := client.Update(ctx, next, metav1.UpdateOptions{}, subresource...)
		if err == nil {
			return tidy(made), nil
		}
		if err = failed(verb, gvk, key, err); guarded || try == unguardedTries || !errors.Is(err, store.ErrConflict) {
			return nil, err
		}
		select {
		case <-time.After(rand.N(min(unguardedPause, time.Duration(try)*time.Millisecond))):
		case <-ctx.Done():
			return nil, failed(verb, gvk, key, ctx.Err())
		}
	}
}

// withRevision gives obj with another revision; the rest is shared.
func withRevision(obj *store.Object, revision string) *store.Object {
	top := maps.Clone(obj.Object)
	metadata, _ := top["metadata"].(map[string]any)
	metadata = maps.Clone(metadata)
	metadata["resourceVersion"] = revision
	top["metadata"] = metadata
	return &store.Object{Object: top}
}

// Patch merges changes (RFC 7386) into an object, or with subresource "status"
// into that, in one request and without reading it first. A precondition that
// does not hold gives ErrConflict.
func (s *Store) Patch(
	ctx context.Context, gvk schema.GroupVersionKind, key store.Key, changes map[string]any, pre store.Precondition, subresource ...string,
) (*store.Object, error) {
	return s.patch(ctx, types.MergePatchType, gvk, key, changes, pre, subresource...)
}

// PatchLists is Patch, but merges lists too, by the keys that the API has for
// them: what others wrote beside ours stays. Only kinds of Kubernetes itself have
// such lists.
func (s *Store) PatchLists(
	ctx context.Context, gvk schema.GroupVersionKind, key store.Key, changes map[string]any, pre store.Precondition, subresource ...string,
) (*store.Object, error) {
	return s.patch(ctx, types.StrategicMergePatchType, gvk, key, changes, pre, subresource...)
}

func (s *Store) patch(
	ctx context.Context, how types.PatchType, gvk schema.GroupVersionKind, key store.Key, changes map[string]any, pre store.Precondition, subresource ...string,
) (*store.Object, error) {
	client, _, err := s.object(ctx, gvk, key)
	if err != nil {
		return nil, err
	}
	changes = maps.Clone(changes)
	metadata, _ := changes["metadata"].(map[string]any)
	metadata = maps.Clone(metadata)
	if metadata == nil {
		metadata = map[string]any{}
	}
	if pre.UID != "" {
		metadata["uid"] = string(pre.UID)
	}
	if pre.Revision != "" {
		metadata["resourceVersion"] = pre.Revision
	}
	if len(metadata) > 0 {
		changes["metadata"] = metadata
	}
	data, err := json.Marshal(changes)
	if err != nil {
		return nil, fmt.Errorf("patch %s %s: %w", gvk.Kind, key, err)
	}
	made, err := client.Patch(ctx, key.Name, how, data, metav1.PatchOptions{}, subresource...)
	if pre.UID != "" && blames(err, "metadata.uid") { // another UID in a patch is a change the API server refuses
		return nil, fmt.Errorf("patch %s %s: %w (%w)", gvk.Kind, key, store.ErrConflict, err)
	}
	if err != nil {
		return nil, failed("patch", gvk, key, err)
	}
	return tidy(made), nil
}

// Delete removes an object, or marks it as being deleted if it has finalizers
// or a grace period. What it owns goes in the background.
func (s *Store) Delete(ctx context.Context, gvk schema.GroupVersionKind, key store.Key, pre store.Precondition) error {
	client, _, err := s.object(ctx, gvk, key)
	if err != nil {
		return err
	}
	background := metav1.DeletePropagationBackground
	opt := metav1.DeleteOptions{PropagationPolicy: &background}
	if pre != (store.Precondition{}) {
		opt.Preconditions = &metav1.Preconditions{}
		if pre.UID != "" {
			opt.Preconditions.UID = &pre.UID
		}
		if pre.Revision != "" {
			opt.Preconditions.ResourceVersion = &pre.Revision
		}
	}
	if err := client.Delete(ctx, key.Name, opt); err != nil {
		return failed("delete", gvk, key, err)
	}
	return nil
}
