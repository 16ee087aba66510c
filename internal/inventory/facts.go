// Package inventory tells what an API server knows of addresses that are unique in
// the cluster: which pools networks have, who holds what, and whether those owners
// and their nodes are there. The controller collects by it, and people look by it.
//
// Package garbage judges. What is changed here is what a person asks for: one
// address is given back.
package inventory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/elect"
	"github.com/weftnet/weft/internal/garbage"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
)

// Kinds of Kubernetes that are read.
var (
	PodKind  = schema.GroupVersionKind{Version: "v1", Kind: "Pod"}
	NodeKind = schema.GroupVersionKind{Version: "v1", Kind: "Node"}
)

const (
	// OutOfService is the taint by which people say that nothing runs on a node
	// (k8s.io/api core/v1, TaintNodeOutOfService).
	OutOfService = "node.kubernetes.io/out-of-service"
	// Heartbeats is the namespace where each kubelet renews a Lease of its node's name.
	Heartbeats = "kube-node-lease"
	// StaticPod is the annotation with the UID by which a kubelet knows a Pod that it
	// took from a file: that of the object is another.
	StaticPod = "kubernetes.io/config.hash"
)

// askPatience is for one request.
const askPatience = 10 * time.Second

// Look asks about owners and nodes, about each node once.
type Look struct {
	api   store.Store
	nodes map[string]NodeFacts
}

// NodeFacts are what is known of a node: whether it is there, and what changes when
// its kubelet is heard from.
type NodeFacts struct {
	Node  garbage.Node
	Heard string
	// At is when it was heard from the last time, if that is known.
	At time.Time
}

// NewLook begins a look.
func NewLook(api store.Store) *Look { return &Look{api: api, nodes: map[string]NodeFacts{}} }

// Facts reads what is known of an owner and its node.
func (l *Look) Facts(ctx context.Context, o v1alpha1.LeaseOwner, nodeName string) garbage.Facts {
	node := l.Node(ctx, nodeName)
	return garbage.Facts{Owner: l.Owner(ctx, o), Node: node.Node, Heard: node.Heard}
}

// Owner reads what is known of an owner.
func (l *Look) Owner(ctx context.Context, o v1alpha1.LeaseOwner) garbage.Owner {
	switch {
	case o.Kind == v1alpha1.OwnerPod && o.UID == "", o.Kind == v1alpha1.OwnerQuarantine, o.Kind == v1alpha1.OwnerNode:
		return garbage.Nameless
	case o.Kind == v1alpha1.OwnerPod:
		return l.pod(ctx, o)
	case o.Kind == v1alpha1.OwnerClaim:
		return l.claim(ctx, o)
	}
	return garbage.Live // its end is told by others
}

func (l *Look) pod(ctx context.Context, o v1alpha1.LeaseOwner) garbage.Owner {
	pod, err := l.get(ctx, PodKind, store.Key{Namespace: o.Namespace, Name: o.Name})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return garbage.Ended
	case err != nil:
		return garbage.Unknown
	case !slices.Contains(UIDsOf(pod), o.UID) || Terminal(pod):
		return garbage.Ended
	}
	return garbage.Live
}

func (l *Look) claim(ctx context.Context, o v1alpha1.LeaseOwner) garbage.Owner {
	claim, err := l.get(ctx, networks.ClaimKind, store.Key{Namespace: o.Namespace, Name: o.Name})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return garbage.Absent
	case err != nil:
		return garbage.Unknown
	case o.UID != "" && claim.GetUID() != o.UID:
		return garbage.Absent
	}
	return garbage.Live
}

// KeptGrace is for how long a node must be gone before what it keeps ahead of its Pods
// is given back, at least. Its agent, which may run on, is told at once to keep none,
// and hands out none when it was told nothing for ten seconds (lease.keepFresh).
const KeptGrace = 30 * time.Second

// GraceOf gives the grace of an owner, where others have one of grace.
func GraceOf(o v1alpha1.LeaseOwner, grace time.Duration) time.Duration {
	if o.Kind == v1alpha1.OwnerNode {
		return max(grace, KeptGrace)
	}
	return grace
}

// Node reads of a node whether it is gone, and when its kubelet was heard from. What
// is on no node is as on one that is gone.
func (l *Look) Node(ctx context.Context, name string) NodeFacts {
	if name == "" {
		return NodeFacts{Node: garbage.Gone}
	}
	if facts, ok := l.nodes[name]; ok {
		return facts
	}
	var facts NodeFacts
	node, err := l.get(ctx, NodeKind, store.Key{Name: name})
	switch {
	case errors.Is(err, store.ErrNotFound), err == nil && tainted(node):
		facts.Node = garbage.Gone
	case err == nil:
		facts.Node = garbage.There
		beat, err := l.get(ctx, elect.LeaseKind, store.Key{Namespace: Heartbeats, Name: name})
		if err == nil {
			spec, _ := beat.Object["spec"].(map[string]any)
			facts.Heard = fmt.Sprint(beat.GetUID(), " ", spec["renewTime"])
			text, _ := spec["renewTime"].(string)
			facts.At, _ = time.Parse(time.RFC3339, text) // zero, if it is none
		}
	}
	l.nodes[name] = facts
	return facts
}

func tainted(node *store.Object) bool {
	spec, _ := node.Object["spec"].(map[string]any)
	taints, _ := spec["taints"].([]any)
	for _, taint := range taints {
		if taint, ok := taint.(map[string]any); ok && taint["key"] == OutOfService {
			return true
		}
	}
	return false
}

func (l *Look) get(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (*store.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	return l.api.Get(ctx, gvk, key)
}

// UIDsOf gives the UIDs that a Pod's addresses may be held by.
func UIDsOf(pod *store.Object) []types.UID {
	uids := []types.UID{pod.GetUID()}
	if hash := pod.GetAnnotations()[StaticPod]; hash != "" {
		uids = append(uids, types.UID(hash))
	}
	return uids
}

// Terminal says whether a Pod has ended for good.
func Terminal(pod *store.Object) bool {
	status, _ := pod.Object["status"].(map[string]any)
	return status["phase"] == "Succeeded" || status["phase"] == "Failed"
}
