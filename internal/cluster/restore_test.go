package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/kube"
	"github.com/weftnet/weft/test/kubelab"
)

// register is who has each address, as those see it who use it.
type register struct {
	mu sync.Mutex // guards what follows
	// has are the holders of each address: more than one is what must not be.
	has     map[string][]string
	doubles []string
	ops     []porcupine.Operation
}

// use is one call: somebody has an address from then on, or until then.
type use struct {
	addr, who string
	begins    bool
}

func (r *register) note(u use, began int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, porcupine.Operation{Input: u, Call: began, Return: time.Now().UnixNano()})
	if u.begins {
		if r.has[u.addr] = append(r.has[u.addr], u.who); len(r.has[u.addr]) > 1 {
			r.doubles = append(r.doubles, fmt.Sprint(u.addr, r.has[u.addr]))
		}
		return
	}
	r.has[u.addr] = slices.DeleteFunc(r.has[u.addr], func(who string) bool { return who == u.who })
}

// linearizable says whether there is an order of all calls in which nobody is given what
// another has.
func (r *register) linearizable() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return porcupine.CheckOperations(porcupine.Model{
		Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
			by := map[string][]porcupine.Operation{}
			for _, op := range all {
				addr := op.Input.(use).addr //nolint:forcetypeassert // made here
				by[addr] = append(by[addr], op)
			}
			return slices.Collect(maps.Values(by))
		},
		Init: func() any { return "" },
		Step: func(state, input, _ any) (bool, any) {
			u := input.(use) //nolint:forcetypeassert // made here
			if u.begins {
				return state == "", u.who
			}
			return state == u.who, ""
		},
		Equal: func(a, b any) bool { return a == b },
	}, r.ops)
}

// station is a node: what its agent keeps of leases, and the Pods on it.
type station struct {
	*lease.Store
	l        *lab
	name     string
	dir      string
	guarded  bool
	register *register
	end      func()

	mu        sync.Mutex // guards what follows
	boxes     map[string]*record.Sandbox
	busy      map[string]bool
	count     int
	conflicts []string
}

func (l *lab) station(name string, guarded bool, r *register) *station {
	n := &station{l: l, name: name, dir: l.t.TempDir(), guarded: guarded, register: r, boxes: map[string]*record.Sandbox{}, busy: map[string]bool{}}
	n.start()
	return n
}

// start begins a process of the agent.
func (n *station) start() {
	n.l.t.Helper()
	client, err := kubeapi.Open(n.l.Kubeconfig(), kubeapi.Options{Dial: n.l.Dial})
	if err != nil {
		n.l.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(n.l.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})).With("node", n.name)
	options := lease.Options{API: kube.New(client), Node: n.name, Dir: n.dir, Log: log}
	if n.guarded {
		options.Epochs = lease.NewEpochs(options.API, n.name, n.dir, log)
	}
	if n.Store, err = lease.New(options); err != nil {
		n.l.t.Fatal(err)
	}
	for _, box := range n.boxes {
		for _, held := range box.Attachments[0].Leases {
			if err := n.Hold(ipam.Lease{Scope: ipam.Scope(held.Scope), Addr: held.Addr, Owner: ipam.Owner(held.Owner)}); err != nil {
				n.l.t.Error(err)
			}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	store := n.Store
	go func() {
		defer close(done)
		_ = store.Run(ctx, n) // ends by ctx alone
	}()
	n.end = func() { cancel(); <-done }
	n.l.t.Cleanup(n.end)
}

// IfUnused, UserOf, Alive and Conflict make it the Users of its store.
func (n *station) IfUnused(l ipam.Lease, then func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	sandbox, _, _ := strings.Cut(string(l.Owner), "/")
	if n.busy[sandbox] || n.boxes[sandbox] != nil {
		return false
	}
	then()
	return true
}

// UserOf finds an attachment.
func (n *station) UserOf(l ipam.Lease) (*record.Sandbox, *record.Attachment) {
	n.mu.Lock()
	defer n.mu.Unlock()
	sandbox, _, _ := strings.Cut(string(l.Owner), "/")
	if box := n.boxes[sandbox]; box != nil {
		return box, box.Attachments[0]
	}
	return nil, nil
}

// Alive says what a runtime would.
func (n *station) Alive(_ context.Context, sandbox string) (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.boxes[sandbox] != nil, nil
}

// Sandboxes are all that would be there.
func (n *station) Sandboxes(context.Context) (map[string]bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := map[string]bool{}
	for id := range n.boxes {
		all[id] = true
	}
	return all, nil
}

// Conflict notes what is told.
func (n *station) Conflict(_ *record.Sandbox, _ *record.Attachment, holder v1alpha1.AddressLeaseSpec) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conflicts = append(n.conflicts, holder.IP.String())
}

// add attaches one more Pod.
func (n *station) add(config ipam.Config) error {
	n.mu.Lock()
	n.count++
	id := fmt.Sprintf("%s-%d", n.name, n.count)
	n.busy[id] = true
	n.mu.Unlock()
	a := &record.Attachment{Network: "demo/lan", Interface: "net1", Leased: true, Stage: record.Attached}
	box := &record.Sandbox{ID: id, Pod: record.Pod{Namespace: "demo", Name: id, UID: "uid-" + id}, Attachments: []*record.Attachment{a}}
	began, owner := time.Now().UnixNano(), ipam.AttachmentOwner(id, "net1")
	_, err := ipam.NewConcurrentAllocator(n.Of(box, a, config)).Allocate(n.l.t.Context(), config, owner)
	if err == nil {
		held, _ := n.Held(n.l.t.Context(), owner) // from memory
		for _, l := range held {
			a.Leases = append(a.Leases, record.Lease{Scope: string(l.Scope), Addr: l.Addr, Owner: string(l.Owner)})
			n.register.note(use{l.Addr.String(), id, true}, began)
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.busy, id)
	if err == nil {
		n.boxes[id] = box
	}
	return err
}

// del ends one Pod.
func (n *station) del() {
	n.l.t.Helper()
	n.mu.Lock()
	var box *record.Sandbox
	for _, id := range slices.Sorted(maps.Keys(n.boxes)) {
		box = n.boxes[id]
		break
	}
	delete(n.boxes, box.ID)
	n.mu.Unlock()
	began := time.Now().UnixNano()
	for _, l := range box.Attachments[0].Leases { // its links are gone before its lease is
		n.register.note(use{l.Addr.String(), box.ID, false}, began)
	}
	if err := n.End(n.l.t.Context(), ipam.AttachmentOwner(box.ID, "net1")); err != nil {
		n.l.t.Error(err)
	}
}

func (n *station) mustAdd(config ipam.Config, count int) {
	n.l.t.Helper()
	for range count {
		n.l.eventually("address for a Pod of "+n.name, func() error { return n.add(config) })
	}
}

// fill adds Pods until there are no more addresses. It goes on while the API server is
// away, and while it must not take any.
func (n *station) fill(config ipam.Config) error {
	for deadline := time.Now().Add(2 * time.Minute); ; {
		err := n.add(config)
		switch {
		case errors.Is(err, ipam.ErrExhausted):
			return nil
		case err != nil && time.Now().After(deadline):
			return fmt.Errorf("%s: %w", n.name, err)
		case err != nil:
			time.Sleep(20 * time.Millisecond) // as a runtime tries again, later
		}
	}
}

// fillAll has all stations take all that is left at the same time, as soon as there is
// an API server.
func (l *lab) fillAll(stations []*station, configs map[bool]ipam.Config, meanwhile func()) {
	l.t.Helper()
	errs := make([]error, len(stations))
	var group sync.WaitGroup
	for i, n := range stations {
		group.Go(func() { errs[i] = n.fill(configs[n.guarded]) })
	}
	meanwhile()
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		l.t.Fatal(err)
	}
}

// copyStore copies the store as it is, or puts a copy back.
func (l *lab) copyStore(from, to string) {
	l.t.Helper()
	for _, program := range []string{kubelab.APIServer, kubelab.Etcd} {
		if err := l.Hold(program); err != nil {
			l.t.Fatal(err)
		}
	}
	if err := os.RemoveAll(to); err != nil {
		l.t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		l.t.Fatal(err)
	}
	for _, program := range []string{kubelab.Etcd, kubelab.APIServer} {
		if err := l.Release(program); err != nil {
			l.t.Fatal(err)
		}
	}
}

func (l *lab) epoch() (*v1alpha1.AddressEpoch, error) {
	var obj store.Object
	answer, code, err := l.try(l.t.Context(), "GET", "/apis/weft.network/v1alpha1/addressepochs/cluster", "", "")
	if err == nil && code != 200 {
		err = fmt.Errorf("%d: %s", code, answer)
	}
	if err == nil {
		err = obj.UnmarshalJSON(answer)
	}
	if err != nil {
		return nil, err
	}
	return v1alpha1.EpochFromObject(&obj)
}

// epochIs waits for a state of the cluster's epoch.
func (l *lab) epochIs(what string, is func(v1alpha1.AddressEpochSpec) bool) {
	l.t.Helper()
	l.eventually("epoch is "+what, func() error {
		epoch, err := l.epoch()
		if err == nil && !is(epoch.Spec) {
			err = fmt.Errorf("it is %+v", epoch.Spec)
		}
		return err
	})
}

// TestRestoredStore: etcd is replaced by an older copy of itself, while nodes take
// addresses. Those of nodes that follow the epoch are never given twice; those of nodes
// that do not are, or this test would show nothing.
func TestRestoredStore(t *testing.T) {
	l := newLab(t)
	l.kubectl("", "wait", "--for=condition=Established", "crd/addressepochs.weft.network", "--timeout=60s")
	configs := map[bool]ipam.Config{}
	for guarded, text := range map[bool]string{true: "10.81.0.0/26", false: "10.82.0.0/26"} {
		config, err := ipam.Parse([]byte(`{"name":"n","ipam":{"type":"whereabouts","range":"`+text+`"}}`), "")
		if err != nil {
			t.Fatal(err)
		}
		configs[guarded] = config
	}
	safe, unsafe := &register{has: map[string][]string{}}, &register{has: map[string][]string{}}
	var all, guarded []*station
	for _, name := range []string{"g1", "g2", "g3"} {
		l.create("/api/v1/nodes", `{"metadata":{"name":"`+name+`"}}`)
		guarded = append(guarded, l.station(name, true, safe))
	}
	all = append(all, guarded...)
	for _, name := range []string{"u1", "u2"} { // no Nodes: nobody waits for them
		all = append(all, l.station(name, false, unsafe))
	}
	l.controller("a", 10981, "--collect-after=1h")
	l.epochIs("kept", func(is v1alpha1.AddressEpochSpec) bool { return is.Epoch == 1 && is.Stage == v1alpha1.EpochOpen })
	for _, n := range all {
		n.mustAdd(configs[n.guarded], 8)
	}
	snapshot := filepath.Join(t.TempDir(), "etcd")
	l.copyStore(filepath.Join(l.Dir, kubelab.Etcd), snapshot)
	// Addresses change hands after the copy: it says of some that another has them.
	var before v1alpha1.AddressEpochSpec
	l.epochIs("read again", func(is v1alpha1.AddressEpochSpec) bool { before = is; return true })
	for _, n := range all {
		n.mustAdd(configs[n.guarded], 1) // follows again
		for range 4 {
			n.del()
		}
	}
	for _, n := range all {
		n.mustAdd(configs[n.guarded], 6)
	}
	l.epochIs("one beat on", func(is v1alpha1.AddressEpochSpec) bool { return is.Newest() != before.Newest() })
	for _, n := range guarded { // who has seen it
		l.eventually(n.name+" has seen the beat", func() error {
			text, err := os.ReadFile(filepath.Join(n.dir, "epoch"))
			if err == nil && (before.Newest() == "" || strings.Contains(string(text), before.Newest())) {
				err = fmt.Errorf("remembered is %s", text)
			}
			return err
		})
	}
	l.fillAll(all, configs, func() { l.copyStore(snapshot, filepath.Join(l.Dir, kubelab.Etcd)) })
	l.epochIs("a new one, and open", func(is v1alpha1.AddressEpochSpec) bool { return is.Epoch >= 2 && is.Stage == v1alpha1.EpochOpen })
	if len(safe.doubles) > 0 || !safe.linearizable() {
		t.Errorf("given twice: %v", safe.doubles)
	}
	if len(unsafe.doubles) == 0 || unsafe.linearizable() {
		t.Error("nothing was given twice without an epoch, so this test proves nothing")
	}
	t.Logf("given twice without an epoch: %d", len(unsafe.doubles))
	for _, n := range guarded {
		if len(n.conflicts) > 0 {
			t.Errorf("%s was told of conflicts: %v", n.name, n.conflicts)
		}
	}
	l.agree(guarded)
	l.forced(guarded, configs[true], snapshot)
}

// agree wants the leases of nodes to be what their Pods have.
func (l *lab) agree(stations []*station) {
	l.t.Helper()
	l.eventually("leases are as Pods have them", func() error {
		var want, got []string
		for _, n := range stations {
			for id, box := range n.boxes {
				for _, held := range box.Attachments[0].Leases {
					want = append(want, held.Addr.String()+" "+id)
				}
			}
		}
		list, _, err := stations[0].API.List(l.t.Context(), v1alpha1.AddressLeaseKind, store.Selector{})
		for _, obj := range list {
			is, err := v1alpha1.LeaseFromObject(obj)
			if err == nil && strings.HasPrefix(is.Spec.Node, "g") {
				got = append(got, is.Spec.IP.String()+" "+is.Spec.Sandbox)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("leases are %q, want %q", got, want)
		}
		return err
	})
}

// forced: a node does not come back. Nobody takes addresses until somebody says that it
// is not to be waited for; then what it had may be given, and it is told so.
func (l *lab) forced(nodes []*station, config ipam.Config, snapshot string) {
	l.t.Helper()
	for _, n := range nodes {
		for range 3 { // room for what is taken below
			n.del()
		}
	}
	silent, others := nodes[2], nodes[:2]
	silent.end()
	l.copyStore(snapshot, filepath.Join(l.Dir, kubelab.Etcd))
	l.epochIs("waiting for the silent node", func(is v1alpha1.AddressEpochSpec) bool {
		return is.Stage == v1alpha1.EpochCleaning && slices.Equal(is.Waiting, []string{silent.name})
	})
	var refused error
	l.eventually("the error names who is waited for", func() error {
		if refused = others[0].add(config); refused == nil {
			l.t.Fatal("an address was given")
		}
		if !strings.Contains(refused.Error(), "waited for nodes "+silent.name) {
			return refused
		}
		return nil
	})
	if !errors.Is(refused, ipam.ErrUnanswered) {
		l.t.Errorf("got %v", refused)
	}
	l.eventually("the epoch is opened by force", func() error { // another may begin meanwhile, when a node tells that it missed something
		epoch, err := l.epoch()
		if err != nil {
			return err
		}
		if epoch.Spec.Stage != v1alpha1.EpochOpen {
			l.kubectl("", "annotate", "--overwrite", "addressepoch", v1alpha1.ClusterEpoch, fmt.Sprintf("%s=%d", v1alpha1.ForceEpoch, epoch.Spec.Epoch))
		}
		for _, n := range others {
			err = errors.Join(err, n.addOrExhausted(config))
		}
		return err
	})
	for _, n := range others {
		if err := n.fill(config); err != nil {
			l.t.Fatalf("%v\n%s", err, l.kubectl("", "get", "addressepochs", "-o", "yaml"))
		}
	}
	silent.start()
	l.eventually("the silent node is right again", func() error { return silent.addOrExhausted(config) })
	var lost []string
	for addr, who := range silent.register.has {
		if len(who) > 1 {
			lost = append(lost, addr)
		}
	}
	if len(lost) == 0 {
		l.t.Error("nothing was given twice by force, so this test proves nothing")
	}
	for _, addr := range lost {
		told := slices.ContainsFunc(nodes, func(n *station) bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			return slices.Contains(n.conflicts, addr)
		})
		if !told {
			l.t.Errorf("nobody was told of %s, which %v have", addr, silent.register.has[addr])
		}
	}
}

// addOrExhausted wants the node to take addresses again.
func (n *station) addOrExhausted(config ipam.Config) error {
	if err := n.add(config); err != nil && !errors.Is(err, ipam.ErrExhausted) {
		return err
	}
	return nil
}
