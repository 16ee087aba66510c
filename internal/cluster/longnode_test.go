package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

// longNode is a node: what outlives its agent's process, and that process.
type longNode struct {
	*long
	name, dir string
	cut       atomic.Bool // the API server is not reached from here
	ahead     bool        // it keeps addresses ahead

	mu    sync.Mutex // guards what follows
	boxes map[string]*record.Sandbox
	alive map[string]bool // sandboxes the runtime has
	// busy are the sandboxes that are worked on by a process.
	busy    map[string]*process
	process *process
}

func (l *long) longNode(name, dir string) *longNode {
	l.node(name)
	return &longNode{
		long: l, name: name, dir: dir, ahead: true,
		boxes: map[string]*record.Sandbox{}, alive: map[string]bool{}, busy: map[string]*process{},
	}
}

// process is an agent's.
type process struct {
	*lease.Store
	wire *wire
	end  func()
}

// start begins an agent, as one does after a crash: records are read, and what was
// begun is undone.
func (n *longNode) start() {
	n.t.Helper()
	w := &wire{Store: n.Store, l: n.long, cut: &n.cut}
	said := advisers{n.long, n.name}
	options := lease.Options{API: w, Node: n.name, Dir: n.dir, Adviser: said, Epochs: lease.NewEpochs(w, n.name, n.dir, quiet()), Log: quiet()}
	options.Journal = func() (string, error) { return "boot/first", nil }
	if n.ahead {
		options.Keeper = said
	}
	held, err := lease.New(options)
	if err != nil {
		n.t.Error(err)
		return
	}
	_ = held.Sync(context.Background()) // the API may be away
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	p := &process{Store: held, wire: w, end: func() { cancel(); <-ended }}
	n.mu.Lock()
	clear(n.busy)
	n.process = p
	var undo []ipam.Owner
	for _, ending := range []bool{false, true} { // as package chain does
		for id, box := range n.boxes {
			if ending != (box.Attachments[0].Stage != record.Attached) {
				continue
			}
			for _, l := range box.Attachments[0].Leases {
				err := held.Hold(ipam.Lease{Scope: ipam.Scope(l.Scope), Addr: l.Addr, Owner: ipam.Owner(l.Owner)})
				if err != nil && !ending {
					n.t.Error(err)
				}
			}
			if ending {
				undo = append(undo, ipam.AttachmentOwner(id, "net1"))
				delete(n.boxes, id)
				delete(n.alive, id)
			}
		}
	}
	n.mu.Unlock()
	for _, owner := range undo {
		if err := held.End(context.Background(), owner); err != nil {
			n.t.Error(err)
		}
	}
	go func() {
		defer close(ended)
		_ = held.Run(ctx, n) // ends by ctx alone
	}()
}

// kill ends the agent where it stands: none of its requests takes effect from here
// on, and none of its answers is heard.
func (n *longNode) kill() {
	n.mu.Lock()
	p := n.process
	n.process = nil
	n.mu.Unlock()
	p.wire.die()
	p.end()
}

// IfUnused, UserOf, Alive and Conflict make it the lease.Users of its process.
func (n *longNode) IfUnused(l ipam.Lease, then func()) bool {
	id, _, _ := strings.Cut(string(l.Owner), "/")
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.boxes[id] != nil || n.busy[id] != nil {
		return false
	}
	then()
	return true
}

// UserOf finds the attachment by its owner.
func (n *longNode) UserOf(l ipam.Lease) (*record.Sandbox, *record.Attachment) {
	id, _, _ := strings.Cut(string(l.Owner), "/")
	n.mu.Lock()
	defer n.mu.Unlock()
	if box := n.boxes[id]; box != nil && box.Attachments[0].Stage == record.Attached && n.busy[id] == nil {
		return box, box.Attachments[0]
	}
	return nil, nil
}

// Alive says whether the runtime has the sandbox.
func (n *longNode) Alive(_ context.Context, sandbox string) (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.alive[sandbox], nil
}

// Sandboxes are those that the runtime has.
func (n *longNode) Sandboxes(context.Context) (map[string]bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.alive), nil
}

// Conflict is told of what must not be.
func (n *longNode) Conflict(box *record.Sandbox, _ *record.Attachment, holder v1alpha1.AddressLeaseSpec) {
	n.t.Errorf("DUPLICATE: an address of %s is %v's in the cluster", box.ID, holder)
}

// longPod is a Pod that has its addresses.
type longPod struct {
	id  string
	box *record.Sandbox
}

// add makes a Pod and attaches it; nil: that went wrong, and nothing is there.
func (n *longNode) add(id string) *longPod {
	pod := n.make(podKind, "a", id, func(obj *store.Object) {
		obj.Object["spec"] = map[string]any{
			"nodeName": n.name, "terminationGracePeriodSeconds": int64(0), "containers": []any{map[string]any{"name": "c", "image": "x"}},
		}
	})
	a := &record.Attachment{Network: "demo/lan", Interface: "net1", Leased: true, Stage: record.Intent}
	box := &record.Sandbox{ID: id, Pod: record.Pod{Namespace: "a", Name: id, UID: string(pod.GetUID())}, Attachments: []*record.Attachment{a}}
	p := n.begin(id, box)
	config := n.configs[rand.IntN(len(n.configs)-1)] //nolint:gosec // a test
	if rand.IntN(200) == 0 {                         //nolint:gosec // a test
		config = n.configs[len(n.configs)-1]
	}
	owner := ipam.AttachmentOwner(id, "net1")
	_, err := ipam.NewConcurrentAllocator(p.Of(box, a, config)).Allocate(context.Background(), config, owner)
	var held []ipam.Lease
	if err == nil {
		held, err = p.Held(context.Background(), owner)
	}
	n.mu.Lock()
	killed := n.process != p
	if err == nil && !killed {
		for _, l := range held {
			a.Leases = append(a.Leases, record.Lease{Scope: string(l.Scope), Addr: l.Addr, Owner: string(l.Owner)})
		}
		a.Stage = record.Attached
		delete(n.busy, id)
		n.holds(held, id)
	}
	n.mu.Unlock()
	switch {
	case killed:
		n.counted("ADD whose agent was killed")
	case errors.Is(err, ipam.ErrExhausted):
		n.counted("ADD of an exhausted range")
	case errors.Is(err, ipam.ErrUnanswered):
		n.counted("ADD without an API server")
	case err != nil:
		n.t.Error(err)
	default:
		n.counted("ADD")
		return &longPod{id, box}
	}
	n.detach(id) // as the runtime does then
	n.remove(podKind, "a", id)
	return nil
}

// begin notes that a sandbox is worked on, once there is an agent. box is its first
// record; nil: it has none, or an older one.
func (n *longNode) begin(id string, box *record.Sandbox) *process {
	for ; ; time.Sleep(time.Millisecond) {
		n.mu.Lock()
		p := n.process
		if p != nil {
			n.busy[id] = p
			if box != nil {
				n.boxes[id], n.alive[id] = box, true
			} else if old := n.boxes[id]; old != nil {
				old.Attachments[0].Stage = record.Detaching
			}
		}
		n.mu.Unlock()
		if p != nil {
			return p
		}
	}
}

// detach ends the attachment of a sandbox, again if the agent is killed meanwhile.
func (n *longNode) detach(id string) {
	for ended := false; !ended; {
		p := n.begin(id, nil)
		if err := p.End(context.Background(), ipam.AttachmentOwner(id, "net1")); err != nil {
			n.t.Error(err)
		}
		n.mu.Lock()
		if ended = n.process == p; ended {
			delete(n.boxes, id)
			delete(n.alive, id)
			delete(n.busy, id)
		}
		n.mu.Unlock()
	}
}

// del ends a Pod, in one of the ways in which Pods end.
func (n *longNode) del(p *longPod) {
	n.leaves(p.box.Attachments[0].Leases)
	switch dice := rand.IntN(20); { //nolint:gosec // a test
	case dice == 0: // the node forgets it: its record is lost, and the sandbox gone
		n.mu.Lock()
		delete(n.boxes, p.id)
		delete(n.alive, p.id)
		n.mu.Unlock()
		n.remove(podKind, "a", p.id)
		n.counted("DEL that never came")
	case dice < 10: // the Pod goes first
		n.remove(podKind, "a", p.id)
		n.detach(p.id)
		n.counted("DEL")
	default:
		n.detach(p.id)
		n.remove(podKind, "a", p.id)
		n.counted("DEL")
	}
}

// work adds and ends Pods until no operation is left.
func (n *longNode) work(worker int) {
	var pods []*longPod
	for i := 0; n.left.Add(-1) >= 0 && !n.t.Failed(); i++ {
		if len(pods) < longPods && rand.IntN(longPods+1) >= len(pods) { //nolint:gosec // a test
			if p := n.add(fmt.Sprintf("%s-%d-%d", n.name, worker, i)); p != nil {
				pods = append(pods, p)
			}
			continue
		}
		which := rand.IntN(len(pods)) //nolint:gosec // a test
		p := pods[which]
		pods = append(pods[:which], pods[which+1:]...)
		n.del(p)
	}
	for _, p := range pods {
		n.del(p)
	}
}

var _ lease.Users = (*longNode)(nil)
