package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/garbage"
	"github.com/weftnet/weft/internal/inventory"
	"github.com/weftnet/weft/internal/store"
)

const (
	// beatEvery is how often the controller leaves a beat in the cluster's epoch. An
	// older copy of the store is noticed if it is older than that.
	beatEvery = 10 * time.Second
	// mostWaiting is how many nodes are named that are waited for.
	mostWaiting = 10
	// epochEvery is how often it is looked how far nodes are.
	epochEvery = 500 * time.Millisecond
	// listAnew is how often all are read in an epoch that is not open: a watch that says
	// nothing would keep it so.
	listAnew = 2 * time.Second
	// lookFor is for how long what is read of nodes counts.
	lookFor = 5 * time.Second
)

// epochs keeps the cluster's epoch: it leaves beats, begins a new epoch when somebody
// says that the store went back, and opens it when all nodes have their addresses again.
type epochs struct {
	api, writer store.Store
	book        *book
	log         *slog.Logger
	// last is the last beat any term of this process wrote.
	last *string
	wake chan struct{}

	// mu guards what follows.
	mu      sync.Mutex
	cluster *v1alpha1.AddressEpoch // nil: there is none, or it is not known yet
	nodes   map[string]v1alpha1.AddressEpochSpec
	names   map[string]uint32 // of the objects, with the round in which they were listed
	round   uint32
	synced  bool

	beatAt time.Time
	told   string
	// doubt: the cluster's epoch is another than is known. listed is when all were read.
	doubt  bool
	listed time.Time
	look   *inventory.Look
	lookAt time.Time
}

func newEpochs(c *controller, s *state, writer store.Store) *epochs {
	return &epochs{
		api: c.api, writer: writer, book: s.book, log: c.Log, last: &c.beat, wake: make(chan struct{}, 1),
		nodes: map[string]v1alpha1.AddressEpochSpec{}, names: map[string]uint32{},
	}
}

// String names the task.
func (*epochs) String() string { return "keeper of the epoch of addresses" }

// Begin begins a list.
func (e *epochs) Begin() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.round++
}

// Put takes note of the cluster's epoch or a node's.
func (e *epochs) Put(obj *store.Object) {
	is, err := v1alpha1.EpochFromObject(obj)
	if err != nil {
		return // nobody's: it is waited for a better one
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.names[is.Name] = e.round
	if is.Name == v1alpha1.ClusterEpoch {
		e.cluster = is
	} else if is.Spec.Node != "" && is.Name == v1alpha1.NodeEpoch(is.Spec.Node) {
		e.nodes[is.Spec.Node] = is.Spec
	}
	select {
	case e.wake <- struct{}{}:
	default: // it is awake
	}
}

// Gone takes note that one was deleted.
func (e *epochs) Gone(obj *store.Object) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.goneLocked(obj.GetName())
}

func (e *epochs) goneLocked(name string) {
	delete(e.names, name)
	if name == v1alpha1.ClusterEpoch {
		e.cluster = nil
	}
	maps.DeleteFunc(e.nodes, func(node string, _ v1alpha1.AddressEpochSpec) bool { return v1alpha1.NodeEpoch(node) == name })
}

// Complete ends a list: what did not come is not there.
func (e *epochs) Complete() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for name, round := range e.names {
		if round != e.round {
			e.goneLocked(name)
		}
	}
	e.synced = true
}

// Run keeps the epoch until ctx ends.
func (e *epochs) Run(ctx context.Context) error {
	look := time.NewTicker(epochEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		case <-e.wake:
		}
		err := e.pass(ctx)
		if err != nil && !errors.Is(err, store.ErrConflict) && ctx.Err() == nil && err.Error() != e.told {
			e.told = err.Error()
			e.log.Warn("the epoch of addresses is not kept; it is tried again", "err", err)
		} else if err == nil {
			e.told = ""
		}
	}
}

// pass does what is to be done now.
func (e *epochs) pass(ctx context.Context) error {
	if err := e.list(ctx); err != nil {
		return err
	}
	e.mu.Lock()
	synced, nodes := e.synced, maps.Clone(e.nodes)
	var is v1alpha1.AddressEpoch
	there := e.cluster != nil
	if there {
		is = *e.cluster
	}
	e.mu.Unlock()
	if !synced || !e.book.Synced() {
		return nil
	}
	if there && (e.doubt || !is.Spec.Has(*e.last)) { // or the watch is behind
		fresh, err := e.read(ctx)
		switch {
		case errors.Is(err, store.ErrNotFound):
			there, is = false, v1alpha1.AddressEpoch{}
		case err != nil:
			return err
		default:
			is = *fresh
		}
		e.doubt = false
	}
	next := is
	if !there {
		next.Name, next.Labels = v1alpha1.ClusterEpoch, map[string]string{v1alpha1.EpochLabel: v1alpha1.ClusterEpoch}
		next.Spec = v1alpha1.AddressEpochSpec{Epoch: 1, Stage: v1alpha1.EpochOpen}
	}
	e.decide(ctx, &next, nodes)
	beats := time.Since(e.beatAt) >= beatEvery
	if there && !beats && next.Spec.Epoch == is.Spec.Epoch && next.Spec.Stage == is.Spec.Stage && slices.Equal(next.Spec.Waiting, is.Spec.Waiting) {
		return nil
	}
	return e.write(ctx, &next, there)
}

// read reads the cluster's epoch as it is now.
func (e *epochs) read(ctx context.Context) (*v1alpha1.AddressEpoch, error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	obj, err := e.api.Get(ctx, v1alpha1.AddressEpochKind, store.Key{Name: v1alpha1.ClusterEpoch})
	if err != nil {
		return nil, fmt.Errorf("read the epoch of addresses: %w", err)
	}
	return v1alpha1.EpochFromObject(obj)
}

// open says whether the epoch is one in which nodes take addresses, as far as is known.
func (e *epochs) open() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cluster != nil && e.cluster.Spec.Stage == v1alpha1.EpochOpen
}

// list reads how far all nodes are, in an epoch that is not open.
func (e *epochs) list(ctx context.Context) error {
	e.mu.Lock()
	open := e.cluster == nil || e.cluster.Spec.Stage == v1alpha1.EpochOpen
	e.mu.Unlock()
	if open || time.Since(e.listed) < listAnew {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	e.listed = time.Now()
	if _, err := each(ctx, e.api, v1alpha1.AddressEpochKind, e.Put); err != nil {
		return fmt.Errorf("list epochs of addresses: %w", err)
	}
	return nil
}

// decide gives the next state of the cluster's epoch.
func (e *epochs) decide(ctx context.Context, next *v1alpha1.AddressEpoch, nodes map[string]v1alpha1.AddressEpochSpec) {
	spec := &next.Spec
	ended, highest := !spec.Has(*e.last), spec.Epoch
	by := "weft-controller"
	for name, node := range nodes {
		highest = max(highest, node.Epoch, node.Lost)
		if node.Lost >= spec.Epoch {
			ended, by = true, "node "+name
		}
	}
	if ended {
		spec.Epoch, spec.Stage, spec.Waiting = highest+1, v1alpha1.EpochCleaning, nil
		*e.last = ""
		e.log.Error("the API server's store is an older copy: no node takes new addresses until all have taken theirs anew", "epoch", spec.Epoch, "noticedBy", by)
	}
	if spec.Stage == v1alpha1.EpochOpen {
		spec.Waiting = nil
		return
	}
	if next.Annotations[v1alpha1.ForceEpoch] == strconv.FormatInt(spec.Epoch, 10) {
		e.log.Warn("an epoch of addresses is opened by force; addresses may be in use twice, of which events tell", "epoch", spec.Epoch, "waitedFor", spec.Waiting)
		spec.Stage, spec.Waiting = v1alpha1.EpochOpen, nil
		return
	}
	waiting := e.waiting(ctx, *spec, nodes)
	if len(waiting) == 0 {
		spec.Stage = map[v1alpha1.EpochStage]v1alpha1.EpochStage{v1alpha1.EpochCleaning: v1alpha1.EpochAsserting, v1alpha1.EpochAsserting: v1alpha1.EpochOpen}[spec.Stage]
		e.log.Info("all nodes have done their part in a new epoch of addresses", "epoch", spec.Epoch, "stage", spec.Stage)
	}
	spec.Waiting = waiting[:min(len(waiting), mostWaiting)]
}

// waiting gives the nodes that have not done their part of a stage: all that ever told,
// and all that hold addresses, but for those that are declared gone.
func (e *epochs) waiting(ctx context.Context, spec v1alpha1.AddressEpochSpec, nodes map[string]v1alpha1.AddressEpochSpec) (out []string) {
	if e.look == nil || time.Since(e.lookAt) > lookFor {
		e.look, e.lookAt = inventory.NewLook(e.api), time.Now()
	}
	all := slices.Collect(maps.Keys(nodes))
	e.book.Owners(func(o owner) bool {
		if o.node != "" {
			all = append(all, o.node)
		}
		return false
	})
	slices.Sort(all)
	for _, name := range slices.Compact(all) {
		is := nodes[name]
		done := is.Epoch == spec.Epoch && is.Lost == 0 && (is.Stage == v1alpha1.EpochOpen || is.Stage == v1alpha1.EpochAsserting && spec.Stage == v1alpha1.EpochCleaning)
		if !done && e.look.Node(ctx, name).Node != garbage.Gone {
			out = append(out, name)
		}
	}
	return out
}

// write writes the cluster's epoch, with a new beat.
func (e *epochs) write(ctx context.Context, next *v1alpha1.AddressEpoch, there bool) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	var unique [6]byte
	_, _ = rand.Read(unique[:]) // never fails (crypto/rand)
	next.Spec.Beat(hex.EncodeToString(unique[:]))
	var made *store.Object
	var err error
	if there {
		made, err = e.writer.Update(ctx, next.Object())
	} else {
		made, err = e.writer.Create(ctx, next.Object())
	}
	e.doubt = errors.Is(err, store.ErrConflict)
	if errors.Is(err, store.ErrExists) {
		return nil // the watch tells
	}
	if err != nil {
		return fmt.Errorf("write the epoch of addresses: %w", err)
	}
	e.beatAt, *e.last = time.Now(), next.Spec.Newest()
	e.Put(made)
	return nil
}
