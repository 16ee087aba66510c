package lease

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/whereabouts"
)

// small has four addresses.
const small = `{"type":"whereabouts","range":"10.9.0.0/29","range_start":"10.9.0.1","range_end":"10.9.0.4"}`

func TestLeaseTellsWhoHolds(t *testing.T) {
	api := newAPI(t)
	n := newNode(t, api, "n1")
	one := n.mustAdd(parse(t, `{"type":"whereabouts","range":"10.9.0.0/30","range_start":"10.9.0.2","network_name":"blue"}`), "a")
	same(t, "addresses", one, []string{"10.9.0.2"})
	obj, err := api.Store.Get(t.Context(), v1alpha1.AddressLeaseKind, store.Key{Name: "blue-10.9.0.2"})
	if err != nil {
		t.Fatal(err)
	}
	lease, err := v1alpha1.LeaseFromObject(obj)
	if err != nil {
		t.Fatal(err)
	}
	want := v1alpha1.AddressLeaseSpec{
		IP: netip.MustParseAddr("10.9.0.2"), Scope: "whereabouts:blue", Pool: "10.9.0.0/30", Network: "demo/lan", Interface: "net1", Sandbox: "a", Node: "n1",
		Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "demo", Name: "pod-a", UID: "uid-a"},
	}
	if !reflect.DeepEqual(lease.Spec, want) {
		t.Errorf("got %+v, want %+v", lease.Spec, want)
	}
	labels := map[string]string{v1alpha1.NodeLabel: "n1", v1alpha1.PoolLabel: "10.9.0.0-30", v1alpha1.OwnerUIDLabel: "uid-a"}
	if fmt.Sprint(lease.Labels) != fmt.Sprint(labels) {
		t.Errorf("labels %v, want %v", lease.Labels, labels)
	}
	if creates, others := api.count("create"), api.count("get")+api.count("list"); creates != 1 || others > 1 {
		t.Errorf("%d creates, %d reads", creates, others) // the one list of the start
	}
	n.del("a")
	if api.count("delete") != 1 || api.count("get") != 0 {
		t.Errorf("%d deletes, %d reads", api.count("delete"), api.count("get"))
	}
	nothingLeft(t, api, n)
}

// TestTwoNodes give each address once, all of them, and tell when none is left.
func TestTwoNodes(t *testing.T) {
	api := newAPI(t)
	a, b := newNode(t, api, "n1"), newNode(t, api, "n2")
	config := parse(t, small)
	given := map[string]bool{}
	for i := range 4 {
		n := []*node{a, b}[i%2]
		given[n.mustAdd(config, fmt.Sprint("s", i))[0]] = true
	}
	if len(given) != 4 {
		t.Errorf("given were %v", given)
	}
	_, err := b.add(config, "late")
	wantHint(t, err, ipam.ErrExhausted, "all 4 addresses of 10.9.0.1-10.9.0.4 of 10.9.0.0/29 are held: 4 by Pods of namespace demo; widen the range, or delete what holds addresses of it (weft ip ls --pool 10.9.0.0/29 lists them)")
	a.del("s0")
	if _, err := b.add(config, "late"); err != nil {
		t.Errorf("after one came free: %v", err)
	}
	for _, s := range []string{"s2"} {
		a.del(s)
	}
	for _, s := range []string{"s1", "s3", "late"} {
		b.del(s)
	}
	nothingLeft(t, api, a, b)
}

// TestRequested: an address that is asked for is given, or the error names who has it.
func TestRequested(t *testing.T) {
	api := newAPI(t)
	a, b := newNode(t, api, "n1"), newNode(t, api, "n2")
	config, err := ipam.Parse([]byte(`{"name":"n","ipam":`+small+`,"runtimeConfig":{"ips":["10.9.0.3"]}}`), "")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "address", a.mustAdd(config, "s1"), []string{"10.9.0.3"})
	_, err = b.add(config, "s2")
	wantHint(t, err, ipam.ErrTaken, "10.9.0.3 is held by Pod demo/pod-s1 on net1 of node n1")
	a.del("s1")
	same(t, "address", b.mustAdd(config, "s2"), []string{"10.9.0.3"})
	b.del("s2")
	nothingLeft(t, api, a, b)
}

// TestAllOrNone: B1 of the notes. A range that is exhausted leaves nothing held in
// the other one, and a try after that is like any.
func TestAllOrNone(t *testing.T) {
	api := newAPI(t)
	n, other := newNode(t, api, "n1"), newNode(t, api, "n2")
	const narrow = `{"type":"whereabouts","range":"10.21.0.4/31"}`
	other.mustAdd(parse(t, narrow), "o1")
	other.mustAdd(parse(t, narrow), "o2")
	before := objects(t, api)
	both := parse(t, `{"type":"whereabouts","range":"10.20.0.0/24","ipRanges":[{"range":"10.21.0.4/31"}]}`)
	_, err := n.add(both, "a")
	wantHint(t, err, ipam.ErrExhausted, "10.21.0.4/31")
	same(t, "held after the failure", objects(t, api), before)
	other.del("o1")
	got := n.mustAdd(both, "a")
	_, err = other.add(parse(t, `{"type":"whereabouts","range":"10.21.0.0/28","range_start":"10.21.0.4","range_end":"10.21.0.5"}`), "o3")
	wantHint(t, err, ipam.ErrExhausted, "") // an overlapping range sees what it got: %v
	if len(got) != 2 {
		t.Errorf("got %v", got)
	}
	n.del("a")
	other.del("o2")
	nothingLeft(t, api, n, other)
}

// TestSameRangeTwice: B9. Two of one range are two.
func TestSameRangeTwice(t *testing.T) {
	api := newAPI(t)
	n := newNode(t, api, "n1")
	got := n.mustAdd(parse(t, `{"type":"whereabouts","range":"10.9.0.0/24","ipRanges":[{"range":"10.9.0.0/24"}]}`), "a")
	if len(got) != 2 || got[0] == got[1] {
		t.Errorf("got %v", got)
	}
	n.del("a")
	nothingLeft(t, api, n)
}

// TestWideRanges: B3 and B4. Any part of any range works, and is given back.
func TestWideRanges(t *testing.T) {
	api := newAPI(t)
	a, b := newNode(t, api, "n1"), newNode(t, api, "n2")
	for _, overlap := range []bool{true, false} {
		for _, text := range []string{
			`"range":"caa5::/64","range_start":"caa5::8000:0:0:1"`, `"range":"fd00::/48","range_start":"fd00:0:0:1::1"`, `"range":"::/126"`, `"range":"fd00::/1"`,
		} {
			config := parse(t, fmt.Sprintf(`{"type":"whereabouts",%s,"enable_overlapping_ranges":%v}`, text, overlap))
			one, two := a.mustAdd(config, "s1")[0], b.mustAdd(config, "s2")[0]
			for _, addr := range []string{one, two} {
				if !config.Sets[0].Ranges[0].Contains(netip.MustParseAddr(addr)) || one == two {
					t.Errorf("%s gives %s and %s", text, one, two)
				}
			}
			a.del("s1")
			b.del("s2")
			nothingLeft(t, api, a, b)
		}
	}
}

// TestPoolsApart: with overlap checking off an address is held once in its range.
func TestPoolsApart(t *testing.T) {
	api := newAPI(t)
	n := newNode(t, api, "n1")
	apart := n.mustAdd(parse(t, `{"type":"whereabouts","range":"10.9.0.0/31","enable_overlapping_ranges":false}`), "a")
	for _, s := range []string{"b", "c"} {
		if got := n.mustAdd(parse(t, `{"type":"whereabouts","range":"10.9.0.0/31"}`), s); got[0] == apart[0] {
			apart = nil
		}
	}
	if apart != nil {
		t.Error("two ranges that know nothing of each other gave no address twice")
	}
	for _, s := range []string{"a", "b", "c"} {
		n.del(s)
	}
	nothingLeft(t, api, n)
}

// TestLostAnswers: the same address is asked for again, and belongs to who asked.
func TestLostAnswers(t *testing.T) {
	api := newAPI(t)
	n := newNode(t, api, "n1")
	for _, tt := range []struct {
		name   string
		faults []fault
	}{
		{"created, answer lost", []fault{{after: errLost}}},
		{"not created, answer lost", []fault{{before: errLost}}},
		{"created, lost twice", []fault{{after: errLost}, {before: errLost}, {before: errLost}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			left := tt.faults
			api.set(func(verb, _ string) fault {
				if verb != "create" || len(left) == 0 {
					return fault{}
				}
				next := left[0]
				left = left[1:]
				return next
			})
			got := n.mustAdd(parse(t, small), "a")
			api.set(nil)
			same(t, "objects", objects(t, api), []string{got[0] + " n1 a/net1"})
			n.del("a")
			if left := objects(t, api); len(left) > 0 {
				t.Errorf("left are %q", left)
			}
		})
	}
}

// TestAwayAtTheEnd: a DEL succeeds while the API server is away, and the address is
// given back when it is there again, by a process that starts meanwhile.
func TestAwayAtTheEnd(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %v", restart), func(t *testing.T) {
			api := newAPI(t)
			n := newNode(t, api, "n1")
			config := parse(t, `{"type":"whereabouts","range":"10.9.0.0/24","ipRanges":[{"range":"fd00::/64"}]}`)
			n.mustAdd(config, "a")
			api.set(func(string, string) fault { return fault{before: errAway} })
			n.del("a")
			if files, _ := filepath.Glob(filepath.Join(n.dir, "*.json")); len(files) != 1 {
				t.Errorf("written down is %v", files)
			}
			if restart {
				n.start()
			}
			n.run()
			api.set(nil)
			nothingLeft(t, api, n)
		})
	}
}

// TestAddAfterQueuedRelease: an address on its way back is given to nobody, or kept
// by who has it again.
func TestAddAfterQueuedRelease(t *testing.T) {
	api := newAPI(t)
	n := newNode(t, api, "n1")
	config, err := ipam.Parse([]byte(`{"name":"n","ipam":`+small+`,"runtimeConfig":{"ips":["10.9.0.3"]}}`), "")
	if err != nil {
		t.Fatal(err)
	}
	n.mustAdd(config, "a")
	api.set(func(string, string) fault { return fault{before: errAway} })
	n.del("a")
	api.set(nil)
	if _, err := n.add(config, "b"); !errors.Is(err, ipam.ErrTaken) {
		t.Errorf("another sandbox got what is on its way back: %v", err)
	}
	same(t, "address of the same sandbox", n.mustAdd(config, "a"), []string{"10.9.0.3"})
	n.drain(t.Context())
	same(t, "objects", objects(t, api), []string{"10.9.0.3 n1 a/net1"})
	n.del("a")
	nothingLeft(t, api, n)
}

// TestKilled: a process that dies after any request leaves nothing that the next
// does not find: by the sandbox's record, or, without it, by the sandbox.
func TestKilled(t *testing.T) {
	for _, tt := range []struct {
		name string
		away bool // while the next process starts
		ends bool // the record says that the sandbox took leases, and it is undone
	}{{"record is undone", false, true}, {"record is undone, API away", true, true}, {"record is lost", false, false}, {"record is lost, API away", true, false}} {
		t.Run(tt.name, func(t *testing.T) {
			api := newAPI(t)
			n := newNode(t, api, "n1")
			live := n.mustAdd(parse(t, small), "live")
			n.mustAdd(parse(t, small), "dead")
			delete(n.boxes, "dead") // it died before it wrote the address down
			delete(n.alive, "dead")
			if tt.away {
				api.set(func(string, string) fault { return fault{before: errAway} })
			}
			n.start()
			if tt.ends {
				n.del("dead")
			}
			api.set(nil)
			if err := n.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !tt.ends {
				n.Sweep(t.Context(), n)
				n.drain(t.Context())
				if len(objects(t, api)) != 2 {
					t.Error("it was given back at the first look")
				}
				n.overdue()
				n.Sweep(t.Context(), n)
			}
			n.drain(t.Context())
			same(t, "objects", objects(t, api), []string{live[0] + " n1 live/net1"})
			n.del("live")
			nothingLeft(t, api, n)
		})
	}
}

// TestJournalLost: leases of sandboxes that live are kept, though no record tells of
// them, until the runtime does not know them any more.
func TestJournalLost(t *testing.T) {
	api := newAPI(t)
	n := newNode(t, api, "n1")
	n.mustAdd(parse(t, small), "a")
	clear(n.boxes)
	n.start()
	look := func() {
		for range 2 {
			n.Sweep(t.Context(), n)
			n.overdue()
		}
		n.drain(t.Context())
	}
	look()
	if len(objects(t, api)) != 1 {
		t.Error("the address of a living sandbox was given back")
	}
	if got := n.mustAdd(parse(t, small), "b"); objects(t, api)[0] == objects(t, api)[1] {
		t.Errorf("given again was %v", got)
	}
	n.alive["a"] = false
	look()
	if len(objects(t, api)) != 1 {
		t.Errorf("left are %q", objects(t, api))
	}
	n.del("b")
	nothingLeft(t, api, n)
}

// TestLeaseLost: an address whose lease was deleted, or is not in an older copy of
// the cluster's store, is taken again for who has it; another's is not touched.
func TestLeaseLost(t *testing.T) {
	api := newAPI(t)
	a, b := newNode(t, api, "n1"), newNode(t, api, "n2")
	mine := a.mustAdd(parse(t, small), "a")[0]
	if err := api.Store.Delete(t.Context(), v1alpha1.AddressLeaseKind, store.Key{Name: mine}, store.Precondition{}); err != nil {
		t.Fatal(err)
	}
	look := func() {
		t.Helper()
		if err := a.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.Sweep(t.Context(), a)
	}
	look()
	same(t, "objects", objects(t, api), []string{mine + " n1 a/net1"})
	if err := api.Store.Delete(t.Context(), v1alpha1.AddressLeaseKind, store.Key{Name: mine}, store.Precondition{}); err != nil {
		t.Fatal(err)
	}
	config, err := ipam.Parse([]byte(`{"name":"n","ipam":`+small+`,"runtimeConfig":{"ips":["`+mine+`"]}}`), "")
	if err != nil {
		t.Fatal(err)
	}
	b.mustAdd(config, "b")
	look()
	look()
	same(t, "objects", objects(t, api), []string{mine + " n2 b/net1"})
	same(t, "conflicts told", a.conflicts, []string{mine + " a/net1, Pod demo/pod-b on net1 of node n2"})
	if got := a.States(); got["conflicting"] != 1 || got["held"]+got["returning"] != 0 {
		t.Errorf("the states are %v", got)
	}
	a.del("a")
	same(t, "objects after the end of the first", objects(t, api), []string{mine + " n2 b/net1"})
	b.del("b")
	nothingLeft(t, api, a, b)
}

// TestPoolEdited: B2 and "pool shrunk under running Pods". What is given back
// does not depend on what the network says today.
func TestPoolEdited(t *testing.T) {
	api := newAPI(t)
	n := newNode(t, api, "n1")
	n.mustAdd(parse(t, `{"type":"whereabouts","range":"10.9.0.0/24"}`), "a")
	n.mustAdd(parse(t, `{"type":"whereabouts","range":"10.8.0.0/24","ipRanges":[{"range":"10.9.0.0/24"}]}`), "b")
	n.del("a")
	if left := objects(t, api); len(left) != 2 || strings.Contains(strings.Join(left, " "), "a/net1") {
		t.Errorf("left are %q", left)
	}
	n.del("b")
	nothingLeft(t, api, n)
}

// TestRefusedByPolicy: what the API server refuses is told as it says, and nothing
// stays held.
func TestRefusedByPolicy(t *testing.T) {
	api := newAPI(t)
	n := newNode(t, api, "n1")
	api.set(func(verb, _ string) fault {
		if verb == "create" {
			return fault{before: forbidden}
		}
		return fault{}
	})
	if _, err := n.add(parse(t, small), "a"); !errors.Is(err, forbidden) {
		t.Errorf("got %v", err)
	}
	nothingLeft(t, api, n)
}

// TestSandboxWithoutRecord: the end of a sandbox of which no record tells gives back
// what the cluster knows it has, be that known now or later.
func TestSandboxWithoutRecord(t *testing.T) {
	for _, away := range []bool{false, true} {
		api := newAPI(t)
		n := newNode(t, api, "n1")
		n.mustAdd(parse(t, small), "a")
		n.mustAdd(parse(t, small), "ab")
		delete(n.boxes, "a")
		if away {
			api.set(func(string, string) fault { return fault{before: errAway} })
		}
		n.start()
		if err := n.End(t.Context(), ipam.AttachmentOwner("a", "")); err != nil {
			t.Fatal(err)
		}
		api.set(nil)
		if err := n.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.drain(t.Context())
		if left := objects(t, api); len(left) != 1 || !strings.HasSuffix(left[0], " ab/net1") {
			t.Errorf("API away %v: left are %q", away, left)
		}
	}
}

// TestBesideWhereabouts: as long as Whereabouts holds addresses and nobody a lease,
// its plugin goes on.
func TestBesideWhereabouts(t *testing.T) {
	api := newAPI(t)
	serves := func(n *node, plugin, want bool) {
		t.Helper()
		if got, err := n.Serves(t.Context(), plugin); err != nil || got != want {
			t.Errorf("node %s with plugin %v: %v (%v), want %v", n.name, plugin, got, err, want)
		}
	}
	pool := &store.Object{Object: map[string]any{
		"apiVersion": "whereabouts.cni.cncf.io/v1alpha1", "kind": "IPPool", "metadata": map[string]any{"name": "10.9.0.0-24", "namespace": "kube-system"},
		"spec": map[string]any{"range": "10.9.0.0/24", "allocations": map[string]any{}},
	}}
	pool, err := api.Create(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	empty := newNode(t, api, "n0")
	serves(empty, true, true)
	pool.Object["spec"] = map[string]any{"range": "10.9.0.0/24", "allocations": map[string]any{"1": map[string]any{"id": "x", "podref": "demo/x"}}}
	if _, err := api.Update(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	with, without := newNode(t, api, "n1"), newNode(t, api, "n2")
	serves(with, true, false)
	serves(without, false, true)
	for _, c := range []struct {
		by           whereabouts.Giver
		with, refuse bool
		problem      string
	}{
		{whereabouts.ByWhereabouts, false, true, "plugin is not on this node"},
		{whereabouts.ByNobody, false, true, "pass to weft"},
		{whereabouts.ByWeft, true, false, ""},
	} {
		giving := &store.Object{Object: map[string]any{
			"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": whereabouts.ConfigMap, "namespace": "weft"},
			"data": whereabouts.Giving{By: c.by, To: whereabouts.ByWeft}.Data(),
		}}
		key := store.KeyOf(giving)
		if old, err := api.Store.Get(t.Context(), giving.GroupVersionKind(), key); err == nil {
			if err := api.Store.Delete(t.Context(), giving.GroupVersionKind(), key, store.Precondition{UID: old.GetUID()}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := api.Create(t.Context(), giving); err != nil {
			t.Fatal(err)
		}
		n := newNode(t, api, "by-"+string(c.by))
		n.Giving = store.Key{Namespace: "weft", Name: whereabouts.ConfigMap}
		got, err := n.Serves(t.Context(), true)
		if got != c.with || err != nil && c.by != whereabouts.ByNobody {
			t.Errorf("%s gives: %v, %v", c.by, got, err)
		}
		_, err = n.add(parse(t, small), "by-"+string(c.by))
		if c.refuse != (err != nil) || err != nil && !strings.Contains(err.Error(), c.problem) {
			t.Errorf("%s gives: %v", c.by, err)
		}
		if _, err := n.add(parse(t, `{"type":"host-local","clusterWide":true,"ranges":[[{"subnet":"10.66.0.0/24"}]]}`), "own-"+string(c.by)); err != nil {
			t.Errorf("of a network that is not Whereabouts': %v", err)
		}
	}
}

// TestFreedWhileCreating: B7 of the notes. However long an attachment takes, what it
// has taken so far is not given back.
func TestFreedWhileCreating(t *testing.T) {
	api := newAPI(t)
	n := newNode(t, api, "n1")
	reached, goOn := make(chan struct{}), make(chan struct{})
	api.set(func(verb, name string) fault {
		if verb == "create" && strings.HasPrefix(name, "fd") {
			close(reached)
			<-goOn
		}
		return fault{}
	})
	done := make(chan error, 1)
	go func() {
		_, err := n.add(parse(t, `{"type":"whereabouts","range":"10.9.0.0/24","ipRanges":[{"range":"fd00::/64"}]}`), "slow")
		done <- err
	}()
	<-reached
	eventually(t, "the other address is taken", func() error {
		if len(objects(t, api)) != 1 {
			return errors.New("it is not")
		}
		return nil
	})
	for range 3 {
		n.Sweep(t.Context(), n)
		n.overdue()
	}
	n.drain(t.Context())
	close(goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if held := objects(t, api); len(held) != 2 {
		t.Errorf("held are %q", held)
	}
	api.set(nil)
	n.del("slow")
	nothingLeft(t, api, n)
}

// TestSameNameElsewhere: a Pod that is made again by its name on another node gets an
// address of its own, and the end of the old one, late, takes nothing of it.
func TestSameNameElsewhere(t *testing.T) {
	api := newAPI(t)
	a, b := newNode(t, api, "n1"), newNode(t, api, "n2")
	old := a.mustAdd(parse(t, small), "web")[0]
	fresh := b.mustAdd(parse(t, small), "web")[0]
	if old == fresh {
		t.Errorf("both have %s", old)
	}
	a.del("web")
	same(t, "objects", objects(t, api), []string{fresh + " n2 web/net1"})
	b.del("web")
	nothingLeft(t, api, a, b)
}

// TestFrozenAPI: B10. A DEL does not wait long for an API server that answers
// nothing, and the next ones not at all.
func TestFrozenAPI(t *testing.T) {
	api := newAPI(t)
	n := newNode(t, api, "n1")
	for i := range 4 {
		n.mustAdd(parse(t, small), fmt.Sprint("s", i))
	}
	thaw := make(chan struct{})
	var frozen atomic.Int64
	api.set(func(string, string) fault {
		frozen.Add(1)
		<-thaw
		return fault{before: errAway}
	})
	for i := range 4 {
		n.del(fmt.Sprint("s", i))
	}
	if got := frozen.Load(); got != 1 {
		t.Errorf("%d requests of four DELs, want that of the first", got)
	}
	close(thaw)
	api.set(nil)
	n.run()
	nothingLeft(t, api, n)
}

// TestKilledBeforeTheReleaseIsForgotten: an address was given back and taken again,
// and the process died before it had deleted the file about the first. Who has it
// now is known, by the record or by the cluster, and gives it back.
func TestKilledBeforeTheReleaseIsForgotten(t *testing.T) {
	const tiny = `{"type":"whereabouts","range":"10.9.0.5/32"}`
	for _, record := range []bool{true, false} {
		api := newAPI(t)
		n := newNode(t, api, "n1")
		addr := n.mustAdd(parse(t, tiny), "old")
		api.set(func(verb, _ string) fault {
			if verb == "delete" {
				return fault{before: errAway}
			}
			return fault{}
		})
		n.del("old")
		files, err := filepath.Glob(filepath.Join(n.dir, "*.json*"))
		if err != nil || len(files) != 1 {
			t.Fatalf("files: %q, %v", files, err)
		}
		text, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		api.set(nil)
		n.drain(t.Context())
		same(t, "addresses", n.mustAdd(parse(t, tiny), "new"), addr)
		if err := os.WriteFile(files[0], text, 0o600); err != nil {
			t.Fatal(err)
		}
		if record {
			api.set(func(verb, _ string) fault { return fault{before: errAway} })
		} else {
			clear(n.boxes)
		}
		n.start()
		api.set(nil)
		n.drain(t.Context())
		same(t, "objects", objects(t, api), []string{addr[0] + " n1 new/net1"})
		n.del("new")
		nothingLeft(t, api, n)
	}
}
