package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store/kube"
)

// Promised of addresses in a cluster: beside Whereabouts, and beside an API server
// that is asked to make one object for each and nothing else.
const (
	fasterThanWhereabouts = 50.0
	shareOfCreates        = 0.8
)

// leaseNodes is how many nodes take addresses at once.
const leaseNodes = 10

// leaseWay is weft: nodes with records on their disks and leases in the cluster.
type leaseWay struct {
	config ipam.Config
	nics   int // of each Pod
	nodes  []*leaseNode
}

type leaseNode struct {
	*lease.Store
	records *record.Store

	mu    sync.Mutex
	boxes map[string]*record.Sandbox
}

func newLeaseWay(tb testing.TB, api *kubeAPI) *leaseWay {
	tb.Helper()
	path := filepath.Join(api.cluster.Dir, "nodes.kubeconfig")
	api.kubeconfig(path, api.cluster.Server)
	w := &leaseWay{}
	for i := range leaseNodes {
		w.nodes = append(w.nodes, newLeaseNode(tb, api, fmt.Sprint("node", i), path))
	}
	return w.with(tb, `"range": "10.102.0.0/16"`, 1)
}

// with gives the same nodes, for Pods of so many NICs on a network with these keys
// of ipam.
func (w *leaseWay) with(tb testing.TB, keys string, nics int) *leaseWay {
	tb.Helper()
	config, err := ipam.Parse([]byte(`{"name":"n","ipam":{"type":"whereabouts",`+keys+`}}`), "")
	if err != nil {
		tb.Fatal(err)
	}
	return &leaseWay{config, nics, w.nodes}
}

// newLeaseNode begins a node that reaches the API server by a kubeconfig.
func newLeaseNode(tb testing.TB, api *kubeAPI, name, kubeconfig string) *leaseNode {
	tb.Helper()
	client := api.store(name, kubeconfig)
	dir := filepath.Join(api.cluster.Dir, name)
	records, err := record.Open(filepath.Join(dir, "records"), filepath.Join(dir, "run"))
	if err != nil {
		tb.Fatal(err)
	}
	held, err := lease.New(lease.Options{API: client, Node: name, Dir: filepath.Join(dir, "leases"), Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		tb.Fatal(err)
	}
	if err := held.Sync(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	n := &leaseNode{Store: held, records: records, boxes: map[string]*record.Sandbox{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = held.Run(ctx, n) // ends by ctx alone
	}()
	tb.Cleanup(func() { cancel(); <-done })
	return n
}

// store connects as a node agent does.
func (a *kubeAPI) store(program, kubeconfig string) *kube.Store {
	a.tb.Helper()
	client, err := kubeapi.Open(kubeconfig, kubeapi.Options{Agent: program, Dial: a.cluster.Dial})
	if err != nil {
		a.tb.Fatal(err)
	}
	return kube.New(client)
}

// give does what an ADD does about addresses: the record says what may be taken,
// then what was taken, then that all is there.
func (w *leaseWay) give(ctx context.Context, pod int) ([]netip.Addr, error) {
	n := w.nodes[pod%len(w.nodes)]
	id := fmt.Sprintf("box%d", pod)
	box := &record.Sandbox{ID: id, Pod: record.Pod{Namespace: podsNamespace, Name: fmt.Sprintf("pod%d", pod), UID: fmt.Sprintf("6b7c8d9e-0000-4000-8000-%012d", pod)}}
	for i := range w.nics {
		box.Attachments = append(box.Attachments, &record.Attachment{
			Network: "nets/n", Interface: netstate.IfName(fmt.Sprint("net", i+1)), Leased: true, Stage: record.Intent, Kind: record.Native, Config: []byte(`{}`),
		})
	}
	n.mu.Lock()
	n.boxes[id] = box
	n.mu.Unlock()
	if err := n.records.Save(box); err != nil {
		return nil, err
	}
	addrs, errs := make([]netip.Addr, w.nics), make([]error, w.nics)
	each(w.nics, w.nics, func(i int) {
		a := box.Attachments[i]
		owner := ipam.AttachmentOwner(id, string(a.Interface))
		got, err := ipam.NewConcurrentAllocator(n.Of(box, a, w.config)).Allocate(ctx, w.config, owner)
		if err != nil {
			errs[i] = err
			return
		}
		addrs[i] = got.Addresses[0].Prefix.Addr()
		held, err := n.Held(ctx, owner)
		errs[i] = err
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, l := range held {
			a.Leases = append(a.Leases, record.Lease{Scope: string(l.Scope), Addr: l.Addr, Owner: string(l.Owner)})
		}
	})
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(err, w.takeBack(ctx, pod)) // as a runtime does
	}
	for _, stage := range []record.Stage{record.Intent, record.Attached} {
		if err := n.save(box, stage); err != nil {
			return nil, err
		}
	}
	return addrs, nil
}

func (n *leaseNode) save(box *record.Sandbox, stage record.Stage) error {
	n.mu.Lock()
	for _, a := range box.Attachments {
		a.Stage = stage
	}
	n.mu.Unlock()
	return n.records.Save(box)
}

func (w *leaseWay) takeBack(ctx context.Context, pod int) error {
	n := w.nodes[pod%len(w.nodes)]
	id := fmt.Sprintf("box%d", pod)
	n.mu.Lock()
	box := n.boxes[id]
	delete(n.boxes, id)
	n.mu.Unlock()
	err := n.save(box, record.Detaching)
	return errors.Join(err, n.End(ctx, ipam.AttachmentOwner(id, "")), n.records.Delete(id, false))
}

// Sandboxes are all there are.
func (n *leaseNode) Sandboxes(context.Context) (map[string]bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := map[string]bool{}
	for id := range n.boxes {
		all[id] = true
	}
	return all, nil
}

// IfUnused, UserOf, Alive and Sandboxes make the node the lease.Users of its store.
func (n *leaseNode) IfUnused(l ipam.Lease, then func()) bool {
	id, _, _ := strings.Cut(string(l.Owner), "/")
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.boxes[id] != nil {
		return false
	}
	then()
	return true
}

// UserOf finds the attachment by its owner.
func (n *leaseNode) UserOf(l ipam.Lease) (*record.Sandbox, *record.Attachment) {
	id, ifName, _ := strings.Cut(string(l.Owner), "/")
	n.mu.Lock()
	defer n.mu.Unlock()
	box := n.boxes[id]
	if box == nil {
		return nil, nil
	}
	return box, box.Find(netstate.IfName(ifName))
}

// Alive says whether the sandbox is there.
func (n *leaseNode) Alive(_ context.Context, sandbox string) (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.boxes[sandbox] != nil, nil
}

// Conflict is told of none.
func (*leaseNode) Conflict(*record.Sandbox, *record.Attachment, v1alpha1.AddressLeaseSpec) {}

// addressBench is one run.
type addressBench struct {
	b        *testing.B
	api      *kubeAPI
	theirs   whereaboutsWay
	weft     *leaseWay
	floor    *createWay
	first    int // number of the next Pod
	verdicts []verdict
}

// BenchmarkWhereabouts prints what an address costs in a cluster, beside
// Whereabouts, and which promises are met.
func BenchmarkWhereabouts(b *testing.B) {
	api := newKubeAPI(b)
	api.cluster.LeaseKind(b)
	m := &addressBench{
		b: b, api: api, theirs: whereaboutsWay{newWhereaboutsPlugin(b, api), `"range": "10.100.0.0/16"`, 1}, weft: newLeaseWay(b, api),
		floor: &createWay{api: api, base: netip.MustParseAddr("10.101.0.0"), nics: 1},
	}
	for _, part := range []struct {
		name string
		run  func()
	}{{"Few", m.few}, {"Burst", m.burst}, {"Used", m.used}, {"Many", m.many}, {"Full", m.full}, {"Away", m.away}} {
		b.Run(part.name, func(b *testing.B) {
			for b.Loop() {
				m.verdicts = nil
				part.run()
				report(m.verdicts)
			}
		})
	}
}

// measure gives addresses to the next Pods.
func (m *addressBench) measure(way giver, count, atOnce int) addressFigures {
	f := measureAddresses(m.b, way, m.first, count, atOnce)
	m.first += count
	return f
}

func (m *addressBench) print(title string, rows func(row func(what string, theirs, weft, floor addressFigures))) {
	fmt.Println("\n" + title)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "Pods\tADDs/s: Whereabouts\tweft\tbare creates\tweft/Whereabouts\tweft/creates\tADD p50, p95: Whereabouts\tweft\tbare creates\tDELs/s: Whereabouts\tweft\tbare deletes\t")
	at := func(f addressFigures) string {
		if f.adds == 0 {
			return "-"
		}
		return fmt.Sprintf("%.1f, %.1f ms", f.p50.Seconds()*1e3, f.p95.Seconds()*1e3)
	}
	rows(func(what string, theirs, weft, floor addressFigures) {
		fmt.Fprintf(table, "%s\t%.1f\t%.0f\t%.0f\t%.0f\t%.2f\t%s\t%s\t%s\t%.1f\t%.0f\t%.0f\t\n", what, theirs.adds, weft.adds, floor.adds, weft.adds/theirs.adds, weft.adds/floor.adds,
			at(theirs), at(weft), at(floor), theirs.dels, weft.dels, floor.dels)
	})
	if err := table.Flush(); err != nil {
		m.b.Fatal(err)
	}
}

// few are Pods that come alone, fifty and two hundred at a time.
func (m *addressBench) few() {
	m.print("one address each, so many Pods at a time, of an empty range", func(row func(string, addressFigures, addressFigures, addressFigures)) {
		for _, load := range []struct{ atOnce, theirs, ours int }{{1, 20, 200}, {50, 100, 1000}, {200, 200, 2000}} {
			theirs, weft, floor := m.measure(m.theirs, load.theirs, load.atOnce), m.measure(m.weft, load.ours, load.atOnce), m.measure(m.floor, load.ours, load.atOnce)
			row(fmt.Sprint(load.atOnce), theirs, weft, floor)
			if load.atOnce == 50 {
				m.holdCreates("50 at a time", weft, floor)
			}
		}
	})
}

func (m *addressBench) holdCreates(what string, weft, floor addressFigures) {
	share := weft.adds / floor.adds
	m.verdicts = append(m.verdicts, verdict{fmt.Sprintf("addresses per second, %s: %.2fx bare creates, want %.1fx at least", what, share, shareOfCreates), share >= shareOfCreates})
}

// burst is a thousand Pods that come together on all nodes.
func (m *addressBench) burst() {
	const pods = 1000
	m.print("a burst of 1,000 Pods, 40 at a time on each of 10 nodes for weft; 50 at a time in all for Whereabouts, which is slower with more", func(row func(string, addressFigures, addressFigures, addressFigures)) {
		theirs, weft, floor := m.measure(m.theirs, pods, 50), m.measure(m.weft, pods, 400), m.measure(m.floor, pods, 400)
		row(fmt.Sprint(pods), theirs, weft, floor)
		times := weft.adds / theirs.adds
		m.verdicts = append(m.verdicts, verdict{fmt.Sprintf("a burst of %d Pods: %.0fx as fast as Whereabouts, want %.0fx", pods, times, fasterThanWhereabouts), times >= fasterThanWhereabouts})
	})
}

// used is a range of which ten thousand addresses are held.
func (m *addressBench) used() {
	const held = 10000
	empty := m.measure(m.weft, 1000, 50)
	first := m.first
	each(held, 200, func(i int) {
		if _, err := m.weft.give(context.Background(), first+i); err != nil {
			m.b.Error(err)
		}
	})
	m.first += held
	if m.b.Failed() {
		m.b.FailNow()
	}
	full, floor := m.measure(m.weft, 1000, 50), m.measure(m.floor, 1000, 50)
	fmt.Printf("\n50 at a time: %.0f addresses/s of an empty range, %.0f with %d held (%.2fx); bare creates %.0f/s\n", empty.adds, full.adds, held, full.adds/empty.adds, floor.adds)
	m.holdCreates(fmt.Sprintf("50 at a time with %d held", held), full, floor)
	each(held, 200, func(i int) {
		if err := m.weft.takeBack(context.Background(), first+i); err != nil {
			m.b.Error(err)
		}
	})
}
