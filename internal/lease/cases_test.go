package lease

import (
	"fmt"
	"sync"
	"testing"

	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// TestSixteenNICs: 40 Pods on eight nodes have 16 interfaces each, all at once, of one
// range. Each address is given once, and all go back.
func TestSixteenNICs(t *testing.T) {
	const nodes, pods, nics = 8, 40, 16
	api := newAPI(t)
	advice := newDesk(t, api)
	config := parse(t, `{"type":"whereabouts","range":"10.50.0.0/20"}`)
	var all []*node
	for i := range nodes {
		n := newNode(t, api, fmt.Sprint("n", i))
		n.Adviser = advice
		all = append(all, n)
	}
	var group sync.WaitGroup
	var mu sync.Mutex // guards has
	has := map[string]string{}
	for pod := range pods {
		for nic := range nics {
			group.Go(func() {
				n, ifName := all[pod%nodes], fmt.Sprint("net", nic)
				owner := ipam.AttachmentOwner(fmt.Sprint("s", pod), ifName)
				a := &record.Attachment{Network: "demo/lan", Interface: netstate.IfName(ifName), Leased: true}
				box := &record.Sandbox{ID: fmt.Sprint("s", pod), Pod: record.Pod{Namespace: "demo", Name: fmt.Sprint("p", pod), UID: fmt.Sprint("u", pod)}, Attachments: []*record.Attachment{a}}
				got, err := ipam.NewConcurrentAllocator(n.Of(box, a, config)).Allocate(t.Context(), config, owner)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				addr := got.Addresses[0].Prefix.Addr().String()
				if other := has[addr]; other != "" {
					t.Errorf("%s is given to %s and %s", addr, other, owner)
				}
				has[addr] = string(owner)
			})
		}
	}
	group.Wait()
	if len(has) != pods*nics {
		t.Errorf("%d addresses were given, want %d", len(has), pods*nics)
	}
	for pod := range pods {
		group.Go(func() {
			if err := all[pod%nodes].End(t.Context(), ipam.AttachmentOwner(fmt.Sprint("s", pod), "")); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	nothingLeft(t, api, all...)
}

// TestAsManyPodsAsAddresses: a range has no address more than there are Pods, and all
// Pods are made anew again and again, on other nodes. Each has one at the first try.
func TestAsManyPodsAsAddresses(t *testing.T) {
	const nodes, rounds = 3, 4
	api := newAPI(t)
	config := parse(t, `{"type":"whereabouts","range":"10.50.0.0/27"}`)
	const pods = 30
	var all []*node
	for i := range nodes {
		n := newNode(t, api, fmt.Sprint("n", i))
		n.run()
		all = append(all, n)
	}
	for round := range rounds {
		var group sync.WaitGroup
		var mu sync.Mutex // guards has
		has := map[string]bool{}
		each := func(do func(n *node, sandbox string)) {
			for pod := range pods {
				group.Go(func() { do(all[(pod+round)%nodes], fmt.Sprintf("s%d-%d", round, pod)) })
			}
			group.Wait()
		}
		each(func(n *node, sandbox string) {
			got, err := n.add(config, sandbox)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			has[got[0]] = true
		})
		if len(has) != pods {
			t.Errorf("%d Pods have %d addresses", pods, len(has))
		}
		each(func(n *node, sandbox string) { n.del(sandbox) })
	}
	nothingLeft(t, api, all...)
}
