package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func mustParse(t testing.TB, ipam string) Config {
	t.Helper()
	config, err := Parse([]byte(`{"name": "n", "ipam": `+ipam+`}`), "")
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// TestMemoryMatchesModel runs random takes and releases against a plain map,
// over two ranges of one scope that overlap.
func TestMemoryMatchesModel(t *testing.T) {
	ctx := context.Background()
	ranges := []Range{
		mustParse(t, `{"type": "whereabouts", "range": "10.0.0.0/28", "exclude": ["10.0.0.4/31", "10.0.0.9"]}`).Sets[0].Ranges[0],
		mustParse(t, `{"type": "whereabouts", "range": "10.0.0.0/24", "range_start": "10.0.0.6", "range_end": "10.0.0.20"}`).Sets[0].Ranges[0],
		mustParse(t, `{"type": "whereabouts", "range": "fd00::/125"}`).Sets[0].Ranges[0],
	}
	rapid.Check(t, func(t *rapid.T) {
		memory, model := NewMemory(), map[netip.Addr]Owner{}
		lowest := func(r Range) (netip.Addr, bool) {
			for a := r.Subnet.Addr(); r.Subnet.Contains(a); a = a.Next() {
				if _, held := model[a]; !held && r.Contains(a) {
					return a, true
				}
			}
			return netip.Addr{}, false
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			owner := Owner(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "owner"))
			r := rapid.SampledFrom(ranges).Draw(t, "range")
			switch rapid.IntRange(0, 3).Draw(t, "verb") {
			case 0, 1: // take the lowest
				want, wantOK := lowest(r)
				got, err := memory.TakeFrom(ctx, "s", r, owner)
				if got != want || wantOK && err != nil || !wantOK && !errors.Is(err, ErrExhausted) {
					t.Fatalf("TakeFrom(%s) = %s %v, want %s %v", r, got, err, want, wantOK)
				}
				if wantOK {
					model[got] = owner
				}
			case 2: // take one by name
				a := near(t, r.Subnet, "named")
				err := memory.Take(ctx, Lease{"s", a, owner})
				holder, held := model[a]
				if taken := held && holder != owner; taken != errors.Is(err, ErrTaken) || !taken && err != nil {
					t.Fatalf("Take(%s) by %s = %v, held by %q", a, owner, err, holder)
				}
				if err == nil {
					model[a] = owner
				}
			case 3: // release
				a := near(t, r.Subnet, "released")
				if err := memory.Release(ctx, Lease{"s", a, owner}); err != nil {
					t.Fatal(err)
				}
				if model[a] == owner {
					delete(model, a)
				}
			}
		}
		if got := len(memory.Leases()); got != len(model) {
			t.Fatalf("%d leases, want %d", got, len(model))
		}
		for _, lease := range memory.Leases() {
			if model[lease.Addr] != lease.Owner {
				t.Fatalf("%s is held by %s, want %s", lease.Addr, lease.Owner, model[lease.Addr])
			}
		}
	})
}

func TestMemoryGivesEachAddressOnce(t *testing.T) {
	config := mustParse(t, `{"type": "host-local", "subnet": "10.0.0.0/23"}`)
	allocator, memory := newAllocator()
	const workers, each = 16, 31
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		seen = map[netip.Addr]Owner{}
	)
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				owner := AttachmentOwner(fmt.Sprintf("sb%d-%d", w, i), "net1")
				got, err := allocator.Allocate(context.Background(), config, owner)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				addr := got.Addresses[0].Prefix.Addr()
				if other, twice := seen[addr]; twice {
					t.Errorf("%s given to %s and %s", addr, other, owner)
				}
				seen[addr] = owner
				mu.Unlock()
				if i%3 == 0 {
					mu.Lock()
					delete(seen, addr)
					mu.Unlock()
					if err := allocator.Release(context.Background(), owner); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if got := len(memory.Leases()); got != len(seen) {
		t.Errorf("%d leases, want %d", got, len(seen))
	}
}

func newAllocator() (*Allocator, *Memory) {
	memory := NewMemory()
	return NewAllocator(memory), memory
}

// BenchmarkAllocate takes and gives back one address of a range in which
// nothing, half of it at random places, or the lower 10,000 are held: the cost
// must not depend on that.
func BenchmarkAllocate(b *testing.B) {
	ctx := context.Background()
	config := mustParse(b, `{"type": "host-local", "subnet": "10.0.0.0/16"}`)
	for _, used := range []int{0, 100, 1000, 10000} {
		for _, gaps := range []bool{false, true} {
			b.Run(fmt.Sprintf("used=%d/gaps=%v", used, gaps), func(b *testing.B) {
				allocator, memory := newAllocator()
				addr := netip.MustParseAddr("10.0.0.2")
				for i := range used {
					if err := memory.Hold(Lease{config.Sets[0].Scope, addr, Owner(fmt.Sprint(i))}); err != nil {
						b.Fatal(err)
					}
					if addr = addr.Next(); gaps {
						addr = addr.Next()
					}
				}
				if _, err := allocator.Allocate(ctx, config, "warm"); err != nil {
					b.Fatal(err) // the cursor walks over what was held at start, once
				}
				b.ResetTimer()
				for b.Loop() {
					if _, err := allocator.Allocate(ctx, config, "x/net1"); err != nil {
						b.Fatal(err)
					}
					if err := allocator.Release(ctx, "x/net1"); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkFill gives 10,000 addresses one after another.
func BenchmarkFill(b *testing.B) {
	ctx := context.Background()
	config := mustParse(b, `{"type": "host-local", "subnet": "10.0.0.0/16"}`)
	for b.Loop() {
		allocator, _ := newAllocator()
		for i := range 10000 {
			if _, err := allocator.Allocate(ctx, config, AttachmentOwner(fmt.Sprint(i), "net1")); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/10000, "ns/address")
}
