package chain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/local"
)

// leased is a world whose addresses are leases, and the API they are in.
type leased struct {
	*world
	api    store.Store
	leases *lease.Store
}

func newLeased(t *testing.T) *leased {
	t.Helper()
	api, err := local.Open(filepath.Join(t.TempDir(), "store"), local.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Close() }) // of a directory that goes
	w := &leased{world: newWorld(t), api: api}
	w.nads.add("demo/blue", `{"cniVersion":"1.0.0","type":"bridge","bridge":"b0","ipam":{"type":"whereabouts","range":"10.31.0.0/24","ipRanges":[{"range":"fd31::/64"}]}}`)
	w.nads.add("demo/red", `{"cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"r0","ipam":{"type":"whereabouts","range":"10.32.0.0/31"}},{"type":"alpha","dir":"`+w.rec()+`"}]}`)
	w.cluster = func(options *Options) {
		made, err := lease.New(lease.Options{API: api, Node: "n1", Dir: filepath.Join(w.dir, "leases"), Log: slog.New(slog.DiscardHandler)})
		if err == nil {
			err = made.Sync(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		w.leases = made
		options.Cluster, options.Addresses, options.Leases = true, made, made
	}
	w.restart()
	return w
}

// held lists the addresses held in the cluster, by sandbox and interface.
func (w *leased) held() []string {
	w.t.Helper()
	list, _, err := w.api.List(context.Background(), v1alpha1.AddressLeaseKind, store.Selector{})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, obj := range list {
		l, err := v1alpha1.LeaseFromObject(obj)
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s/%s %s", l.Spec.Sandbox, l.Spec.Interface, l.Spec.IP))
	}
	slices.Sort(out)
	return out
}

// agrees wants the leases there are to be the addresses these Pods have, but for
// their default network's.
func (w *leased) agrees(ids ...string) {
	w.t.Helper()
	var want []string
	for _, id := range ids {
		for _, name := range w.links(w.pod(id)) {
			if name == "eth0" {
				continue
			}
			for _, text := range w.addrs(w.pod(id), name) {
				want = append(want, fmt.Sprintf("%s/%s %s", id, name, netip.MustParsePrefix(text).Addr()))
			}
		}
	}
	slices.Sort(want)
	w.same("leases", w.held(), want)
}

func (w *leased) nothing(id string) {
	w.t.Helper()
	w.podEmpty(id)
	w.empty()
	w.same("leases", len(w.held()), 0)
}

const leasedNetworks = "blue,red,blue"

func TestLeasedKilledInAdd(t *testing.T) {
	t.Parallel()
	w := newLeased(t)
	w.namespace("a")
	var steps []string
	walk(t, func(n int) bool {
		at := stopAt(w.engine, n, errKilled)
		_, err := w.engine.Add(t.Context(), w.request("a", leasedNetworks))
		if at() != "" && !errors.Is(err, errKilled) || at() == "" && err != nil {
			t.Fatalf("killed before %q: %v", at(), err)
		}
		steps = append(steps, at())
		w.restart()
		if err := w.engine.Restore(t.Context()); err != nil {
			t.Fatalf("restore after a crash before %s: %v", at(), err)
		}
		if at() != "" && at() != "result written" {
			w.nothing("a")
		}
		if _, err := w.engine.Add(t.Context(), w.request("a", leasedNetworks)); err != nil {
			t.Fatalf("add after a crash before %s: %v", at(), err)
		}
		w.agrees("a")
		checkAgreement(t, w.world, "a")
		if err := w.engine.Del(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		w.nothing("a")
		if t.Failed() {
			t.Fatalf("after a crash before %s", at())
		}
		return at() != ""
	})
	t.Logf("killed before each of: %s", strings.Join(steps, ", "))
	if !testing.Short() && !slices.Contains(steps, "leased") {
		t.Error("never killed after the leases were taken")
	}
}

func TestLeasedKilledInDel(t *testing.T) {
	t.Parallel()
	w := newLeased(t)
	w.namespace("a")
	walk(t, func(n int) bool {
		w.engine.beforeStep = nil
		if _, err := w.engine.Add(t.Context(), w.request("a", leasedNetworks)); err != nil {
			t.Fatal(err)
		}
		at := stopAt(w.engine, n, errKilled)
		err := w.engine.Del(t.Context(), "a")
		if at() == "" {
			if err != nil {
				t.Fatal(err)
			}
			w.nothing("a")
			return false
		}
		w.restart()
		if err := w.engine.Restore(t.Context()); err != nil {
			t.Fatalf("restore after a crash before %s: %v", at(), err)
		}
		if err := w.engine.Del(t.Context(), "a"); err != nil {
			t.Fatalf("del after a crash before %s: %v", at(), err)
		}
		w.nothing("a")
		if t.Failed() {
			t.Fatalf("after a crash before %s", at())
		}
		return true
	})
}

// TestLeasedExhausted: nothing stays of an ADD that got one network's addresses and
// not the other's, on a sandbox that is attached already, too.
func TestLeasedExhausted(t *testing.T) {
	t.Parallel()
	w := newLeased(t)
	w.add("a", "red")
	w.add("b", "red")
	before := w.held()
	err := w.refused("c", "blue,red", "10.32.0.0/31", "all 2 addresses", "2 by Pods of namespace demo")
	if !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("got %v", err)
	}
	w.same("leases", w.held(), before)
	if _, err := w.engine.Get("c"); !errors.Is(err, record.ErrNotFound) {
		t.Errorf("record of c: %v", err)
	}
	if _, err := w.engine.Attach(t.Context(), "a", netattach.Selection{Namespace: "demo", Name: "blue", Interface: "net7"}); err != nil {
		t.Fatal(err)
	}
	w.agrees("a", "b")
	if _, err := w.engine.Attach(t.Context(), "a", netattach.Selection{Namespace: "demo", Name: "red", Interface: "net8"}); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("a third of two: %v", err)
	}
	w.agrees("a", "b")
	if _, err := w.engine.Detach(t.Context(), "a", "net7"); err != nil {
		t.Fatal(err)
	}
	w.same("leases", w.held(), before)
	for _, id := range []string{"a", "b"} {
		if err := w.engine.Del(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	w.same("leases", len(w.held()), 0)
}

// TestClusterWide: who gives addresses that are unique in a cluster, by what is
// there.
func TestClusterWide(t *testing.T) {
	t.Parallel()
	w := newLeased(t)
	w.nads.add("demo/own", `{"cniVersion":"1.0.0","type":"bridge","bridge":"o0","ipam":{"type":"host-local","subnet":"10.33.0.0/24","clusterWide":true}}`)
	w.add("a", "own")
	w.agrees("a")
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	unserved := &fixed{Store: w.leases}
	w.engine.Leases = unserved
	w.refused("b", "own", "demo/own: spec.config.ipam.clusterWide", "no kind AddressLease")
	w.add("c", "blue")
	w.same("leases", len(w.held()), 0)
	if !strings.Contains(w.log.String(), "unique on this machine only") {
		t.Error("it is not told that addresses are not unique")
	}
	if err := w.engine.Del(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	unserved.err = ipam.ErrUnanswered
	if err := w.refused("d", "blue"); !errors.Is(err, ipam.ErrUnanswered) {
		t.Errorf("while nobody knows: %v", err)
	}
}

// TestClusterWideBesideWhereabouts: as long as Whereabouts holds the addresses of
// the cluster it goes on to give them; those of host-local it never gave.
func TestClusterWideBesideWhereabouts(t *testing.T) {
	t.Parallel()
	w := newLeased(t)
	_, err := w.api.Create(t.Context(), &store.Object{Object: map[string]any{
		"apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "IPPool", "metadata": map[string]any{"namespace": "kube-system", "name": "10.31.0.0-24"},
		"spec": map[string]any{"range": "10.31.0.0/24", "allocations": map[string]any{"1": map[string]any{"id": "x", "podref": "demo/x"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	dirs := []string{t.TempDir(), binDir}
	for _, plugin := range []string{"whereabouts", "host-local"} {
		if err := os.Symlink(filepath.Join(binDir, "recorder"), filepath.Join(dirs[0], plugin)); err != nil {
			t.Fatal(err)
		}
	}
	w.engine.runner.binDirs = dirs
	w.nads.add("demo/own", `{"cniVersion":"1.0.0","type":"bridge","bridge":"o0","ipam":{"type":"host-local","subnet":"10.33.0.0/24","clusterWide":true}}`)
	w.add("a", "own")
	w.agrees("a")
	w.same("leases", len(w.held()), 1)
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
}

// fixed is a store of leases that says the same of itself always.
type fixed struct {
	*lease.Store
	err error
}

func (f *fixed) Serves(context.Context, bool) (bool, error) { return false, f.err }
