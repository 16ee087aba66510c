package lease

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
)

// mortal is the API of one process: once that is dead, it asks nothing more, and hears
// no answer.
type mortal struct {
	store.Store
	dead atomic.Bool
	// ahead and direct count leases that were made, for the node and for Pods.
	ahead, direct *atomic.Int64
}

func (m *mortal) Create(ctx context.Context, obj *store.Object) (*store.Object, error) {
	if m.dead.Load() {
		return nil, errAway
	}
	made, err := m.Store.Create(ctx, obj)
	if m.dead.Load() {
		return nil, errAway
	}
	if lease, bad := v1alpha1.LeaseFromObject(obj); err == nil && bad == nil && obj.GetKind() == v1alpha1.AddressLeaseKind.Kind {
		if lease.Spec.Owner.Kind == v1alpha1.OwnerNode {
			m.ahead.Add(1)
		} else {
			m.direct.Add(1)
		}
	}
	return made, err
}

func (m *mortal) Update(ctx context.Context, obj *store.Object) (*store.Object, error) {
	if m.dead.Load() {
		return nil, errAway
	}
	return m.Store.Update(ctx, obj)
}

func (m *mortal) Delete(ctx context.Context, gvk schema.GroupVersionKind, key store.Key, pre store.Precondition) error {
	if m.dead.Load() {
		return errAway
	}
	err := m.Store.Delete(ctx, gvk, key, pre)
	if m.dead.Load() {
		return errAway
	}
	return err
}

// survivor is a sandbox that outlives its process.
type survivor struct {
	sandbox, addr string
	began         time.Time
	answered      bool
}

// deaths is a run of nodes that keep addresses ahead and whose processes are killed.
type deaths struct {
	t       *testing.T
	config  ipam.Config
	workers int
	h       history

	ahead, direct, taken atomic.Int64
}

// TestNeverTwiceOverDeaths has nodes that keep addresses ahead take and give back
// those of a range that is full now and then, with an API that fails, and kills their
// processes between any two steps of an attachment.
func TestNeverTwiceOverDeaths(t *testing.T) {
	deathsTest(t, newAPI(t), 8)
}

// TestKubeNeverTwiceOverDeaths is that on a real API server.
func TestKubeNeverTwiceOverDeaths(t *testing.T) {
	deathsTest(t, kubeAPI(t), 3)
}

func deathsTest(t *testing.T, api *faults, times int) {
	t.Helper()
	if testing.Short() {
		times = 2
	}
	d := &deaths{t: t, config: parse(t, `{"type":"whereabouts","range":"10.50.0.0/25"}`), workers: 6}
	advice := newDesk(t, api)
	var all []*node
	for i := range 3 {
		n, _ := newKeeping(t, api, advice, fmt.Sprint("n", i), nil)
		all = append(all, n)
	}
	api.set(func(verb, _ string) fault {
		switch dice := rand.IntN(100); { //nolint:gosec // a test
		case dice < 3 && verb != "list":
			return fault{after: errLost}
		case dice < 5:
			return fault{before: errAway}
		}
		return fault{}
	})
	var group sync.WaitGroup
	for i, n := range all {
		group.Go(func() {
			for life := range times {
				d.live(n, i, life, life < times-1)
			}
		})
	}
	group.Wait()
	api.set(nil)
	for _, n := range all {
		n.idle()
		n.Sweep(t.Context(), n)
		n.overdue()
		n.Sweep(t.Context(), n)
	}
	nothingLeft(t, api, all...)
	t.Logf("%d taken, %d leases made for Pods and %d ahead of them", d.taken.Load(), d.direct.Load(), d.ahead.Load())
	if d.direct.Load() >= d.taken.Load() || d.ahead.Load() == 0 {
		t.Error("too few were taken ahead for a test")
	}
	if result, _ := porcupine.CheckOperationsVerbose(model, d.h.ops, patience); result != porcupine.Ok {
		t.Errorf("the history is %s", result)
	}
}

// live is what one process of a node does until it is killed, and what happens to
// those of its Pods that outlive it.
func (d *deaths) live(n *node, number, life int, dies bool) {
	mortal := &mortal{Store: n.api, ahead: &d.ahead, direct: &d.direct}
	n.Store.API = mortal
	ctx, kill := context.WithCancel(d.t.Context())
	defer kill()
	n.ctx = ctx
	n.run()
	left := make(chan survivor, 2*d.workers)
	const rounds = 50
	var steps atomic.Int64
	n.dies = nil
	if dies {
		// Every worker sees the death, where it is just then.
		at := rand.Int64N(2 * rounds * int64(d.workers)) //nolint:gosec // a test
		n.dies = func(string) bool {
			if steps.Add(1) >= at {
				mortal.dead.Store(true)
				kill()
			}
			return mortal.dead.Load()
		}
	}
	var group sync.WaitGroup
	for w := range d.workers {
		group.Go(func() {
			client := number*d.workers + w
			for r := 0; r < rounds && !mortal.dead.Load(); r++ {
				d.pod(n, client, fmt.Sprintf("s%d-%d-%d", client, life, r), left, &mortal.dead)
			}
		})
	}
	group.Wait()
	if !dies {
		return
	}
	mortal.dead.Store(true) // kill -9
	kill()
	n.end()
	n.start()
	close(left)
	for is := range left {
		began := time.Now()
		if !is.answered {
			d.h.note(number*d.workers, step{is.addr, is.sandbox, true}, is.began)
			began = time.Now()
		}
		n.del(is.sandbox)
		d.h.note(number*d.workers, step{is.addr, is.sandbox, false}, began)
	}
	n.Sweep(d.t.Context(), n)
	n.overdue()
	n.Sweep(d.t.Context(), n)
}

// pod is a Pod that comes and goes.
func (d *deaths) pod(n *node, client int, sandbox string, left chan<- survivor, dead *atomic.Bool) {
	began := time.Now()
	got, err := n.add(d.config, sandbox)
	switch {
	case errors.Is(err, errDead) && got != nil:
		left <- survivor{sandbox, got[0], began, false}
		return
	case errors.Is(err, errDead), errors.Is(err, ipam.ErrExhausted), errors.Is(err, ipam.ErrUnanswered):
		return
	case err != nil:
		d.t.Error(err)
		return
	}
	d.taken.Add(1)
	d.h.note(client, step{got[0], sandbox, true}, began)
	time.Sleep(rand.N(3 * time.Millisecond)) //nolint:gosec // how long a Pod lives
	if dead.Load() {
		left <- survivor{sandbox, got[0], began, true}
		return
	}
	began = time.Now()
	n.del(sandbox)
	d.h.note(client, step{got[0], sandbox, false}, began)
}
