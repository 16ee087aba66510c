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
	"time"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/dataplane"
	"github.com/weftnet/weft/internal/device"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// Dataplane writes the kernel; *dataplane.Dataplane does.
type Dataplane interface {
	Replace(ctx context.Context, netns string, last, want netstate.Plan) (dataplane.Facts, error)
	ReplaceIn(ctx context.Context, pod *linux.NS, last, want netstate.Plan, seen []linux.Link) (dataplane.Facts, error)
	Check(ctx context.Context, netns string, want netstate.Plan) ([]netstate.Op, error)
	Delete(ctx context.Context, netns string, last netstate.Plan) error
	Prune(ctx context.Context, keep func(owner string) bool) ([]string, error)
	Rename(ctx context.Context, netns string, index int, name netstate.IfName) error
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
	// Host is a connection in the host's namespace, to look at its links.
	Host *linux.Conn
	// Addresses keeps who holds which address. The engine takes in it, when it is
	// made, whatever the records hold.
	Addresses ipam.Store
	// Leases gives addresses that are unique in the cluster; optional.
	Leases   Leases
	Networks Networks
	// Claims is asked for the IPAMClaims that annotations name, and those of VMs;
	// optional: every one that is named counts as existing, and VMs have none.
	Claims Claims
	// MACs is asked for those of VMs' NICs, and about those that Pods ask for; optional.
	MACs MACs
	// Devices is asked for the devices of Pods; optional: networks that name a
	// resource are attached without a device.
	Devices Devices
	// DeviceDir has the files that describe devices; optional, device.Dir.
	DeviceDir string
	// Cluster: other machines give addresses of the same networks. Those that are
	// unique in a cluster come from Leases, or from their plugin, where it is
	// installed.
	Cluster bool
	// Keep is told what an owner that outlives its attachments has, before one of
	// them counts as made: it writes it down for Hold at the next start. Optional.
	Keep func(owner ipam.Owner, leases []ipam.Lease) error
	// Default is the default network of sandboxes that name no other; optional.
	Default DefaultNetwork
	// Kinds is the table of native kinds; optional, kind.Lookup.
	Kinds func(pluginType string) (kind.Kind, bool)
	// BinDirs are searched in order for foreign plugins; optional, /opt/cni/bin
	// and /usr/lib/cni.
	BinDirs []string
	// HostRoot is where the machine's own files are, for a process that has a root
	// of its own, a container: foreign plugins run with that as their root.
	HostRoot string
	// PluginTimeout is how long one call of a foreign plugin may take; optional,
	// one minute.
	PluginTimeout time.Duration
	// HostNS is the path of the host's namespace, as for dataplane; foreign
	// plugins run in it. Optional: the one this process is in.
	HostNS string
	// BootID is that of the running boot; optional, read from the kernel.
	BootID string
	// Observe is told of every phase of every call; optional. It must not wait.
	Observe func(Phase)
	// Warned is told, once, of each thing in a network's config that has no effect;
	// optional. It must not wait.
	Warned func(network, warning string)
	// Strange is told of strangers that use addresses; optional. It must not wait.
	Strange func(Stranger)
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
	parsed *parsedConfigs

	deviceFiles device.Files
	warned      *warned

	noIPv6 bool
	optDAD bool

	// beforeStep, if set, is asked before each step and stops the engine by its
	// error, without any cleaning up, as a crash would. Only tests set it, or are
	// built with a failpoint.
	beforeStep func(step string) error
}

// New makes an engine and takes the addresses that the records hold. Call
// Restore before anything else. Records that cannot be read are no reason to
// fail here: Restore tells of them.
func New(ctx context.Context, options Options) (*Engine, error) {
	e := &Engine{Options: options, alloc: ipam.NewAllocator(options.Addresses), claims: newClaims(), parsed: newParsedConfigs(), warned: &warned{}, beforeStep: failpoint()}
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
		if e.BootID, err = record.BootID(e.HostRoot); err != nil {
			return nil, err
		}
	}
	e.runner = runner{binDirs: e.BinDirs, root: e.HostRoot, deadline: e.PluginTimeout, rooms: &rooms{}, hostNS: options.HostNS, observe: options.Observe}
	e.deviceFiles = device.Files{Root: e.HostRoot, Dir: e.DeviceDir}
	e.noIPv6, e.optDAD = kernelFacts()
	if err := e.load(ctx); err != nil {
		return nil, err
	}
	return e, nil
}

// WithPluginTimeout gives the same engine, but with another deadline for each
// call of a foreign plugin.
func (e *Engine) WithPluginTimeout(d time.Duration) *Engine {
	other := *e
	other.PluginTimeout, other.runner.deadline = d, d
	return &other
}

// load digests all records.
func (e *Engine) load(ctx context.Context) error {
	ids, err := e.Records.IDs()
	if err != nil {
		return err
	}
	var ending []func() error
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
				lease := leaseOf(l)
				take := func() error { return e.Addresses.Take(ctx, lease) }
				if a.Leased && e.Leases != nil {
					take = func() error { return e.Leases.Hold(lease) }
				}
				if a.Stage != record.Attached {
					ending = append(ending, take)
				} else if err := take(); err != nil {
					e.Log.Error("address of a record is held by another", "sandbox", id, "address", l.Addr, "err", err)
				}
			}
		}
	}
	// What was being given back when we died may be another's by now, who comes first.
	for _, take := range ending {
		_ = take()
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
	// ConfDir is where the configs of networks are whose definition has none, and of
	// those the caller names without one; empty: nowhere.
	ConfDir string
	// Everywhere are networks the sandbox gets after its default network, whatever
	// its annotation says.
	Everywhere []DefaultNetwork
	// Isolation, if set, bounds which namespaces' networks annotations may name.
	Isolation *record.Isolation
	// RuntimeConfig and CNIArgs as the container runtime passed them.
	RuntimeConfig map[string]json.RawMessage
	CNIArgs       [][2]string
	// Durable: the record must outlast a power loss even if all attachments are
	// native, because a VM's state goes with it.
	Durable bool
	// Owners of addresses that shall outlive the sandbox, by interface; where none
	// is named they are given back with it. An attachment whose addresses weft
	// does not give has no use for one.
	Owners map[netstate.IfName]ipam.Owner
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
	eyes := e.look(req.NetNS)
	defer eyes.close()
	if _, err := eyes.namespace(); isGone(err) {
		return nil, &hint.Error{Field: "network namespace", Value: req.NetNS, Problem: "is no network namespace", Remedy: "make it first, and pass its path"}
	} else if err != nil {
		return nil, err
	}
	resolved := measure(e.Observe, "ADD", "", "resolve")
	delegates, err := e.resolve(ctx, req)
	resolved()
	if err != nil {
		return nil, err
	}
	box = &record.Sandbox{ID: req.ID, NetNS: req.NetNS, Pod: req.Pod, VM: req.vm(), BootID: e.BootID, Durable: req.Durable, Isolation: req.Isolation, ConfDir: req.ConfDir}
	if len(delegates) == 0 {
		return box, nil // nothing to remember
	}
	if err := e.attach(ctx, eyes, box, delegates, req.Owners); err != nil {
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
	if err := e.undoAll(ctx, box, false); err != nil {
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
	eyes := e.look(box.NetNS)
	defer eyes.close()
	for _, a := range box.Attachments {
		for _, l := range a.Links {
			if l.Side != netstate.Pod {
				continue
			}
			now, there, err := eyes.recorded(l, markOf(a, l))
			if err != nil {
				return false, err
			}
			// A Pod may have renamed it; what bears no mark is known by its name too.
			if !there || now.Name != l.Name && (!a.NativeMain || now.Alias == "") {
				return false, nil
			}
		}
	}
	return true, nil
}

// load1 reads the record of a sandbox; nil if there is none. One that is
// damaged, or that went without us, counts as none, once the host's part of what
// it held is gone.
func (e *Engine) load1(ctx context.Context, id string) (*record.Sandbox, error) {
	box, err := e.Records.LoadLocked(id)
	if errors.Is(err, record.ErrNotFound) {
		if !e.claims.knows(id) {
			return nil, nil
		}
		e.Log.Error("record of a sandbox is gone; removing what bears its mark", "sandbox", id)
		return nil, e.salvage(ctx, id)
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

// save writes the record and keeps claims up with it.
func (e *Engine) save(box *record.Sandbox) error {
	e.claims.set(box.ID, box)
	return e.Records.Save(box)
}

// note is save for what a reboot makes meaningless: how far attachments are that
// the disk knows of.
func (e *Engine) note(box *record.Sandbox) error {
	e.claims.set(box.ID, box)
	return e.Records.Note(box)
}
