// Package garbage judges whether addresses that are held in the cluster are held
// by nobody any more. It asks nobody: facts and time are given to it.
//
// An address is free when two things are known: that its owner has ended, and that
// its node knows or is no more. A Pod whose object was deleted by force may run on,
// on a node that nobody reaches; its address is its own until the node was heard
// from again, or until somebody said that the node is gone, by deleting its Node or
// by the out-of-service taint. Both must have been so for a while, at two looks.
package garbage

import "time"

// Owner is what is known of the owner of addresses.
type Owner int

// What is known of owners.
const (
	// Unknown: it could not be asked.
	Unknown Owner = iota
	// Live: it is there.
	Live
	// Ended: it is no more and never comes back, such as the Pod of a UID.
	Ended
	// Absent: it is not there, and one of that name may come.
	Absent
	// Nameless: nothing tells whose the address is. It goes with its node.
	Nameless
)

// Node is what is known of a node.
type Node int

// What is known of nodes.
const (
	// Unasked: it could not be asked.
	Unasked Node = iota
	// There is a Node of that name.
	There
	// Gone: its Node is deleted, or tainted as out of service.
	Gone
)

// Facts are what was read at one look.
type Facts struct {
	Owner Owner
	Node  Node
	// Heard changes whenever the node was heard from; empty: not known.
	Heard string
}

// Sight is what earlier looks at an owner showed. The zero value: nothing yet.
type Sight struct {
	// Since is when the owner was first seen not to be there, and NodeGone its node.
	Since, NodeGone time.Time
	// Heard is what it was when the owner was first seen to have ended.
	Heard string
}

// Verdict is what is to be done.
type Verdict int

// Verdicts.
const (
	// Wait: look again.
	Wait Verdict = iota
	// Keep: the owner has its addresses. What was seen before is void.
	Keep
	// Free: nobody has the addresses of this owner.
	Free
)

// Reason is why an owner has its addresses still, or that nobody has them.
type Reason string

// Reasons.
const (
	// OwnerLives: it is there.
	OwnerLives Reason = "owner-lives"
	// WithNode: nothing tells whose the addresses are, and their node is there.
	WithNode Reason = "with-node"
	// Unanswered: the owner, or its node, could not be asked.
	Unanswered Reason = "unanswered"
	// Grace: the owner, or its node, is not gone for long enough.
	Grace Reason = "grace"
	// NodeSilent: the owner has ended, and its node was not heard from since.
	NodeSilent Reason = "node-silent"
	// NodeKeeps: the node looks after what may come back under the same name.
	NodeKeeps Reason = "node-keeps"
	// Nobody: they are free.
	Nobody Reason = "nobody"
)

// Judge gives the verdict on an owner, and what to remember for the next look.
func Judge(now time.Time, grace time.Duration, before Sight, facts Facts) (Sight, Verdict) {
	after := see(now, before, facts)
	switch reason, _ := Explain(now, grace, after, facts); reason {
	case OwnerLives, WithNode:
		return Sight{}, Keep
	case Nobody:
		return after, Free
	default:
		return after, Wait
	}
}

// see adds a look to what earlier ones showed.
func see(now time.Time, before Sight, facts Facts) Sight {
	after := before
	switch facts.Node {
	case Gone:
		if after.NodeGone.IsZero() {
			after.NodeGone = now
		}
	case There:
		after.NodeGone = time.Time{}
	case Unasked:
	}
	if facts.Owner != Ended && facts.Owner != Absent {
		return after
	}
	if after.Since.IsZero() {
		after.Since = now
	}
	if after.Heard == "" {
		after.Heard = facts.Heard
	}
	return after
}

// Explain says why an owner has its addresses still, from all looks with the last.
// until is when that ends by itself, if it does at a known time.
func Explain(now time.Time, grace time.Duration, sight Sight, facts Facts) (reason Reason, until time.Time) {
	goneAt := sight.NodeGone.Add(grace)
	gone := facts.Node == Gone && !now.Before(goneAt)
	switch facts.Owner {
	case Live:
		return OwnerLives, time.Time{}
	case Unknown:
		return Unanswered, time.Time{}
	case Nameless:
		switch {
		case facts.Node == There:
			return WithNode, time.Time{}
		case gone:
			return Nobody, time.Time{}
		case facts.Node == Gone:
			return Grace, goneAt
		}
		return Unanswered, time.Time{}
	case Ended, Absent:
	}
	over := sight.Since.Add(grace)
	heard := facts.Node == There && facts.Heard != "" && facts.Heard != sight.Heard
	switch {
	case now.Before(over):
		if facts.Node == Gone && goneAt.After(over) {
			over = goneAt
		}
		return Grace, over
	case gone:
		return Nobody, time.Time{}
	case facts.Node == Gone:
		return Grace, goneAt
	case facts.Node == Unasked:
		return Unanswered, time.Time{}
	case facts.Owner == Absent: // a node that is there looks after what may come back under the same name
		return NodeKeeps, time.Time{}
	case heard:
		return Nobody, time.Time{}
	}
	return NodeSilent, time.Time{}
}
