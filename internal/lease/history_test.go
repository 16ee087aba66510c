package lease

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/store/kube"
	"github.com/weftnet/weft/test/kubelab"
)

func TestMain(m *testing.M) { kubelab.Main(m) }

// step is one call in a history: somebody got an address, or gave it back.
type step struct {
	addr, owner string
	take        bool
}

// model is one address: whoever has it got it when nobody had.
var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		by := map[string][]porcupine.Operation{}
		for _, op := range history {
			addr := op.Input.(step).addr //nolint:forcetypeassert // made here
			by[addr] = append(by[addr], op)
		}
		var out [][]porcupine.Operation
		for _, ops := range by {
			out = append(out, ops)
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, input, _ any) (bool, any) {
		s := input.(step) //nolint:forcetypeassert // made here
		if s.take {
			return state == "", s.owner
		}
		return state == s.owner, ""
	},
	Equal: func(a, b any) bool { return a == b },
}

// started is where times of a history begin: of the clock that does not jump.
var started = time.Now()

// history is what callers saw.
type history struct {
	mu  sync.Mutex // guards ops
	ops []porcupine.Operation
}

func (h *history) note(client int, s step, began time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: s, Call: int64(began.Sub(started)), Output: nil, Return: int64(time.Since(started))})
}

// churn has nodes take and give back addresses of one range, as fast as they can,
// with an API that fails, and processes that die. The history is linearizable and
// nothing is left. The nodes share the advisers, if there are any.
func churn(t *testing.T, api *faults, nodes, workers, rounds int, advisers ...Adviser) {
	t.Helper()
	config := parse(t, `{"type":"whereabouts","range":"10.50.0.0/27","exclude":["10.50.0.7"]}`) // 29 addresses
	var all []*node
	for i := range nodes {
		n := newNode(t, api, fmt.Sprint("n", i))
		if len(advisers) > 0 {
			n.Adviser = advisers[i%len(advisers)]
		}
		n.run()
		all = append(all, n)
	}
	began := time.Now()
	api.set(func(verb, _ string) fault {
		switch dice := rand.IntN(100); { //nolint:gosec // a test
		case dice < 4 && verb != "list":
			return fault{after: errLost}
		case dice < 8:
			return fault{before: errAway}
		}
		return fault{}
	})
	var h history
	var group sync.WaitGroup
	var mu sync.Mutex // guards the counters
	taken, exhausted, failed := 0, 0, 0
	for i, n := range all {
		for w := range workers {
			group.Go(func() {
				client := i*workers + w
				for r := range rounds {
					sandbox := fmt.Sprintf("s%d-%d", client, r)
					start := time.Now()
					got, err := n.add(config, sandbox)
					mu.Lock()
					switch {
					case err == nil:
						taken++
					case errors.Is(err, ipam.ErrExhausted):
						exhausted++
					case errors.Is(err, ipam.ErrUnanswered):
						failed++
					default:
						t.Error(err)
					}
					mu.Unlock()
					if err != nil {
						continue
					}
					h.note(client, step{got[0], sandbox, true}, start)
					time.Sleep(rand.N(5 * time.Millisecond)) //nolint:gosec // how long a Pod lives
					start = time.Now()
					n.del(sandbox)
					h.note(client, step{got[0], sandbox, false}, start)
				}
			})
		}
	}
	group.Wait()
	api.set(nil)
	nothingLeft(t, api, all...)
	t.Logf("%d taken, %d told of an exhausted range, %d unanswered, in %v", taken, exhausted, failed, time.Since(began).Round(time.Millisecond))
	if taken < nodes*workers*rounds/4 {
		t.Error("too few were given for a test")
	}
	if result, _ := porcupine.CheckOperationsVerbose(model, h.ops, patience); result != porcupine.Ok {
		t.Errorf("the history is %s", result)
	}
}

// TestModel: the check finds an address that is given twice.
func TestModel(t *testing.T) {
	op := func(s step, from, to int64) porcupine.Operation {
		return porcupine.Operation{Input: s, Call: from, Return: to}
	}
	ops := []porcupine.Operation{op(step{"x", "a", true}, 1, 4), op(step{"x", "b", true}, 3, 9), op(step{"x", "a", false}, 5, 6)}
	if !porcupine.CheckOperations(model, ops) {
		t.Error("b got it after a gave it back, while its call went on")
	}
	ops[1] = op(step{"x", "b", true}, 2, 4)
	if porcupine.CheckOperations(model, ops) {
		t.Error("a and b had it at once")
	}
}

func TestNeverTwice(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 8
	}
	churn(t, newAPI(t), 6, 8, rounds)
}

// kubeAPI is a real API server that knows the kind, as deploy/weft.yaml has it.
func kubeAPI(t testing.TB) *faults {
	t.Helper()
	c := kubelab.Shared(t)
	client, err := kubeapi.Open(c.Kubeconfig(), kubeapi.Options{Dial: c.Dial})
	if err != nil {
		t.Fatal(err)
	}
	c.LeaseKind(t)
	return &faults{Store: kube.New(client)}
}

// TestKubeNeverTwice is TestNeverTwice on a real API server.
func TestKubeNeverTwice(t *testing.T) {
	churn(t, kubeAPI(t), 10, 5, 12)
}
