// Package cluster is weft's controller of a Kubernetes cluster, one for all nodes.
// Of its copies one leads (package elect). It advises nodes which addresses are free,
// and gives back addresses whose owners ended without their node doing so.
//
// Nodes go on without it: they choose addresses by themselves, and give back what
// they know of. What runs on a node is nodeagent's; the controllers of VMs are
// package controller.
package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/adviser"
	"github.com/weftnet/weft/internal/elect"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/metrics"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/kube"
	"github.com/weftnet/weft/internal/whereabouts"
)

// Names of our objects in the cluster.
const (
	leaseName = "weft-controller"
	agentName = "weft" // the agents' ServiceAccount
)

// Options are what the controller is run with.
type Options struct {
	// Kubeconfig is a file; empty: the service account of the Pod we run in.
	Kubeconfig string
	// Namespace is weft's own.
	Namespace string
	// Name tells the copies apart, for people.
	Name string
	// Web is where metrics and probes are served, such as :10980; empty: nowhere.
	Web string
	// Adviser is where nodes ask, such as :10981, and Advertise the address they find
	// it by. Empty: there is no adviser.
	Adviser, Advertise string
	// Grace is for how long an owner must have ended before its addresses are given
	// back, and Compare how often everything is read anew.
	Grace, Compare time.Duration
	// Whereabouts is what is to be done about Whereabouts: TakeOver, HandBack, Mixed,
	// or nothing. Its objects are in WhereaboutsNamespace.
	Whereabouts, WhereaboutsNamespace string
	// Mirror says that Whereabouts' objects show what weft leased.
	Mirror bool
	// ImportedFor is how long an address is held that Whereabouts gave to nobody knows
	// whom.
	ImportedFor time.Duration
	// MACRange is what VMs' NICs get MACs of that ask for none, as FIRST-LAST; empty:
	// those are made of the VM's UID.
	MACRange string
	// Version is told in the metrics.
	Version string
	Log     *slog.Logger
}

// controller is one copy.
type controller struct {
	Options
	api   store.Store
	count *metrics.Controller
	// state is what the leader knows; nil while another leads.
	state atomic.Pointer[state]
	// disagreements counts what did not fit together in what Whereabouts gave.
	disagreements atomic.Int64
	settle        time.Duration // see settleFor
	macs          macRange
	patience      time.Duration // of an election; zero: elect.Term
	// beat is the last that this process left in the cluster's epoch.
	beat string
}

// state is what is known while leading.
type state struct {
	term   *elect.Period
	book   *book
	pods   *pods
	view   *adviser.View
	ranges *pools
	epochs *epochs
	gives  atomic.Pointer[whereabouts.Giving] // who gives addresses; nil: not known yet
	// doubted is whom the collector looks at.
	doubted atomic.Pointer[[]doubt]
	gone    goneNodes
	// collisions counts MACs that several have on one network.
	collisions atomic.Int64
	// keepable: nodes may keep addresses of Whereabouts' networks ahead, for weft gives
	// them.
	keepable atomic.Bool
}

// doubts are the owners that seemed to have ended at the collector's last pass.
func (s *state) doubts() []doubt {
	if list := s.doubted.Load(); list != nil {
		return *list
	}
	return nil
}

// Run is the controller. It ends when ctx does, and lets another lead.
func Run(ctx context.Context, opt Options) error {
	if opt.Namespace == "" {
		return &hint.Error{Field: "--namespace", Problem: "is missing", Remedy: "give the namespace weft is installed in, or set POD_NAMESPACE"}
	}
	if opt.Adviser != "" && opt.Advertise == "" {
		return &hint.Error{Field: "--advertise-address", Problem: "is missing", Remedy: "give the address under which nodes reach this machine, or set POD_IP"}
	}
	if _, known := wishes[opt.Whereabouts]; !known && opt.Whereabouts != "" {
		return &hint.Error{
			Field: "--whereabouts", Value: opt.Whereabouts, Problem: "is nothing that can be done", Remedy: "give " + strings.Join(slices.Sorted(maps.Keys(wishes)), " or ") + ", or leave it out",
		}
	}
	macs, err := parseMACRange(opt.MACRange)
	if err != nil {
		return err
	}
	c := newController(opt)
	c.macs = macs
	api, err := kube.Connect(opt.Kubeconfig, "weft-controller", c.count.Requested)
	if err != nil {
		return err
	}
	return c.run(ctx, api)
}

func newController(opt Options) *controller {
	c := &controller{Options: opt, settle: settleFor}
	c.count = metrics.NewController(opt.Version, c.facts)
	return c
}

func (c *controller) run(ctx context.Context, api store.Store) error {
	var unique [8]byte
	_, _ = rand.Read(unique[:]) // never fails (crypto/rand)
	c.api = api
	elector := elect.New(elect.Config{
		API: api, Lease: store.Key{Namespace: c.Namespace, Name: leaseName}, Identity: c.Name + "_" + hex.EncodeToString(unique[:]), Log: c.Log,
		Term: c.patience, Renewal: c.patience / 2, Retry: c.patience / 10,
	})
	group, ctx := errgroup.WithContext(ctx)
	if c.Web != "" {
		group.Go(func() error { return web{c.Web, c.pages(), c.Log}.Run(ctx) })
	}
	group.Go(func() error {
		if err := elector.Run(ctx, c.lead); err != nil {
			return fmt.Errorf("%v: %w", elector, err)
		}
		return nil
	})
	c.Log.Info("controller runs")
	defer c.Log.Info("controller ends")
	return group.Wait()
}

// task runs until ctx ends.
type task interface {
	Run(ctx context.Context) error
}

// lead is what the leader does.
func (c *controller) lead(ctx context.Context, term *elect.Period) error {
	view := adviser.New()
	s := &state{term: term, book: newBook(view), pods: newPods(), view: view, ranges: newPools()}
	writer := term.Writer(c.api)
	collect, claims := newCollector(c, s, writer), newClaims(c, s, writer)
	vms := newMachines(claims)
	macs := newMACs(c, s, vms, writer)
	tasks := []task{
		feed{api: c.api, gvk: leaseKind, every: c.Compare, to: s.book, log: c.Log},
		feed{api: c.api, gvk: v1alpha1.NodeAddressesKind, every: c.Compare, to: &bindings{book: s.book}, log: c.Log, optional: true},
		feed{api: c.api, gvk: podKind, every: c.Compare, to: several{s.pods, macs.users}, log: c.Log},
		feed{api: c.api, gvk: networks.DefinitionKind, every: c.Compare, to: s.ranges, log: c.Log},
		feed{api: c.api, gvk: networks.ClaimKind, every: c.Compare, to: claims, log: c.Log, optional: true},
		feed{api: c.api, gvk: machineKind, every: c.Compare, to: vms.vms, log: c.Log, optional: true},
		feed{api: c.api, gvk: instanceKind, every: c.Compare, to: vms.instances, log: c.Log, optional: true},
		feed{api: c.api, gvk: v1alpha1.NICIdentityKind, every: c.Compare, to: macs.identities, log: c.Log, optional: true},
		feed{api: c.api, gvk: v1alpha1.MACLeaseKind, every: c.Compare, to: macs.leases, log: c.Log, optional: true},
		collect, newTeller(c, s, writer), claims, vms, macs,
		networks.Maker{API: writer, CRD: networks.ClaimCRD, Kind: networks.ClaimKind.Kind, Log: c.Log},
		&beside{controller: c, state: s, writer: writer},
	}
	if c.Mirror {
		tasks = append(tasks, newMirror(c, s, writer))
	}
	s.epochs = newEpochs(c, s, writer)
	tasks = append(tasks, s.epochs, feed{api: c.api, gvk: v1alpha1.AddressEpochKind, every: c.Compare, to: s.epochs, log: c.Log})
	if c.Adviser != "" {
		tasks = append(tasks, &desk{controller: c, state: s, writer: writer, callers: newCallers(c.api, c.Namespace, agentName)})
	}
	c.state.Store(s)
	defer c.state.Store(nil)
	group, ctx := errgroup.WithContext(ctx)
	for _, task := range tasks {
		group.Go(func() error {
			if err := task.Run(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%v: %w", task, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// facts are what metrics tell of the moment.
func (c *controller) facts() metrics.ControllerFacts {
	var facts metrics.ControllerFacts
	if s := c.state.Load(); s != nil {
		facts.Leading = s.term.Lasts()
		facts.Known = s.book.Synced()
		facts.Leases, facts.Unreadable = s.book.Count()
		facts.Pools, facts.Waiting = s.measured(), s.waiting(time.Now(), c.Grace)
		facts.Disagreements = float64(c.disagreements.Load())
		facts.MACCollisions = float64(s.collisions.Load())
	}
	return facts
}
