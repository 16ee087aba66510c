package lease

import (
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

// parallel is how many ask at once in benchmarks.
const parallel = 50

// BenchmarkKube takes addresses of a real API server, 50 at a time, on 10 nodes:
// by bare creates of such objects, and by leases. The cost of a lease is to be that
// of its object.
func BenchmarkKube(b *testing.B) {
	api := kubeAPI(b)
	var round atomic.Int64
	run := func(b *testing.B, take func(i int64) error) {
		b.SetParallelism(max(1, parallel/runtime.GOMAXPROCS(0)))
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := take(round.Add(1)); err != nil {
					b.Error(err)
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "addresses/s")
		b.StopTimer()
		clearAll(b, api)
	}
	bare := func(b *testing.B) {
		spec := v1alpha1.AddressLeaseSpec{
			Scope: "whereabouts:", Pool: "10.0.0.0/8", Network: "demo/lan", Interface: "net1", Node: "n1",
			Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "demo", Name: "pod-s1", UID: "uid-s1"},
		}
		spans := parse(b, wide).Sets[0].Ranges[0].Usable()
		run(b, func(i int64) error {
			one := v1alpha1.AddressLease{Spec: spec}
			one.Spec.IP, one.Spec.Sandbox = nth(spans, uint64(i)), fmt.Sprint(i) //nolint:gosec // counts up
			one.Name, one.Labels = Name("whereabouts:", one.Spec.IP), labels(one.Spec)
			_, err := api.Store.Create(b.Context(), one.Object())
			return err
		})
	}
	leases := func(b *testing.B) {
		var nodes []*Store
		for i := range 10 {
			made, err := New(Options{API: api.Store, Node: fmt.Sprint("n", i), Dir: b.TempDir(), Log: slog.New(slog.DiscardHandler)})
			if err == nil {
				err = made.Sync(b.Context())
			}
			if err != nil {
				b.Fatal(err)
			}
			nodes = append(nodes, made)
		}
		config := parse(b, wide)
		b.ResetTimer()
		run(b, func(i int64) error {
			n, a := nodes[i%10], &record.Attachment{Network: "demo/lan", Interface: "net1"}
			id := fmt.Sprint(i)
			box := &record.Sandbox{ID: id, Pod: record.Pod{Namespace: "demo", Name: "pod-" + id, UID: "uid-" + id}}
			_, err := ipam.NewConcurrentAllocator(n.Of(box, a, config)).Allocate(b.Context(), config, ipam.AttachmentOwner(id, "net1"))
			return err
		})
	}
	for range 3 { // in turn, since the machine is not the same all the time
		b.Run("bare", bare)
		b.Run("leases", leases)
	}
}

// wide is a range that no benchmark fills.
const wide = `{"type":"whereabouts","range":"10.0.0.0/8"}`

// clearAll deletes all leases.
func clearAll(b *testing.B, api *faults) {
	b.Helper()
	list, _, err := api.Store.List(b.Context(), v1alpha1.AddressLeaseKind, store.Selector{})
	if err != nil {
		b.Fatal(err)
	}
	var group sync.WaitGroup
	places := make(chan struct{}, parallel)
	for _, obj := range list {
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			if err := api.Store.Delete(b.Context(), v1alpha1.AddressLeaseKind, store.KeyOf(obj), store.Precondition{}); err != nil {
				b.Error(err)
			}
		})
	}
	group.Wait()
}

// BenchmarkHeld is what a node keeps in memory for each address it holds.
func BenchmarkHeld(b *testing.B) {
	n := newNode(b, newAPI(b), "n1")
	config := parse(b, wide)
	const many = 10000
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		for i := range many {
			id := fmt.Sprintf("4f3e2d1c0b9a887766554433221100ffeeddccbbaa99887766554433%08x", i)
			a := &record.Attachment{Network: "demo/lan", Interface: "net1"}
			if _, err := ipam.NewConcurrentAllocator(n.Of(&record.Sandbox{ID: id}, a, config)).Allocate(b.Context(), config, ipam.AttachmentOwner(id, "net1")); err != nil {
				b.Fatal(err)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/many, "B/address")
		b.StopTimer()
		for i := range many {
			id := fmt.Sprintf("4f3e2d1c0b9a887766554433221100ffeeddccbbaa99887766554433%08x", i)
			if err := n.End(b.Context(), ipam.AttachmentOwner(id, "net1")); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
	}
}

// BenchmarkAhead is what an address costs that the node took ahead, in the agent: the
// median, and those of all that came without waiting.
func BenchmarkAhead(b *testing.B) {
	api := kubeAPI(b)
	n, _ := newKeeping(b, api, newDesk(b, api), "n1", nil)
	n.run()
	config := parse(b, wide)
	n.stocked(config, 4)
	api.set(nil)
	var times []time.Duration
	for i := 0; b.Loop(); i++ {
		for len(n.ahead()) < 2 {
			time.Sleep(100 * time.Microsecond) // until the node has taken some
		}
		id := fmt.Sprint("b", i)
		box, a := &record.Sandbox{ID: id}, &record.Attachment{Network: "demo/lan", Interface: "net1"}
		owner := ipam.AttachmentOwner(id, "net1")
		began := time.Now()
		if _, err := ipam.NewConcurrentAllocator(n.Of(box, a, config)).Allocate(b.Context(), config, owner); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(began))
		if err := n.End(b.Context(), owner); err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Nanoseconds()), "p50-ns")
	b.ReportMetric(float64(times[len(times)*95/100].Nanoseconds()), "p95-ns")
	b.ReportMetric(float64(api.count("create")+api.count("update"))/float64(len(times)), "writes/op")
	n.end()
	b.StopTimer()
	clearAll(b, api)
}
