package controller_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/controller"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/local"
	"github.com/weftnet/weft/internal/vmnet"
)

// world runs the controllers on a real store. Nobody plays the agent: a Pod
// goes when it is deleted, and phases come from the test.
type world struct {
	t           *testing.T
	store       *local.Store
	controllers *controller.Controllers

	// mu guards ahead, how far the controllers' clock runs ahead.
	mu    sync.Mutex
	ahead time.Duration
}

func newWorld(t *testing.T) *world {
	t.Helper()
	objects, err := local.Open(filepath.Join(t.TempDir(), "objects.db"), local.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: objects}
	w.controllers = controller.New(controller.Config{Store: objects, MACSeed: "test", Now: w.now, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	for _, task := range w.controllers.Tasks() {
		tasks.Go(func() {
			if err := task.Run(ctx); err != nil && ctx.Err() == nil {
				t.Errorf("%s: %v", task, err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		tasks.Wait()
		if err := objects.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.ahead)
}

func (w *world) later(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ahead += d
}

func (w *world) create(text string) *store.Object {
	w.t.Helper()
	obj := &store.Object{Object: map[string]any{}}
	if err := yaml.Unmarshal([]byte(text), &obj.Object); err != nil {
		w.t.Fatal(err)
	}
	created, err := w.store.Create(w.t.Context(), obj)
	if err != nil {
		w.t.Fatal(err)
	}
	return created
}

// get gives an object of namespace lab, or nil.
func (w *world) get(gvk schema.GroupVersionKind, name string) *store.Object {
	obj, err := w.store.Get(w.t.Context(), gvk, store.Key{Namespace: "lab", Name: name})
	if err != nil {
		return nil
	}
	return obj
}

func (w *world) remove(obj *store.Object) {
	w.t.Helper()
	if err := w.store.Delete(w.t.Context(), obj.GroupVersionKind(), store.KeyOf(obj), store.Precondition{UID: obj.GetUID()}); err != nil {
		w.t.Fatal(err)
	}
}

// change edits an object until no controller writes it at the same time.
func (w *world) change(gvk schema.GroupVersionKind, name string, edit func(*store.Object), write func(context.Context, *store.Object) (*store.Object, error)) {
	w.t.Helper()
	w.eventually("write "+name, func() string {
		obj := w.get(gvk, name)
		if obj == nil {
			return "there is none"
		}
		edit(obj)
		if _, err := write(w.t.Context(), obj); err != nil {
			return err.Error()
		}
		return ""
	})
}

func (w *world) run(strategy string) {
	w.t.Helper()
	w.change(kubevirt.MachineKind, "web", func(vm *store.Object) {
		if err := unstructured.SetNestedField(vm.Object, strategy, "spec", "runStrategy"); err != nil {
			w.t.Fatal(err)
		}
	}, w.store.Update)
}

// phase sets an instance's phase, as the agent does.
func (w *world) phase(phase kubevirt.Phase) {
	w.t.Helper()
	w.change(kubevirt.InstanceKind, "web", func(vmi *store.Object) {
		if err := kubevirt.SetPhase(vmi, phase, w.now()); err != nil {
			w.t.Fatal(err)
		}
	}, w.store.UpdateStatus)
}

// eventually waits until missing gives nothing.
func (w *world) eventually(what string, missing func() string) {
	w.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		why := missing()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: %s", what, why)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// instance waits for an instance other than old that has its launcher Pod.
func (w *world) instance(name string, old *store.Object) (vmi, pod *store.Object) {
	w.t.Helper()
	w.eventually("instance "+name, func() string {
		vmi = w.get(kubevirt.InstanceKind, name)
		if vmi == nil || old != nil && vmi.GetUID() == old.GetUID() {
			return "no new instance"
		}
		if pod = w.get(controller.PodKind, controller.PodName(vmi)); pod == nil {
			return "no launcher Pod"
		}
		if phase(vmi) != "Scheduling" {
			return "phase " + phase(vmi)
		}
		return ""
	})
	return vmi, pod
}

func phase(vmi *store.Object) string {
	phase, _, _ := unstructured.NestedString(vmi.Object, "status", "phase") // none yet
	return phase
}

// status waits for a VM's printableStatus and gives its Ready message.
func (w *world) status(name, want string) (message string) {
	w.t.Helper()
	w.eventually("VM "+name, func() string {
		vm := w.get(kubevirt.MachineKind, name)
		got, _, _ := unstructured.NestedString(vm.Object, "status", "printableStatus") // none yet
		observed, _, _ := unstructured.NestedInt64(vm.Object, "status", "observedGeneration")
		if got != want || observed != vm.GetGeneration() {
			return "status is " + got + ", want " + want
		}
		message = condition(vm)["message"]
		return ""
	})
	return message
}

// condition gives reason and message of Ready.
func condition(obj *store.Object) map[string]string {
	list, _, _ := unstructured.NestedSlice(obj.Object, "status", "conditions") // none yet
	found := map[string]string{}
	for _, item := range list {
		if c, ok := item.(map[string]any); ok && c["type"] == "Ready" {
			for _, key := range []string{"status", "reason", "message"} {
				found[key] = fmt.Sprint(c[key])
			}
		}
	}
	return found
}

func (w *world) identities() map[string]*v1alpha1.NICIdentity {
	w.t.Helper()
	objects, _, err := w.store.List(w.t.Context(), v1alpha1.NICIdentityKind, store.Selector{Namespace: "lab"})
	if err != nil {
		w.t.Fatal(err)
	}
	found := map[string]*v1alpha1.NICIdentity{}
	for _, obj := range objects {
		id, err := v1alpha1.FromObject(obj)
		if err != nil {
			w.t.Fatal(err)
		}
		found[id.Spec.VM+"/"+id.Spec.Network] = id
	}
	return found
}

const web = `apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: web, namespace: lab}
spec:
  runStrategy: Always
  template:
    metadata: {labels: {tier: front}}
    spec:
      domain:
        memory: {guest: 64Mi}
        devices:
          interfaces:
          - {name: default, masquerade: {}}
          - {name: back, bridge: {}, macAddress: "02:00:00:00:00:0a"}
          - {name: lan, bridge: {}}
          - {name: gone, bridge: {}, state: absent}
      networks:
      - {name: default, pod: {}}
      - {name: lan, multus: {networkName: other/lan}}
      - {name: back, multus: {networkName: back}}
      - {name: gone, multus: {networkName: back}}
`

// TestVMToPod: a VM gets an instance, that its NIC identities and a launcher Pod
// that says all the node needs to know.
func TestVMToPod(t *testing.T) {
	w := newWorld(t)
	vm := w.create(web)
	vmi, pod := w.instance("web", nil)
	w.status("web", "Starting")
	if ref := vmi.GetOwnerReferences(); len(ref) != 1 || ref[0].UID != vm.GetUID() {
		t.Errorf("the instance's owner is %v", ref)
	}
	if ref := pod.GetOwnerReferences(); len(ref) != 1 || ref[0].UID != vmi.GetUID() {
		t.Errorf("the Pod's owner is %v", ref)
	}
	if got := condition(vmi); got["status"] != "False" || got["reason"] != "Scheduling" {
		t.Errorf("Ready of the instance: %v", got)
	}
	lan := vmnet.StableMAC("test/lab/web", "lan")
	var networks []map[string]string
	text := pod.GetAnnotations()["k8s.v1.cni.cncf.io/networks"]
	if err := json.Unmarshal([]byte(text), &networks); err != nil {
		t.Fatalf("networks annotation %q: %v", text, err)
	}
	want := []map[string]string{ // in the order of the interfaces
		{"name": "back", "namespace": "lab", "mac": "02:00:00:00:00:0a", "interface": string(vmnet.PodIfName("back"))},
		{"name": "lan", "namespace": "other", "mac": string(lan), "interface": string(vmnet.PodIfName("lan"))},
	}
	if diff := cmp.Diff(want, networks); diff != "" {
		t.Errorf("networks annotation (-want +got):\n%s", diff)
	}
	plan, err := v1alpha1.ParseVMPlan(pod.GetAnnotations()[v1alpha1.VMPlanAnnotation])
	if err != nil {
		t.Fatal(err)
	}
	wantPlan := &v1alpha1.VMPlan{UID: string(vmi.GetUID()), NICs: []v1alpha1.PlanNIC{
		{Network: "default", Link: "eth0", MAC: vmnet.StableMAC("test/lab/web", "default"), Slot: 0},
		{Network: "back", Link: vmnet.PodIfName("back"), MAC: "02:00:00:00:00:0a", Slot: 1},
		{Network: "lan", Link: vmnet.PodIfName("lan"), MAC: lan, Slot: 2},
	}}
	if diff := cmp.Diff(wantPlan, plan); diff != "" {
		t.Errorf("VM plan (-want +got):\n%s", diff)
	}
	if len(w.identities()) != 3 {
		t.Errorf("identities: %v", w.identities())
	}
	for name, id := range w.identities() {
		if len(id.OwnerReferences) != 1 || id.OwnerReferences[0].UID != vm.GetUID() {
			t.Errorf("identity %s is owned by %v, and has to live as long as the VM", name, id.OwnerReferences)
		}
	}
}

// TestIdentityOutlivesInstance: what a NIC is stays over restarts and changes of
// order, and goes with the VM.
func TestIdentityOutlivesInstance(t *testing.T) {
	w := newWorld(t)
	vm := w.create(web)
	first, firstPod := w.instance("web", nil)
	before := w.identities()
	w.change(kubevirt.MachineKind, "web", func(vm *store.Object) {
		// Another order and one NIC more: slots of those that are there stay.
		path := []string{"spec", "template", "spec", "domain", "devices", "interfaces"}
		list, _, err := unstructured.NestedSlice(vm.Object, path...)
		if err != nil {
			t.Fatal(err)
		}
		list = []any{map[string]any{"name": "gone", "bridge": map[string]any{}}, list[2], list[1], list[0]}
		if err := unstructured.SetNestedSlice(vm.Object, list, path...); err != nil {
			t.Fatal(err)
		}
		vm.SetAnnotations(map[string]string{controller.RestartAnnotation: string(first.GetUID())})
	}, w.store.Update)
	_, secondPod := w.instance("web", first)
	if secondPod.GetName() == firstPod.GetName() {
		t.Error("both instances have a Pod of the same name")
	}
	if w.get(controller.PodKind, firstPod.GetName()) != nil {
		t.Error("the first instance's Pod is still there")
	}
	after := w.identities()
	for name, id := range before {
		if diff := cmp.Diff(id.Spec, after[name].Spec); diff != "" {
			t.Errorf("identity %s changed (-before +after):\n%s", name, diff)
		}
	}
	if fourth := after["web/gone"]; fourth == nil || fourth.Spec.Slot != 3 {
		t.Errorf("the new NIC has %+v, want the lowest free slot, 3", fourth)
	}
	w.remove(vm)
	w.eventually("all of the VM to go", func() string {
		if left := w.identities(); len(left) > 0 || w.get(kubevirt.InstanceKind, "web") != nil || w.get(controller.PodKind, secondPod.GetName()) != nil {
			return fmt.Sprint("identities ", left)
		}
		return ""
	})
}

// TestRunStrategies: which ends are followed by a new instance.
func TestRunStrategies(t *testing.T) {
	for _, tt := range []struct {
		strategy string
		end      kubevirt.Phase
		again    bool
	}{
		{"Always", kubevirt.Failed, true},
		{"Always", kubevirt.Succeeded, true},
		{"RerunOnFailure", kubevirt.Failed, true},
		{"RerunOnFailure", kubevirt.Succeeded, false},
		{"Once", kubevirt.Failed, false},
		{"Once", kubevirt.Succeeded, false},
	} {
		t.Run(tt.strategy+" "+string(tt.end), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.create(strings.Replace(web, "Always", tt.strategy, 1))
			vmi, pod := w.instance("web", nil)
			w.phase(kubevirt.Running)
			w.status("web", "Running")
			w.later(-time.Hour) // it failed an hour ago: the pause after a crash is over
			w.phase(tt.end)
			w.later(time.Hour)
			w.change(kubevirt.MachineKind, "web", func(vm *store.Object) { vm.SetLabels(map[string]string{"woken": "yes"}) }, w.store.Update)
			if tt.again {
				w.instance("web", vmi)
				return
			}
			w.status("web", string(tt.end))
			if now := w.get(kubevirt.InstanceKind, "web"); now == nil || now.GetUID() != vmi.GetUID() || w.get(controller.PodKind, pod.GetName()) == nil {
				t.Error("an instance that ended for good, or its Pod, is not there to be looked at")
			}
		})
	}
}

// TestHalt: a halted VM has no instance and keeps who it is; Stop keeps all of
// them from coming back.
func TestHalt(t *testing.T) {
	w := newWorld(t)
	w.create(web)
	vmi, _ := w.instance("web", nil)
	before := w.identities()
	w.run("Halted")
	if message := w.status("web", "Stopped"); message != "no instance runs" {
		t.Errorf("a stopped VM says %q", message)
	}
	if diff := cmp.Diff(before, w.identities()); diff != "" {
		t.Errorf("halting changed identities (-before +after):\n%s", diff)
	}
	w.run("Always")
	again, _ := w.instance("web", vmi)
	w.controllers.Stop()
	w.remove(again)
	w.eventually("instance to go", func() string {
		if w.get(kubevirt.InstanceKind, "web") != nil {
			return "it is there"
		}
		return ""
	})
	w.status("web", "Starting") // the turn that would have made one is over
	if w.get(kubevirt.InstanceKind, "web") != nil {
		t.Error("a stopped controller made an instance")
	}
}

// TestPodDeleted: an instance whose Pod somebody deleted has failed.
func TestPodDeleted(t *testing.T) {
	w := newWorld(t)
	w.create(strings.Replace(web, "Always", "Once", 1))
	_, pod := w.instance("web", nil)
	w.phase(kubevirt.Running)
	w.remove(pod)
	w.status("web", "Failed")
	if got := condition(w.get(kubevirt.InstanceKind, "web")); got["reason"] != "PodDeleted" || got["message"] != "its launcher Pod was deleted" {
		t.Errorf("Ready of the instance: %v", got)
	}
}

// TestRefused: what cannot be run says why, and runs once that has gone.
func TestRefused(t *testing.T) {
	w := newWorld(t)
	w.create(strings.Replace(web, "memory: {guest: 64Mi}", "memory: {}", 1))
	if message := w.status("web", "Invalid"); !strings.Contains(message, "no memory requested") {
		t.Errorf("an invalid VM says %q", message)
	}
	if w.get(kubevirt.InstanceKind, "web") != nil {
		t.Error("an invalid VM has an instance")
	}

	instance := func(name, mac string) string {
		return fmt.Sprintf(`apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: %s, namespace: lab}
spec:
  domain: {memory: {guest: 64Mi}, devices: {interfaces: [{name: back, bridge: {}, macAddress: %q}]}}
  networks: [{name: back, multus: {networkName: back}}]
`, name, mac)
	}
	first := w.create(instance("first", "02:00:00:00:00:0b"))
	w.instance("first", nil)
	w.create(instance("second", "02-00-00-00-00-0B"))
	want := `spec.domain.devices.interfaces[0].macAddress "02:00:00:00:00:0b": is the MAC of VM lab/first on network back; choose another, or leave it out to get a stable one`
	w.eventually("second is refused", func() string {
		got := condition(w.get(kubevirt.InstanceKind, "second"))
		if got["reason"] != "Invalid" || got["message"] != want {
			return fmt.Sprint(got)
		}
		return ""
	})
	w.remove(first)
	_, pod := w.instance("second", nil) // tried again by itself
	if plan, err := v1alpha1.ParseVMPlan(pod.GetAnnotations()[v1alpha1.VMPlanAnnotation]); err != nil || plan.NICs[0].MAC != netstate.MAC("02:00:00:00:00:0b") {
		t.Errorf("plan of second: %+v, %v", plan, err)
	}
}

// TestConflict: a VM leaves an instance of its name that is not its own alone.
func TestConflict(t *testing.T) {
	w := newWorld(t)
	stranger := w.create(`apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: web, namespace: lab}
spec: {domain: {memory: {guest: 64Mi}, devices: {}}}
`)
	w.create(web)
	if message := w.status("web", "Conflict"); !strings.Contains(message, "delete it or rename the VM") {
		t.Errorf("message %q", message)
	}
	w.run("Halted")
	w.status("web", "Conflict")
	if now := w.get(kubevirt.InstanceKind, "web"); now == nil || now.GetUID() != stranger.GetUID() || now.GetDeletionTimestamp() != nil {
		t.Error("halting the VM took somebody's instance away")
	}
	w.run("Always")
	w.remove(stranger)
	w.instance("web", stranger)
}
