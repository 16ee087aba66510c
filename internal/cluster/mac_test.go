package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/vmnet"
)

func TestMACRange(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"02:00:00:00:00:00-02:ff:ff:ff:ff:ff":   "",
		"0A-00-00-00-00-01 - 0A-00-00-00-00-02": `no MAC, "0A"`, // a hyphen tells the ends apart
		"02:00:00:00:00:05-02:00:00:00:00:05":   "",
		"02:00:00:00:00:05":                     "is not two MACs",
		"02:00:00:00:00:05-x":                   `no MAC, "x"`,
		"02:00:00:00:00:05-02:00:00:00:00:04":   "ends before it begins",
		"02:00:00:00:00:00-06:00:00:00:00:00":   "several first bytes",
		"03:00:00:00:00:00-03:00:00:00:00:09":   "multicast",
		"52:54:00:00:00:00-52:54:00:00:00:09":   "",
		"00:16:3e:00:00:00-00:16:3e:00:00:09":   "a vendor",
	} {
		_, err := parseMACRange(text)
		_, told := errors.AsType[*hint.Error](err)
		if (err == nil) != (want == "") || err != nil && (!told || !strings.Contains(err.Error(), "--mac-range") || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	r, err := parseMACRange("02:00:00:00:00:fe-02:00:00:00:01:03")
	if err != nil {
		t.Fatal(err)
	}
	met := map[netstate.MAC]bool{}
	for i := range r.size() {
		met[r.at("seed", i)] = true
	}
	want := "[02:00:00:00:00:fe 02:00:00:00:00:ff 02:00:00:00:01:00 02:00:00:00:01:01 02:00:00:00:01:02 02:00:00:00:01:03]"
	if got := fmt.Sprint(slices.Sorted(maps.Keys(met))); got != want {
		t.Errorf("the range gives %s, want %s", got, want)
	}
	if a, b := (macRange{}).at("seed", 0), (macRange{}).at("seed", 1); a == b || a != (macRange{}).at("seed", 0) {
		t.Errorf("without a range: %s, %s", a, b)
	}
}

// networks makes the definitions that these tests use.
func (c *cluster) networks() {
	c.t.Helper()
	for name, config := range map[string]string{
		"lan":     `{"cniVersion":"1.0.0","type":"bridge","ipam":{"type":"whereabouts","range":"10.0.0.0/24"}}`,
		"mv":      `{"cniVersion":"1.0.0","type":"macvlan"}`,
		"foreign": `{"cniVersion":"1.0.0","type":"sriov"}`,
		"takes":   `{"cniVersion":"1.0.0","type":"sriov","capabilities":{"mac":true}}`,
	} {
		c.make(networks.DefinitionKind, "a", name, func(obj *store.Object) { obj.Object["spec"] = map[string]any{"config": config} })
	}
}

// withNICs is what a VM's template or an instance has, of NICs as NAME=NETWORK=MAC.
func withNICs(nics ...string) map[string]any {
	var plain []string
	var interfaces []any
	for _, text := range nics {
		name, rest, _ := strings.Cut(text, "=")
		network, mac, _ := strings.Cut(rest, "=")
		plain = append(plain, name+"="+network)
		one := map[string]any{"name": name}
		if mac != "" {
			one["macAddress"] = mac
		}
		interfaces = append(interfaces, one)
	}
	spec := vmSpecOf(plain...)
	spec["domain"] = map[string]any{"devices": map[string]any{"interfaces": interfaces}}
	return spec
}

func (c *cluster) vm(name string, nics ...string) *store.Object {
	c.t.Helper()
	return c.make(machineKind, "a", name, func(obj *store.Object) {
		obj.Object["spec"] = map[string]any{"template": map[string]any{"spec": withNICs(nics...)}}
	})
}

func (c *cluster) changeVM(vm *store.Object, nics ...string) {
	c.t.Helper()
	next := vm.DeepCopy()
	next.SetResourceVersion("")
	next.Object["spec"] = map[string]any{"template": map[string]any{"spec": withNICs(nics...)}}
	if _, err := c.Update(c.t.Context(), next); err != nil {
		c.t.Fatal(err)
	}
}

// starts makes the instance of a VM that starts.
func (c *cluster) starts(vm *store.Object, nics ...string) *store.Object {
	c.t.Helper()
	return c.make(instanceKind, "a", vm.GetName(), func(obj *store.Object) {
		yes := true
		obj.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "kubevirt.io/v1", Kind: "VirtualMachine", Name: vm.GetName(), UID: vm.GetUID(), Controller: &yes}})
		obj.Object["spec"] = withNICs(nics...)
	})
}

// launch makes a launcher of a VM, with NICs as NAME=NETWORK.
func (c *cluster) launch(name, vm, node string, nics ...string) *store.Object {
	c.t.Helper()
	var list []string
	for _, text := range nics {
		nic, network, _ := strings.Cut(text, "=")
		list = append(list, fmt.Sprintf(`{"name":%q,"interface":%q}`, network, vmnet.PodIfName(nic)))
	}
	return c.asks(name, node, map[string]string{domainAnnotation: vm, netattach.NetworksAnnotation: "[" + strings.Join(list, ",") + "]"})
}

// asks makes a Pod with annotations.
func (c *cluster) asks(name, node string, annotations map[string]string) *store.Object {
	c.t.Helper()
	return c.make(podKind, "a", name, func(obj *store.Object) {
		obj.SetAnnotations(annotations)
		obj.Object["spec"] = map[string]any{"nodeName": node}
	})
}

func wantsMAC(network, mac string) map[string]string {
	return map[string]string{netattach.NetworksAnnotation: fmt.Sprintf(`[{"name":%q,"mac":%q}]`, network, mac)}
}

// objectsOf are what a test looks at, in a file or behind a real API.
type objectsOf struct{ store.Store }

// macs gives the MAC of each identity, by VM and NIC.
func (o objectsOf) macs(t testing.TB) map[string]string {
	t.Helper()
	list, _, err := o.List(context.Background(), v1alpha1.NICIdentityKind, store.Selector{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, obj := range list {
		id, err := v1alpha1.FromObject(obj)
		if err != nil {
			t.Fatal(err)
		}
		out[id.Spec.VM+" "+id.Spec.Network] = string(id.Spec.MAC)
	}
	return out
}

// macLeases gives whose each MAC is, by network and MAC.
func (o objectsOf) macLeases(t testing.TB) map[string]string {
	t.Helper()
	list, _, err := o.List(context.Background(), v1alpha1.MACLeaseKind, store.Selector{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, obj := range list {
		lease, err := v1alpha1.MACLeaseFromObject(obj)
		if err != nil {
			t.Fatal(err)
		}
		out[lease.Spec.Network+" "+string(lease.Spec.MAC)] = lease.Spec.Owner.Name + " " + lease.Spec.Interface
	}
	return out
}

// macsBecome waits until these NICs of VMs have MACs, and these MACs are somebody's, and gives
// the former.
func (c *cluster) macsBecome(leases []string, nics ...string) map[string]string {
	c.t.Helper()
	slices.Sort(nics)
	var macs map[string]string
	c.eventually("identities", func() error {
		macs = objectsOf{c}.macs(c.t)
		held := objectsOf{c}.macLeases(c.t)
		want := slices.Clone(leases)
		for _, nic := range nics {
			vm, name, _ := strings.Cut(nic, " ")
			if held[networkOf(name)+" "+macs[nic]] == vm+" "+string(vmnet.PodIfName(name)) {
				want = append(want, networkOf(name)+" "+macs[nic])
			}
		}
		slices.Sort(want)
		if got := slices.Sorted(maps.Keys(macs)); !slices.Equal(got, nics) {
			return fmt.Errorf("there are those of %q, want %q", got, nics)
		}
		if got := slices.Sorted(maps.Keys(held)); !slices.Equal(got, want) {
			return fmt.Errorf("held are %q, want %q; %v", got, want, macs)
		}
		return nil
	})
	return macs
}

// networkOf gives the network of NICs by their names: before the first digit.
func networkOf(nic string) string { return "a/" + strings.TrimRight(nic, "0123456789") }

func (c *cluster) withRange(api store.Store, text string) (control *controller, stop func()) {
	c.t.Helper()
	macs, err := parseMACRange(text)
	if err != nil {
		c.t.Fatal(err)
	}
	control = newController(Options{Namespace: "weft", Name: "test", Grace: grace, Compare: grace, Log: slog.New(slog.DiscardHandler)})
	control.macs = macs
	return control, runs(c.t, control, api)
}

func runs(t testing.TB, control *controller, api store.Store) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- control.run(ctx, api) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("controller: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

const someMACs = "02:00:00:00:00:00-02:00:00:00:00:3f"

// TestVMKeepsItsMACs: over stops, starts, migrations and controllers, as long as the VM has the
// NIC; then the MAC is free, but not while a launcher has it.
func TestVMKeepsItsMACs(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.networks()
	_, stop := c.withRange(c, someMACs)
	nics := []string{"lan1=lan", "lan2=a/lan", "mv=mv", "takes=takes", "x=foreign", "y=missing"}
	vm := c.vm("web", nics...)
	all := []string{"web lan1", "web lan2", "web mv", "web takes"}
	first := c.macsBecome(nil, all...)
	if first["web lan1"] == first["web lan2"] || !strings.HasPrefix(first["web mv"], "02:00:00:00:00:") {
		t.Errorf("MACs are %v", first)
	}
	stays := func(when string) {
		t.Helper()
		if got := c.macsBecome(nil, all...); !maps.Equal(got, first) {
			t.Errorf("%s: %v, want %v", when, got, first)
		}
	}
	instance := c.starts(vm, nics...)
	c.launch("src", "web", "n1", "lan1=lan", "lan2=lan", "mv=mv")
	c.launch("dst", "web", "n2", "lan1=lan", "lan2=lan", "mv=mv")
	stays("while it migrates")
	c.remove(podKind, "a", "src")
	stop()
	_, _ = c.withRange(c, "0a:00:00:00:00:00-0a:00:00:00:00:3f")
	stays("with another controller")

	// A MAC that the VM is to have from its next start on.
	nics[0] = "lan1=lan=0e:00:00:00:00:01"
	c.changeVM(vm, nics...)
	time.Sleep(3 * grace) // nothing is to happen
	stays("before its next start")
	c.remove(instanceKind, "a", instance.GetName())
	c.remove(podKind, "a", "dst")
	c.eventually("the VM has the MAC it asks for", func() error {
		if got := (objectsOf{c}).macs(t)["web lan1"]; got != "0e:00:00:00:00:01" {
			return fmt.Errorf("it has %s", got)
		}
		return nil
	})
	first["web lan1"] = "0e:00:00:00:00:01"
	stays("after its stop") // and the one before is free
	nics[0] = "lan1=lan"
	c.changeVM(vm, nics...)
	stays("it asks for none any more")
	c.remove(v1alpha1.NICIdentityKind, "a", netattach.ClaimOfVM("web", string(vmnet.PodIfName("lan1"))))
	stays("somebody deleted its identity")

	// NICs and the VM go.
	c.starts(vm, nics[1:]...)
	c.launch("again", "web", "n1", "lan1=lan", "lan2=lan", "mv=mv")
	c.changeVM(vm, nics[1:]...)
	c.eventually("the identity of the NIC goes", func() error {
		if got := len(objectsOf{c}.macs(t)); got != 3 {
			return fmt.Errorf("there are %d", got)
		}
		return nil
	})
	c.remove(machineKind, "a", "web")
	time.Sleep(3 * grace) // nothing is to happen
	if got := len(objectsOf{c}.macLeases(t)); got != 4 {
		t.Errorf("while a launcher has them %d MACs are held, want 4", got)
	}
	c.remove(podKind, "a", "again")
	c.macsBecome(nil)
}

// TestMACOfAVMBefore: a VM of that name was deleted, and Kubernetes has not taken what was its.
// And one that ran before weft came keeps what it has.
func TestMACOfAVMBefore(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.networks()
	old := c.vm("web", "lan=lan")
	_, stop := c.withRange(c, "")
	before := c.macsBecome(nil, "web lan")
	stop()
	c.remove(machineKind, "a", "web")
	name := netattach.ClaimOfVM("web", string(vmnet.PodIfName("lan")))
	c.eventually("what follows from it goes", func() error {
		if _, err := c.Get(t.Context(), v1alpha1.NICIdentityKind, store.Key{Namespace: "a", Name: name}); err == nil {
			return errors.New("it is there")
		}
		return nil
	})
	c.make(v1alpha1.NICIdentityKind, "a", name, func(obj *store.Object) {
		obj.SetLabels(map[string]string{vmLabel: "web"})
		obj.Object["spec"] = map[string]any{"vm": "web", "network": "lan", "definition": "a/lan", "mac": before["web lan"]}
		obj.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "kubevirt.io/v1", Kind: "VirtualMachine", Name: "web", UID: old.GetUID()}})
	})
	c.vm("web", "lan=lan")
	c.make(instanceKind, "a", "runs", func(obj *store.Object) { obj.Object["spec"] = withNICs("mv=mv") })
	runs, err := c.Get(t.Context(), instanceKind, store.Key{Namespace: "a", Name: "runs"})
	if err != nil {
		t.Fatal(err)
	}
	runs.Object["status"] = map[string]any{"interfaces": []any{map[string]any{"name": "mv", "mac": "52:54:00:00:00:07"}}}
	if _, err := c.UpdateStatus(t.Context(), runs); err != nil {
		t.Fatal(err)
	}
	_, _ = c.withRange(c, "")
	c.eventually("it is another VM", func() error {
		got := objectsOf{c}.macs(t)
		if got["web lan"] == before["web lan"] || got["web lan"] == "" || got["runs mv"] != "52:54:00:00:00:07" {
			return fmt.Errorf("MACs are %v", got)
		}
		return nil
	})
	c.macsBecome(nil, "web lan", "runs mv")
}

// mortal dies, as far as MACs are concerned, at one of its writes: before or after it.
type mortal struct {
	store.Store
	at    int64
	after bool
	count atomic.Int64
	dead  chan struct{}
}

var errDead = errors.New("dead")

func (m *mortal) write(obj string, do func() (*store.Object, error)) (*store.Object, error) {
	if obj != v1alpha1.NICIdentityKind.Kind && obj != v1alpha1.MACLeaseKind.Kind {
		return do()
	}
	n := m.count.Add(1)
	if n > m.at || n == m.at && !m.after {
		if n == m.at {
			close(m.dead)
		}
		return nil, errDead
	}
	made, err := do()
	if n == m.at {
		close(m.dead)
		return nil, errDead
	}
	return made, err
}

func (m *mortal) Create(ctx context.Context, obj *store.Object) (*store.Object, error) {
	return m.write(obj.GetKind(), func() (*store.Object, error) { return m.Store.Create(ctx, obj) })
}

func (m *mortal) Update(ctx context.Context, obj *store.Object) (*store.Object, error) {
	return m.write(obj.GetKind(), func() (*store.Object, error) { return m.Store.Update(ctx, obj) })
}

// TestMACsSurviveDeath: a controller dies before or after each of its writes, in a range that
// has just enough.
func TestMACsSurviveDeath(t *testing.T) {
	t.Parallel()
	const nics = 3
	for at := int64(1); at <= 2*nics; at++ {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprint(at, after), func(t *testing.T) {
				t.Parallel()
				c := newCluster(t)
				c.networks()
				c.vm("web", "lan1=lan", "lan2=lan", "lan3=lan")
				dies := &mortal{Store: c, at: at, after: after, dead: make(chan struct{})}
				_, stop := c.withRange(dies, "02:00:00:00:00:01-02:00:00:00:00:03")
				select {
				case <-dies.dead:
				case <-time.After(30 * time.Second):
					t.Fatal("it lives")
				}
				stop()
				_, _ = c.withRange(c, "02:00:00:00:00:01-02:00:00:00:00:03")
				c.macsBecome(nil, "web lan1", "web lan2", "web lan3")
			})
		}
	}
}

// TestMACsOfTwoLeaders: both think that they lead, and give away all MACs of a range, on two
// networks; those that are asked for belong to whom asks.
func TestMACsOfTwoLeaders(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.networks()
	macs, err := parseMACRange("02:00:00:00:00:01-02:00:00:00:00:14")
	if err != nil {
		t.Fatal(err)
	}
	for _, namespace := range []string{"one", "two"} {
		control := newController(Options{Namespace: namespace, Name: "test", Grace: grace, Compare: grace, Log: slog.New(slog.DiscardHandler)})
		control.macs = macs
		runs(t, control, c)
	}
	c.asks("asks", "n1", wantsMAC("lan", "02:00:00:00:00:05"))
	c.eventually("the Pod has its MAC", func() error {
		if got := (objectsOf{c}).macLeases(t)["a/lan 02:00:00:00:00:05"]; got != "asks net1" {
			return fmt.Errorf("it is of %q", got)
		}
		return nil
	})
	var want []string
	for i := range 19 {
		name := fmt.Sprintf("vm%d", i)
		c.vm(name, "lan=lan", "mv=mv")
		want = append(want, name+" lan", name+" mv")
	}
	c.macsBecome([]string{"a/lan 02:00:00:00:00:05"}, want...)
}

// TestMACRangeIsFull: who gets none is told, and has one as soon as there is one.
func TestMACRangeIsFull(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.networks()
	_, _ = c.withRange(c, "02:00:00:00:00:00-02:00:00:00:00:02") // the first is KubeVirt's
	c.vm("one", "lan=lan")
	c.vm("two", "lan=lan")
	c.macsBecome(nil, "one lan", "two lan")
	c.vm("three", "lan=lan")
	c.eventually("it is told", func() error { return c.warned("NoFreeMAC", "three", "VM a/three on network a/lan") })
	c.macsBecome(nil, "one lan", "two lan")
	c.remove(machineKind, "a", "one")
	c.macsBecome(nil, "three lan", "two lan")
}

// warned says whether there is such an event of an object.
func (c *cluster) warned(reason, name, text string) error {
	c.t.Helper()
	list, _, err := c.List(context.Background(), eventKind, store.Selector{Namespace: "a"})
	for _, obj := range list {
		of, _ := obj.Object["involvedObject"].(map[string]any)
		message, _ := obj.Object["message"].(string)
		if obj.Object["reason"] == reason && of["name"] == name && strings.Contains(message, text) {
			return err
		}
	}
	return errors.Join(err, fmt.Errorf("no event %s of %s says %q, of %d", reason, name, text, len(list)))
}

func TestOthers(t *testing.T) {
	t.Parallel()
	names := []string{"a", "b", "c", "d", "e"}
	for i, want := range []string{"b, c, d and others", "a, c, d and others", "a, b, d and others", "a, b, c and others", "a, b, c and others"} {
		if got := others(names, i); got != want {
			t.Errorf("beside %s: %q, want %q", names[i], got, want)
		}
	}
	if got := others(names[:4], 1); got != "a, c, d" {
		t.Errorf("beside b: %q", got)
	}
}

// TestMACCollision: a MAC that two ask for on one network is told of both, and counted, until
// one of them goes; launchers of one VM are one, and another network is another matter.
func TestMACCollision(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.networks()
	control, _ := c.withRange(c, someMACs)
	counts := func(want float64) {
		t.Helper()
		c.eventually("collisions", func() error {
			if got := control.facts().MACCollisions; got != want {
				return fmt.Errorf("%v, want %v", got, want)
			}
			return nil
		})
	}
	const mac = "02:aa:00:00:00:01"
	first := c.asks("first", "n1", wantsMAC("lan", mac))
	c.asks("elsewhere", "n1", wantsMAC("mv", mac))
	vm := c.vm("web", "lan=lan="+mac, "lan2=lan")
	c.starts(vm, "lan=lan="+mac, "lan2=lan")
	c.launch("src", "web", "n1", "lan=lan", "lan2=lan")
	c.launch("dst", "web", "n2", "lan=lan", "lan2=lan")
	counts(1)
	c.eventually("both are told", func() error {
		return errors.Join(c.warned("MACCollision", "first", "VM a/web"), c.warned("MACCollision", "web", "Pod a/first"))
	})
	if err := c.warned("MACCollision", "elsewhere", ""); err == nil {
		t.Error("one of another network is told")
	}
	c.macsBecome([]string{"a/lan " + mac, "a/mv " + mac}, "web lan", "web lan2")
	c.remove(podKind, "a", first.GetName())
	counts(0)
	c.macsBecome([]string{"a/mv " + mac}, "web lan", "web lan2") // the VM has the lease now
	c.remove(podKind, "a", "src")
	c.remove(podKind, "a", "dst")
	counts(0)
}
