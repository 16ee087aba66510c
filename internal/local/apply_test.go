package local

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weftnet/weft/internal/instance"
	"github.com/weftnet/weft/internal/store"
	storelocal "github.com/weftnet/weft/internal/store/local"
)

func newApplier(t *testing.T) *Applier {
	t.Helper()
	objects, err := storelocal.Open(filepath.Join(t.TempDir(), "objects.db"), storelocal.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := objects.Close(); err != nil {
			t.Error(err)
		}
	})
	return &Applier{Store: objects, Validate: validate}
}

func manifest(t *testing.T, text string) *store.Object {
	t.Helper()
	found, err := ReadManifest("f", strings.NewReader(text), "team")
	if err != nil || len(found) != 1 {
		t.Fatalf("%d objects, %v", len(found), err)
	}
	return found[0]
}

const podText = `apiVersion: v1
kind: Pod
metadata: {name: a, labels: {tier: front}, annotations: {mine: one, k8s.v1.cni.cncf.io/networks: lab}}
spec: {hostname: h}
`

// TestApply: what the user takes out goes, what controllers wrote stays, and
// what cannot be carried out on a living object is refused by name.
func TestApply(t *testing.T) {
	a := newApplier(t)
	apply := func(text string, action Action, problem string) {
		t.Helper()
		got := a.Apply(t.Context(), manifest(t, text))
		if got.Action != action || !strings.Contains(got.Error, problem) || problem == "" && got.Error != "" {
			t.Errorf("got %s %q, want %s %q", got.Action, got.Error, action, problem)
		}
	}
	key := store.Key{Namespace: "team", Name: "a"}
	pod := func() *store.Object {
		t.Helper()
		obj, err := a.Store.Get(t.Context(), Pod, key)
		if err != nil {
			t.Fatal(err)
		}
		return obj
	}
	apply(podText, Created, "")
	if _, err := a.Store.Get(t.Context(), Namespace, store.Key{Name: "team"}); err != nil {
		t.Errorf("the namespace was not made: %v", err)
	}
	// A controller writes an annotation and a finalizer, the agent a status.
	written := pod()
	setAnnotation(written, "theirs", "two")
	written.SetFinalizers([]string{"weft.network/sandbox"})
	if _, err := a.Store.Update(t.Context(), written); err != nil {
		t.Fatal(err)
	}
	written = pod()
	if err := unstructured.SetNestedField(written.Object, "Pending", "status", "phase"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Store.UpdateStatus(t.Context(), written); err != nil {
		t.Fatal(err)
	}
	before := pod().GetResourceVersion()
	apply(podText, Unchanged, "")
	if now := pod().GetResourceVersion(); now != before {
		t.Errorf("an apply that changes nothing wrote revision %s after %s", now, before)
	}
	apply(strings.Replace(strings.Replace(podText, "mine: one, ", "", 1), "spec: {hostname: h}\n", "", 1), Configured, "")
	now := pod()
	want := map[string]string{"theirs": "two", "k8s.v1.cni.cncf.io/networks": "lab"}
	have := now.GetAnnotations()
	delete(have, lastAppliedAnnotation)
	phase, _, _ := unstructured.NestedString(now.Object, "status", "phase")
	if diff := cmp.Diff(want, have); diff != "" || now.Object["spec"] != nil || phase != "Pending" || len(now.GetFinalizers()) != 1 {
		t.Errorf("spec %v, phase %s, finalizers %v, annotations (-want +got):\n%s", now.Object["spec"], phase, now.GetFinalizers(), diff)
	}
	apply(strings.Replace(podText, "networks: lab", "networks: other", 1), Refused,
		"metadata.annotations[k8s.v1.cni.cncf.io/networks]: cannot be changed while the Pod exists; run weft delete pod a and apply again")
	apply(strings.Replace(podText, "networks: lab", "networks: '[{'", 1), Refused, "is not valid JSON")
	if got := a.Delete(t.Context(), Pod, key); got.Action != Deleted || got.Error != "" {
		t.Errorf("delete: %+v", got)
	}
	apply(podText, Refused, `Pod "team/a": is still being deleted; wait until it is gone`)
	if got := a.Delete(t.Context(), Pod, store.Key{Namespace: "team", Name: "nobody"}); got.Action != Absent {
		t.Errorf("delete of nothing: %+v", got)
	}
}

func TestApplyInstance(t *testing.T) {
	a := newApplier(t)
	const text = `apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: i}
spec: {domain: {memory: {guest: 64Mi}, devices: {}}, nodeName: here}
`
	got := a.Apply(t.Context(), manifest(t, text))
	if got.Action != Created || len(got.Warnings) == 0 {
		t.Errorf("an unknown field gives no warning: %+v", got)
	}
	got = a.Apply(t.Context(), manifest(t, strings.Replace(text, "64Mi", "128Mi", 1)))
	if want := "spec: cannot be changed while the VirtualMachineInstance exists; run weft delete vmi i and apply again, or use a VirtualMachine"; got.Action != Refused || !strings.HasPrefix(got.Error, want) {
		t.Errorf("got %s %q, want %q", got.Action, got.Error, want)
	}
}

// TestDeleteNamespace takes all in it along.
func TestDeleteNamespace(t *testing.T) {
	a := newApplier(t)
	a.Apply(t.Context(), manifest(t, podText))
	a.Apply(t.Context(), manifest(t, strings.Replace(podText, "name: a", "name: b, namespace: other", 1)))
	if got := a.Delete(t.Context(), Namespace, store.Key{Name: "team"}); got.Action != Deleted {
		t.Errorf("delete: %+v", got)
	}
	left, _, err := a.Store.List(t.Context(), Pod, store.Selector{})
	if err != nil || len(left) != 1 || left[0].GetNamespace() != "other" {
		t.Errorf("left are %d Pods, %v", len(left), err)
	}
}

// TestDefaultNetwork: its subnets are nobody else's on the machine, and once
// chosen, or written by the user, they stay.
func TestDeleteTellsWhatStays(t *testing.T) {
	a := newApplier(t)
	vm := manifest(t, `{apiVersion: kubevirt.io/v1, kind: VirtualMachine, metadata: {name: keeper, namespace: default}, spec: {runStrategy: Halted, template: {spec: {
		domain: {memory: {guest: 64Mi}, devices: {disks: [{name: data, disk: {}}]}}, volumes: [{name: data, hostDisk: {path: /srv/data.img, type: Disk}}]}}}}`)
	if r := a.Apply(t.Context(), vm); r.Error != "" {
		t.Fatal(r.Error)
	}
	r := a.Delete(t.Context(), VM, store.KeyOf(vm))
	if r.Action != Deleted || !slices.Equal(r.Kept, []string{"hostDisk /srv/data.img"}) {
		t.Errorf("delete says %+v", r)
	}
	if r := a.Delete(t.Context(), VM, store.KeyOf(vm)); r.Action != Absent {
		t.Errorf("a second delete says %+v", r)
	}
}

func TestDefaultNetwork(t *testing.T) {
	in, err := instance.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	free4, free6, err := chooseSubnets(in.Tag, []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("192.0.2.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	taken := netip.PrefixFrom(free4.Addr(), 25)
	next4, next6, err := chooseSubnets(in.Tag, []netip.Prefix{taken})
	if err != nil || next4.Overlaps(free4) || next6 == free6 || !defaultPool4.Overlaps(next4) || !defaultPool6.Overlaps(next6) {
		t.Errorf("beside %s: %s and %s, %v", taken, next4, next6, err)
	}
	if _, _, err := chooseSubnets(in.Tag, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}); err == nil || !strings.Contains(err.Error(), "default-network.conflist") {
		t.Errorf("no room left: %v", err)
	}
	first, err := DefaultNetwork(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := DefaultNetwork(in, []netip.Prefix{free4})
	if err != nil || string(again) != string(first) {
		t.Errorf("another start chose another network: %v\n%s", err, again)
	}
}

func TestParseResolvConf(t *testing.T) {
	got := parseResolvConf("# comment\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver\ndomain one.example\nsearch a.example b.example\noptions ndots:5\n")
	if len(got.Nameservers) != 2 || got.Nameservers[0].String() != "192.0.2.53" || got.Nameservers[1].String() != "fe80::1" {
		t.Errorf("name servers %v", got.Nameservers)
	}
	if got.Domain != "one.example" || strings.Join(got.Search, " ") != "a.example b.example" {
		t.Errorf("domain %q, search %v", got.Domain, got.Search)
	}
}

// TestInstanceNames: two roots share no name, and no Pod another's.
func TestInstanceNames(t *testing.T) {
	one, err := instance.New("/srv/one")
	if err != nil {
		t.Fatal(err)
	}
	two, err := instance.New("/srv/two")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	long := strings.Repeat("n", 63) + "." + strings.Repeat("m", 180)
	for _, in := range []instance.Instance{one, two} {
		for _, pod := range [][2]string{{"a", "b-c"}, {"a-b", "c"}, {"a", "b.c"}, {"a", long}, {"a", long + "x"}} {
			path := in.NetNS(pod[0], pod[1])
			if other, taken := seen[path]; taken || len(filepath.Base(path)) > 255 || !in.OwnsNetNS(filepath.Base(path)) {
				t.Errorf("%v of %s has %s, as %s", pod, in.Tag, path, other)
			}
			seen[path] = in.Tag
		}
	}
	if one.OwnsNetNS(filepath.Base(two.NetNS("a", "b"))) {
		t.Error("an instance takes another's namespace for its own")
	}
	// The machine's own instance has the shortest tag.
	whole, err := instance.New("")
	if err != nil || whole.OwnsNetNS(filepath.Base(one.NetNS("a", "b"))) {
		t.Errorf("the default instance takes another's namespace for its own: %v", err)
	}
}
