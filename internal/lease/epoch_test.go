package lease

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/local"
)

// chief writes the cluster's epoch, as the controller does.
type chief struct {
	t     *testing.T
	api   store.Store
	beats int
}

func (k *chief) write(change func(*v1alpha1.AddressEpochSpec)) {
	k.t.Helper()
	key := store.Key{Name: v1alpha1.ClusterEpoch}
	is := &v1alpha1.AddressEpoch{}
	is.Name, is.Labels = key.Name, map[string]string{v1alpha1.EpochLabel: v1alpha1.ClusterEpoch}
	obj, err := k.api.Get(k.t.Context(), v1alpha1.AddressEpochKind, key)
	if err == nil {
		is, err = v1alpha1.EpochFromObject(obj)
	} else {
		is.Spec = v1alpha1.AddressEpochSpec{Epoch: 1, Stage: v1alpha1.EpochOpen}
		obj, err = k.api.Create(k.t.Context(), is.Object())
		is.UID, is.ResourceVersion = obj.GetUID(), obj.GetResourceVersion()
	}
	if err != nil {
		k.t.Fatal(err)
	}
	k.beats++
	is.Spec.Beat(fmt.Sprintf("%p%d", k, k.beats))
	if change != nil {
		change(&is.Spec)
	}
	if _, err := k.api.Update(k.t.Context(), is.Object()); err != nil {
		k.t.Fatal(err)
	}
}

// stage is what a node tells of itself.
func (k *chief) stage(node string) v1alpha1.AddressEpochSpec {
	k.t.Helper()
	obj, err := k.api.Get(k.t.Context(), v1alpha1.AddressEpochKind, store.Key{Name: v1alpha1.NodeEpoch(node)})
	if err != nil {
		return v1alpha1.AddressEpochSpec{}
	}
	is, err := v1alpha1.EpochFromObject(obj)
	if err != nil {
		k.t.Fatal(err)
	}
	return is.Spec
}

// follow gives a node epochs, read now and settled.
func (n *node) follow() {
	n.t.Helper()
	n.Epochs = NewEpochs(n.api, n.name, n.dir, slog.New(slog.NewTextHandler(n.t.Output(), nil)))
	n.settle()
}

func (n *node) settle() {
	n.t.Helper()
	for range 4 {
		_ = n.Epochs.read(n.t.Context())
		_ = n.settleEpoch(n.t.Context(), n) // what is not done yet is looked at by the test
	}
}

// older replaces the API of nodes by another store, with the objects it is given: the
// copy of long ago.
func older(t *testing.T, objects []*store.Object, nodes ...*node) store.Store {
	t.Helper()
	api, err := local.Open(filepath.Join(t.TempDir(), "older"), local.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Close() }) // of a directory that goes
	for _, obj := range objects {
		obj.SetUID("")
		obj.SetResourceVersion("")
		if _, err := api.Create(context.Background(), obj); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes {
		n.api.Store = api
	}
	return api
}

// everything gives all objects of a store.
func everything(t *testing.T, api store.Store) (all []*store.Object) {
	t.Helper()
	for _, kind := range []string{v1alpha1.AddressLeaseKind.Kind, v1alpha1.AddressEpochKind.Kind, v1alpha1.NodeAddressesKind.Kind} {
		list, _, err := api.List(t.Context(), v1alpha1.GroupVersion.WithKind(kind), store.Selector{})
		if err != nil {
			t.Fatal(err)
		}
		for _, obj := range list {
			all = append(all, obj.DeepCopy())
		}
	}
	return all
}

// TestEpochOfAnOlderCopy: step by step what nodes do when the store is an older copy. In
// it an address is the one's, that since was given back, and that the other has.
func TestEpochOfAnOlderCopy(t *testing.T) {
	api := newAPI(t)
	k := &chief{t: t, api: api.Store}
	k.write(nil)
	a, b := newNode(t, api, "n1"), newNode(t, api, "n2")
	one := parse(t, `{"type":"whereabouts","range":"10.0.0.8-10.0.0.8/24"}`)
	two := parse(t, `{"type":"whereabouts","range":"10.0.0.9-10.0.0.9/24"}`)
	a.follow()
	b.follow()
	a.mustAdd(one, "old")
	copied := everything(t, api)
	k.write(nil) // a beat since
	a.settle()
	b.settle()
	a.del("old")
	b.mustAdd(one, "b")
	a.mustAdd(two, "a")

	k.api = older(t, copied, a, b)
	closed := func(n *node) {
		t.Helper()
		_, err := n.add(parse(t, small), "new")
		wantHint(t, err, ipam.ErrUnanswered, "older copy")
	}
	closed(a)
	closed(b)
	a.settle()
	b.settle()
	if is := k.stage("n2"); is.Lost != 1 {
		t.Fatalf("n2 tells %+v", is)
	}
	k.write(func(spec *v1alpha1.AddressEpochSpec) { spec.Epoch, spec.Stage = 2, v1alpha1.EpochCleaning })
	b.settle() // first, though the address it has is still another's in the copy
	same(t, "before n1 has cleaned", objects(t, k.api), []string{"10.0.0.8 n1 old/net1"})
	a.settle()
	same(t, "cleaned", objects(t, k.api), nil)
	for _, n := range []string{"n1", "n2"} {
		if is := k.stage(n); is.Epoch != 2 || is.Stage != v1alpha1.EpochAsserting || is.Lost != 0 {
			t.Fatalf("%s tells %+v", n, is)
		}
	}
	closed(a)
	a.start() // a new process goes on
	a.follow()
	closed(a)
	k.write(func(spec *v1alpha1.AddressEpochSpec) { spec.Stage = v1alpha1.EpochAsserting })
	a.settle()
	b.settle()
	same(t, "asserted", objects(t, k.api), []string{"10.0.0.8 n2 b/net1", "10.0.0.9 n1 a/net1"})
	closed(a)
	k.write(func(spec *v1alpha1.AddressEpochSpec) { spec.Stage = v1alpha1.EpochOpen })
	a.settle()
	b.settle()
	a.mustAdd(parse(t, small), "new")
	if len(a.conflicts)+len(b.conflicts) > 0 {
		t.Errorf("told of conflicts %v, %v", a.conflicts, b.conflicts)
	}
	for _, sandbox := range []string{"a", "new"} {
		a.del(sandbox)
	}
	b.del("b")
	nothingLeft(t, k.api, a, b)
}

// TestEpochInTheMiddleOfAnAdd: the store is replaced after a node looked and before it
// takes an address.
func TestEpochInTheMiddleOfAnAdd(t *testing.T) {
	api := newAPI(t)
	k := &chief{t: t, api: api.Store}
	k.write(nil)
	a := newNode(t, api, "n1")
	a.follow()
	copied := everything(t, api)
	k.write(nil)
	a.settle()
	swapped := false
	api.set(func(verb, _ string) fault {
		if verb == "create" && !swapped {
			swapped = true
			k.api = older(t, copied, a)
		}
		return fault{}
	})
	_, err := a.add(parse(t, small), "a")
	wantHint(t, err, ipam.ErrUnanswered, "older copy")
	api.set(nil)
	a.drain(t.Context())
	nothingLeft(t, k.api, a)
}

// TestEpochIsNotThere: without a controller nothing is waited for; where one was, its
// epoch does not go without reason.
func TestEpochIsNotThere(t *testing.T) {
	api := newAPI(t)
	a := newNode(t, api, "n1")
	a.follow()
	a.mustAdd(parse(t, small), "a")
	k := &chief{t: t, api: api.Store}
	k.write(nil)
	a.settle()
	older(t, nil, a)
	_, err := a.add(parse(t, small), "b")
	wantHint(t, err, ipam.ErrUnanswered, "older copy")
}
