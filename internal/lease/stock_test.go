package lease

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
)

// TestEpochEmptiesStock: from when an epoch ends until the next is open, a node hands out
// nothing of what it keeps ahead, and it says that it has cleaned up when all of that is
// given back.
func TestEpochEmptiesStock(t *testing.T) {
	api := newAPI(t)
	k := &chief{t: t, api: api.Store}
	k.write(nil)
	config := parse(t, widely)
	n, _ := newKeeping(t, api, newDesk(t, api), "n1", nil)
	n.Epochs = NewEpochs(n.api, n.name, n.dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
	n.run()
	first := n.stocked(config, 2)
	api.set(func(verb, _ string) fault {
		if verb == "delete" {
			return fault{before: errAway}
		}
		return fault{}
	})
	closed := func(what string) {
		t.Helper()
		_, err := n.add(config, "new")
		wantHint(t, err, ipam.ErrUnanswered, "older copy")
		if t.Failed() {
			t.Fatal(what)
		}
	}
	stageIs := func(want v1alpha1.EpochStage) {
		t.Helper()
		eventually(t, fmt.Sprintf("the node is %q", want), func() error {
			if is := k.stage("n1"); is.Epoch != 2 || is.Stage != want {
				return fmt.Errorf("it tells %+v", is)
			}
			return nil
		})
	}
	k.write(func(spec *v1alpha1.AddressEpochSpec) { spec.Epoch, spec.Stage = 2, v1alpha1.EpochCleaning })
	eventually(t, "the node tries to give back what it keeps", func() error {
		if api.count("delete") < 2 {
			return errors.New("it does not")
		}
		return nil
	})
	closed("nothing could be given back")
	if is := k.stage("n1"); is.Epoch == 2 {
		t.Errorf("n1 tells %+v, and keeps %v", is, n.ahead())
	}
	api.set(nil)
	stageIs(v1alpha1.EpochAsserting)
	if kept := n.ahead(); len(kept) > 0 {
		t.Errorf("n1 says that it has cleaned up, and keeps %v", kept)
	}
	closed("cleaned")
	k.write(func(spec *v1alpha1.AddressEpochSpec) { spec.Stage = v1alpha1.EpochAsserting })
	stageIs(v1alpha1.EpochOpen)
	closed("asserted")
	if kept := n.ahead(); len(kept) > 0 {
		t.Errorf("n1 keeps %v before the epoch is open", kept)
	}
	k.write(func(spec *v1alpha1.AddressEpochSpec) { spec.Stage = v1alpha1.EpochOpen })
	eventually(t, "n1 gives addresses", func() error {
		_, err := n.add(config, "new")
		return err
	})
	for _, sandbox := range append(first, "new") {
		n.del(sandbox)
	}
	n.idle()
	nothingLeft(t, api, n)
}

// retell has what NodeAddresses tells be of the leases of a copy: in a real one they have
// the UIDs they had.
func retell(t *testing.T, api store.Store, node string) {
	t.Helper()
	obj, err := api.Get(t.Context(), v1alpha1.NodeAddressesKind, store.Key{Name: node})
	if errors.Is(err, store.ErrNotFound) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	all, err := v1alpha1.NodeAddressesFromObject(obj)
	if err != nil {
		t.Fatal(err)
	}
	for i := range all.Spec.Bindings {
		is, err := api.Get(t.Context(), v1alpha1.AddressLeaseKind, store.Key{Name: all.Spec.Bindings[i].Lease})
		if err != nil {
			t.Fatal(err)
		}
		all.Spec.Bindings[i].UID = is.GetUID()
	}
	if obj, err = all.Object(); err == nil {
		_, err = api.Update(t.Context(), obj)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestEpochOfStock: the older copy has a lease that a node kept ahead and gave to a Pod,
// which has ended, and another node has the address by now. The node gives it back before
// it says that it has cleaned up, whether NodeAddresses tells of that Pod or not, also if
// its process is a new one.
func TestEpochOfStock(t *testing.T) {
	for name, tell := range map[string]bool{"told": true, "not told": false} {
		t.Run(name, func(t *testing.T) {
			api := newAPI(t)
			k := &chief{t: t, api: api.Store}
			k.write(nil)
			a, _ := newKeeping(t, api, newDesk(t, api), "n1", nil)
			b := newNode(t, api, "n2")
			b.follow()
			a.run()
			a.stocked(parse(t, widely), 1)
			kept := a.ahead()
			addr := a.mustAdd(parse(t, widely), "old")[0]
			if !slices.Contains(kept, addr) {
				t.Fatalf("%s was not kept ahead: %v", addr, kept)
			}
			if tell {
				a.tellSoon()
				eventually(t, "the cluster is told", func() error {
					if is := bindings(t, api, "n1")[addr]; is.Sandbox != "old" {
						return fmt.Errorf("%s: %+v", addr, is)
					}
					return nil
				})
			}
			a.end()
			a.follow()
			copied := everything(t, api)
			k.write(nil) // a beat since
			a.settle()
			b.settle()
			a.del("old")
			a.drain(t.Context()) // it may have been asked to wait
			b.mustAdd(parse(t, `{"type":"whereabouts","range":"`+addr+`-`+addr+`/20"}`), "b")

			k.api = older(t, copied, a, b)
			retell(t, k.api, "n1")
			a.start() // a new process goes on
			a.follow()
			if a.account(t.Context(), a); len(a.spare) > 0 {
				t.Errorf("n1 believes the copy that it may hand out %v", a.spare)
			}
			b.settle()
			k.write(func(spec *v1alpha1.AddressEpochSpec) { spec.Epoch, spec.Stage = 2, v1alpha1.EpochCleaning })
			b.settle()
			a.settle()
			if is := k.stage("n1"); is.Epoch != 2 || is.Stage != v1alpha1.EpochAsserting {
				t.Fatalf("n1 tells %+v", is)
			}
			for _, lease := range objects(t, k.api) {
				if strings.HasPrefix(lease, addr+" ") {
					t.Errorf("n1 says that it has cleaned up, and there is %s", lease)
				}
			}
			k.write(func(spec *v1alpha1.AddressEpochSpec) { spec.Stage = v1alpha1.EpochAsserting })
			a.settle()
			b.settle()
			if all := objects(t, k.api); !slices.Contains(all, addr+" n2 b/net1") || len(b.conflicts) > 0 {
				t.Errorf("there are %q, and told was of %q", all, b.conflicts)
			}
		})
	}
}

// TestEpochOnOneNode: in the older copy an address is that of a sandbox of the node which
// has ended, and by now another one of the same node has it.
func TestEpochOnOneNode(t *testing.T) {
	api := newAPI(t)
	k := &chief{t: t, api: api.Store}
	k.write(nil)
	a := newNode(t, api, "n1")
	one := parse(t, `{"type":"whereabouts","range":"10.0.0.8-10.0.0.8/24"}`)
	a.follow()
	a.mustAdd(one, "old")
	copied := everything(t, api)
	k.write(nil) // a beat since
	a.settle()
	a.del("old")
	a.mustAdd(one, "new")

	k.api = older(t, copied, a)
	a.settle()
	k.write(func(spec *v1alpha1.AddressEpochSpec) { spec.Epoch, spec.Stage = 2, v1alpha1.EpochCleaning })
	a.settle()
	k.write(func(spec *v1alpha1.AddressEpochSpec) { spec.Stage = v1alpha1.EpochAsserting })
	a.settle()
	k.write(func(spec *v1alpha1.AddressEpochSpec) { spec.Stage = v1alpha1.EpochOpen })
	a.settle()
	same(t, "leases", objects(t, k.api), []string{"10.0.0.8 n1 new/net1"})
	same(t, "told of conflicts", a.conflicts, nil)
	a.del("new")
	nothingLeft(t, k.api, a)
}
