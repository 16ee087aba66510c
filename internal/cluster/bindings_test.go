package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/advice"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store/kube"
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
	l.silentIsNamed(client)
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

// silentIsNamed: a node whose agent is dead keeps what it took ahead, for nobody knows
// which of it its Pods have. Who finds a range full is told of that node.
func (l *lab) silentIsNamed(client *advice.Client) {
	l.t.Helper()
	way, err := kubeapi.Open(l.Kubeconfig(), kubeapi.Options{Dial: l.Dial})
	if err != nil {
		l.t.Fatal(err)
	}
	api := kube.New(way)
	l.create("/api/v1/nodes", `{"metadata":{"name":"n2"}}`)
	for _, addr := range []string{"10.9.9.1", "10.9.9.2"} {
		made, err := api.Create(l.t.Context(), lease.Document(v1alpha1.AddressLeaseSpec{
			IP: netip.MustParseAddr(addr), Scope: "whereabouts:", Pool: "10.9.9.0/30", Node: "n2", Journal: "b/r",
			Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerNode, Name: "n2"},
		}).Object())
		if err != nil {
			l.t.Fatal(err)
		}
		defer l.ask("DELETE", leasesPath+"/"+made.GetName(), "", nil)
	}
	n1, err := lease.New(lease.Options{API: api, Node: "n1", Dir: l.t.TempDir(), Adviser: client, Keeper: client, Log: logTo(l.t)})
	if err != nil {
		l.t.Fatal(err)
	}
	config, err := ipam.Parse([]byte(`{"name":"n","ipam":{"type":"whereabouts","range":"10.9.9.0/30"}}`), "")
	if err != nil {
		l.t.Fatal(err)
	}
	a := &record.Attachment{Network: "demo/lan", Interface: "net1", Leased: true}
	box := &record.Sandbox{ID: "s", Pod: record.Pod{Namespace: "demo", Name: "p", UID: "u"}, Attachments: []*record.Attachment{a}}
	const want = `all 2 addresses of 10.9.9.0/30 are held: 2 by nodes for their Pods, of which node n2, whose agent does not answer, keeps 2 ahead of its Pods; see that weft's agents of those nodes run`
	l.eventually("the silent node is named", func() error {
		_, err := ipam.NewConcurrentAllocator(n1.Of(box, a, config)).Allocate(l.t.Context(), config, "s/net1")
		if err == nil || !errors.Is(err, ipam.ErrExhausted) || !strings.Contains(err.Error(), want) {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
}
