package local

import (
	"context"
	"errors"
	"fmt"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/dataplane"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

// newEngine makes the attach engine of this machine. Its addresses live in
// memory: the records and NIC identities on disk are where they come from.
func newEngine(ctx context.Context, opt Options, objects store.Store, records *record.Store, plane *dataplane.Dataplane) (*chain.Engine, error) {
	routed, err := hostRoutes()
	if err != nil {
		return nil, err
	}
	config, err := DefaultNetwork(opt.Instance, routed)
	if err != nil {
		return nil, err
	}
	seed, err := macSeed(opt.Instance)
	if err != nil {
		return nil, err
	}
	return chain.New(ctx, chain.Options{
		Instance: opt.Instance.Tag, Machine: seed, Records: records, Dataplane: plane, Host: plane.Host(), Addresses: ipam.NewMemory(),
		Networks: definitions{objects}, Claims: ipamClaims{objects}, Default: chain.DefaultNetwork{Config: config}, BinDirs: opt.BinDirs, Log: opt.Log,
	})
}

// definitions looks NetworkAttachmentDefinitions up among the objects.
type definitions struct{ store store.Store }

var _ chain.Networks = definitions{}

// Definition gives one, or nil if there is none.
func (d definitions) Definition(ctx context.Context, namespace, name string) (*netattach.NetworkAttachmentDefinition, error) {
	obj, err := d.store.Get(ctx, NAD, store.Key{Namespace: namespace, Name: name})
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get NAD %s/%s: %w", namespace, name, err)
	}
	return netattach.FromObject(obj.Object)
}

// Namespaces lists where definitions of that name are.
func (d definitions) Namespaces(ctx context.Context, name string) ([]string, error) {
	objects, _, err := d.store.List(ctx, NAD, store.Selector{})
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

// ipamClaims looks IPAMClaims up among the objects.
type ipamClaims struct{ store store.Store }

var _ chain.Claims = ipamClaims{}

// Exists says whether there is such a claim that is not being deleted.
func (c ipamClaims) Exists(ctx context.Context, namespace, name string) (bool, error) {
	obj, err := c.store.Get(ctx, IPAMClaim, store.Key{Namespace: namespace, Name: name})
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get IPAMClaim %s/%s: %w", namespace, name, err)
	}
	return obj.GetDeletionTimestamp() == nil, nil
}
