package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/adviser"
	"github.com/weftnet/weft/internal/elect"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/kube"
)

// longPods is how many Pods a worker has, at most.
const longPods = 3

// course is what a long run is made of.
type course struct {
	nodes, workers int
	operations     int64
	// trouble is between troubles, at most.
	trouble time.Duration
	// configs are the networks' ipam; the last is seldom used, and too small.
	configs []string
}

// place is an address where it is held once.
type place struct {
	scope ipam.Scope
	addr  netip.Addr
}

// long is one long run: who truly has which address, as those see it who use it.
type long struct {
	*cluster
	course
	configs []ipam.Config
	left    atomic.Int64 // operations
	unspent atomic.Int64 // operations there was no time for
	led     atomic.Int64 // answers of leaders

	mu    sync.Mutex // guards truth and count
	truth map[place]string
	count map[string]int

	controllers [2]atomic.Pointer[controlling]
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

func (l *long) user(at place) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.truth[at]
}

// guard looks at each lease that is deleted, until ctx ends: nobody uses its address,
// or somebody who has another lease of it by now.
func (l *long) guard(ctx context.Context) {
	since := ""
	for ctx.Err() == nil {
		list, revision, err := l.List(ctx, leaseKind, store.Selector{})
		if since = revision; err != nil || len(list) == 0 && revision == "" {
			continue
		}
		events, err := l.Watch(ctx, leaseKind, store.Selector{}, since)
		if err != nil {
			continue
		}
		for event := range events {
			if is, err := v1alpha1.LeaseFromObject(event.Object); err == nil && event.Type == store.Deleted {
				l.unused(ctx, is)
			}
		}
	}
}

func (l *long) unused(ctx context.Context, is *v1alpha1.AddressLease) {
	at := place{ipam.Scope(is.Spec.Scope), is.Spec.IP}
	pod := l.user(at)
	if pod == "" {
		return
	}
	_, err := l.Get(ctx, leaseKind, store.Key{Name: is.Name})
	if errors.Is(err, store.ErrNotFound) && l.user(at) == pod {
		l.t.Errorf("FREED: %s uses %s, whose lease %+v is deleted", pod, is.Spec.IP, is.Spec)
	}
}

// advisers are what one node asks: either controller, whether another leads or not, or
// none.
type advisers struct {
	*long
	node string
}

func (a advisers) state() *state {
	c := a.controllers[rand.IntN(2)].Load() //nolint:gosec // a test
	if c == nil || rand.IntN(10) == 0 {     //nolint:gosec // a test
		return nil
	}
	if s := c.state.Load(); s != nil && s.book.Synced() {
		a.led.Add(1)
		return s
	}
	return nil
}

// Candidates and Keep make it the node's Adviser and its Keeper.
func (a advisers) Candidates(_ context.Context, scope string, spans []ipam.Span, count int) []netip.Addr {
	if s := a.state(); s != nil {
		return s.view.Candidates(time.Now(), scope, spans, count)
	}
	return nil
}

// Keep is what desk.keep answers.
func (a advisers) Keep(_ context.Context, scope string, spans []ipam.Span, keeps []netip.Addr) (adviser.Ahead, bool) {
	s := a.state()
	if s == nil || !s.term.Lasts() {
		return adviser.Ahead{}, false
	}
	return s.ahead(a.node, adviser.Question{Scope: scope, Spans: spans, Keeps: keeps}), true
}

// wire is a process's way to the API server.
type wire struct {
	store.Store
	l *long
	// cut: the API server is not reached from here.
	cut *atomic.Bool
	// lags: what is watched comes late at times.
	lags bool
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
	if w.dead || w.cut.Load() || rand.IntN(200) == 0 { //nolint:gosec // a test
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

// die has no request take effect from here on, and no answer be heard.
func (w *wire) die() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dead = true
}

func (w *wire) Create(ctx context.Context, obj *store.Object) (made *store.Object, err error) {
	err = w.do(func() error { made, err = w.Store.Create(ctx, obj); return err })
	if lease, bad := v1alpha1.LeaseFromObject(obj); err == nil && bad == nil && obj.GetKind() == leaseKind.Kind && lease.Spec.Owner.Kind == v1alpha1.OwnerNode {
		w.l.counted("address taken ahead")
	}
	return made, err
}

func (w *wire) Update(ctx context.Context, obj *store.Object) (made *store.Object, err error) {
	err = w.do(func() error { made, err = w.Store.Update(ctx, obj); return err })
	return made, err
}

func (w *wire) UpdateStatus(ctx context.Context, obj *store.Object) (made *store.Object, err error) {
	err = w.do(func() error { made, err = w.Store.UpdateStatus(ctx, obj); return err })
	return made, err
}

func (w *wire) Delete(ctx context.Context, gvk schema.GroupVersionKind, key store.Key, pre store.Precondition) error {
	if gvk == leaseKind && (pre.UID == "" || pre.Revision == "") {
		w.l.t.Errorf("delete of %s without preconditions", key)
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

// Watch gives events, late at times, as long as the API server is reached.
func (w *wire) Watch(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector, since string) (<-chan store.Event, error) {
	ctx, cancel := context.WithCancel(ctx)
	var events <-chan store.Event
	err := w.do(func() (err error) { events, err = w.Store.Watch(ctx, gvk, sel, since); return err })
	if err != nil {
		cancel()
		return nil, err
	}
	late := make(chan store.Event)
	go func() {
		defer close(late)
		defer cancel()
		for event := range events {
			if w.lags && rand.IntN(300) == 0 { //nolint:gosec // a test
				time.Sleep(rand.N(2 * time.Second)) //nolint:gosec // a test
			}
			if w.cut.Load() {
				return
			}
			select {
			case late <- event:
			case <-ctx.Done():
				return
			}
		}
	}()
	return late, nil
}

// apart is the cluster for one who stands for election alone, so that two lead at
// once and neither knows. Its clock is another each time that it tells the time.
type apart struct {
	store.Store
	name string
}

func (a apart) of(gvk schema.GroupVersionKind, key store.Key) store.Key {
	if gvk == elect.LeaseKind && key.Name == leaseName {
		key.Name = a.name
	}
	return key
}

func (a apart) as(obj *store.Object) *store.Object {
	if obj.GroupVersionKind() != elect.LeaseKind || obj.GetName() != leaseName {
		return obj
	}
	obj = obj.DeepCopy()
	obj.SetName(a.name)
	if spec, _ := obj.Object["spec"].(map[string]any); spec != nil {
		spec["renewTime"], spec["acquireTime"] = anyTime(), anyTime()
	}
	return obj
}

// back gives an answer as it would be without us.
func (a apart) back(obj *store.Object, err error) (*store.Object, error) {
	if err == nil && obj.GroupVersionKind() == elect.LeaseKind && obj.GetName() == a.name {
		obj.SetName(leaseName)
	}
	return obj, err
}

func (a apart) Create(ctx context.Context, obj *store.Object) (*store.Object, error) {
	return a.back(a.Store.Create(ctx, a.as(obj)))
}

func (a apart) Update(ctx context.Context, obj *store.Object) (*store.Object, error) {
	return a.back(a.Store.Update(ctx, a.as(obj)))
}

func (a apart) Get(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (*store.Object, error) {
	return a.back(a.Store.Get(ctx, gvk, a.of(gvk, key)))
}

// anyTime is what a clock says that is days off.
func anyTime() string {
	const days = 72 * time.Hour
	return time.Now().Add(rand.N(2*days) - days).UTC().Format("2006-01-02T15:04:05.000000Z07:00") //nolint:gosec // a test
}

// controlling is a controller's process.
type controlling struct {
	*controller
	wire *wire
	cut  *atomic.Bool
	stop func()
}

// control runs a controller in a place, until it is stopped.
func (l *long) control(i int) {
	c := &controlling{cut: &atomic.Bool{}}
	c.wire = &wire{Store: apart{l.Store, fmt.Sprint(leaseName, "-", i)}, l: l, cut: c.cut, lags: true}
	c.controller, c.stop = l.controllerWith(c.wire, 2*time.Second) // lest a dead one is waited for
	l.controllers[i].Store(c)
}

// replace ends a controller, which may say so, and runs another.
func (l *long) replace(i int, dies bool) {
	c := l.controllers[i].Load()
	if dies {
		c.wire.die()
	}
	c.stop()
	l.control(i)
}

// trouble kills agents, cuts nodes off, and cuts off, kills and replaces controllers,
// until ctx ends.
func (l *long) trouble(ctx context.Context, nodes []*longNode) {
	for ctx.Err() == nil {
		time.Sleep(rand.N(l.course.trouble))               //nolint:gosec // a test
		n, i := nodes[rand.IntN(len(nodes))], rand.IntN(2) //nolint:gosec // a test
		switch rand.IntN(16) {                             //nolint:gosec // a test
		case 0, 1:
			n.cut.Store(true)
			time.Sleep(rand.N(400 * time.Millisecond)) //nolint:gosec // a test
			n.cut.Store(false)
			l.counted("node cut off")
		case 2:
			l.replace(i, false)
			l.counted("controller replaced")
		case 3:
			l.replace(i, true)
			l.counted("controller killed")
		case 4:
			c := l.controllers[i].Load()
			c.cut.Store(true)
			time.Sleep(rand.N(time.Second)) //nolint:gosec // a test
			c.cut.Store(false)
			l.counted("controller cut off")
		default:
			n.kill()
			time.Sleep(rand.N(20 * time.Millisecond)) //nolint:gosec // a test
			n.start()
			l.counted("agent killed")
		}
	}
}

// operations of a run: few, unless WEFT_LONG says how many.
func operations(t *testing.T, few int64) int64 {
	t.Helper()
	text := os.Getenv("WEFT_LONG")
	if text == "" {
		return few
	}
	count, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("WEFT_LONG: %v", err)
	}
	return count
}

// TestLongRun has nodes add and end Pods, while agents are killed, answers lost,
// nodes cut off and controllers replaced, two of which lead at once. No address is ever
// with two Pods, none is given back that a Pod uses, and in the end none is held.
// docs/long-run.md has the summary of a long one.
func TestLongRun(t *testing.T) {
	c := newCluster(t)
	c.beat = 250 * time.Millisecond // most of what is written would be beats
	longRun(c, course{
		nodes: 12, workers: 24, operations: operations(t, 1000), trouble: 150 * time.Millisecond,
		configs: []string{
			`{"type":"whereabouts","ipRanges":[{"range":"10.60.0.0/22"},{"range":"fd60::/118"}]}`,
			`{"type":"whereabouts","network_name":"blue","range":"10.60.0.0/24","exclude":["10.60.0.64/28"]}`,
			`{"type":"whereabouts","range":"10.61.1.0/29"}`,
		},
	})
}

// longRun is TestLongRun on the real API.
func (l *lab) longRun(t *testing.T) {
	client, err := kubeapi.Open(l.Kubeconfig(), kubeapi.Options{Dial: l.Dial})
	if err != nil {
		t.Fatal(err)
	}
	l.create("/api/v1/namespaces", `{"metadata":{"name":"a"}}`)
	l.create("/api/v1/namespaces", `{"metadata":{"name":"weft"}}`) // of the controllers' election
	l.create("/api/v1/namespaces/a/serviceaccounts", `{"metadata":{"name":"default"}}`)
	longRun(&cluster{Store: kube.New(client), t: t, beat: time.Second}, course{
		nodes: 6, workers: 10, operations: operations(t, 250), trouble: 2 * time.Second,
		configs: []string{
			`{"type":"whereabouts","ipRanges":[{"range":"10.60.0.0/23"},{"range":"fd60::/118"}]}`,
			`{"type":"whereabouts","network_name":"blue","range":"10.60.0.0/26","exclude":["10.60.0.8/30"]}`,
			`{"type":"whereabouts","range":"10.61.1.0/29"}`,
		},
	})
}

// longRun is the run of TestLongRun on a cluster.
func longRun(c *cluster, course course) {
	t := c.t
	t.Helper()
	l := &long{cluster: c, course: course, truth: map[place]string{}, count: map[string]int{}}
	l.left.Store(course.operations)
	if deadline, ok := t.Deadline(); ok {
		early := time.AfterFunc(time.Until(deadline)-5*time.Minute, func() { l.unspent.Store(max(0, l.left.Swap(0))) }) // there is time for as many
		defer early.Stop()
	}
	for _, text := range course.configs {
		config, err := ipam.Parse([]byte(`{"name":"n","ipam":`+text+`}`), "")
		if err != nil {
			t.Fatal(err)
		}
		l.configs = append(l.configs, config)
	}
	l.control(0)
	l.control(1)
	var nodes []*longNode
	for i := range course.nodes {
		n := l.longNode(fmt.Sprint("node-", i), t.TempDir())
		n.start()
		nodes = append(nodes, n)
	}
	began := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	var work, others sync.WaitGroup
	others.Go(func() { l.trouble(ctx, nodes) })
	others.Go(func() { l.guard(ctx) })
	for _, n := range nodes {
		for worker := range course.workers {
			work.Go(func() { n.work(worker) })
		}
	}
	work.Wait()
	cancel()
	others.Wait()
	took, done := time.Since(began), course.operations-l.unspent.Load()
	if len(l.truth) != 0 {
		t.Errorf("%d addresses are in use, and there is no Pod", len(l.truth))
	}
	began = time.Now()
	for _, n := range nodes { // to one that keeps nothing ahead
		n.kill()
		n.ahead = false
		n.start()
	}
	l.becomesEmpty()
	t.Logf("%d operations in %v: %v; nothing was held %v after", done, took.Round(time.Millisecond), l.count, time.Since(began).Round(time.Second))
	for _, n := range nodes {
		n.kill()
	}
	if l.led.Load() == 0 {
		t.Error("no controller led")
	}
	if l.count["ADD"] < int(done)/10 {
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
	_ lease.Adviser = advisers{}
	_ lease.Keeper  = advisers{}
)

// quiet is a log that nobody reads.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
