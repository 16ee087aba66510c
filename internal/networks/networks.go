// Package networks looks up, among the objects of a store or a cache of one,
// what the attach engine asks for: NetworkAttachmentDefinitions and IPAMClaims.
package networks

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/store"
)

// Kinds of the group k8s.cni.cncf.io (de-facto standard v1.3, sections 3 and 8).
var (
	DefinitionKind = schema.GroupVersionKind{Group: "k8s.cni.cncf.io", Version: "v1", Kind: "NetworkAttachmentDefinition"}
	ClaimKind      = schema.GroupVersionKind{Group: "k8s.cni.cncf.io", Version: "v1alpha1", Kind: "IPAMClaim"}
)

// Reader is the part of store.Store that is asked.
type Reader interface {
	Get(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (*store.Object, error)
	List(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector) ([]*store.Object, string, error)
}

// Definitions looks NetworkAttachmentDefinitions up.
type Definitions struct{ Reader Reader }

// Definition gives one, or nil if there is none.
func (d Definitions) Definition(ctx context.Context, namespace, name string) (*netattach.NetworkAttachmentDefinition, error) {
	obj, err := d.Reader.Get(ctx, DefinitionKind, store.Key{Namespace: namespace, Name: name})
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get NAD %s/%s: %w", namespace, name, err)
	}
	return netattach.FromObject(obj.Object)
}

// Namespaces lists where definitions of that name are.
func (d Definitions) Namespaces(ctx context.Context, name string) ([]string, error) {
	objects, _, err := d.Reader.List(ctx, DefinitionKind, store.Selector{})
	if err != nil {
		return nil, fmt.Errorf("list NADs: %w", err)
	}
	var namespaces []string
	for _, obj := range objects {
		if obj.GetName() == name {
			namespaces = append(namespaces, obj.GetNamespace())
		}
	}
	return namespaces, nil
}

// Claims looks IPAMClaims up.
type Claims struct{ Reader Reader }

// Exists says whether there is such a claim that is not being deleted.
func (c Claims) Exists(ctx context.Context, namespace, name string) (bool, error) {
	obj, err := c.Reader.Get(ctx, ClaimKind, store.Key{Namespace: namespace, Name: name})
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get IPAMClaim %s/%s: %w", namespace, name, err)
	}
	return obj.GetDeletionTimestamp() == nil, nil
}
