package cluster

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/store"
)

// write makes an epoch of a node as it tells it.
func (c *cluster) nodeEpoch(name string, spec v1alpha1.AddressEpochSpec) {
	c.t.Helper()
	spec.Node = name
	is := v1alpha1.AddressEpoch{Spec: spec}
	is.Name = v1alpha1.NodeEpoch(name)
	obj := is.Object()
	_, err := c.Create(c.t.Context(), obj)
	if err != nil {
		_, err = c.Update(c.t.Context(), obj)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// epochIs waits for a state of the cluster's.
func (c *cluster) epochIs(epoch int64, stage v1alpha1.EpochStage, waiting ...string) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("epoch %d %s, waiting for %v", epoch, stage, waiting), func() error {
		obj, err := c.Get(c.t.Context(), v1alpha1.AddressEpochKind, store.Key{Name: v1alpha1.ClusterEpoch})
		if err != nil {
			return err
		}
		is, err := v1alpha1.EpochFromObject(obj)
		if err == nil && (is.Spec.Epoch != epoch || is.Spec.Stage != stage || !slices.Equal(is.Spec.Waiting, waiting) || is.Spec.Newest() == "") {
			err = fmt.Errorf("it is %+v", is.Spec)
		}
		return err
	})
}

// force annotates the cluster's.
func (c *cluster) force(epoch int64) {
	c.t.Helper()
	c.eventually("annotate", func() error {
		obj, err := c.Get(c.t.Context(), v1alpha1.AddressEpochKind, store.Key{Name: v1alpha1.ClusterEpoch})
		if err != nil {
			return err
		}
		obj.SetAnnotations(map[string]string{v1alpha1.ForceEpoch: strconv.FormatInt(epoch, 10)})
		_, err = c.Update(c.t.Context(), obj)
		return err
	})
}

// TestEpochs: a node tells that the store went back, and all must do their part, but for
// those that are gone, or that somebody says are not to be waited for.
func TestEpochs(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for _, name := range []string{"n1", "n2", "n3"} {
		c.node(name)
	}
	is := func(name string, epoch int64, stage v1alpha1.EpochStage) {
		c.nodeEpoch(name, v1alpha1.AddressEpochSpec{Epoch: epoch, Stage: stage})
	}
	const cleaning, asserting, open = v1alpha1.EpochCleaning, v1alpha1.EpochAsserting, v1alpha1.EpochOpen
	for _, name := range []string{"n1", "n2"} {
		is(name, 1, open)
	}
	c.lease("10.0.0.1", "n3", v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerNIC, Namespace: "a", Name: "x"}) // whose agent never told of itself
	c.control(c)
	c.epochIs(1, open)
	c.nodeEpoch("n1", v1alpha1.AddressEpochSpec{Epoch: 1, Lost: 1})
	c.epochIs(2, cleaning, "n1", "n2", "n3")
	is("n1", 2, asserting)
	is("n3", 2, asserting)
	c.epochIs(2, cleaning, "n2")
	is("n1", 2, open) // too early, and no harm
	c.remove(nodeKind, "", "n2")
	c.epochIs(2, asserting, "n3")
	is("n3", 2, open)
	c.epochIs(2, open)
	c.nodeEpoch("n3", v1alpha1.AddressEpochSpec{Epoch: 2, Lost: 2})
	c.epochIs(3, cleaning, "n1", "n3")
	c.force(2) // another epoch's
	is("n3", 3, asserting)
	c.epochIs(3, cleaning, "n1")
	c.force(3)
	c.epochIs(3, open)
	is("n1", 3, open)
	is("n3", 3, open)
	c.remove(v1alpha1.AddressEpochKind, "", v1alpha1.ClusterEpoch) // as in a copy from before weft
	c.epochIs(4, cleaning, "n1", "n3")
}

// TestEpochBesideOlderCopy: the controller that wrote beats notices by itself that they
// are gone.
func TestEpochBesideOlderCopy(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.control(c)
	c.epochIs(1, v1alpha1.EpochOpen)
	c.eventually("put an older one there", func() error {
		obj, err := c.Get(t.Context(), v1alpha1.AddressEpochKind, store.Key{Name: v1alpha1.ClusterEpoch})
		if err != nil {
			return err
		}
		is, err := v1alpha1.EpochFromObject(obj)
		if err != nil {
			return err
		}
		is.Spec.Beats = []string{"1-" + strings.Repeat("0", 12)}
		_, err = c.Update(t.Context(), is.Object())
		return err
	})
	c.epochIs(2, v1alpha1.EpochOpen) // there are no nodes to wait for
}
