package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/local"
)

// patience is how long a test waits for what must come.
const patience = time.Minute

// faults is an API that fails as it is told.
type faults struct {
	store.Store

	// mu guards what follows.
	mu sync.Mutex
	// spoil is asked for each request, from several goroutines.
	spoil func(verb, name string) fault
	calls map[string]int
}

// fault is what becomes of a request.
type fault struct {
	before error // it is not done
	after  error // it is done, and this is the answer
}

var (
	errAway = errors.New("connection refused")
	errLost = errors.New("timeout awaiting response headers")
)

func (f *faults) of(verb, name string) fault {
	f.mu.Lock()
	if f.calls == nil {
		f.calls = map[string]int{}
	}
	f.calls[verb]++
	spoil := f.spoil
	f.mu.Unlock()
	if spoil == nil {
		return fault{}
	}
	return spoil(verb, name)
}

// await is of, but ends with ctx.
func (f *faults) await(ctx context.Context, verb, name string) fault {
	answer := make(chan fault, 1)
	go func() { answer <- f.of(verb, name) }()
	select {
	case got := <-answer:
		return got
	case <-ctx.Done():
		return fault{before: ctx.Err()}
	}
}

func (f *faults) set(spoil func(verb, name string) fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spoil, f.calls = spoil, nil
}

func (f *faults) count(verb string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[verb]
}

func (f *faults) Create(ctx context.Context, obj *store.Object) (*store.Object, error) {
	fault := f.of("create", obj.GetName())
	if fault.before != nil {
		return nil, fault.before
	}
	made, err := f.Store.Create(ctx, obj)
	if fault.after != nil {
		return nil, fault.after
	}
	return made, err
}

func (f *faults) Update(ctx context.Context, obj *store.Object) (*store.Object, error) {
	fault := f.of("update", obj.GetName())
	if fault.before != nil {
		return nil, fault.before
	}
	if obj.GetUID() == "" || obj.GetResourceVersion() == "" {
		return nil, fmt.Errorf("update of %s without preconditions", obj.GetName())
	}
	made, err := f.Store.Update(ctx, obj)
	if fault.after != nil {
		return nil, fault.after
	}
	return made, err
}

func (f *faults) Delete(ctx context.Context, gvk schema.GroupVersionKind, key store.Key, pre store.Precondition) error {
	fault := f.await(ctx, "delete", key.Name)
	if fault.before != nil {
		return fault.before
	}
	if pre.UID == "" || pre.Revision == "" {
		return fmt.Errorf("delete of %s without preconditions: %+v", key, pre)
	}
	err := f.Store.Delete(ctx, gvk, key, pre)
	if fault.after != nil {
		return fault.after
	}
	return err
}

func (f *faults) Get(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (*store.Object, error) {
	if fault := f.of("get", key.Name); fault.before != nil {
		return nil, fault.before
	}
	return f.Store.Get(ctx, gvk, key)
}

func (f *faults) List(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector) ([]*store.Object, string, error) {
	if fault := f.of("list", gvk.Kind); fault.before != nil {
		return nil, "", fault.before
	}
	return f.Store.List(ctx, gvk, sel)
}

// newAPI is an API of one file.
func newAPI(t testing.TB) *faults {
	t.Helper()
	api, err := local.Open(filepath.Join(t.TempDir(), "store"), local.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Close() }) // of a directory that goes
	return &faults{Store: api}
}

// node is one node: its store and the attachments on it.
type node struct {
	t    testing.TB
	api  *faults
	name string
	dir  string
	*Store

	// mu guards the fields below it.
	mu    sync.Mutex
	boxes map[string]*record.Sandbox
	alive map[string]bool
	// adding are the sandboxes that are just being attached.
	adding map[string]bool
	end    func() // ends Run
	// conflicts are what was told of.
	conflicts []string
	// equip completes the store of each process.
	equip func(*Store)
	// dies says whether the process dies at a step of an attachment; nil: at none.
	dies func(step string) bool
	// ctx ends with the process; nil: it lives.
	ctx context.Context //nolint:containedctx // a test's
}

// errDead: the process died, so nobody hears what came of it.
var errDead = errors.New("dead")

func newNode(t testing.TB, api *faults, name string) *node {
	t.Helper()
	n := &node{t: t, api: api, name: name, dir: t.TempDir(), boxes: map[string]*record.Sandbox{}, alive: map[string]bool{}, adding: map[string]bool{}}
	n.start()
	return n
}

// start begins a new process, which knows what records say. The one before it died.
func (n *node) start() {
	n.t.Helper()
	made, err := New(Options{API: n.api, Node: n.name, Dir: n.dir, Log: slog.New(slog.NewTextHandler(n.t.Output(), nil))})
	if err != nil {
		n.t.Fatal(err)
	}
	n.Store = made
	if n.equip != nil {
		n.equip(made)
	}
	_ = n.Sync(n.t.Context()) // the API may be away
	for _, box := range n.boxes {
		for _, a := range box.Attachments {
			for _, l := range a.Leases {
				if err := n.Hold(ipam.Lease{Scope: ipam.Scope(l.Scope), Addr: l.Addr, Owner: ipam.Owner(l.Owner)}); err != nil {
					n.t.Error(err)
				}
			}
		}
	}
}

// run keeps the leases in the background.
func (n *node) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = n.Run(ctx, n) // ends by ctx alone
	}()
	n.end = func() { cancel(); <-done }
	n.t.Cleanup(n.end)
}

// IfUnused, UserOf, Alive and Kept make it the Users of its store.
func (n *node) IfUnused(lease ipam.Lease, then func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	unused := true
	for id, box := range n.boxes {
		unused = unused && !n.adding[id] && !slices.Contains(box.Attachments[0].Leases, record.Lease{Scope: string(lease.Scope), Addr: lease.Addr, Owner: string(lease.Owner)})
	}
	sandbox, _, _ := strings.Cut(string(lease.Owner), "/")
	unused = unused && !n.adding[sandbox]
	if unused {
		then()
	}
	return unused
}

// UserOf finds an attachment.
func (n *node) UserOf(lease ipam.Lease) (*record.Sandbox, *record.Attachment) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, box := range n.boxes {
		for _, a := range box.Attachments {
			if slices.Contains(a.Leases, record.Lease{Scope: string(lease.Scope), Addr: lease.Addr, Owner: string(lease.Owner)}) {
				return box, a
			}
		}
	}
	return nil, nil
}

// Alive says what the runtime knows.
func (n *node) Alive(_ context.Context, sandbox string) (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.alive[sandbox], nil
}

// Conflict notes what is told.
func (n *node) Conflict(box *record.Sandbox, a *record.Attachment, holder v1alpha1.AddressLeaseSpec) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conflicts = append(n.conflicts, fmt.Sprintf("%s %s/%s, %s", holder.IP, box.ID, a.Interface, HolderName(holder)))
}

// Sandboxes says what the runtime knows.
func (n *node) Sandboxes(context.Context) (map[string]bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.alive), nil
}

func parse(t testing.TB, text string) ipam.Config {
	t.Helper()
	config, err := ipam.Parse([]byte(`{"name":"n","ipam":`+text+`}`), "")
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// add attaches a sandbox by net1, as package chain does.
func (n *node) add(config ipam.Config, sandbox string) ([]string, error) {
	return n.addFor(config, sandbox, ipam.AttachmentOwner(sandbox, "net1"))
}

// addFor attaches a sandbox by net1, with addresses of an owner.
func (n *node) addFor(config ipam.Config, sandbox string, owner ipam.Owner) ([]string, error) {
	n.t.Helper()
	pod := record.Pod{Namespace: "demo", Name: "pod-" + sandbox, UID: "uid-" + sandbox}
	a := &record.Attachment{Network: "demo/lan", Interface: "net1", Leased: true, Stage: record.Attached}
	box := &record.Sandbox{ID: sandbox, Pod: pod, Attachments: []*record.Attachment{a}}
	n.mu.Lock()
	n.adding[sandbox] = true
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.adding, sandbox)
		n.mu.Unlock()
	}()
	ctx := n.ctx
	if ctx == nil {
		ctx = n.t.Context()
	}
	got, err := ipam.NewConcurrentAllocator(n.Of(box, a, config)).Allocate(ctx, config, owner)
	if err != nil {
		return nil, err
	}
	if n.dies != nil && n.dies("allocated") {
		return nil, errDead
	}
	var out []string
	for _, address := range got.Addresses {
		out = append(out, address.Prefix.Addr().String())
		a.Plan.Pod.Addrs = append(a.Plan.Pod.Addrs, netstate.Addr{Link: "net1", Prefix: address.Prefix})
	}
	held, err := n.Held(n.t.Context(), owner)
	if err != nil {
		return nil, err
	}
	for _, l := range held {
		a.Leases = append(a.Leases, record.Lease{Scope: string(l.Scope), Addr: l.Addr, Owner: string(l.Owner)})
	}
	n.mu.Lock()
	n.boxes[sandbox], n.alive[sandbox] = box, true
	n.mu.Unlock()
	if n.dies != nil && n.dies("recorded") {
		return out, errDead
	}
	return out, nil
}

func (n *node) mustAdd(config ipam.Config, sandbox string) []string {
	n.t.Helper()
	got, err := n.add(config, sandbox)
	if err != nil {
		n.t.Fatal(err)
	}
	return got
}

// del detaches a sandbox.
func (n *node) del(sandbox string) {
	n.t.Helper()
	if err := n.End(n.t.Context(), ipam.AttachmentOwner(sandbox, "net1")); err != nil {
		n.t.Errorf("end %s: %v", sandbox, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.boxes, sandbox)
	delete(n.alive, sandbox)
}

// objects gives the leases there are, as text, sorted.
func objects(t testing.TB, api store.Store) []string {
	t.Helper()
	list, _, err := api.List(context.Background(), v1alpha1.AddressLeaseKind, store.Selector{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, obj := range list {
		l, err := v1alpha1.LeaseFromObject(obj)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s %s %s", l.Name, l.Spec.Node, ownerOf(l.Spec)))
	}
	slices.Sort(out)
	return out
}

func same(t testing.TB, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func eventually(t testing.TB, what string, cond func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := cond()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// nothingLeft waits until there is no lease, in the cluster or in a file.
func nothingLeft(t testing.TB, api store.Store, nodes ...*node) {
	t.Helper()
	eventually(t, "nothing is left", func() error {
		left := objects(t, api)
		for _, n := range nodes {
			files, err := filepath.Glob(filepath.Join(n.dir, "*.json*"))
			if err != nil {
				return err
			}
			left = append(left, files...)
			for _, l := range n.memory.Leases() {
				left = append(left, fmt.Sprintf("%s of %s in memory of %s", l.Addr, l.Owner, n.name))
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("left are %d, such as %q", len(left), left[:min(4, len(left))])
		}
		return nil
	})
}

func nothingLeftInFiles(t testing.TB, n *node) {
	t.Helper()
	if files, err := filepath.Glob(filepath.Join(n.dir, "*.json*")); err != nil || len(files) > 0 {
		t.Errorf("left are %v (%v)", files, err)
	}
}

// overdue has the next Sweep give back what nobody used at the last.
func (n *node) overdue() {
	n.Store.mu.Lock()
	defer n.Store.mu.Unlock()
	for _, h := range n.leases {
		if !h.unused.IsZero() {
			h.unused = h.unused.Add(-unusedFor)
		}
	}
}

func wantHint(t testing.TB, err error, is error, words string) {
	t.Helper()
	if _, ok := errors.AsType[*hint.Error](err); !ok || !errors.Is(err, is) {
		t.Errorf("got %v, want a hint that is %v", err, is)
		return
	}
	if got := err.Error(); words != "" && !strings.Contains(got, words) {
		t.Errorf("got %q, want %q in it", got, words)
	}
}

// forbidden is how package store tells of what is not allowed.
var forbidden = &hint.Error{Problem: "the API server forbids it", Remedy: "grant it"}
