// Package store is what agent and controllers know of where objects live: the
// same few verbs over a Kubernetes API (store/kube) and over one file on this
// machine (store/local).
package store

import (
	"context"
	"errors"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Errors every implementation returns, wrapped.
var (
	// ErrNotFound: no object of that kind and key.
	ErrNotFound = errors.New("not found")
	// ErrExists: create of a key that is taken.
	ErrExists = errors.New("already exists")
	// ErrConflict: the revision or UID the caller required is not the present one.
	ErrConflict = errors.New("conflict: the object was changed meanwhile")
	// ErrExpired: a watch cannot resume from the revision asked for; list again.
	ErrExpired = errors.New("revision is too old to resume from")
)

// Object is one API object as its document; fields nobody here knows survive.
type Object = unstructured.Unstructured

// Key names one object of a kind. Namespace is empty for cluster-scoped kinds.
type Key struct {
	Namespace, Name string
}

// String gives namespace/name, or the name alone.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// KeyOf gives the key of obj.
func KeyOf(obj *Object) Key { return Key{Namespace: obj.GetNamespace(), Name: obj.GetName()} }

// Selector narrows list and watch. The zero value selects everything.
type Selector struct {
	Namespace string            // empty: all
	Labels    map[string]string // all must match
}

// Precondition guards an update or delete. Zero fields guard nothing.
type Precondition struct {
	UID      types.UID
	Revision string // metadata.resourceVersion
}

// EventType says what happened to an object.
type EventType string

// Event types.
const (
	Put     EventType = "put"
	Deleted EventType = "deleted"
)

// Event is one change. For Deleted, Object is the last state.
type Event struct {
	Type   EventType
	Object *Object
}

// Store holds objects of many kinds.
//
// Revisions are opaque texts in metadata.resourceVersion. Status is a
// subresource: Update leaves status as it is, UpdateStatus changes nothing
// else. An object with finalizers that is deleted gets a deletionTimestamp and
// goes when the last finalizer is taken off; objects whose controller owner
// (metadata.ownerReferences) is gone are deleted with it.
type Store interface {
	Get(ctx context.Context, gvk schema.GroupVersionKind, key Key) (*Object, error)
	// List also gives the revision a Watch resumes from without a gap.
	List(ctx context.Context, gvk schema.GroupVersionKind, sel Selector) ([]*Object, string, error)
	// Watch delivers every change after revision since, in order, until ctx ends
	// or resuming is impossible; then the channel is closed.
	Watch(ctx context.Context, gvk schema.GroupVersionKind, sel Selector, since string) (<-chan Event, error)
	Create(ctx context.Context, obj *Object) (*Object, error)
	// Update requires obj's resourceVersion, if it has one, to be the present one.
	Update(ctx context.Context, obj *Object) (*Object, error)
	UpdateStatus(ctx context.Context, obj *Object) (*Object, error)
	Delete(ctx context.Context, gvk schema.GroupVersionKind, key Key, pre Precondition) error
}
