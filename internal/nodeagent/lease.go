package nodeagent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/weftnet/weft/internal/advice"
	"github.com/weftnet/weft/internal/adviser"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/cniserver"
	"github.com/weftnet/weft/internal/cri"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/whereabouts"
)

// leases keeps this node's AddressLeases.
type leases struct {
	*lease.Store
	agent   *agent
	api     store.Store
	runtime *cri.Runtime
	engine  *chain.Engine // set before it runs
	advice  task
	// marked: whoever does calls while no agent runs knows that addresses are leases.
	marked atomic.Bool
}

var (
	_ chain.Leases = (*leases)(nil)
	_ lease.Users  = (*leases)(nil)
)

func newLeases(a *agent, opt Options, records *record.Store) (*leases, error) {
	options := lease.Options{API: a.api, Node: opt.Node, Dir: filepath.Join(opt.State, cniserver.LeaseDir), Log: opt.Log}
	if opt.Namespace != "" {
		options.Giving = store.Key{Namespace: opt.Namespace, Name: whereabouts.ConfigMap}
	}
	options.Epochs = lease.NewEpochs(a.api, opt.Node, options.Dir, opt.Log)
	var asks task = alone{}
	if opt.AdviserToken != "" {
		client := advice.New(advice.Options{
			API: a.api, ConfigMap: store.Key{Namespace: opt.Namespace, Name: adviser.ConfigMap}, TokenFile: opt.AdviserToken, Log: opt.Log,
		})
		options.Adviser, options.Keeper, asks = client, client, client
		options.Journal = func() (string, error) {
			boot, err := record.BootID(opt.HostRoot)
			if err != nil {
				return "", err
			}
			journal, err := records.Journal()
			return boot + "/" + journal, err
		}
	}
	held, err := lease.New(options)
	if err != nil {
		return nil, err
	}
	return &leases{Store: held, agent: a, api: a.api, runtime: cri.NewRuntime(opt.HostRoot, opt.CRISocket), advice: asks}, nil
}

// alone is the task of a node that asks no adviser.
type alone struct{}

// Run waits for the end.
func (alone) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// begin finds out which leases the node has, so that those of sandboxes that are
// undone at the start are given back at once. An API server that is away is asked
// again while the agent runs.
func (l *leases) begin(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, cachePatience)
	defer cancel()
	if err := l.Sync(ctx); err != nil {
		l.Log.Warn("which addresses this node holds is not known yet", "err", err)
	}
}

// Serves says whether addresses are leases. From the first on this is written down,
// for calls that are done without an agent.
func (l *leases) Serves(ctx context.Context, plugin bool) (bool, error) {
	serves, err := l.Store.Serves(ctx, plugin)
	if !serves || err != nil || l.marked.Load() {
		return serves, err
	}
	if err := os.WriteFile(filepath.Join(l.Dir, cniserver.LeaseMark), nil, 0o600); err != nil {
		return false, fmt.Errorf("note that addresses are leases: %w", err)
	}
	l.marked.Store(true)
	return true, nil
}

// String names the task.
func (*leases) String() string { return "keeper of this node's address leases" }

// Run keeps them until ctx ends.
func (l *leases) Run(ctx context.Context) error { return l.Store.Run(ctx, l) }

// IfUnused calls then unless an attachment has an address, or is taking it.
func (l *leases) IfUnused(lease ipam.Lease, then func()) bool { return l.engine.IfUnused(lease, then) }

// UserOf gives the attachment that has an address.
func (l *leases) UserOf(lease ipam.Lease) (*record.Sandbox, *record.Attachment) {
	return l.engine.UserOf(lease)
}

// Alive says whether the runtime has a sandbox, whatever our records tell.
func (l *leases) Alive(ctx context.Context, sandbox string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, apiPatience)
	defer cancel()
	live, err := l.runtime.Sandboxes(ctx)
	return live[sandbox], err
}

// Sandboxes are those that the runtime has.
func (l *leases) Sandboxes(ctx context.Context) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, apiPatience)
	defer cancel()
	return l.runtime.Sandboxes(ctx)
}
