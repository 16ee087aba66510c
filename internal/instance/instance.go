// Package instance says where one weft on a machine keeps its state, and by which
// names its links, namespaces and tables are told from another's. It touches
// none of them.
package instance

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"strings"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
)

// DefaultTag is the tag of the instance that --root and WEFT_ROOT leave alone.
const DefaultTag = "weft"

// maxSocketPath is the room for a unix socket's path, sun_path of
// include/uapi/linux/un.h less the closing NUL.
const maxSocketPath = 107

// Instance is one weft on this machine: its directories and the names by which
// its links, namespaces and tables are told from another instance's.
type Instance struct {
	// Tag is part of every name and mark: "weft", or "weft-" and six hex digits
	// of the root's hash.
	Tag string
	// State survives a reboot; Run need not.
	State, Run string
}

// New gives the instance for root; empty root is the machine's own.
func New(root string) (Instance, error) {
	if root == "" {
		return Instance{Tag: DefaultTag, State: "/var/lib/weft", Run: "/run/weft"}, nil
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return Instance{}, &hint.Error{Field: "--root", Value: root, Problem: "not a usable directory", Err: err, Remedy: "give an absolute path"}
	}
	sum := sha256.Sum256([]byte(abs))
	in := Instance{Tag: DefaultTag + "-" + hex.EncodeToString(sum[:3]), State: abs, Run: filepath.Join(abs, "run")}
	if len(in.Socket()) > maxSocketPath {
		return Instance{}, &hint.Error{
			Field: "--root", Value: root, Problem: "the path is too long for a unix socket in it",
			Remedy: "choose a directory with a path of at most 85 characters",
		}
	}
	return in, nil
}

// Socket is where the agent listens for the CLI.
func (in Instance) Socket() string { return filepath.Join(in.Run, "agent.sock") }

// LogFile is what an agent started by `weft up` writes its log to.
func (in Instance) LogFile() string { return filepath.Join(in.State, "weftd.log") }

// StoreFile holds the objects.
func (in Instance) StoreFile() string { return filepath.Join(in.State, "objects.db") }

// RecordDirs hold one file per sandbox: its attachments. Those of the first must
// outlast a reboot.
func (in Instance) RecordDirs() (disk, run string) {
	return filepath.Join(in.State, "attachments"), filepath.Join(in.Run, "attachments")
}

// CNICacheDir is libcni's cache for foreign plugins.
func (in Instance) CNICacheDir() string { return filepath.Join(in.State, "cni") }

// ImageDir is the image store.
func (in Instance) ImageDir() string { return filepath.Join(in.State, "images") }

// DefaultNetworkFile is the CNI config of eth0; the user may replace it.
func (in Instance) DefaultNetworkFile() string {
	return filepath.Join(in.State, "default-network.conflist")
}

// VMDir holds the disks, logs and exit record of one virtual machine.
func (in Instance) VMDir(namespace, name string) string {
	return filepath.Join(in.State, "vms", namespace, name)
}

// NetNSDir is where named namespaces are mounted, iproute2's own place, so that
// `ip netns exec` finds them.
const NetNSDir = "/run/netns"

// NetNS is the path of the namespace of a Pod. '_' cannot occur in a Kubernetes
// name, so no two Pods and no two instances share one.
func (in Instance) NetNS(namespace, pod string) string {
	name := strings.Join([]string{in.Tag, namespace, pod}, "_")
	if len(name) > 255 { // NAME_MAX, include/uapi/linux/limits.h
		sum := sha256.Sum256([]byte(name))
		name = name[:200] + "_" + hex.EncodeToString(sum[:8])
	}
	return filepath.Join(NetNSDir, name)
}

// OwnsNetNS says whether a file name in NetNSDir is a namespace of ours.
func (in Instance) OwnsNetNS(name string) bool { return strings.HasPrefix(name, in.Tag+"_") }

// DefaultBridge is the bridge of the built-in default network.
func (in Instance) DefaultBridge() netstate.IfName {
	if in.Tag == DefaultTag {
		return "weft0"
	}
	return netstate.IfName("weft" + strings.TrimPrefix(in.Tag, DefaultTag))
}

// OwnPaths lists everything weft makes below State.
func (in Instance) OwnPaths() []string {
	records, _ := in.RecordDirs()
	return []string{
		in.LogFile(), in.StoreFile(), records, in.CNICacheDir(), in.ImageDir(),
		in.DefaultNetworkFile(), filepath.Join(in.State, "vms"),
	}
}
