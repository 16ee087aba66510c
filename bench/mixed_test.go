package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	takeover "github.com/weftnet/weft/internal/whereabouts"
)

// mixedKeys are a range so small that both sides meet in it.
const mixedKeys = `"range": "10.8.0.0/28"`

// mixedBench is a range of which the real Whereabouts and weft's nodes give addresses at
// the same time.
type mixedBench struct {
	t    *testing.T
	api  *kubeAPI
	old  *whereaboutsPlugin
	weft *leaseWay

	mu      sync.Mutex // guards holders
	holders map[netip.Addr]string
}

func newMixedBench(t *testing.T, api *kubeAPI, old *whereaboutsPlugin) *mixedBench {
	t.Helper()
	config, err := ipam.Parse([]byte(`{"name":"n","ipam":{"type":"whereabouts",`+mixedKeys+`}}`), "")
	if err != nil {
		t.Fatal(err)
	}
	m := &mixedBench{t: t, api: api, old: old, weft: &leaseWay{config: config, nics: 1}, holders: map[netip.Addr]string{}}
	for i := range 3 {
		n := m.node(fmt.Sprint("mixed", i))
		m.begin(n, n.api)
		m.weft.nodes = append(m.weft.nodes, n.leaseNode)
	}
	return m
}

// mixedNode is a node with weft's agent, which may do what the chart lets it.
type mixedNode struct {
	*leaseNode
	name string
	api  store.Store
}

// node makes one, with the token of its agent's Pod.
func (m *mixedBench) node(name string) *mixedNode {
	m.t.Helper()
	m.api.must(http.MethodPost, "/api/v1/nodes", object{"metadata": object{"name": name}})
	pod := "agent-" + name
	m.api.must(http.MethodPost, "/api/v1/namespaces/kube-system/pods", object{
		"metadata": object{"name": pod}, "spec": object{"nodeName": name, "serviceAccountName": "weft", "containers": []object{{"name": "c", "image": "i"}}},
	})
	var token struct{ Status struct{ Token string } }
	answer := m.api.must(http.MethodPost, "/api/v1/namespaces/kube-system/serviceaccounts/weft/token", object{
		"spec": object{"boundObjectRef": object{"apiVersion": "v1", "kind": "Pod", "name": pod}},
	})
	if err := json.Unmarshal(answer, &token); err != nil {
		m.t.Fatal(err)
	}
	dir := filepath.Join(m.api.cluster.Dir, name)
	records, err := record.Open(filepath.Join(dir, "records"), filepath.Join(dir, "run"))
	if err != nil {
		m.t.Fatal(err)
	}
	agent := *m.api
	agent.token = token.Status.Token
	path := filepath.Join(m.api.cluster.Dir, name+".kubeconfig")
	agent.kubeconfig(path, m.api.cluster.Server)
	return &mixedNode{&leaseNode{records: records, boxes: map[string]*record.Sandbox{}}, name, m.api.store(name, path)}
}

// begin begins a process of a node.
func (m *mixedBench) begin(n *mixedNode, api store.Store) (end func()) {
	m.t.Helper()
	held, err := lease.New(lease.Options{
		API: api, Node: n.name, Dir: filepath.Join(m.api.cluster.Dir, n.name, "leases"), Log: slog.New(slog.DiscardHandler),
		Giving: store.Key{Namespace: "kube-system", Name: takeover.ConfigMap},
	})
	if err == nil {
		err = held.Sync(m.t.Context())
	}
	if err != nil {
		m.t.Fatal(err)
	}
	n.Store = held
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = held.Run(ctx, n) // ends by ctx alone
	}()
	end = func() { cancel(); <-done }
	m.t.Cleanup(end)
	return end
}

// run has both give addresses at once, then kills weft's process at each of its requests;
// no address is given twice, and in the end none is held.
func (m *mixedBench) run() {
	m.t.Helper()
	var theirs, ours, full atomic.Int64
	until := make(chan struct{})
	var old, weft sync.WaitGroup
	for worker := range 3 {
		old.Go(func() {
			for round := range 8 {
				pod := fmt.Sprintf("old%d-%d", worker, round)
				got, err := m.old.add(context.Background(), mixedKeys, pod)
				if err == nil {
					theirs.Add(1)
					m.has(got[0].Addr(), pod)
					time.Sleep(rand.N(50 * time.Millisecond)) //nolint:gosec // how long a Pod lives
					m.had(got[0].Addr(), pod)
				} else {
					m.t.Logf("Whereabouts: %v", err) // as after a race, which the runtime tries again
				}
				if _, err := m.old.call(context.Background(), "DEL", mixedKeys, pod); err != nil {
					m.t.Error(err)
				}
			}
		})
	}
	for worker := range 9 {
		weft.Go(func() {
			for pod := 1000 + worker; ; pod += 9 {
				select {
				case <-until:
					return
				default:
				}
				got, err := m.weft.give(context.Background(), pod)
				switch {
				case err == nil:
					ours.Add(1)
					m.has(got[0], fmt.Sprint("weft's ", pod))
					time.Sleep(rand.N(150 * time.Millisecond)) //nolint:gosec // how long a Pod lives
					m.had(got[0], fmt.Sprint("weft's ", pod))
					if err := m.weft.takeBack(context.Background(), pod); err != nil {
						m.t.Error(err)
					}
				case strings.Contains(err.Error(), "no free address"), errors.Is(err, ipam.ErrExhausted):
					full.Add(1)
				default:
					m.t.Error(err)
				}
			}
		})
	}
	old.Wait()
	close(until)
	weft.Wait()
	m.t.Logf("Whereabouts gave %d addresses, weft %d, and found the range full %d times", theirs.Load(), ours.Load(), full.Load())
	if theirs.Load() < 12 || ours.Load() < 50 {
		m.t.Error("too few were given for a test")
	}
	m.deaths()
	m.nothingLeft()
}

// has notes that a Pod has an address, as soon as it was told so; had that it is about to
// end.
func (m *mixedBench) has(addr netip.Addr, pod string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if other := m.holders[addr]; other != "" {
		m.t.Errorf("%s was given to %s, and %s has it", addr, pod, other)
	}
	m.holders[addr] = pod
}

func (m *mixedBench) had(addr netip.Addr, pod string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.holders[addr] == pod {
		delete(m.holders, addr)
	}
}

// dying is the API of a process that is killed at a request: before it is done, or after
// it when nobody hears of it.
type dying struct {
	store.Store
	at    int64
	done  bool
	count atomic.Int64
	kill  func()
}

var errKilled = errors.New("killed")

func (d *dying) request(do func() error) error {
	switch now := d.count.Add(1); {
	case now == d.at && d.done:
		_ = do() // nobody hears
		d.kill()
		return errKilled
	case now >= d.at:
		d.kill()
		return errKilled
	}
	return do()
}

func (d *dying) Get(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (obj *store.Object, err error) {
	err = d.request(func() (err error) { obj, err = d.Store.Get(ctx, gvk, key); return err })
	return obj, err
}

func (d *dying) Create(ctx context.Context, obj *store.Object) (made *store.Object, err error) {
	err = d.request(func() (err error) { made, err = d.Store.Create(ctx, obj); return err })
	return made, err
}

func (d *dying) Update(ctx context.Context, obj *store.Object) (made *store.Object, err error) {
	err = d.request(func() (err error) { made, err = d.Store.Update(ctx, obj); return err })
	return made, err
}

func (d *dying) Delete(ctx context.Context, gvk schema.GroupVersionKind, key store.Key, pre store.Precondition) error {
	return d.request(func() error { return d.Store.Delete(ctx, gvk, key, pre) })
}

// deaths kills a process of a node at each request of an ADD and a DEL.
func (m *mixedBench) deaths() {
	m.t.Helper()
	n := m.node("mortal")
	way := &leaseWay{m.weft.config, 1, []*leaseNode{n.leaseNode}}
	const requests = 10 // who gives; reserve, pool, lease, confirm; lease, look, delete, look, unlock
	for at := range int64(2 * requests) {
		pod := 5000 + int(at)
		ctx, kill := context.WithCancel(m.t.Context())
		api := &dying{Store: n.api, at: at/2 + 1, done: at%2 == 1, kill: kill}
		end := m.begin(n, api)
		if _, err := way.give(ctx, pod); err == nil {
			_ = way.takeBack(ctx, pod) // it dies in it
		}
		if api.count.Load() < api.at {
			m.t.Errorf("there were %d requests only", api.count.Load())
		}
		end()
		kill()
		end = m.begin(n, n.api)
		if err := n.End(m.t.Context(), ipam.AttachmentOwner(fmt.Sprintf("box%d", pod), "")); err != nil { // as the runtime does
			m.t.Error(err)
		}
		end()
		if at%6 == 0 { // and Whereabouts goes on
			name := fmt.Sprint("meanwhile", at)
			if _, err := m.old.add(m.t.Context(), mixedKeys, name); err != nil {
				m.t.Error(err)
			}
			if _, err := m.old.call(m.t.Context(), "DEL", mixedKeys, name); err != nil {
				m.t.Error(err)
			}
		}
	}
}

// nothingLeft waits until no address of the range is held.
func (m *mixedBench) nothingLeft() {
	m.t.Helper()
	eventually(m.t, "nothing is held", func() error {
		for _, path := range []string{leasesPath, whereaboutsPath + "overlappingrangeipreservations", whereaboutsPath + "ippools/10.8.0.0-28"} {
			answer, err := m.api.call(http.MethodGet, path, nil)
			if err != nil {
				return err
			}
			var list struct {
				Items []struct{ Metadata struct{ Name string } }
				Spec  struct{ Allocations map[string]any }
			}
			if err := json.Unmarshal(answer, &list); err != nil {
				return err
			}
			for _, is := range list.Items {
				if strings.HasPrefix(is.Metadata.Name, "10.8.") {
					return fmt.Errorf("%s: %s", path, is.Metadata.Name)
				}
			}
			if len(list.Spec.Allocations) > 0 {
				return fmt.Errorf("%s: %v", path, list.Spec.Allocations)
			}
		}
		return nil
	})
}
