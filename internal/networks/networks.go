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

// Claims looks IPAMClaims up on a machine that keeps their addresses by name, all its
// own.
type Claims struct{ Reader Reader }

// Claim gives one, or nil if there is none.
func (c Claims) Claim(ctx context.Context, namespace, name string) (*netattach.IPAMClaim, error) {
	obj, err := c.Reader.Get(ctx, ClaimKind, store.Key{Namespace: namespace, Name: name})
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get IPAMClaim %s/%s: %w", namespace, name, err)
	}
	return &netattach.IPAMClaim{Namespace: namespace, Name: name, Deleting: obj.GetDeletionTimestamp() != nil}, nil
}

// Settle has nothing to do: there is one machine.
func (Claims) Settle(context.Context, *netattach.IPAMClaim) error { return nil }

// Refused is told nowhere.
func (Claims) Refused(*netattach.IPAMClaim, string, error) {}

// ClaimCRD is the kind IPAMClaim as github.com/k8snetworkplumbingwg/ipamclaims has it
// (v0.5.0-alpha).
const ClaimCRD = `{
	"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
	"metadata": {"name": "ipamclaims.k8s.cni.cncf.io"},
	"spec": {
		"group": "k8s.cni.cncf.io", "scope": "Namespaced",
		"names": {"plural": "ipamclaims", "singular": "ipamclaim", "kind": "IPAMClaim", "listKind": "IPAMClaimList"},
		"versions": [{
			"name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
			"additionalPrinterColumns": [
				{"name": "Network", "type": "string", "jsonPath": ".spec.network"},
				{"name": "IPs", "type": "string", "jsonPath": ".status.ips"},
				{"name": "Pod", "type": "string", "jsonPath": ".status.ownerPod.name"}
			],
			"schema": {"openAPIV3Schema": {
				"type": "object", "description": "Addresses that outlive the Pods that have them.",
				"properties": {
					"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
					"spec": {"type": "object", "required": ["interface", "network"], "properties": {
						"interface": {"type": "string", "description": "The interface of the Pod."},
						"network": {"type": "string", "description": "The network the addresses are of."}
					}},
					"status": {"type": "object", "required": ["ips"], "properties": {
						"ips": {"type": "array", "items": {"type": "string"}, "description": "The addresses, with their prefix lengths."},
						"ownerPod": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
						"conditions": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"], "items": {
							"type": "object", "required": ["lastTransitionTime", "message", "reason", "status", "type"], "properties": {
								"lastTransitionTime": {"type": "string", "format": "date-time"}, "message": {"type": "string", "maxLength": 32768},
								"observedGeneration": {"type": "integer", "format": "int64", "minimum": 0}, "reason": {"type": "string", "maxLength": 1024, "minLength": 1},
								"status": {"type": "string", "enum": ["True", "False", "Unknown"]}, "type": {"type": "string", "maxLength": 316}
							}
						}}
					}}
				}
			}}
		}]
	}
}`
