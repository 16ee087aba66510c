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

// Matches reports whether an object in namespace with these labels is selected.
func (s Selector) Matches(namespace string, labels map[string]string) bool {
	if s.Namespace != "" && s.Namespace != namespace {
		return false
	}
	for name, value := range s.Labels {
		if got, ok := labels[name]; !ok || got != value {
			return false
		}
	}
	return true
}

// EventType says what happened to an object.
type EventType string

// Event types.
const (
	Put     EventType = "put"
	Deleted EventType = "deleted"
)

// Event is one change. For Deleted, Object is the last state; it carries the
// revision of the deletion, so that a watch can resume behind it. An object
// that a change takes out of a watch's selection is Deleted for that watch.
type Event struct {
	Type   EventType
	Object *Object
}

// Store holds objects of many kinds.
//
// Revisions are opaque texts in metadata.resourceVersion. Status is a
// subresource: Create drops it, Update leaves it as it is, UpdateStatus changes
// nothing else. A write that changes nothing gives no new revision and no
// event. metadata.generation counts the changes outside metadata and status.
//
// An object with finalizers that is deleted gets a deletionTimestamp and goes
// when the last finalizer is taken off. Objects of whose owners
// (metadata.ownerReferences, by UID) none is left are deleted soon afterwards.
type Store interface {
	Get(ctx context.Context, gvk schema.GroupVersionKind, key Key) (*Object, error)
	// List also gives the revision a Watch resumes from without a gap.
	List(ctx context.Context, gvk schema.GroupVersionKind, sel Selector) ([]*Object, string, error)
	// Watch delivers every change after revision since (empty: from now on), in
	// order, until ctx ends, the store is closed or the reader falls too far
	// behind; then the channel is closed, and the reader resumes from the last
	// event it took, or lists again if that gives ErrExpired.
	Watch(ctx context.Context, gvk schema.GroupVersionKind, sel Selector, since string) (<-chan Event, error)
	Create(ctx context.Context, obj *Object) (*Object, error)
	// Update requires obj's resourceVersion and UID, if it has them, to be the
	// present ones. UpdateStatus does the same.
	Update(ctx context.Context, obj *Object) (*Object, error)
	UpdateStatus(ctx context.Context, obj *Object) (*Object, error)
	Delete(ctx context.Context, gvk schema.GroupVersionKind, key Key, pre Precondition) error
}
