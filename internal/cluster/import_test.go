package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/kube"
	takeover "github.com/weftnet/weft/internal/whereabouts"
	"github.com/weftnet/weft/test/machine"
)

const (
	poolsPath        = "/apis/whereabouts.cni.cncf.io/v1alpha1/namespaces/kube-system/ippools"
	reservationsPath = "/apis/whereabouts.cni.cncf.io/v1alpha1/namespaces/kube-system/overlappingrangeipreservations"
	giverPath        = "/api/v1/namespaces/kube-system/configmaps/" + takeover.ConfigMap
)

// installWhereabouts makes its kinds.
func (l *lab) installWhereabouts() {
	l.t.Helper()
	l.kubectl("", "apply", "-f", filepath.Join(machine.Tree(), "internal/cluster/testdata/whereabouts.yaml"))
	l.kubectl("", "wait", "--for=condition=Established", "crd/ippools.whereabouts.cni.cncf.io", "crd/overlappingrangeipreservations.whereabouts.cni.cncf.io", "--timeout=60s")
}

// running makes a Pod that runs on n1.
func (l *lab) running(name string) types.UID {
	l.t.Helper()
	uid := l.create(podsPath, fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"nodeName":"n1","terminationGracePeriodSeconds":0,"containers":[{"name":"c","image":"x"}]}}`, name))
	l.ask("PATCH", podsPath+"/"+name+"/status", `{"status":{"phase":"Running"}}`, nil)
	return uid
}

// gives waits until the ConfigMap says who gives addresses.
func (l *lab) gives(want takeover.Giver) {
	l.t.Helper()
	l.eventually("addresses are given by "+string(want), func() error {
		var got struct {
			Data map[string]string `json:"data"`
		}
		l.ask("GET", giverPath, "", &got)
		if got.Data["gives"] != string(want) {
			return fmt.Errorf("it says %q", got.Data)
		}
		return nil
	})
}

// refused says whether others than weft may make an object.
func (l *lab) refused(path, body string) bool {
	l.t.Helper()
	answer, code, err := l.try(l.t.Context(), "POST", path, body, "")
	if err != nil {
		l.t.Fatal(err)
	}
	if code >= 300 && !strings.Contains(string(answer), "weft-whereabouts") {
		l.t.Fatalf("%d: %s", code, answer)
	}
	return code >= 300
}

func reservation(addr, pod string) string {
	return fmt.Sprintf(`{"apiVersion":"whereabouts.cni.cncf.io/v1alpha1","kind":"OverlappingRangeIPReservation","metadata":{"name":%q},"spec":{"podref":%q,"ifname":"net1"}}`, addr, pod)
}

// node gives the leases of n1 as its agent has them, with what it may do.
func (l *lab) nodeStore() *lease.Store {
	l.t.Helper()
	l.create("/api/v1/namespaces/kube-system/pods", `{"metadata":{"name":"agent"},"spec":{"nodeName":"n1","serviceAccountName":"weft","containers":[{"name":"c","image":"x"}]}}`)
	file := l.kubeconfig("agent", l.Server, l.token("weft", `"boundObjectRef":{"apiVersion":"v1","kind":"Pod","name":"agent"}`))
	client, err := kubeapi.Open(file, kubeapi.Options{Agent: "weft-node", Dial: l.Dial})
	if err != nil {
		l.t.Fatal(err)
	}
	held, err := lease.New(lease.Options{
		API: kube.New(client), Node: "n1", Dir: l.t.TempDir(), Log: logTo(l.t), Giving: store.Key{Namespace: "kube-system", Name: takeover.ConfigMap},
	})
	if err != nil {
		l.t.Fatal(err)
	}
	if err := held.Sync(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
	return held
}

// give gives an address to a sandbox, as an ADD does.
func (l *lab) give(held *lease.Store, keys, sandbox string) (string, error) {
	l.t.Helper()
	config, err := ipam.Parse([]byte(`{"name":"n","ipam":{"type":"whereabouts",`+keys+`}}`), "")
	if err != nil {
		l.t.Fatal(err)
	}
	box := &record.Sandbox{ID: sandbox, Pod: record.Pod{Namespace: "default", Name: sandbox, UID: string(l.running(sandbox))}}
	a := &record.Attachment{Network: "default/lan", Interface: "net1"}
	got, err := ipam.NewConcurrentAllocator(held.Of(box, a, config)).Allocate(l.t.Context(), config, ipam.AttachmentOwner(sandbox, "net1"))
	if err != nil {
		return "", err
	}
	return got.Addresses[0].Prefix.Addr().String(), nil
}

// TestTakeOver is a cluster whose addresses become weft's, on a real API: the real
// program, the policies that keep the one from giving while the other does, and what
// a node's agent may do.
func TestTakeOver(t *testing.T) {
	l := newLab(t)
	l.installWhereabouts()
	a, x := l.running("a"), l.running("x")
	l.create(poolsPath, `{"apiVersion":"whereabouts.cni.cncf.io/v1alpha1","kind":"IPPool","metadata":{"name":"10.9.0.0-29"},"spec":{"range":"10.9.0.0/29","allocations":{
		"1":{"id":"box-a","podref":"default/a","ifname":"net1"},"2":{"id":"box-gone","podref":"default/gone","ifname":"net1"},"3":{"id":"box-x","podref":"default/x","ifname":"net1"}}}}`)
	for addr, pod := range map[string]string{"10.9.0.1": "default/a", "10.9.0.2": "default/gone", "10.9.0.3": "default/x"} {
		l.create(reservationsPath, reservation(addr, pod))
	}
	first := l.controller("first", 10981)
	l.gives(takeover.ByWhereabouts)
	held := l.nodeStore()
	if serves, err := held.Serves(t.Context(), true); serves || err != nil {
		t.Errorf("with the plugin: %v, %v", serves, err)
	}
	if got, err := l.give(held, `"range":"10.9.0.0/29"`, "early"); err == nil || !strings.Contains(err.Error(), "its plugin is not on this node") {
		t.Errorf("before the import: %q, %v", got, err)
	}
	if l.refused(reservationsPath, reservation("10.9.0.4", "default/late")) { // which has no entry
		t.Error("Whereabouts may not give addresses")
	}
	t.Log("as it was")

	l.signal(first, syscall.SIGTERM)
	both := l.controller("both", 10986, "--whereabouts=mixed")
	l.gives(takeover.Mixed)
	l.mixedOn(held)
	l.signal(both, syscall.SIGTERM)
	t.Log("mixed")

	second := l.controller("second", 10982, "--whereabouts=takeOver")
	l.gives(takeover.ByWeft)
	l.holds(
		"10.9.0.1 n1 box-a Pod default/a "+string(a), "10.9.0.2  box-gone Whereabouts default/gone ",
		"10.9.0.3 n1 box-x Pod default/x "+string(x), "10.9.0.4   Whereabouts default/late ",
	)
	if !l.refused(reservationsPath, reservation("10.9.0.5", "default/later")) {
		t.Error("Whereabouts may still give addresses")
	}
	if n := second.said("does not fit together"); n != 3 {
		t.Errorf("the log tells of %d disagreements", n)
	}
	if serves, err := held.Serves(t.Context(), false); !serves || err != nil {
		t.Errorf("without the plugin: %v, %v", serves, err)
	}
	if got, err := l.give(held, `"range":"10.9.0.0/29"`, "late-10.9.0.6"); err == nil || !strings.Contains(err.Error(), "reserve") {
		t.Errorf("the node has not heard of it: %s, %v", got, err)
	}
	if _, err := l.give(held, `"range":"10.9.0.0/29"`, "late-10.9.0.6"); err != nil {
		t.Error(err)
	}
	if got, err := l.give(held, `"range":"10.9.0.0/29"`, "none-left"); err == nil {
		t.Errorf("%s was given twice", got)
	}
	t.Log("taken over")

	// A Pod of before ends, and its node did not know of its address.
	l.ask("DELETE", podsPath+"/x", "", nil)
	l.eventually("10.9.0.3 is free", func() error {
		l.beat()
		if slices.Contains(l.held(), "10.9.0.3") {
			return errors.New("it is held")
		}
		return nil
	})
	if held := l.held(); !slices.Contains(held, "10.9.0.2") || !slices.Contains(held, "10.9.0.4") || !slices.Contains(held, "10.9.0.1") {
		t.Errorf("held: %v", held)
	}
	l.mirrors("10.9.0.1 default/a weft", "10.9.0.2 default/gone weft", "10.9.0.4 default/late weft", "10.9.0.5 default/stays weft", "10.9.0.6 default/late-10.9.0.6 weft")
	l.signal(second, syscall.SIGTERM)
	third := l.controller("third", 10983, "--imported-for=1s")
	l.eventually("what nobody has is free in the end", func() error {
		if held := l.held(); slices.Contains(held, "10.9.0.2") || slices.Contains(held, "10.9.0.4") {
			return fmt.Errorf("held: %v", held)
		}
		return nil
	})
	l.mirrors("10.9.0.1 default/a weft", "10.9.0.5 default/stays weft", "10.9.0.6 default/late-10.9.0.6 weft")
	l.guided()
	t.Log("shown")

	l.signal(third, syscall.SIGTERM)
	fourth := l.controller("fourth", 10984, "--whereabouts=handBack")
	l.gives(takeover.ByWhereabouts)
	l.mirrors("10.9.0.1 default/a ", "10.9.0.5 default/stays ", "10.9.0.6 default/late-10.9.0.6 ")
	if got, err := l.give(held, `"range":"10.9.0.0/29"`, "refused"); err == nil {
		t.Errorf("weft gives %s", got)
	}
	if _, err := l.give(held, `"range":"10.9.0.0/29"`, "refused"); err == nil || !strings.Contains(err.Error(), "its plugin is not on this node") {
		t.Errorf("the node knows it not: %v", err)
	}
	if l.refused(reservationsPath, reservation("10.9.0.2", "default/back")) {
		t.Error("Whereabouts may not give addresses again")
	}
	t.Log("handed back")
	l.signal(fourth, syscall.SIGTERM)
	l.controller("fifth", 10985, "--whereabouts=takeOver")
	l.gives(takeover.ByWeft)
	if got, want := l.held(), []string{"10.9.0.1", "10.9.0.2", "10.9.0.5", "10.9.0.6"}; !slices.Equal(got, want) {
		t.Errorf("held %v, want %v", got, want)
	}
}

// mixedOn has a node give addresses of a range at the same time as Whereabouts. One of them
// stays.
func (l *lab) mixedOn(held *lease.Store) {
	l.t.Helper()
	const keys = `"range":"10.9.0.0/29"`
	ctx := l.t.Context()
	l.eventually("a node with the plugin gives addresses, too", func() error { // it asks anew after a while
		if serves, err := held.Serves(ctx, true); !serves || err != nil {
			return fmt.Errorf("%v, %w", serves, err)
		}
		return nil
	})
	if _, err := l.give(held, keys+`,"enable_overlapping_ranges":false`, "off"); err == nil || !strings.Contains(err.Error(), "default/lan: ipam.enable_overlapping_ranges") {
		l.t.Errorf("without reservations: %v", err)
	}
	if got, err := l.give(held, keys, "beside"); err != nil || got != "10.9.0.6" {
		l.t.Fatalf("beside Whereabouts: %q, %v", got, err)
	}
	if l.refused(reservationsPath, reservation("10.9.0.5", "default/other")) {
		l.t.Error("Whereabouts may not give addresses")
	}
	if err := held.End(ctx, ipam.AttachmentOwner("beside", "net1")); err != nil {
		l.t.Error(err)
	}
	l.reserves("10.9.0.6")
	l.ask("DELETE", reservationsPath+"/10.9.0.5", "", nil)
	if got, err := l.give(held, keys, "stays"); err != nil || got != "10.9.0.5" {
		l.t.Fatalf("beside Whereabouts: %q, %v", got, err)
	}
	l.ask("DELETE", reservationsPath+"/10.9.0.5", "", nil) // as Whereabouts' plugin deletes it
	l.reserves("10.9.0.5 default/stays@n1")

	// What an agent may do.
	lock := func(node string) *store.Object {
		scope, addr := ipam.WhereaboutsScope("", netip.Prefix{}), netip.MustParseAddr("10.9.0.6")
		return &store.Object{Object: takeover.Lock(takeover.LockFor{
			Namespace: "kube-system", Name: lease.Name(scope, addr), Owner: "gone/net1", Lease: takeover.Lease{Scope: scope, Addr: addr, PodRef: "default/gone", Node: node},
		}).Object()}
	}
	refused := func(what string, err error) {
		l.t.Helper()
		if _, is := errors.AsType[*hint.Error](err); !is {
			l.t.Errorf("an agent may %s: %v", what, err)
		}
	}
	_, err := held.API.Create(ctx, lock("n2"))
	refused("reserve for another node", err)
	theirs, err := held.API.Get(ctx, reservationKind, store.Key{Namespace: "kube-system", Name: "10.9.0.1"})
	if err != nil {
		l.t.Fatal(err)
	}
	refused("delete what Whereabouts reserved", held.API.Delete(ctx, reservationKind, store.KeyOf(theirs), store.Precondition{UID: theirs.GetUID()}))
	theirs.SetLabels(takeover.Mine())
	_, err = held.API.Update(ctx, theirs)
	refused("change what Whereabouts reserved", err)
	_, err = held.API.Create(ctx, lease.Document(v1alpha1.AddressLeaseSpec{
		IP: netip.MustParseAddr("10.9.0.6"), Scope: "whereabouts:", Node: "n1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Name: "x"},
	}).Object())
	refused("lease what is not reserved", err)

	// It dies before it has its lease.
	if _, err := held.API.Create(ctx, lock("n1")); err != nil {
		l.t.Fatal(err)
	}
	l.reserves("10.9.0.6 default/gone@n1")
	l.eventually("what has no lease is not reserved", func() error {
		if all := l.reservations(); slices.Contains(all, "10.9.0.6 default/gone@n1") {
			return fmt.Errorf("reserved are %q", all)
		}
		return nil
	})
}

// reservations gives those there are.
func (l *lab) reservations() (all []string) {
	l.t.Helper()
	var list struct {
		Items []struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
			Spec struct {
				PodRef string `json:"podref"`
			} `json:"spec"`
		} `json:"items"`
	}
	l.ask("GET", reservationsPath, "", &list)
	for _, is := range list.Items {
		all = append(all, is.Metadata.Name+" "+is.Spec.PodRef)
	}
	return all
}

// reserves says whether there is that reservation, or, without its Pod, none.
func (l *lab) reserves(want string) {
	l.t.Helper()
	all := l.reservations()
	name, _, wanted := strings.Cut(want, " ")
	is := slices.ContainsFunc(all, func(one string) bool { return strings.HasPrefix(one, name+" ") })
	if wanted && !slices.Contains(all, want) || !wanted && is {
		l.t.Errorf("reserved are %q, want %q", all, want)
	}
}

// mirrors waits until Whereabouts' objects show these addresses, and whose the
// objects are.
func (l *lab) mirrors(want ...string) {
	l.t.Helper()
	l.eventually(fmt.Sprintf("shown are %q", want), func() error {
		type document struct {
			Metadata struct {
				Name   string            `json:"name"`
				Labels map[string]string `json:"labels"`
			} `json:"metadata"`
			Spec struct {
				PodRef      string `json:"podref"`
				Allocations map[string]struct {
					PodRef string `json:"podref"`
				} `json:"allocations"`
			} `json:"spec"`
		}
		var reservations, pools struct {
			Items []document `json:"items"`
		}
		l.ask("GET", reservationsPath, "", &reservations)
		l.ask("GET", poolsPath, "", &pools)
		var got, listed []string
		for _, is := range reservations.Items {
			got = append(got, is.Metadata.Name+" "+is.Spec.PodRef+" "+is.Metadata.Labels["app.kubernetes.io/managed-by"])
		}
		for _, is := range pools.Items {
			for offset, entry := range is.Spec.Allocations {
				listed = append(listed, "10.9.0."+offset+" "+entry.PodRef+" "+is.Metadata.Labels["app.kubernetes.io/managed-by"])
			}
		}
		slices.Sort(listed)
		inPools := slices.DeleteFunc(slices.Clone(want), func(one string) bool { return strings.Contains(one, " default/late ") }) // of no range that is known
		if !slices.Equal(got, want) || !slices.Equal(listed, inPools) {
			return fmt.Errorf("reserved %q, listed %q", got, listed)
		}
		return nil
	})
}

// holds says which leases there are that were imported.
func (l *lab) holds(want ...string) {
	l.t.Helper()
	list := struct{ Items []v1alpha1.AddressLease }{}
	l.ask("GET", leasesPath+"?labelSelector=weft.network/imported", "", &list)
	var got []string
	for _, is := range list.Items {
		o := is.Spec.Owner
		got = append(got, fmt.Sprintf("%s %s %s %s %s/%s %s", is.Name, is.Spec.Node, is.Spec.Sandbox, o.Kind, o.Namespace, o.Name, o.UID))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		l.t.Errorf("imported:\n%q, want\n%q", got, want)
	}
}

// walled is a cluster whose API server refuses what is not weft's, and whose requests
// fail as they are told.
type walled struct {
	store.Store
	fail func(verb string, obj *store.Object) error
}

func (w walled) Create(ctx context.Context, obj *store.Object) (*store.Object, error) {
	if err := w.fail("create", obj); err != nil {
		return nil, err
	}
	return w.Store.Create(ctx, obj)
}

func (w walled) Update(ctx context.Context, obj *store.Object) (*store.Object, error) {
	if err := w.fail("update", obj); err != nil {
		return nil, err
	}
	if obj.GetName() == takeover.ProbeName && len(obj.GetLabels()) == 0 {
		return nil, &hint.Error{Problem: "is not weft's"}
	}
	return w.Store.Update(ctx, obj)
}

// TestCutShort kills the controller at each of its writes in turn, on the way in and
// on the way back: what the next one makes of it is what one would have made.
func TestCutShort(t *testing.T) {
	t.Parallel()
	for _, wish := range []string{TakeOver, HandBack, Mixed} {
		t.Run(wish, func(t *testing.T) {
			t.Parallel()
			least := 7
			for after := 0; cutShort(t, wish, after); after++ {
				least--
			}
			if least > 0 {
				t.Errorf("there were %d writes less than there must be", least)
			}
		})
	}
}

// cutShort kills a controller after some writes. false: there were not as many.
func cutShort(t *testing.T, wish string, after int) bool {
	t.Helper()
	c := newCluster(t)
	c.node("n1")
	c.whereabouts()
	if wish == HandBack {
		stop := c.besides(walled{c.Store, heals}, TakeOver)
		<-c.given(takeover.ByWeft)
		stop()
		c.remove(ipPoolKind, "kube-system", "10.0.0.0-24")
		for _, addr := range c.held() {
			c.remove(reservationKind, "kube-system", addr)
		}
	}
	if !c.killed(wish, after) {
		return false
	}
	want := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}
	if got := c.held(); !slices.Equal(got, want) {
		t.Fatalf("killed after %d writes: held %v", after, got)
	}
	list, _, err := c.List(t.Context(), reservationKind, store.Selector{})
	if err != nil {
		t.Fatal(err)
	}
	var reserved []string
	for _, obj := range list {
		reserved = append(reserved, obj.GetName())
		if len(obj.GetLabels()) > 0 {
			t.Errorf("killed after %d writes: %s has the labels %v", after, obj.GetName(), obj.GetLabels())
		}
	}
	slices.Sort(reserved)
	if !slices.Equal(reserved, want) {
		t.Fatalf("killed after %d writes: reserved %v", after, reserved)
	}
	return true
}

// heals fails no request.
func heals(string, *store.Object) error { return nil }

// killed kills a controller after some writes, and waits until the next one is done. false:
// there were not as many, and the first is done.
func (c *cluster) killed(wish string, after int) bool {
	c.t.Helper()
	var mu sync.Mutex // guards writes
	writes, died := 0, make(chan struct{})
	stop := c.besides(walled{c.Store, func(verb string, obj *store.Object) error {
		if obj.GetKind() == "Lease" { // of the election
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		if writes++; writes == after+1 {
			close(died)
		}
		if writes > after {
			return errors.New("killed")
		}
		return nil
	}}, wish)
	defer func() { stop() }()
	select {
	case <-died:
	case <-c.given(wishes[wish]):
		return false
	}
	stop()
	stop = c.besides(walled{c.Store, heals}, wish)
	<-c.given(wishes[wish])
	return true
}

// whereabouts has it hold three addresses, of two Pods that run and of none.
func (c *cluster) whereabouts() {
	c.t.Helper()
	for _, name := range []string{"x", "y"} {
		c.phase(c.make(podKind, "a", name, func(obj *store.Object) { obj.Object["spec"] = map[string]any{"nodeName": "n1"} }), "Running")
	}
	entries := map[string]any{}
	for offset, pod := range map[string]string{"1": "a/x", "2": "a/y", "3": "a/gone"} {
		entries[offset] = map[string]any{"id": "box-" + pod, "podref": pod, "ifname": "net1"}
		c.make(reservationKind, "kube-system", "10.0.0."+offset, func(obj *store.Object) { obj.Object["spec"] = map[string]any{"podref": pod, "ifname": "net1"} })
	}
	c.make(ipPoolKind, "kube-system", "10.0.0.0-24", func(obj *store.Object) {
		obj.Object["spec"] = map[string]any{"range": "10.0.0.0/24", "allocations": entries}
	})
}

// besides runs a controller that is told what to do about Whereabouts.
func (c *cluster) besides(api store.Store, wish string) (stop func()) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	ended := make(chan error, 1)
	control := newController(Options{
		Namespace: "weft", Name: "test", Grace: grace, Compare: grace, Log: slog.New(slog.DiscardHandler),
		Whereabouts: wish, WhereaboutsNamespace: "kube-system", ImportedFor: time.Hour,
	})
	control.settle = time.Millisecond
	go func() { ended <- control.run(ctx, api) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			c.t.Errorf("controller: %v", err)
		}
	})
}

// given is closed when somebody gives addresses.
func (c *cluster) given(by takeover.Giver) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		for ; c.t.Context().Err() == nil; time.Sleep(5 * time.Millisecond) {
			obj, err := c.Get(context.Background(), configMapKind, store.Key{Namespace: "weft", Name: takeover.ConfigMap})
			if err != nil {
				continue
			}
			data, _ := obj.Object["data"].(map[string]any)
			if takeover.ParseGiving(data).By == by {
				close(done)
				return
			}
		}
	}()
	return done
}

// TestOthersAskWhereabouts: networks whose plugin asks Whereabouts by itself keep it
// from being taken over, before anybody has to wait.
func TestOthersAskWhereabouts(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.whereabouts()
	c.make(networks.DefinitionKind, "a", "fast", func(obj *store.Object) {
		obj.Object["spec"] = map[string]any{"config": `{"cniVersion":"1.0.0","type":"sriov","ipam":{"type":"whereabouts","range":"10.0.0.0/24"}}`}
	})
	control := newController(Options{Namespace: "weft", Whereabouts: TakeOver, WhereaboutsNamespace: "kube-system", Log: slog.New(slog.DiscardHandler)})
	control.api = c.Store
	b := &beside{controller: control, writer: c.Store}
	_, err := b.pass(t.Context(), takeover.Giving{By: takeover.ByWhereabouts}, takeover.ByWeft)
	if h, ok := errors.AsType[*hint.Error](err); !ok || h.Value != "a/fast (sriov)" {
		t.Errorf("got %v", err)
	}
	if giving, err := b.giving(t.Context()); err != nil || giving != (takeover.Giving{}) {
		t.Errorf("it says %v, %v", giving, err)
	}
}

// TestPolicyIsMissing: without the policy Whereabouts would go on, so nothing is
// imported.
func TestPolicyIsMissing(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.whereabouts()
	control := newController(Options{Namespace: "weft", WhereaboutsNamespace: "kube-system", Log: slog.New(slog.DiscardHandler)})
	control.api = c.Store
	control.settle = 0
	b := &beside{controller: control, writer: c.Store, since: time.Now()}
	_, err := b.pass(t.Context(), takeover.Giving{By: takeover.ByNobody, To: takeover.ByWeft}, takeover.ByWeft)
	if h, ok := errors.AsType[*hint.Error](err); !ok || !strings.Contains(h.Remedy, "deploy/weft.yaml") {
		t.Errorf("got %v", err)
	}
	if held := c.held(); len(held) > 0 {
		t.Errorf("imported: %v", held)
	}
	if _, err := c.Get(t.Context(), reservationKind, store.Key{Namespace: "kube-system", Name: takeover.ProbeName}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the probe is left: %v", err)
	}
}
