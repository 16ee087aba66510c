package inventory

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/garbage"
	"github.com/weftnet/weft/internal/lease"
)

// Keeping is why an address is held still.
type Keeping struct {
	Reason garbage.Reason `json:"reason"`
	// Why is for people, and so is Remedy: what has the address given back.
	Why    string `json:"why"`
	Remedy string `json:"remedy"`
}

// Why says why an address is held still: by what the controller judges by, and what
// it told of its looks.
func (c Cluster) Why(ctx context.Context, known *Known, is Holding) Keeping {
	look := NewLook(c.API)
	facts, node := look.Facts(ctx, is.Owner, is.Node), look.Node(ctx, is.Node)
	ended := known.ended(is)
	// As at a first look: whose owner ended has a grace.
	now := time.Now()
	sight, verdict := garbage.Judge(now, lookEvery, garbage.Sight{}, facts)
	reason, _ := garbage.Explain(now, lookEvery, sight, facts)
	if verdict != garbage.Keep && ended != nil {
		reason = garbage.Reason(ended.Reason)
	}
	return keeping(is, reason, facts, node, ended)
}

// keeping says it for people. ended may be nil.
func keeping(is Holding, reason garbage.Reason, facts garbage.Facts, node NodeFacts, ended *v1alpha1.EndedAddress) Keeping {
	name := is.OwnerName()
	k := Keeping{Reason: reason}
	gone := name + " has ended"
	if facts.Owner == garbage.Absent {
		gone = name + " is gone"
	}
	if ended != nil && ended.Since != nil {
		gone += fmt.Sprintf(" (seen at %s)", ended.Since.Local().Format(time.TimeOnly))
	}
	if is.Quarantined() && (reason == garbage.WithNode || reason == garbage.Unanswered) {
		return Keeping{
			Reason: reason, Why: fmt.Sprintf("%s was found to use it at %s, without a lease", is.Owner.Name, is.Since.Local().Format(time.TimeOnly)),
			Remedy: fmt.Sprintf("find out who that is; weft-node of node %s gives it back %s after it was found, and who is given it next asks again", is.Node, lease.QuarantineFor),
		}
	}
	if len(is.Holders) > 0 {
		if reason != garbage.OwnerLives {
			k.Why, k.Remedy = gone+", and Pods have the address", "delete those Pods: "+holders(is)
			return k
		}
		k.Why, k.Remedy = name+" is there", "delete "+name+", and the Pods that have the address"
		return k
	}
	if is.Owner.Kind == v1alpha1.OwnerWhereabouts {
		of := strings.Trim(is.Owner.Namespace+"/"+is.Owner.Name, "/")
		k.Why = "Whereabouts gave it to " + of + ", and which Pod that is was not found, or its objects disagree"
		k.Remedy = "wait: weft-controller gives it back a day after the import (--imported-for) if there is no Pod of that name; or weft ip free --force, if nobody uses it"
		return k
	}
	switch reason {
	case garbage.OwnerLives:
		k.Why, k.Remedy = name+" is there", "delete "+name
		if facts.Node == garbage.Gone && is.Node != "" {
			k.Why += ", though its node " + is.Node + " is gone"
		}
	case garbage.WithNode:
		k.Why = "nothing tells whose it is, and its node " + is.Node + " is there"
		if is.Owner.Kind == v1alpha1.OwnerNode {
			k.Why = "node " + is.Node + " took it ahead of its Pods, and did not tell yet that one has it"
			k.Remedy = "wait: node " + is.Node + " gives it to a Pod, or back when none wants it for two minutes"
			break
		}
		k.Remedy = "see that weft-node runs on node " + is.Node + ", which gives it back if no sandbox has it"
	case garbage.Unanswered:
		k.Why = "the API server does not tell whether " + name + " and node " + is.Node + " are there"
		k.Remedy = "see that the API server answers, and that you may read those"
	case garbage.Grace:
		k.Why = gone + ", not for long enough"
		if facts.Node == garbage.Gone && is.Node != "" {
			k.Why += "; node " + is.Node + " is gone"
		}
		if ended != nil && ended.Until != nil {
			k.Why += "; the grace ends at " + ended.Until.Local().Format(time.TimeOnly)
		}
		k.Remedy = "wait until weft-controller gives it back; if it does not, see that weft-controller runs"
	case garbage.NodeSilent:
		k.Why = gone + ", and node " + is.Node + silentSince(node, time.Now()) + ", so it may run there still"
		k.Remedy = "have node " + is.Node + " answer, or if nothing runs there, delete its Node or taint it " + OutOfService
	case garbage.NodeKeeps:
		k.Why = gone + ", and node " + is.Node + " is there, whose agent gives the address back"
		k.Remedy = "see that weft-node runs on node " + is.Node
	case garbage.Nobody:
		k.Why, k.Remedy = gone+": nobody has it", "wait until weft-controller gives it back; if it does not, see that weft-controller runs"
	}
	return k
}

func holders(is Holding) string {
	var names []string
	for _, holder := range is.Holders {
		names = append(names, holder.Pod+" of node "+holder.Node)
	}
	return strings.Join(names, ", ")
}

// silentSince says when a node was heard from.
func silentSince(node NodeFacts, now time.Time) string {
	if node.At.IsZero() {
		return " is not heard from"
	}
	return fmt.Sprintf(" was heard from last at %s, %s ago", node.At.Local().Format(time.TimeOnly), now.Sub(node.At).Round(time.Second))
}
