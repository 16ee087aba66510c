// Package chain is the meta-plugin: it resolves which networks a sandbox is to
// have, attaches them in order (native kinds in process by way of dataplane,
// all else by foreign CNI binaries), and takes back what it made if any step
// fails. DEL and CHECK work from the record alone.
//
// What it does not do: choose how a kind looks in the kernel (kind), write the
// kernel (dataplane), choose addresses (ipam), or write the Pod's annotation
// (its caller, from Status).
package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/dataplane"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// Dataplane writes the kernel; *dataplane.Dataplane does.
type Dataplane interface {
	Replace(ctx context.Context, netns string, last, want netstate.Plan) (dataplane.Facts, error)
	Check(ctx context.Context, netns string, want netstate.Plan) ([]netstate.Op, error)
	Delete(ctx context.Context, netns string, last netstate.Plan) error
	Prune(ctx context.Context, keep func(owner string) bool) ([]string, error)
}

var _ Dataplane = (*dataplane.Dataplane)(nil)

// Networks looks NetworkAttachmentDefinitions up.
type Networks interface {
	// Definition gives one, or nil without an error if there is none.
	Definition(ctx context.Context, namespace, name string) (*netattach.NetworkAttachmentDefinition, error)
	// Namespaces lists where definitions of that name are.
	Namespaces(ctx context.Context, name string) ([]string, error)
}

// DefaultNetwork is what a sandbox gets as its first interface. The zero value:
// nothing.
type DefaultNetwork struct {
	// Config is a CNI configuration, single or list.
	Config []byte
	// Namespace and Name of a NetworkAttachmentDefinition, if Config is empty.
	Namespace, Name string
}

// Options are what an Engine is made of. Those without "optional" are required.
type Options struct {
	// Instance names this weft among those of the machine; it is in every mark.
	Instance string
	// Machine is unique to the machine (/etc/machine-id); it seeds made-up MACs.
	Machine   string
	Records   *record.Store
	Dataplane Dataplane
	// Addresses keeps who holds which address. The engine takes in it, when it is
	// made, whatever the records hold.
	Addresses ipam.Store
	Networks  Networks
	// Default is the default network of sandboxes that name no other; optional.
	Default DefaultNetwork
	// Kinds is the table of native kinds; optional, kind.Lookup.
	Kinds func(pluginType string) (kind.Kind, bool)
	// BinDirs are searched in order for foreign plugins; optional, /opt/cni/bin
	// and /usr/lib/cni.
	BinDirs []string
	// PluginTimeout is how long one call of a foreign plugin may take; optional,
	// one minute.
	PluginTimeout time.Duration
	// HostNS is the path of the host's namespace, as for dataplane; foreign
	// plugins run in it. Optional: the one this process is in.
	HostNS string
	// BootID is that of the running boot; optional, read from the kernel.
	BootID string
	// Log is where warnings about configs and repairs go; optional, nowhere.
	Log *slog.Logger
}

// Timeouts.
const (
	defaultPluginTimeout = time.Minute
	// undoTimeout bounds a roll-back, which goes on when its caller has gone.
	undoTimeout = 2 * time.Minute
)

// Engine attaches sandboxes to networks. It is safe for use by several
// goroutines; calls for one sandbox wait for each other.
type Engine struct {
	Options
	alloc  *ipam.Allocator
	runner runner
	claims *claims
	noIPv6 bool
	optDAD bool

	// beforeStep, if set, is asked before each step and stops the engine by its
	// error, without any cleaning up, as a crash would. Only tests set it.
	beforeStep func(step string) error
}

// New makes an engine and takes the addresses that the records hold. Call
// Restore before anything else. Records that cannot be read are no reason to
// fail here: Restore tells of them.
func New(ctx context.Context, options Options) (*Engine, error) {
	e := &Engine{Options: options, alloc: ipam.NewAllocator(options.Addresses), claims: newClaims()}
	if e.Kinds == nil {
		e.Kinds = kind.Lookup
	}
	if len(e.BinDirs) == 0 {
		e.BinDirs = defaultBinDirs()
	}
	if e.PluginTimeout == 0 {
		e.PluginTimeout = defaultPluginTimeout
	}
	if e.HostNS == "" {
		e.HostNS = "/proc/self/ns/net"
	}
	if e.Log == nil {
		e.Log = slog.New(slog.DiscardHandler)
	}
	if e.BootID == "" {
		var err error
		if e.BootID, err = record.BootID(); err != nil {
			return nil, err
		}
	}
	e.runner = runner{binDirs: e.BinDirs, deadline: e.PluginTimeout, hostNS: options.HostNS}
	e.noIPv6, e.optDAD = kernelFacts()
	if err := e.load(ctx); err != nil {
		return nil, err
	}
	return e, nil
}

// load digests all records.
func (e *Engine) load(ctx context.Context) error {
	ids, err := e.Records.IDs()
	if err != nil {
		return err
	}
	for _, id := range ids {
		box, err := e.Records.Load(id)
		if err != nil {
			// One that is damaged was set aside, and Restore lists those.
			e.Log.Error("record of a sandbox cannot be used", "sandbox", id, "err", err)
			continue
		}
		e.claims.set(id, box)
		for _, a := range box.Attachments {
			for _, l := range a.Leases {
				lease := ipam.Lease{Scope: ipam.Scope(l.Scope), Addr: l.Addr, Owner: ipam.Owner(l.Owner)}
				if err := e.Addresses.Take(ctx, lease); err != nil {
					e.Log.Error("address of a record is held by another", "sandbox", id, "address", l.Addr, "err", err)
				}
			}
		}
	}
	return nil
}

// errKilled is what a test's hook returns to stop the engine as a crash would.
var errKilled = errors.New("killed")

func (e *Engine) step(name string) error {
	if e.beforeStep == nil {
		return nil
	}
	return e.beforeStep(name)
}

// Owners in marks. Whatever else bears the instance's mark is not ours to prune.
const (
	ownerAttachment = "attach/"
	ownerShared     = "shared/"
	ownerMasquerade = "masquerade"
)

func (e *Engine) attachmentAlias(id string, ifName netstate.IfName) string {
	return netstate.Alias(e.Instance, ownerAttachment+id+"/"+string(ifName))
}

// sandboxGroup is the link group of all links of a sandbox.
func (e *Engine) sandboxGroup(id string) uint32 {
	return netstate.GroupOf(netstate.Alias(e.Instance, ownerAttachment+id))
}

// Request asks for the networks of one sandbox.
type Request struct {
	// ID is the sandbox's; NetNS the path of its network namespace.
	ID    string
	NetNS string
	Pod   record.Pod
	// Annotations of the Pod: the networks annotation and the one that replaces
	// the default network are read.
	Annotations map[string]string
	// DefaultNamespace is where the default network's annotation looks if it
	// names no namespace; empty: kube-system, as others have it.
	DefaultNamespace string
	// IfName is the interface of the default network; empty: eth0.
	IfName netstate.IfName
	// Default, if set, goes before the engine's default network.
	Default *DefaultNetwork
	// RuntimeConfig and CNIArgs as the container runtime passed them.
	RuntimeConfig map[string]json.RawMessage
	CNIArgs       [][2]string
	// Durable: the record must outlast a power loss even if all attachments are
	// native, because a VM's state goes with it.
	Durable bool
}

// Add attaches a sandbox to all its networks or to none. One that is attached
// already is returned as it is; one that was left half-made is undone first.
func (e *Engine) Add(ctx context.Context, req Request) (*record.Sandbox, error) {
	unlock, err := e.Records.Lock(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	box, err := e.present(ctx, req)
	if box != nil || err != nil {
		return box, err
	}
	if namespaceGone(req.NetNS) {
		return nil, &hint.Error{Field: "network namespace", Value: req.NetNS, Problem: "is no network namespace", Remedy: "make it first, and pass its path"}
	}
	delegates, err := e.resolve(ctx, req)
	if err != nil {
		return nil, err
	}
	box = &record.Sandbox{ID: req.ID, NetNS: req.NetNS, Pod: req.Pod, BootID: e.BootID, Durable: req.Durable}
	if len(delegates) == 0 {
		return box, nil // nothing to remember
	}
	if err := e.attach(ctx, box, delegates); err != nil {
		return nil, err
	}
	return box, nil
}

// present gives the record of a sandbox that is attached already. What is left
// of an earlier try is undone, so that Add starts from nothing.
func (e *Engine) present(ctx context.Context, req Request) (*record.Sandbox, error) {
	box, err := e.load1(ctx, req.ID)
	if box == nil || err != nil {
		return nil, err
	}
	if box.Whole() && box.BootID == e.BootID && box.NetNS == req.NetNS {
		there, err := e.linksThere(box)
		if err != nil {
			return nil, err
		}
		if there {
			return box, nil
		}
	}
	e.Log.Info("undoing what is left of an earlier attachment", "sandbox", req.ID)
	if err := e.undoAll(ctx, box); err != nil {
		return nil, fmt.Errorf("undo what is left of sandbox %s: %w", req.ID, err)
	}
	return nil, nil
}

// linksThere says whether the links in the record are still those of the
// namespace: another one may have been made under the same path since.
func (e *Engine) linksThere(box *record.Sandbox) (bool, error) {
	if namespaceGone(box.NetNS) {
		return false, nil
	}
	eyes := look{hostPath: e.HostNS, podPath: box.NetNS}
	defer eyes.close()
	for _, a := range box.Attachments {
		for _, l := range a.Links {
			if l.Side != netstate.Pod {
				continue
			}
			now, err := eyes.podLinks([]netstate.IfName{l.Name})
			if err != nil {
				return false, err
			}
			if len(now) == 0 || now[0].Index != l.Index {
				return false, nil
			}
		}
	}
	return true, nil
}

// load1 reads the record of a sandbox; nil if there is none. One that is
// damaged counts as none, once the host's part of what it held is gone.
func (e *Engine) load1(ctx context.Context, id string) (*record.Sandbox, error) {
	box, err := e.Records.Load(id)
	if errors.Is(err, record.ErrNotFound) {
		return nil, nil
	}
	if damaged, ok := errors.AsType[*record.DamagedError](err); ok {
		e.Log.Error("record of a sandbox is damaged; removing what bears its mark", "sandbox", id, "path", damaged.Path, "err", damaged.Err)
		return nil, e.salvage(ctx, id)
	}
	return box, err
}

// Get gives the record of a sandbox; the error is record.ErrNotFound if there
// is none.
func (e *Engine) Get(id string) (*record.Sandbox, error) { return e.Records.Load(id) }

// resolve looks everything up that Resolve wants to know.
func (e *Engine) resolve(ctx context.Context, req Request) ([]Delegate, error) {
	networks, networksErr := netattach.ParseNetworks(req.Annotations[netattach.NetworksAnnotation], req.Pod.Namespace)
	namespace := req.DefaultNamespace
	if namespace == "" {
		namespace = "kube-system"
	}
	chosen, chosenErr := netattach.ParseDefaultNetwork(req.Annotations[netattach.DefaultNetworkAnnotation], namespace)
	if err := errors.Join(networksErr, chosenErr); err != nil {
		return nil, err
	}
	q := Question{
		Sandbox: req.ID, Pod: req.Pod, IfName: req.IfName, RuntimeConfig: req.RuntimeConfig, CNIArgs: req.CNIArgs,
		Selections: networks, First: 1, Kinds: e.Kinds,
	}
	if q.IfName == "" {
		q.IfName = "eth0"
	}
	if err := e.defaultNetwork(ctx, req, chosen, &q); err != nil {
		return nil, err
	}
	if err := e.lookUp(ctx, &q); err != nil {
		return nil, err
	}
	return Resolve(q)
}

// defaultNetwork finds the config of the default network: the Pod's own choice,
// the caller's, the engine's.
func (e *Engine) defaultNetwork(ctx context.Context, req Request, chosen *netattach.Selection, q *Question) error {
	network := e.Default
	if req.Default != nil {
		network = *req.Default
	}
	if chosen == nil && len(network.Config) > 0 {
		conf, err := netattach.ParseConfig(network.Config, "default")
		if err != nil {
			return ofNetwork("default", err)
		}
		q.Default, q.DefaultName = conf, conf.Name
		return nil
	}
	selection := chosen
	if selection == nil {
		if network.Name == "" {
			return nil
		}
		selection = &netattach.Selection{Namespace: network.Namespace, Name: network.Name, Field: "default network"}
	}
	nad, err := e.Networks.Definition(ctx, selection.Namespace, selection.Name)
	if err != nil {
		return fmt.Errorf("look up default network %s: %w", selection.FullName(), err)
	}
	if nad == nil {
		elsewhere, err := e.Networks.Namespaces(ctx, selection.Name)
		if err != nil {
			return fmt.Errorf("look up default network %s: %w", selection.FullName(), err)
		}
		return unknown(selection, elsewhere)
	}
	conf, err := netattach.ParseConfig([]byte(nad.Config), nad.Name)
	if err != nil {
		return ofNetwork(nad.FullName(), err)
	}
	q.Default, q.DefaultName, q.DefaultSelection = conf, nad.FullName(), chosen
	return nil
}

// lookUp fills in the definitions of all selections.
func (e *Engine) lookUp(ctx context.Context, q *Question) error {
	q.Definitions = map[string]*netattach.NetworkAttachmentDefinition{}
	q.Elsewhere = map[string][]string{}
	for i := range q.Selections {
		s := &q.Selections[i]
		if _, known := q.Definitions[s.FullName()]; known {
			continue
		}
		nad, err := e.Networks.Definition(ctx, s.Namespace, s.Name)
		if err != nil {
			return fmt.Errorf("look up network %s: %w", s.FullName(), err)
		}
		q.Definitions[s.FullName()] = nad
		if nad != nil {
			continue
		}
		if q.Elsewhere[s.Name], err = e.Networks.Namespaces(ctx, s.Name); err != nil {
			return fmt.Errorf("look up network %s: %w", s.FullName(), err)
		}
	}
	return nil
}

// Attach adds one network to a sandbox that is attached: hotplug. An interface
// of that name on that network is success.
func (e *Engine) Attach(ctx context.Context, id string, selection netattach.Selection) (*record.Sandbox, error) {
	unlock, err := e.Records.Lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	box, err := e.Records.Load(id)
	if err != nil {
		return nil, err
	}
	if selection.Field == "" {
		selection.Field = "network selection"
	}
	if there := box.Find(netstate.IfName(selection.Interface)); there != nil && there.Network == selection.FullName() {
		if there.Stage == record.Attached {
			return box, nil
		}
		if err := e.undo(ctx, box, []*record.Attachment{there}); err != nil {
			return nil, err
		}
	}
	q := Question{
		Sandbox: id, Pod: box.Pod, Selections: []netattach.Selection{selection}, First: freeNumber(box),
		Present: box.Attachments, Kinds: e.Kinds,
	}
	if err := e.lookUp(ctx, &q); err != nil {
		return nil, err
	}
	delegates, err := Resolve(q)
	if err != nil {
		return nil, err
	}
	if err := e.attach(ctx, box, delegates); err != nil {
		return nil, err
	}
	return box, nil
}

// freeNumber is the lowest N from the number of attachments on for which net<N>
// is free, so that a name is seldom used twice in the life of a sandbox.
func freeNumber(box *record.Sandbox) int {
	n := max(len(box.Attachments), 1)
	for box.Find(netstate.IfName(fmt.Sprintf("net%d", n))) != nil {
		n++
	}
	return n
}

// Detach takes one interface off a sandbox. One that is not there is success.
func (e *Engine) Detach(ctx context.Context, id string, ifName netstate.IfName) (*record.Sandbox, error) {
	unlock, err := e.Records.Lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	box, err := e.Records.Load(id)
	if err != nil {
		return nil, err
	}
	a := box.Find(ifName)
	if a == nil {
		return box, nil
	}
	if err := e.undo(ctx, box, []*record.Attachment{a}); err != nil {
		return nil, err
	}
	if len(box.Attachments) == 0 {
		return box, nil
	}
	if err := e.resteer(ctx, box); err != nil {
		return nil, err
	}
	return box, e.save(box)
}

// SetMoved notes that addresses of an interface are about to be taken off the
// link for a guest to have (bridge binding), or none any more. Call it before
// they are, so that CHECK and DEL know.
func (e *Engine) SetMoved(ctx context.Context, id string, moved map[netstate.IfName][]netip.Prefix) (*record.Sandbox, error) {
	unlock, err := e.Records.Lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	box, err := e.Records.Load(id)
	if err != nil {
		return nil, err
	}
	for name, addrs := range moved {
		a := box.Find(name)
		if a == nil {
			return nil, fmt.Errorf("note moved addresses of sandbox %s: no interface %s", id, name)
		}
		a.Moved = slices.Clone(addrs)
	}
	return box, e.save(box)
}

// save writes the record and keeps claims up with it.
func (e *Engine) save(box *record.Sandbox) error {
	e.claims.set(box.ID, box)
	return e.Records.Save(box)
}
