package main

import (
	"context"
	"errors"
	"time"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/inventory"
	"github.com/weftnet/weft/internal/local"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/kube"
)

// ledger is where it is known who holds which address.
type ledger interface {
	// read reads all there is, and why says why an address of it is held still.
	read(ctx context.Context) (*inventory.Known, error)
	why(ctx context.Context, known *inventory.Known, is inventory.Holding) inventory.Keeping
	// free gives one back that nobody has, and force one that somebody may have.
	free(ctx context.Context, is inventory.Holding, grace time.Duration, say func(string)) error
	force(ctx context.Context, is inventory.Holding) error
}

// openLedger gives that of the cluster which --kubeconfig or KUBECONFIG names, else
// that of this machine.
func (a *app) openLedger(ctx context.Context, kubeconfig string, given bool) (ledger, error) {
	if !given {
		kubeconfig = a.getenv("KUBECONFIG")
	}
	if kubeconfig != "" {
		api, err := kube.Connect(kubeconfig, "weft", nil)
		if err != nil {
			return nil, err
		}
		return clusterLedger{inventory.Cluster{API: api}}, nil
	}
	client, in, err := a.client(ctx)
	if h, ok := errors.AsType[*hint.Error](err); ok && h.Field == in.Socket() {
		return nil, &hint.Error{Field: h.Field, Problem: h.Problem, Remedy: h.Remedy + "; or name a cluster by --kubeconfig or KUBECONFIG"}
	}
	if err != nil {
		return nil, err
	}
	return &machineLedger{client: client}, nil
}

// clusterLedger is that of a cluster.
type clusterLedger struct{ inventory.Cluster }

func (l clusterLedger) read(ctx context.Context) (*inventory.Known, error) { return l.Read(ctx) }

func (l clusterLedger) why(ctx context.Context, known *inventory.Known, is inventory.Holding) inventory.Keeping {
	return l.Why(ctx, known, is)
}

func (l clusterLedger) free(ctx context.Context, is inventory.Holding, grace time.Duration, say func(string)) error {
	return l.Free(ctx, is, grace, say)
}

func (l clusterLedger) force(ctx context.Context, is inventory.Holding) error {
	return l.Force(ctx, is)
}

// machineLedger is that of one machine: its agent's.
type machineLedger struct {
	client *local.Client
	held   []local.HeldAddress
}

func (l *machineLedger) read(ctx context.Context) (*inventory.Known, error) {
	reply, err := l.client.Addresses(ctx)
	if err != nil {
		return nil, err
	}
	definitions, err := l.client.List(ctx, local.NAD, store.Key{})
	if err != nil {
		return nil, err
	}
	known := &inventory.Known{}
	list, err := inventory.NetworksIn("", "", reply.DefaultNetwork)
	if err != nil {
		known.Problems = append(known.Problems, "default network: "+err.Error())
	}
	known.Networks = list
	for _, obj := range definitions.Items {
		known.Networks = append(known.Networks, inventory.NetworksOf(obj)...)
	}
	known.Pools = inventory.Pools(known.Networks)
	for _, is := range reply.Held {
		known.Held = append(known.Held, is.Holding)
	}
	inventory.SortHoldings(known.Held)
	l.held = reply.Held
	return known, nil
}

func (l *machineLedger) why(_ context.Context, _ *inventory.Known, is inventory.Holding) inventory.Keeping {
	for _, held := range l.held {
		if held.Address == is.Address && held.Scope == is.Scope {
			return held.Keeping
		}
	}
	return inventory.Keeping{}
}

func (l *machineLedger) free(ctx context.Context, is inventory.Holding, _ time.Duration, _ func(string)) error {
	keeping := l.why(ctx, nil, is)
	return &hint.Error{Field: "address", Value: is.Address.String(), Problem: "is not free: " + keeping.Why, Remedy: keeping.Remedy}
}

func (l *machineLedger) force(_ context.Context, is inventory.Holding) error {
	return &hint.Error{
		Field: "--force", Problem: "does not go on one machine, where the records of attachments alone say who has " + is.Address.String(),
		Remedy: "weft ip why " + is.Address.String() + " tells what to delete",
	}
}
