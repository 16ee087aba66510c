// Package record keeps on disk what weft attached to each sandbox: what was
// asked for, what was made, and how far it got. It is the truth DEL works from
// and the journal that allocations of addresses are rebuilt from.
//
// It reads and writes files and nothing else: what a stage means for the kernel,
// and what to do about a half-made attachment, is internal/chain's.
package record

import (
	"encoding/json"
	"net/netip"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/netstate"
)

// Version of the format; a file with another one is not touched.
const Version = 1

// Stage is how far an attachment is.
//
//	stage      what may exist outside the record     goes on to
//	---------  ------------------------------------  -----------------------------------
//	intent     anything from nothing to all of it    attached; failed; gone (rolled back)
//	attached   all of it                             detaching
//	detaching  anything from all of it to nothing    gone; detaching (tried again)
//	failed     what the roll-back could not remove   detaching
//
// "gone" is no stage: the attachment leaves the record, and the record of a
// sandbox without attachments leaves the disk. A restart finds intent and
// detaching only where it died in the middle, and undoes what is there.
type Stage string

// Stages.
const (
	Intent    Stage = "intent"
	Attached  Stage = "attached"
	Detaching Stage = "detaching"
	Failed    Stage = "failed"
)

// Kind says who has to be asked to undo an attachment.
type Kind string

// Kinds of attachments.
const (
	// Native attachments are kernel state of ours: a reboot takes them along.
	Native Kind = "native"
	// Foreign ones have a plugin or IPAM binary in them, which may hold state of
	// its own on disk or elsewhere.
	Foreign Kind = "foreign"
)

// Sandbox is everything weft knows of one sandbox.
type Sandbox struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	// NetNS is the path of its network namespace; it may be gone.
	NetNS string `json:"netns"`
	Pod   Pod    `json:"pod"`
	// VM is the machine whose launcher the Pod is; empty: it is none.
	VM string `json:"vm,omitempty"`
	// BootID is that of the boot in which the kernel state was made
	// (/proc/sys/kernel/random/boot_id). Another boot: nothing native is left.
	BootID string `json:"bootID"`
	// Durable: the record must outlast a power loss, because something that it
	// alone knows does too: state of a foreign plugin, or a VM.
	Durable bool `json:"durable,omitempty"`
	// Isolation bounds which namespaces' networks the Pod may use; nil: nothing does.
	Isolation *Isolation `json:"isolation,omitempty"`
	// ConfDir is where the configs of networks are whose definition has none.
	ConfDir string `json:"confDir,omitempty"`
	// Attachments in the order in which they were made; undone in reverse.
	Attachments []*Attachment `json:"attachments"`
}

// Isolation lets a Pod use networks of its own namespace and of those listed.
type Isolation struct {
	Namespaces []string `json:"namespaces"`
}

// Pod says whose sandbox it is. Empty on sandboxes of no Pod.
type Pod struct {
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
}

// String gives namespace/name.
func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Attachment is one interface of a sandbox on one network.
type Attachment struct {
	// Network is namespace/name of the NetworkAttachmentDefinition, or the CNI
	// network's name if there is none. It is the name in network-status.
	Network string `json:"network"`
	// Interface is the name of the link in the sandbox.
	Interface netstate.IfName `json:"interface"`
	// Default: the default network of the Pod.
	Default bool   `json:"default,omitempty"`
	Stage   Stage  `json:"stage"`
	Reason  string `json:"reason,omitempty"`
	Kind    Kind   `json:"kind"`
	// Since is when it was asked for, in seconds of Unix; 0: by an earlier weft.
	Since int `json:"since,omitempty"`

	// Config is the CNI configuration list as it was when it was asked for.
	Config json.RawMessage `json:"config"`
	// Selection is the element of the annotation; nil for the default network.
	Selection *netattach.Selection `json:"selection,omitempty"`
	// CNIArgs and CapabilityArgs as passed to the plugins.
	CNIArgs        [][2]string                `json:"cniArgs,omitempty"`
	CapabilityArgs map[string]json.RawMessage `json:"capabilityArgs,omitempty"`

	// NativeMain: the first plugin of the list is one of ours, in process.
	NativeMain bool `json:"nativeMain,omitempty"`
	// IPAM is the foreign IPAM binary a native main plugin delegates to.
	IPAM string `json:"ipam,omitempty"`
	// Resource and Device are what the attachment got a device of and which one.
	// DeviceFile describes it as long as it is attached, and DeviceInfo is what
	// that said then.
	Resource   string                `json:"resource,omitempty"`
	Device     string                `json:"device,omitempty"`
	DeviceFile string                `json:"deviceFile,omitempty"`
	DeviceInfo *netattach.DeviceInfo `json:"deviceInfo,omitempty"`
	// Alias is our mark on what is made for this attachment; see
	// netstate.Alias. Shared is the mark on what it shares with others.
	Alias string `json:"alias,omitempty"`
	// Plan is the kernel state that attaches it, in full.
	Plan netstate.Plan `json:"plan,omitzero"`
	// Defaults are the default routes the network itself gives, and HasDefaults
	// those the interface has: which ones stand is decided over all attachments.
	Defaults    []netstate.Route `json:"defaults,omitempty"`
	HasDefaults []netstate.Route `json:"hasDefaults,omitempty"`
	// Masquerade lists subnets that go out under the host's address.
	Masquerade []netip.Prefix `json:"masquerade,omitempty"`
	// Leases are the addresses it holds; written before the first link is made.
	// Leased: they are objects of the cluster, of which some may be held that do not
	// stand here yet.
	Leases []Lease `json:"leases,omitempty"`
	Leased bool    `json:"leased,omitempty"`
	// Claim is the name of the IPAMClaim that the addresses belong to, and ClaimOwner
	// the owner of addresses that it is, or a sticky Pod name; empty: they are the
	// attachment's own.
	Claim      string `json:"claim,omitempty"`
	ClaimOwner string `json:"claimOwner,omitempty"`
	// Links are what was really made.
	Links []Link `json:"links,omitempty"`
	// ByPlugins are the differences from the plan that plugins after ours made, as
	// operations that would undo them.
	ByPlugins []string `json:"byPlugins,omitempty"`
	// Result is the CNI result, of version 1.1.0.
	Result json.RawMessage `json:"result,omitempty"`
	// Moved are addresses that were taken off the link for a guest to have.
	// Those of a foreign plugin are put back before its DEL.
	Moved []netip.Prefix `json:"moved,omitempty"`
}

// Lease is one address held, see ipam.Lease.
type Lease struct {
	Scope string     `json:"scope"`
	Addr  netip.Addr `json:"addr"`
	Owner string     `json:"owner"`
}

// Link is one link of an attachment as the kernel knows it.
type Link struct {
	Side  netstate.Side   `json:"side"`
	Name  netstate.IfName `json:"name"`
	Index int             `json:"index"`
	Kind  netstate.Kind   `json:"kind,omitempty"`
	MAC   netstate.MAC    `json:"mac,omitempty"`
	MTU   int             `json:"mtu,omitempty"` // bytes
	Alias string          `json:"alias,omitempty"`
	// Up and Addrs are what a foreign plugin left; the plan says it of our own.
	Up    bool           `json:"up,omitempty"`
	Addrs []netip.Prefix `json:"addrs,omitempty"`
}

// Find gives the attachment with that interface, or nil.
func (s *Sandbox) Find(name netstate.IfName) *Attachment {
	for _, a := range s.Attachments {
		if a.Interface == name {
			return a
		}
	}
	return nil
}

// Remove takes one attachment out.
func (s *Sandbox) Remove(name netstate.IfName) {
	kept := s.Attachments[:0]
	for _, a := range s.Attachments {
		if a.Interface != name {
			kept = append(kept, a)
		}
	}
	clear(s.Attachments[len(kept):])
	s.Attachments = kept
}

// Whole says whether every attachment is attached.
func (s *Sandbox) Whole() bool {
	for _, a := range s.Attachments {
		if a.Stage != Attached {
			return false
		}
	}
	return true
}
