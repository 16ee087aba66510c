package chain

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/netstate"
)

// owned asks for network plain, as a VM's NIC that keeps its address.
func (w *world) owned(id string, owner ipam.Owner) (addr string) {
	w.t.Helper()
	w.nads.add("demo/kept", `{"cniVersion":"1.0.0","name":"kept","type":"bridge","bridge":"kept0","ipam":{"type":"host-local","subnet":"10.50.0.0/24"}}`)
	w.namespace(id)
	req := w.request(id, "kept")
	req.Owners = map[netstate.IfName]ipam.Owner{"net1": owner}
	box, err := w.engine.Add(w.t.Context(), req)
	if err != nil {
		w.t.Fatal(err)
	}
	return box.Find("net1").Leases[0].Addr.String()
}

func TestOwnedAddressOutlivesSandbox(t *testing.T) {
	w := newWorld(t)
	nic := ipam.NICOwner("demo", "vm.nic")
	w.same("first address", w.owned("a", nic), "10.50.0.2")
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.same("address of another meanwhile", w.owned("b", ipam.NICOwner("demo", "other.nic")), "10.50.0.3")
	w.same("address of the next sandbox", w.owned("c", nic), "10.50.0.2")

	// Nobody names it any more, but c has it still.
	settled, err := w.engine.Trim(t.Context(), nic)
	if err != nil || settled {
		t.Errorf("trim of an address in use: settled %v, %v", settled, err)
	}
	if err := w.engine.Del(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	held, err := w.memory.Held(t.Context(), nic)
	if err != nil || len(held) != 1 {
		t.Fatalf("held %v (%v)", held, err)
	}
	keep := held[0]
	for _, step := range []struct {
		keep []ipam.Lease
		want int
	}{{[]ipam.Lease{keep}, 1}, {nil, 0}} {
		if settled, err := w.engine.Trim(t.Context(), nic, step.keep...); err != nil || !settled {
			t.Errorf("trim of what nobody has: settled %v, %v", settled, err)
		}
		held, err := w.memory.Held(t.Context(), nic)
		if err != nil || len(held) != step.want {
			t.Errorf("keeping %v: held %v (%v)", step.keep, held, err)
		}
	}

	// After a restart what is held is told, and a stranger's claim to it refused.
	w.restart()
	if err := w.engine.Hold(t.Context(), keep); err != nil {
		t.Fatal(err)
	}
	stranger := keep
	stranger.Owner = "stranger"
	if err := w.engine.Hold(t.Context(), stranger); err == nil {
		t.Error("two hold one address")
	}
	w.same("address after a restart", w.owned("d", nic), "10.50.0.2")
}

// watchedRelease tells of each release before and after it.
type watchedRelease struct {
	ipam.Store
	before, after func()
}

func (r watchedRelease) Release(ctx context.Context, lease ipam.Lease) error {
	r.before()
	defer r.after()
	return r.Store.Release(ctx, lease)
}

// TestTrimAndAttachAtOnce: no sandbox begins to take an owner's addresses between
// the look whether they are used and their release.
func TestTrimAndAttachAtOnce(t *testing.T) {
	w := newWorld(t)
	nic := ipam.NICOwner("demo", "vm.nic")
	w.owned("a", nic)
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	begun := make(chan struct{})
	var released atomic.Bool
	w.engine.Addresses = watchedRelease{
		Store: w.memory,
		before: func() {
			go func() {
				defer close(begun)
				w.engine.claims.begin("b", []ipam.Owner{nic})()
				if !released.Load() {
					t.Error("a sandbox began while an address it would find was being released")
				}
			}()
			select {
			case <-begun: // it must not
			case <-time.After(50 * time.Millisecond):
			}
		},
		after: func() { released.Store(true) },
	}
	if settled, err := w.engine.Trim(t.Context(), nic); err != nil || !settled {
		t.Errorf("settled %v, %v", settled, err)
	}
	<-begun
}
