package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
)

// That an address has one object is the lock, so a store that is replaced by an older
// copy of itself unlocks whatever was taken since. The controller leaves a beat in the
// cluster's AddressEpoch every now and then, and each node remembers the last it saw: a
// copy from before that does not have it. Then no node takes a new address until all
// have given back what the copy brought back, and taken anew what it lost.
//
// While a node follows the epoch, this costs nothing. After its connection broke, or a
// create was answered late, it reads the epoch before it believes that it has an address.

// Epochs follows the epoch for one node.
type Epochs struct {
	api  store.Store
	node string
	path string // what is remembered
	log  *slog.Logger
	wake chan struct{} // one: there is something to do

	// reading is held while the epoch is read; it guards readAt, when that began last.
	reading sync.Mutex
	readAt  time.Time

	// mu guards what follows.
	mu sync.Mutex
	// following: changes are heard of; turn counts how often that broke.
	following bool
	turn      int
	// absent: nobody keeps an epoch here. unserved is when there was no such kind.
	absent   bool
	unserved time.Time
	cluster  v1alpha1.AddressEpochSpec
	memory   remembered
	// lost is the epoch in which the store was seen to go back; zero: it is not.
	lost int64
	told string
	// written is what this node told last, and in which turn.
	written string
}

// remembered outlasts the process.
type remembered struct {
	Epoch int64               `json:"epoch"`
	Stage v1alpha1.EpochStage `json:"stage"` // of this node
	Beat  string              `json:"beat"`
}

// NewEpochs makes one that remembers by a file of dir.
func NewEpochs(api store.Store, node, dir string, log *slog.Logger) *Epochs {
	e := &Epochs{api: api, node: node, path: filepath.Join(dir, "epoch"), log: log, wake: make(chan struct{}, 1)}
	text, err := os.ReadFile(e.path)
	if err == nil {
		err = json.Unmarshal(text, &e.memory)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Warn("which epoch of addresses this was is not known any more", "path", e.path, "err", err)
	}
	return e
}

// pass is the permission to take an address.
type pass struct{ turn int }

// enter says whether new addresses may be taken.
func (e *Epochs) enter(ctx context.Context) (pass, error) {
	if e == nil {
		return pass{}, nil
	}
	e.mu.Lock()
	following, turn := e.following || time.Since(e.unserved) < unservedPause, e.turn
	e.mu.Unlock()
	if !following {
		if err := e.read(ctx); err != nil {
			return pass{}, unanswered(err)
		}
	}
	return pass{turn}, e.closed()
}

// leave says whether an address that was taken by a pass may be used. late: an answer
// was waited for more than once.
func (e *Epochs) leave(ctx context.Context, p pass, late bool) error {
	if e == nil {
		return nil
	}
	e.mu.Lock()
	sure := (e.following || time.Since(e.unserved) < unservedPause) && e.turn == p.turn && !late
	e.mu.Unlock()
	if !sure {
		if err := e.read(ctx); err != nil {
			return unanswered(err)
		}
	}
	return e.closed()
}

// closedNow is closed, as far as is known: what is held already is not handed out when
// the cluster may not be believed.
func (e *Epochs) closedNow() error {
	if e == nil {
		return nil
	}
	e.mu.Lock()
	unknown := e.cluster.Epoch == 0 && e.lost == 0 // not read yet: create does
	e.mu.Unlock()
	if unknown {
		return nil
	}
	return e.closed()
}

// closed is the error of who asks for an address that may be somebody's.
func (e *Epochs) closed() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.openLocked() {
		return nil
	}
	waits := "it is waited for this node"
	if e.lost == 0 && e.cluster.Stage != v1alpha1.EpochOpen && len(e.cluster.Waiting) > 0 {
		waits = "it is waited for nodes " + strings.Join(e.cluster.Waiting, ", ")
	}
	return &hint.Error{
		Field: "AddressEpoch " + v1alpha1.ClusterEpoch, Problem: "the cluster's store is an older copy, in which addresses that are in use look free; " + waits, Err: ipam.ErrUnanswered,
		Remedy: fmt.Sprintf("see that weft-controller and the nodes' agents run, delete Nodes that are gone, or annotate it %s=%d", v1alpha1.ForceEpoch, max(e.cluster.Epoch, 1)),
	}
}

func (e *Epochs) openLocked() bool {
	if e.absent {
		return e.lost == 0
	}
	return e.lost == 0 && e.cluster.Stage == v1alpha1.EpochOpen && e.memory.Epoch == e.cluster.Epoch && e.memory.Stage == v1alpha1.EpochOpen
}

// epochSelector selects the cluster's.
var epochSelector = store.Selector{Labels: map[string]string{v1alpha1.EpochLabel: v1alpha1.ClusterEpoch}}

// read reads the cluster's epoch, or waits for another who does since this was called.
func (e *Epochs) read(ctx context.Context) error {
	called := time.Now()
	e.reading.Lock()
	defer e.reading.Unlock()
	if e.readAt.After(called) {
		return nil
	}
	_, err := e.list(ctx)
	return err
}

// list reads the cluster's epoch, and gives the revision to watch from. One at a time,
// so that what is read later is newer.
func (e *Epochs) list(ctx context.Context) (string, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	list, since, err := e.api.List(ctx, v1alpha1.AddressEpochKind, epochSelector)
	if unserved(err) {
		e.mu.Lock()
		e.unserved = time.Now()
		e.mu.Unlock()
		list, err = nil, nil
	}
	if err != nil {
		return "", fmt.Errorf("read the epoch of addresses: %w", err)
	}
	e.readAt = began
	if len(list) == 0 {
		e.none()
		return since, nil
	}
	is, err := v1alpha1.EpochFromObject(list[0])
	if err != nil {
		return "", err
	}
	e.meet(is.Spec)
	return since, nil
}

// none notes that nobody keeps an epoch: no controller ran yet, or the copy is from
// before the first did.
func (e *Epochs) none() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.absent = true
	if e.memory.Beat != "" {
		e.wentBackLocked(max(e.memory.Epoch, 1), "there is no epoch any more")
	}
}

// newer says whether an epoch follows what is known, as far as one can see.
func (e *Epochs) newer(spec v1alpha1.AddressEpochSpec) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return spec.Epoch > e.memory.Epoch || spec.Epoch == e.memory.Epoch && spec.Has(e.memory.Beat)
}

// meet takes note of the cluster's epoch.
func (e *Epochs) meet(spec v1alpha1.AddressEpochSpec) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.absent = false
	was := e.memory
	switch {
	case spec.Epoch < was.Epoch:
		e.wentBackLocked(spec.Epoch, fmt.Sprintf("epoch %d was there already", was.Epoch))
	case spec.Epoch == was.Epoch && !spec.Has(was.Beat):
		e.wentBackLocked(spec.Epoch, "what the controller wrote before is not there")
	case e.lost != 0 && spec.Epoch <= e.lost:
		// It was so a moment ago.
	default:
		e.lost, e.told = 0, ""
		e.memory.Beat = spec.Newest()
		if spec.Epoch > was.Epoch {
			e.memory.Epoch, e.memory.Stage = spec.Epoch, ""
			if was.Epoch == 0 && spec.Stage == v1alpha1.EpochOpen {
				e.memory.Stage = v1alpha1.EpochOpen // a new node has nothing to tell
			}
		}
	}
	e.cluster = spec
	if e.memory != was {
		e.keepLocked()
	}
	e.poke()
}

func (e *Epochs) wentBackLocked(epoch int64, why string) {
	e.lost = max(e.lost, epoch)
	if e.told != why {
		e.told = why
		e.log.Error("the cluster's store is an older copy: no new addresses until all nodes have taken theirs anew", "epoch", epoch, "why", why)
	}
	e.poke()
}

// keepLocked writes down what is to be remembered. Without it a node that starts anew
// does not notice by itself.
func (e *Epochs) keepLocked() {
	text, err := json.Marshal(e.memory)
	if err == nil {
		err = os.WriteFile(e.path+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(e.path+".new", e.path)
	}
	if err != nil {
		e.log.Warn("which epoch of addresses this is could not be written down", "path", e.path, "err", err)
	}
}

func (e *Epochs) poke() {
	select {
	case e.wake <- struct{}{}:
	default: // it is awake
	}
}

// Follow hears of changes until ctx ends.
func (e *Epochs) Follow(ctx context.Context) {
	for pause := firstTry; ctx.Err() == nil; pause = min(2*pause, lastTry) {
		e.reading.Lock()
		since, err := e.list(ctx)
		e.reading.Unlock()
		var events <-chan store.Event
		if err == nil {
			events, err = e.api.Watch(ctx, v1alpha1.AddressEpochKind, epochSelector, since)
		}
		if err == nil {
			e.hear(ctx, events)
			pause = firstTry
		}
		if unserved(err) {
			pause = unservedPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// Pauses between tries to follow.
const (
	firstTry = 50 * time.Millisecond
	lastTry  = 5 * time.Second
)

// hear takes events until they end. One that is behind what was read meanwhile says
// nothing.
func (e *Epochs) hear(ctx context.Context, events <-chan store.Event) {
	e.mu.Lock()
	e.following = true
	e.mu.Unlock()
	for event := range events {
		is, err := v1alpha1.EpochFromObject(event.Object)
		if err == nil && event.Type == store.Put && e.newer(is.Spec) {
			e.reading.Lock()
			if e.newer(is.Spec) {
				e.meet(is.Spec)
			}
			e.reading.Unlock()
		} else {
			err = e.read(ctx)
		}
		if err != nil && ctx.Err() == nil {
			e.log.Warn("the epoch of addresses cannot be read", "err", err)
		}
	}
	e.mu.Lock()
	e.following = false
	e.turn++
	e.mu.Unlock()
}
