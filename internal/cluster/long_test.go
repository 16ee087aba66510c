package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

// The cluster of a long run.
const (
	longNodes   = 12
	longWorkers = 24
	longPods    = 3 // of a worker, at most
)

var longConfigs = []string{
	`{"type":"whereabouts","ipRanges":[{"range":"10.60.0.0/22"},{"range":"fd60::/118"}]}`,
	`{"type":"whereabouts","network_name":"blue","range":"10.60.0.0/24","exclude":["10.60.0.64/28"]}`,
	`{"type":"whereabouts","range":"10.61.1.0/29"}`,
}

// place is an address where it is held once.
type place struct {
	scope ipam.Scope
	addr  netip.Addr
}

// long is one long run: who truly has which address, as those see it who use it.
type long struct {
	*cluster
	configs []ipam.Config
	left    atomic.Int64 // operations
	unspent atomic.Int64 // operations there was no time for

	mu    sync.Mutex // guards truth and count
	truth map[place]string
	count map[string]int

	controllers [2]atomic.Pointer[controller]
}

func (l *long) counted(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count[what]++
}

// holds notes that a Pod uses addresses from now on; another may not.
func (l *long) holds(leases []ipam.Lease, pod string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, is := range leases {
		at := place{is.Scope, is.Addr}
		if other := l.truth[at]; other != "" {
			l.t.Errorf("DUPLICATE: %s of %s is given to %s, and %s has it", is.Addr, is.Scope, pod, other)
		}
		l.truth[at] = pod
	}
}

// leaves notes that a Pod uses its addresses no more.
func (l *long) leaves(leases []record.Lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, is := range leases {
		delete(l.truth, place{ipam.Scope(is.Scope), is.Addr})
	}
}

// Candidates asks either controller, whether it leads or not, or none.
func (l *long) Candidates(_ context.Context, scope string, spans []ipam.Span, count int) []netip.Addr {
	c := l.controllers[rand.IntN(2)].Load() //nolint:gosec // a test
	if c == nil || rand.IntN(10) == 0 {     //nolint:gosec // a test
		return nil
	}
	s := c.state.Load()
	if s == nil {
		return nil
	}
	return s.view.Candidates(time.Now(), scope, spans, count)
}

// wire is a process's way to the API server.
type wire struct {
	store.Store
	node *longNode
	mu   sync.RWMutex // guards dead, and is held during requests
	dead bool
}

var (
	errLost = errors.New("timeout awaiting response headers")
	errCut  = errors.New("connection refused")
)

// do makes a request, unless it goes wrong before, and loses its answer at times.
func (w *wire) do(request func() error) error {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.dead || w.node.cut.Load() || rand.IntN(200) == 0 { //nolint:gosec // a test
		return errCut
	}
	if err := request(); err != nil {
		return err
	}
	if rand.IntN(200) == 0 { //nolint:gosec // a test
		return errLost
	}
	return nil
}

func (w *wire) Create(ctx context.Context, obj *store.Object) (made *store.Object, err error) {
	err = w.do(func() error { made, err = w.Store.Create(ctx, obj); return err })
	return made, err
}

func (w *wire) Update(ctx context.Context, obj *store.Object) (made *store.Object, err error) {
	err = w.do(func() error { made, err = w.Store.Update(ctx, obj); return err })
	return made, err
}

func (w *wire) Delete(ctx context.Context, gvk schema.GroupVersionKind, key store.Key, pre store.Precondition) error {
	if pre.UID == "" || pre.Revision == "" {
		w.node.t.Errorf("delete of %s without preconditions", key)
	}
	return w.do(func() error { return w.Store.Delete(ctx, gvk, key, pre) })
}

func (w *wire) Get(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (obj *store.Object, err error) {
	err = w.do(func() error { obj, err = w.Store.Get(ctx, gvk, key); return err })
	return obj, err
}

func (w *wire) List(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector) (list []*store.Object, revision string, err error) {
	err = w.do(func() error { list, revision, err = w.Store.List(ctx, gvk, sel); return err })
	return list, revision, err
}

// longNode is a node: what outlives its agent's process, and that process.
type longNode struct {
	*long
	name, dir string
	cut       atomic.Bool // the API server is not reached from here

	mu    sync.Mutex // guards what follows
	boxes map[string]*record.Sandbox
	alive map[string]bool // sandboxes the runtime has
	// busy are the sandboxes that are worked on by a process.
	busy    map[string]*process
	process *process
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
	w := &wire{Store: n.cluster, node: n}
	held, err := lease.New(lease.Options{API: w, Node: n.name, Dir: n.dir, Adviser: n.long, Log: slog.New(slog.DiscardHandler)})
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
	p.wire.mu.Lock()
	p.wire.dead = true
	p.wire.mu.Unlock()
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
	pod := n.make(podKind, "a", id, func(obj *store.Object) { obj.Object["spec"] = map[string]any{"nodeName": n.name} })
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

// trouble kills agents, cuts nodes off, and replaces controllers, until ctx ends.
func (l *long) trouble(ctx context.Context, nodes []*longNode, control func(i int) (stop func()), stops [2]func()) {
	for ctx.Err() == nil {
		time.Sleep(rand.N(150 * time.Millisecond)) //nolint:gosec // a test
		n := nodes[rand.IntN(len(nodes))]          //nolint:gosec // a test
		switch rand.IntN(8) {                      //nolint:gosec // a test
		case 0:
			n.cut.Store(true)
			time.Sleep(rand.N(400 * time.Millisecond)) //nolint:gosec // a test
			n.cut.Store(false)
			l.counted("node cut off")
		case 1:
			i := rand.IntN(2) //nolint:gosec // a test
			stops[i]()
			stops[i] = control(i)
			l.counted("controller replaced")
		default:
			n.kill()
			time.Sleep(rand.N(20 * time.Millisecond)) //nolint:gosec // a test
			n.start()
			l.counted("agent killed")
		}
	}
	for _, stop := range stops {
		stop()
	}
}

// operations of a run: few, unless WEFT_LONG says how many.
func operations(t *testing.T) int64 {
	t.Helper()
	text := os.Getenv("WEFT_LONG")
	if text == "" {
		return 1500
	}
	count, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("WEFT_LONG: %v", err)
	}
	return count
}

// TestLongRun has nodes add and end Pods, while agents are killed, answers lost,
// nodes cut off and controllers replaced. No address is ever with two Pods, and in
// the end none is held. docs/long-run.md has the summary of a long one.
func TestLongRun(t *testing.T) {
	l := &long{cluster: newCluster(t), truth: map[place]string{}, count: map[string]int{}}
	l.beat = 250 * time.Millisecond // most of what is written would be beats
	count := operations(t)
	l.left.Store(count)
	if deadline, ok := t.Deadline(); ok {
		early := time.AfterFunc(time.Until(deadline)-5*time.Minute, func() { l.unspent.Store(max(0, l.left.Swap(0))) }) // there is time for as many
		defer early.Stop()
	}
	for _, text := range longConfigs {
		config, err := ipam.Parse([]byte(`{"name":"n","ipam":`+text+`}`), "")
		if err != nil {
			t.Fatal(err)
		}
		l.configs = append(l.configs, config)
	}
	control := func(i int) func() {
		c, stop := l.controller(l.cluster)
		l.controllers[i].Store(c)
		return stop
	}
	stops := [2]func(){control(0), control(1)}
	var nodes []*longNode
	for i := range longNodes {
		n := &longNode{
			long: l, name: fmt.Sprint("n", i), dir: t.TempDir(),
			boxes: map[string]*record.Sandbox{}, alive: map[string]bool{}, busy: map[string]*process{},
		}
		l.node(n.name)
		n.start()
		nodes = append(nodes, n)
	}
	began := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	var work, trouble sync.WaitGroup
	trouble.Go(func() { l.trouble(ctx, nodes, control, stops) })
	for _, n := range nodes {
		for worker := range longWorkers {
			work.Go(func() { n.work(worker) })
		}
	}
	work.Wait()
	cancel()
	trouble.Wait()
	took := time.Since(began)
	count -= l.unspent.Load()
	ended := control(0)
	defer ended()
	for _, n := range nodes {
		_ = n.process.Sync(t.Context()) // as each does now and then
	}
	if len(l.truth) != 0 {
		t.Errorf("%d addresses are in use, and there is no Pod", len(l.truth))
	}
	began = time.Now()
	l.becomesEmpty()
	t.Logf("%d operations in %v: %v; nothing was held %v after", count, took.Round(time.Millisecond), l.count, time.Since(began).Round(time.Second))
	for _, n := range nodes {
		n.kill()
	}
	if l.count["ADD"] < int(count)/10 {
		t.Errorf("only %d Pods had addresses: too few for a test", l.count["ADD"])
	}
}

// becomesEmpty waits until no address is held.
func (l *long) becomesEmpty() {
	l.t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		held := l.held()
		if len(held) == 0 {
			return
		}
		if time.Now().After(deadline) {
			l.t.Errorf("LEAK: %d addresses, such as %v", len(held), held[:min(3, len(held))])
			return
		}
	}
}

var (
	_ lease.Users   = (*longNode)(nil)
	_ lease.Adviser = (*long)(nil)
)
