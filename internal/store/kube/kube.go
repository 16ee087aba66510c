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
	"net/http"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kubejson "sigs.k8s.io/json"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/kubeapi"
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
	client *kubeapi.Client
	chunk  int // objects in an answer

	// mu guards the fields below it.
	mu        sync.Mutex
	resources map[schema.GroupVersionKind]resource
	expired   map[watchFrom]bool
}

var _ store.Store = (*Store)(nil)

// New gives a store that talks by client. Requests are not slowed down here: the
// server has its own fairness, and is waited for when it says so.
func New(client *kubeapi.Client) *Store {
	return &Store{client: client, chunk: mostInAnswer, resources: map[schema.GroupVersionKind]resource{}, expired: map[watchFrom]bool{}}
}

// resource is how the API server serves a kind.
type resource struct {
	root, name         string // of paths: /api/v1 and pods
	namespaced, status bool
}

// path gives that of an object, of all in a namespace, or of all.
func (r resource) path(key store.Key, subresource ...string) string {
	path := r.root
	if r.namespaced && key.Namespace != "" {
		path += "/namespaces/" + key.Namespace
	}
	path += "/" + r.name
	if key.Name != "" {
		path += "/" + key.Name
	}
	for _, sub := range subresource {
		path += "/" + sub
	}
	return path
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
	data, err := s.client.Do(ctx, kubeapi.Request{Method: http.MethodGet, Path: path, Resource: "discovery"})
	if err != nil && !isNotFound(err) {
		return resource{}, fmt.Errorf("find the resource of kind %s: %w", gvk.Kind, explain(err))
	}
	var list struct { // APIResourceList of k8s.io/apimachinery/pkg/apis/meta/v1
		Resources []struct {
			Name       string `json:"name"`
			Kind       string `json:"kind"`
			Namespaced bool   `json:"namespaced"`
		} `json:"resources"`
	}
	if err == nil {
		if err := json.Unmarshal(data, &list); err != nil {
			return resource{}, fmt.Errorf("read what the API server has in %s: %w", path, err)
		}
	}
	for _, r := range list.Resources {
		if r.Kind != gvk.Kind {
			continue
		}
		if name, sub, _ := strings.Cut(r.Name, "/"); sub == "" {
			found.root, found.name, found.namespaced = path, name, r.Namespaced
		} else if sub == "status" {
			found.status = true
		}
	}
	if found.name == "" {
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

// object finds the resource of one object, and looks whether its key is whole.
func (s *Store) object(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (resource, error) {
	r, err := s.resource(ctx, gvk)
	if err != nil {
		return r, err
	}
	if key.Name == "" {
		return r, &hint.Error{Field: "metadata.name", Problem: "is empty", Remedy: "give the object a name"}
	}
	if r.namespaced && key.Namespace == "" {
		return r, &hint.Error{
			Field: "metadata.namespace", Problem: "is empty, but objects of kind " + gvk.Kind + " belong to a namespace", Remedy: "set it",
		}
	}
	if err := segment("metadata.name", key.Name); err != nil {
		return r, err
	}
	return r, segment("metadata.namespace", key.Namespace)
}

// segment refuses what would make another path of a path.
func segment(field, name string) error {
	if name == "." || name == ".." || strings.ContainsAny(name, "/%") {
		return &hint.Error{Field: field, Value: name, Problem: "cannot be part of a path", Remedy: "use a name that Kubernetes allows"}
	}
	return nil
}

// request asks for one object and gives the answer.
func (s *Store) request(ctx context.Context, method string, r resource, key store.Key, media string, body []byte, subresource ...string) ([]byte, error) {
	if method == http.MethodPost {
		key.Name = "" // is in the body
	}
	label := r.name
	for _, sub := range subresource {
		label += "/" + sub
	}
	return s.client.Do(ctx, kubeapi.Request{Method: method, Path: r.path(key, subresource...), Type: media, Body: body, Resource: label})
}

// write is request for what is answered with the object as it is now.
func (s *Store) write(ctx context.Context, method string, r resource, key store.Key, media string, body any, subresource ...string) (*store.Object, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	answer, err := s.request(ctx, method, r, key, media, data, subresource...)
	if err != nil {
		return nil, err
	}
	return read(answer)
}

// read reads an object.
func read(data []byte) (*store.Object, error) {
	obj := &store.Object{}
	if err := kubejson.UnmarshalCaseSensitivePreserveInts(data, &obj.Object); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	return tidy(obj), nil
}

func (s *Store) get(ctx context.Context, r resource, key store.Key) (*store.Object, error) {
	answer, err := s.request(ctx, http.MethodGet, r, key, "", nil)
	if err != nil {
		return nil, err
	}
	return read(answer)
}

// Get reads one object from the API server.
func (s *Store) Get(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (*store.Object, error) {
	r, err := s.object(ctx, gvk, key)
	if err != nil {
		return nil, err
	}
	obj, err := s.get(ctx, r, key)
	if err != nil {
		return nil, failed("get", gvk, key, err)
	}
	return obj, nil
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
	r, err := s.object(ctx, gvk, key)
	if err != nil {
		return nil, err
	}
	if revision := obj.GetResourceVersion(); revision != "" {
		return nil, &hint.Error{
			Field: "metadata.resourceVersion", Value: revision, Problem: "is set on an object to be created",
			Remedy: "take it out: the API server gives it",
		}
	}
	made, err := s.write(ctx, http.MethodPost, r, key, kubeapi.JSON, obj.Object)
	if isNotFound(err) {
		return nil, &hint.Error{
			Field: "metadata.namespace", Value: key.Namespace, Problem: "there is no such namespace", Err: err,
			Remedy: "create the Namespace first, or name another one",
		}
	}
	if err != nil {
		return nil, failed("create", gvk, key, err)
	}
	return made, nil
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
	r, err := s.object(ctx, gvk, key)
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
			old, err := s.get(ctx, r, key)
			if err != nil {
				return nil, failed(verb, gvk, key, err)
			}
			if uid := obj.GetUID(); uid != "" && uid != old.GetUID() {
				return nil, fmt.Errorf("%s %s %s: UID is %s: %w", verb, gvk.Kind, key, old.GetUID(), store.ErrConflict)
			}
			next = withRevision(obj, old.GetResourceVersion())
		}
		made, err := s.write(ctx, http.MethodPut, r, key, kubeapi.JSON, next.Object, subresource...)
		if err == nil {
			return made, nil
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
	return s.patch(ctx, kubeapi.MergePatch, gvk, key, changes, pre, subresource...)
}

// PatchLists is Patch, but merges lists too, by the keys that the API has for
// them: what others wrote beside ours stays. Only kinds of Kubernetes itself have
// such lists.
func (s *Store) PatchLists(
	ctx context.Context, gvk schema.GroupVersionKind, key store.Key, changes map[string]any, pre store.Precondition, subresource ...string,
) (*store.Object, error) {
	return s.patch(ctx, kubeapi.StrategicPatch, gvk, key, changes, pre, subresource...)
}

func (s *Store) patch(
	ctx context.Context, media string, gvk schema.GroupVersionKind, key store.Key, changes map[string]any, pre store.Precondition, subresource ...string,
) (*store.Object, error) {
	r, err := s.object(ctx, gvk, key)
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
	made, err := s.write(ctx, http.MethodPatch, r, key, media, changes, subresource...)
	if pre.UID != "" && blames(err, "metadata.uid") { // another UID in a patch is a change the API server refuses
		return nil, fmt.Errorf("patch %s %s: %w (%w)", gvk.Kind, key, store.ErrConflict, err)
	}
	if err != nil {
		return nil, failed("patch", gvk, key, err)
	}
	return made, nil
}

// Delete removes an object, or marks it as being deleted if it has finalizers
// or a grace period. What it owns goes in the background.
func (s *Store) Delete(ctx context.Context, gvk schema.GroupVersionKind, key store.Key, pre store.Precondition) error {
	r, err := s.object(ctx, gvk, key)
	if err != nil {
		return err
	}
	data, err := json.Marshal(deletion{Kind: "DeleteOptions", APIVersion: "v1", Propagation: "Background", Preconditions: preconditions(pre)})
	if err == nil {
		_, err = s.request(ctx, http.MethodDelete, r, key, kubeapi.JSON, data)
	}
	if err != nil {
		return failed("delete", gvk, key, err)
	}
	return nil
}

// deletion is DeleteOptions of k8s.io/apimachinery/pkg/apis/meta/v1.
type deletion struct {
	Kind          string            `json:"kind"`
	APIVersion    string            `json:"apiVersion"`
	Propagation   string            `json:"propagationPolicy"`
	Preconditions map[string]string `json:"preconditions,omitempty"`
}

func preconditions(pre store.Precondition) map[string]string {
	all := map[string]string{}
	if pre.UID != "" {
		all["uid"] = string(pre.UID)
	}
	if pre.Revision != "" {
		all["resourceVersion"] = pre.Revision
	}
	return all
}
