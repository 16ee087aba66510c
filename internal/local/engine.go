package local

import (
	"context"

	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/dataplane"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

// newEngine makes the attach engine of this machine. Its addresses live in
// memory: the records and NIC identities on disk are where they come from.
func newEngine(ctx context.Context, opt Options, objects store.Store, records *record.Store, plane *dataplane.Dataplane, addresses *ipam.Memory) (*chain.Engine, error) {
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
		Instance: opt.Instance.Tag, Machine: seed, Records: records, Dataplane: plane, Host: plane.Host(), Addresses: addresses,
		Networks: networks.Definitions{Reader: objects}, Claims: networks.Claims{Reader: objects}, Default: chain.DefaultNetwork{Config: config}, BinDirs: opt.BinDirs, Log: opt.Log,
	})
}
