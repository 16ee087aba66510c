package cniserver

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/record"
)

// LeaseDir is where in the state directory stands what is to be given back to the
// cluster. A file LeaseMark in it says that this node's agent takes addresses there.
const (
	LeaseDir  = "leases"
	LeaseMark = "in-use"
)

// agentLeases are the cluster's addresses where no agent runs: none can be taken,
// and those that are given back are left for it.
type agentLeases struct {
	dir    string
	api    *kubeapi.Client // may be nil
	memory *ipam.Memory
}

var _ chain.Leases = agentLeases{}

// Serves says whether the cluster or this node's agent has leases, by way of an
// error: an address that only this node knows could be another's.
func (l agentLeases) Serves(ctx context.Context, _ bool) (bool, error) {
	_, err := os.Stat(filepath.Join(l.dir, LeaseMark))
	if errors.Is(err, os.ErrNotExist) && l.api == nil {
		return false, nil
	}
	if errors.Is(err, os.ErrNotExist) {
		asking, cancel := context.WithTimeout(ctx, questionPatience)
		defer cancel()
		var group map[string]any
		err = l.api.Get(asking, "/apis/weft.network/v1alpha1", nil, &group)
		if errors.Is(err, kubeapi.ErrNotFound) {
			return false, nil
		}
		if err != nil {
			return false, unanswered(err)
		}
	}
	return false, &hint.Error{
		Field: "ipam", Problem: "its addresses are AddressLeases of the cluster, which weft's agent takes, and the agent is away", Err: ErrTryAgain,
		Remedy: "see that weft-node runs on this machine",
	}
}

// Of is not asked for: nothing is served.
func (l agentLeases) Of(*record.Sandbox, *record.Attachment, ipam.Config) ipam.Store { return l.memory }

// Quarantine is not asked for either.
func (l agentLeases) Quarantine(context.Context, ipam.Lease, string) error { return nil }

// Shared is not asked for either.
func (l agentLeases) Shared(ipam.Lease) bool { return false }

// Untried is not asked for either, nor is Tried.
func (l agentLeases) Untried(ipam.Lease) bool { return false }

// Tried is not asked for: nothing is served.
func (l agentLeases) Tried(context.Context, ipam.Lease) error { return nil }

// Hold notes what a record holds.
func (l agentLeases) Hold(lease ipam.Lease) error { return l.memory.Hold(lease) }

// End leaves what owners hold for the agent to give back. What the records do not
// tell of it finds by the sandbox.
func (l agentLeases) End(ctx context.Context, owners ...ipam.Owner) error {
	var errs []error
	for _, owner := range owners {
		held, err := l.memory.Held(ctx, owner)
		if len(held) == 0 || err != nil {
			errs = append(errs, err)
			continue
		}
		var list []record.Lease
		for _, lease := range held {
			list = append(list, record.Lease{Scope: string(lease.Scope), Addr: lease.Addr, Owner: string(lease.Owner)})
		}
		kept, err := record.OpenKept(l.dir)
		if err == nil {
			err = kept.Save(string(owner), list)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Claimed is not asked for: nothing is served.
func (l agentLeases) Claimed(context.Context, ipam.Owner) ([]ipam.Lease, error) { return nil, nil }

// Leave leaves for the agent that a sandbox does not have addresses of a claim any more.
func (l agentLeases) Leave(_ context.Context, sandbox string, leases ...ipam.Lease) error {
	var list []record.Lease
	for _, lease := range leases {
		list = append(list, record.Lease{Scope: string(lease.Scope), Addr: lease.Addr, Owner: record.Leaving(sandbox, string(lease.Owner))})
	}
	kept, err := record.OpenKept(l.dir)
	if err != nil {
		return err
	}
	return kept.Save(record.Leaving(sandbox, ""), list)
}

// LeaveAll knows of none: the controller finds it by its Pod.
func (l agentLeases) LeaveAll(context.Context, string, ipam.Owner) error { return nil }

// leases gives those of a process without an agent.
func (d Direct) leases(memory *ipam.Memory) agentLeases {
	return agentLeases{filepath.Join(d.State, LeaseDir), d.API, memory}
}
