package cluster

import (
	"fmt"
	"sync"
	"testing"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/store"
)

// TestB6NamedNetwork: addresses of a network_name are held as long as their Pods are
// there, and as leases of other networks are.
func TestB6NamedNetwork(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	for addr, name := range map[string]string{"10.30.0.1": "plain", "fd00::1": "ends"} {
		pod := c.pod(name, "n1")
		c.leaseIn("whereabouts:blue-net", addr, "n1", v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "a", Name: name, UID: pod.GetUID()})
	}
	c.control(c)
	c.stays("10.30.0.1", "fd00::1")
	c.remove(podKind, "a", "ends")
	c.becomes("10.30.0.1")
}

// TestB7PendingPod: a Pod that is just being made has no status, and keeps what it has
// so far.
func TestB7PendingPod(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	pod := c.pod("pending", "n1", "10.0.0.1")
	c.control(c)
	c.stays("10.0.0.1")
	c.phase(pod, "Pending")
	c.stays("10.0.0.1")
}

// TestB12FinishedPod: a Pod whose containers have ended for good keeps no address, though
// its object stays.
func TestB12FinishedPod(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	done, failed := c.pod("done", "n1", "10.0.0.1"), c.pod("failed", "n1", "10.0.0.2")
	c.pod("runs", "n1", "10.0.0.3")
	c.control(c)
	c.phase(done, "Succeeded")
	c.phase(failed, "Failed")
	c.becomes("10.0.0.3")
}

// TestNamespaceDeleted: many Pods go at once, and their nodes give back some of their
// addresses at the same time. All of them are free after it, and no others.
func TestNamespaceDeleted(t *testing.T) {
	t.Parallel()
	const nodes, pods = 4, 240
	c := newCluster(t)
	for i := range nodes {
		c.node(fmt.Sprint("n", i))
	}
	c.pod("stays", "n0", "10.1.0.1", "10.1.0.2")
	for i := range pods {
		c.pod(fmt.Sprint("p", i), fmt.Sprint("n", i%nodes), fmt.Sprintf("10.0.%d.1", i))
	}
	c.control(c)
	var group sync.WaitGroup
	for i := range pods {
		group.Go(func() {
			c.remove(podKind, "a", fmt.Sprint("p", i))
			if i%3 == 0 { // its node is in time; the controller may be faster
				_ = c.Delete(t.Context(), leaseKind, store.Key{Name: fmt.Sprintf("10.0.%d.1", i)}, store.Precondition{})
			}
		})
	}
	group.Wait()
	c.becomes("10.1.0.1", "10.1.0.2")
	c.stays("10.1.0.1", "10.1.0.2")
}
