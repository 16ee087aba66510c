// Package agent does on one node what a Pod and a VM need of it: the sandbox
// and its attachments, a VM's wiring, guest-facing servers and machine, and the
// truth about all of it in their status.
//
// It decides nothing about which Pods there are (controllers do) and writes the
// kernel only through dataplane and the chain engine.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/dataplane"
	"github.com/weftnet/weft/internal/image"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/qemu"
	"github.com/weftnet/weft/internal/reconcile"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/vmnet"
)

// LauncherUID is the user and group QEMU runs as: no account of Debian has the
// number (60000-64999 are given out by the project, Debian policy 9.2.2).
const LauncherUID = 64107

// Config is what a Node is made from.
type Config struct {
	// Instance is the tag in our marks.
	Instance string
	Store    store.Store
	Engine   *chain.Engine
	Records  *record.Store
	Plane    *dataplane.Dataplane
	Images   *image.Store
	// NetNS gives the path of a Pod's namespace, VMDir the directory of a VM,
	// SandboxID the id of a Pod's sandbox.
	NetNS     func(namespace, pod string) string
	VMDir     func(namespace, name string) string
	SandboxID func(podUID string) string
	// NetNSDir holds our namespaces among others; OwnsNetNS tells by the file's name.
	NetNSDir  string
	OwnsNetNS func(name string) bool
	Accel     qemu.Accel
	// DNS is the node's resolver configuration, read anew for each VM.
	DNS func() (vmnet.DNS, error)
	Now func() time.Time
	Log *slog.Logger
}

// Node is the agent's part of one node.
type Node struct {
	cfg     Config
	pods    *reconcile.Loop
	keepers []*keeper
	// abandons: what plugins refuse to take back no longer keeps a Pod.
	abandons atomic.Bool

	// mu guards what follows.
	mu       sync.Mutex
	machines map[store.Key]*machine // wired on this node, by launcher Pod
	// returning are the launcher Pods that were there when the agent started and
	// have not been looked at yet.
	returning map[store.Key]bool
	// failing are Pods that could not be attached: a changed network may help.
	failing map[store.Key]bool
}

// New makes a Node.
func New(cfg Config) *Node {
	n := &Node{cfg: cfg, machines: map[store.Key]*machine{}, returning: map[store.Key]bool{}, failing: map[store.Key]bool{}}
	const workers = 8 // stopping a guest holds one for seconds
	n.pods = reconcile.NewLoop("pods", workers, cfg.Log, n.reconcilePod)
	n.keepers = n.keepersOf()
	return n
}

// Abandon lets Pods end from here on though a plugin refuses to take back what it
// did; see chain.Engine.Abandon.
func (n *Node) Abandon(ctx context.Context) error {
	n.abandons.Store(true)
	pods, _, err := n.cfg.Store.List(ctx, podKind, store.Selector{})
	if err != nil {
		return fmt.Errorf("list Pods: %w", err)
	}
	for _, pod := range pods {
		n.pods.Add(store.KeyOf(pod)) // instead of when its next try is due
	}
	return nil
}

// String names the task.
func (n *Node) String() string { return "node" }

// Run works until ctx ends. Pods and VMs stay as they are.
func (n *Node) Run(ctx context.Context) error {
	defer n.letGo()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.pods.Run(ctx) })
	for _, k := range n.keepers {
		group.Go(func() error { return k.loop.Run(ctx) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("run node: %w", err)
	}
	return nil
}

// Sources wake the node's loops.
func (n *Node) Sources() []reconcile.Source {
	sources := []reconcile.Source{
		{Store: n.cfg.Store, GVK: podKind, Loop: n.pods},
		{Store: n.cfg.Store, GVK: kubevirt.InstanceKind, Loop: n.pods, Keys: n.unseen},
		{Store: n.cfg.Store, GVK: networks.DefinitionKind, Loop: n.pods, Keys: n.hopeful},
	}
	for _, k := range n.keepers {
		sources = append(sources, reconcile.Source{Store: n.cfg.Store, GVK: k.kind, Loop: k.loop})
	}
	return sources
}

// letGo ends watches and servers, not the machines.
func (n *Node) letGo() {
	n.mu.Lock()
	machines := n.machines
	n.machines = map[store.Key]*machine{}
	n.mu.Unlock()
	for _, m := range machines {
		m.close()
	}
}

func (n *Node) machine(pod store.Key) *machine {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.machines[pod]
}

// unseen gives the launcher Pod of an instance whose machine has not followed
// its newest spec. Its status, which we write, wakes nobody.
func (n *Node) unseen(vmi *store.Object) []store.Key {
	n.mu.Lock()
	defer n.mu.Unlock()
	for pod, m := range n.machines {
		if m.name == store.KeyOf(vmi).String() && m.followed() != vmi.GetGeneration() {
			return []store.Key{pod}
		}
	}
	return nil
}

// hopeful gives the Pods that could not be attached: one of them may have waited
// for this network.
func (n *Node) hopeful(*store.Object) []store.Key {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Keys(n.failing))
}

// noteFailing remembers whether a Pod could be attached.
func (n *Node) noteFailing(pod store.Key, failing bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if failing {
		n.failing[pod] = true
	} else {
		delete(n.failing, pod)
	}
}

func (n *Node) setMachine(pod store.Key, m *machine) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if m == nil {
		delete(n.machines, pod)
		return
	}
	n.machines[pod] = m
}

// get gives an object, or nil if there is none.
func (n *Node) get(ctx context.Context, gvk kindOf, key store.Key) (*store.Object, error) {
	obj, err := n.cfg.Store.Get(ctx, gvk, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("get %s %s: %w", gvk.Kind, key, err)
	}
	return obj, nil
}
