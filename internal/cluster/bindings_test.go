package cluster

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/advice"
)

// ahead makes a lease that a node took ahead of its Pods, and gives its UID.
func (l *lab) ahead(addr string) types.UID {
	l.t.Helper()
	return l.create(leasesPath, fmt.Sprintf(`{"apiVersion":"weft.network/v1alpha1","kind":"AddressLease","metadata":{"name":%q},
		"spec":{"ip":%q,"scope":"whereabouts:","node":"n1","journal":"b/r","owner":{"kind":"Node","name":"n1"}}}`, addr, addr))
}

const tellsPath = "/apis/weft.network/v1alpha1/nodeaddresses"

// TestKeptAhead: what a node keeps ahead is a Pod's once the node tells so, and is
// given back with that Pod; the rest goes with the node, which is told before to keep
// none.
func TestKeptAhead(t *testing.T) {
	l := newLab(t)
	a := l.controller("a", 10981)
	l.leads(a)
	x := l.create(podsPath, `{"metadata":{"name":"x"},"spec":{"nodeName":"n1","terminationGracePeriodSeconds":0,"containers":[{"name":"c","image":"x"}]}}`)
	first, second := l.ahead("10.9.0.1"), l.ahead("10.9.0.2")
	l.create(tellsPath, fmt.Sprintf(`{"apiVersion":"weft.network/v1alpha1","kind":"NodeAddresses","metadata":{"name":"n1"},"spec":{"bindings":[
		{"lease":"10.9.0.1","uid":%q,"interface":"net1","sandbox":"s","owner":{"kind":"Pod","namespace":"default","name":"x","uid":%q}},
		{"lease":"10.9.0.2","uid":"of another","interface":"net1","sandbox":"s","owner":{"kind":"Pod","namespace":"default","name":"x","uid":%q}}]}}`, first, x, x))
	client := l.agent()
	keeps := []netip.Addr{netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("10.9.0.9")}
	l.eventually("the node may keep addresses", func() error {
		got, ok := client.Keep(t.Context(), "whereabouts:", wide, keeps)
		if !ok || got.Most != 8 || !slices.Equal(got.Back, keeps[1:]) {
			return fmt.Errorf("got %+v, %t", got, ok)
		}
		return nil
	})
	l.keepsByEpoch(client, keeps)
	l.ask("DELETE", podsPath+"/x", "", nil)
	l.becomes("10.9.0.2")
	l.ask("DELETE", "/api/v1/nodes/n1", "", nil)
	l.eventually("the node is to keep none", func() error {
		got, ok := client.Keep(t.Context(), "whereabouts:", wide, keeps)
		if !ok || got.Most != 0 || !slices.Equal(got.Back, keeps) {
			return fmt.Errorf("got %+v, %t", got, ok)
		}
		return nil
	})
	if held := l.held(); !slices.Equal(held, []string{"10.9.0.2"}) {
		t.Errorf("held are %v of %s: the node may not know yet", held, second)
	}
	l.becomes()
	l.eventually("what the node told is gone", func() error {
		if _, code, err := l.try(t.Context(), "GET", tellsPath+"/n1", "", ""); err != nil || code != 404 {
			return fmt.Errorf("%d, %w", code, err)
		}
		return nil
	})
}

const epochsPath = "/apis/weft.network/v1alpha1/addressepochs"

// keepsByEpoch: a node may keep none from when an epoch ends until the next is open,
// though it may keep some as far as the range goes.
func (l *lab) keepsByEpoch(client *advice.Client, keeps []netip.Addr) {
	l.t.Helper()
	l.create(epochsPath, `{"apiVersion":"weft.network/v1alpha1","kind":"AddressEpoch","metadata":{"name":"node.n1"},"spec":{"epoch":1,"lost":1,"node":"n1"}}`)
	for _, stage := range []v1alpha1.EpochStage{v1alpha1.EpochCleaning, v1alpha1.EpochAsserting, v1alpha1.EpochOpen} {
		l.epochIs(string(stage), func(is v1alpha1.AddressEpochSpec) bool { return is.Epoch == 2 && is.Stage == stage })
		most, back := 0, keeps
		if stage == v1alpha1.EpochOpen {
			most, back = 8, keeps[1:]
		}
		l.eventually(fmt.Sprintf("the node may keep %d addresses", most), func() error {
			got, ok := client.Keep(l.t.Context(), "whereabouts:", wide, keeps)
			if !ok || got.Most != most || !slices.Equal(got.Back, back) {
				return fmt.Errorf("got %+v, %t", got, ok)
			}
			return nil
		})
		next := map[v1alpha1.EpochStage]v1alpha1.EpochStage{v1alpha1.EpochCleaning: v1alpha1.EpochAsserting, v1alpha1.EpochAsserting: v1alpha1.EpochOpen}[stage]
		if next != "" {
			l.ask("PATCH", epochsPath+"/node.n1", fmt.Sprintf(`{"spec":{"epoch":2,"lost":0,"stage":%q}}`, next), nil)
		}
	}
}
