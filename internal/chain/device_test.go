package chain

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/record"
)

// devices is what Pods hold, by namespace/name, or all of them always; asked
// counts the questions.
type devices struct {
	always  map[string][]string
	held    map[string]map[string][]string
	offered []string
	err     error
	asked   int
}

func (d *devices) Allocated(_ context.Context, namespace, name string) (map[string][]string, error) {
	d.asked++
	if d.always != nil {
		return d.always, d.err
	}
	return d.held[namespace+"/"+name], d.err
}

func (d *devices) Offered(_ context.Context, resource string) (bool, error) {
	return slices.Contains(d.offered, resource), d.err
}

func (n networks) addDevice(fullName, resource, config string) {
	n.add(fullName, config)
	n[fullName].Annotations = map[string]string{netattach.ResourceNameAnnotation: resource}
}

// TestDevicesAreHandedOut holds who gets which device, in which order.
func TestDevicesAreHandedOut(t *testing.T) {
	t.Parallel()
	nads := networks{}
	nads.addDevice("demo/fast", "example.com/nic", `{"type":"sriovish"}`)
	nads.addDevice("demo/faster", "example.com/nic", `{"type":"sriovish"}`)
	nads.addDevice("demo/other", "example.com/other", `{"type":"sriovish"}`)
	nads.addDevice("demo/marked", "bridge.network.kubevirt.io/br1", `{"type":"cnv-bridge"}`)
	nads.addDevice("demo/ours", "example.com/nic", `{"type":"bridge"}`)
	nads.add("demo/plain", `{"type":"sriovish"}`)
	three := map[string][]string{"example.com/nic": {"d2", "d1", "d3"}, "example.com/other": {"o1"}}
	const key = "annotation k8s.v1.cni.cncf.io/networks"
	for _, tt := range []struct {
		name, annotation string
		held             map[string][]string
		present          []*record.Attachment
		want             string // devices of the delegates, or part of the error
	}{
		{"in the order of the annotation", "faster,fast,fast", three, nil, "d2 d1 d3"},
		{"each resource for itself", "fast,other,fast", three, nil, "d2 o1 d1"},
		{"no resource, no device", "plain,fast", three, nil, "- d2"},
		{"asked for by id", `[{"name":"fast"},{"name":"fast","deviceID":"d2"},{"name":"fast"}]`, three, nil, "d1 d2 d3"},
		{"asked for without a resource", `[{"name":"plain","deviceID":"0000:01:00.0"}]`, three, nil, "0000:01:00.0"},
		{"plugged in later", "fast", three, []*record.Attachment{{Network: "demo/fast", Interface: "net1", Resource: "example.com/nic", Device: "d2"}}, "d1"},
		{"a mere number on the Node", "marked,fast", three, nil, "- d2"},
		{
			"one of a resource without devices", `[{"name":"marked","deviceID":"d9"}]`, nil, nil,
			key + `[0].deviceID "d9": is no device that the Pod holds: there are none of resource bridge.network.kubevirt.io/br1 on this node; leave it out`,
		},
		{"our kinds attach none", "ours,fast", three, nil, "- d2"},
		{
			"more networks than devices", "fast,fast",
			map[string][]string{"example.com/nic": {"d1"}},
			nil,
			key + `[1] "demo/fast": takes a device of resource example.com/nic, and all that the Pod was allocated have a network (d1); request as many as there are networks of that resource: limits: {"example.com/nic": 2}`,
		},
		{
			"none allocated", "fast", nil, nil,
			key + `[0] "demo/fast": takes a device of resource example.com/nic, and the Pod was allocated none; request it in a container of the Pod: resources: {limits: {"example.com/nic": 1}}`,
		},
		{"one of another Pod", `[{"name":"fast","deviceID":"d9"}]`, three, nil, key + `[0].deviceID "d9": is none of the devices of resource example.com/nic that the Pod holds; leave it out, or name one of d2, d1, d3`},
		{
			"more networks than many devices", "fast,fast,fast,fast,fast,fast,fast",
			map[string][]string{"example.com/nic": {"d1", "d2", "d3", "d4", "d5", "d6"}},
			nil,
			`have a network (d1, d2, d3, d4 and 2 more); request`,
		},
		{"one twice", `[{"name":"fast","deviceID":"d2"},{"name":"faster","deviceID":"d2"}]`, three, nil, key + `[1].deviceID "d2": is already the device of demo/fast`},
		{"one that is taken", `[{"name":"fast","deviceID":"d2"}]`, three, []*record.Attachment{{Network: "demo/faster", Interface: "net1", Resource: "example.com/nic", Device: "d2"}}, `"d2": is already the device of demo/faster`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			q := question(t, tt.annotation, nads)
			q.Devices, q.Offered = tt.held, map[string]bool{"example.com/nic": true, "example.com/other": true}
			q.First += len(tt.present)
			q.Present = tt.present
			got, err := Resolve(q)
			if err != nil {
				if h, ok := errors.AsType[*hint.Error](err); !ok || h.Remedy == "" || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want %s", err, tt.want)
				}
				return
			}
			var ids []string
			for _, d := range got[1:] {
				ids = append(ids, cmp.Or(d.Device, "-"))
			}
			if text := strings.Join(ids, " "); text != tt.want {
				t.Errorf("got %s, want %s", text, tt.want)
			}
		})
	}
}

// TestDefaultNetworkTakesADevice: of two networks of one resource each has its
// own, the default network's included.
func TestDefaultNetworkTakesADevice(t *testing.T) {
	t.Parallel()
	nads := networks{}
	nads.addDevice("demo/fast", "example.com/nic", `{"type":"sriovish"}`)
	q := question(t, "fast", nads)
	var err error
	if q.Default, err = netattach.ParseConfig([]byte(`{"type":"sriovish"}`), "fast"); err != nil {
		t.Fatal(err)
	}
	q.DefaultResource = "example.com/nic"
	q.Everywhere = []Everywhere{{Name: "kube-system/all", Conf: q.Default, Resource: "example.com/nic"}}
	q.Devices = map[string][]string{"example.com/nic": {"a", "b", "c"}}
	got, err := Resolve(q)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"a", "b", "c"} {
		if got[i].Device != want {
			t.Errorf("%s got %s, want %s", got[i].Network, got[i].Device, want)
		}
	}
}

// stdin of a recorder's last ADD.
func (w *world) stdin(id, ifName, plugin string) map[string]any {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.rec(), "state", id+"-"+ifName+"-"+plugin))
	if err != nil {
		w.t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		w.t.Fatal(err)
	}
	return config
}

// TestDeviceReachesPlugins: config, runtimeConfig, the file that describes it and
// network-status; then all of it goes without the API.
func TestDeviceReachesPlugins(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	kubelet := &devices{held: map[string]map[string][]string{"demo/pod-a": {"example.com/nic": {"0000:03:02.1", "0000:03:02.2"}}}, offered: []string{"example.com/nic"}}
	w.devices = kubelet
	w.restart()
	w.nads.addDevice("demo/fast", "example.com/nic", `{"cniVersion":"1.0.0","plugins":[
		{"type":"alpha","dir":"`+w.rec()+`","capabilities":{"deviceID":true,"CNIDeviceInfoFile":true}},
		{"type":"omega","dir":"`+w.rec()+`"}]}`)
	w.nads.add("demo/plain", `{"cniVersion":"1.0.0","type":"omega","dir":"`+w.rec()+`"}`)
	dp, cni := filepath.Join(w.dir, "devinfo/dp"), filepath.Join(w.dir, "devinfo/cni")
	if err := os.MkdirAll(dp, 0o755); err != nil {
		t.Fatal(err)
	}
	const said = `{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:03:02.1","rdma-device":"mlx5_2"}}`
	if err := os.WriteFile(filepath.Join(dp, "example.com-nic-0000:03:02.1-device.json"), []byte(said), 0o600); err != nil {
		t.Fatal(err)
	}
	box := w.add("a", "fast,fast,plain")
	alpha, omega, plain := w.stdin("a", "net1", "alpha"), w.stdin("a", "net1", "omega"), w.stdin("a", "net3", "omega")
	w.same("device of net1", []any{alpha["deviceID"], alpha["pciBusID"], omega["deviceID"], omega["pciBusID"]}, []any{"0000:03:02.1", "0000:03:02.1", "0000:03:02.1", "0000:03:02.1"})
	w.same("runtimeConfig of net1", alpha["runtimeConfig"], map[string]any{"deviceID": "0000:03:02.1", "CNIDeviceInfoFile": filepath.Join(cni, "demo-fast-a_net1")})
	w.same("device of net2", w.stdin("a", "net2", "alpha")["deviceID"], "0000:03:02.2")
	w.same("what others are told", []any{omega["runtimeConfig"], plain["runtimeConfig"], plain["deviceID"], plain["pciBusID"]}, []any{nil, nil, nil, nil})
	status, err := Status(box)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(status[1].DeviceInfo)
	if err != nil {
		t.Fatal(err)
	}
	w.same("device-info of net1", string(text), said)
	// Nobody describes the second one: its address does.
	w.same("device-info of net2", status[2].DeviceInfo.PCI.PCIAddress, "0000:03:02.2")
	w.same("device-info of net3", status[3].DeviceInfo == nil, true)

	// Without the kubelet, its files and the NAD.
	kubelet.err = errors.New("away")
	delete(w.nads, "demo/fast")
	w.restart()
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.same("DELs", w.verbs()[5:], []string{"DEL omega net3", "DEL omega net2", "DEL alpha net2", "DEL omega net1", "DEL alpha net1"})
	files, err := os.ReadDir(cni)
	if err != nil || len(files) > 0 {
		t.Errorf("device information is left: %v, %v", files, err)
	}
	if _, err := os.Stat(filepath.Join(dp, "example.com-nic-0000:03:02.1-device.json")); err != nil {
		t.Errorf("the device plugin's own file: %v", err)
	}
	w.empty()
}

// TestPluginDescribesDevice: one that makes its device itself says so in the file
// it is given; it is gone after a failed ADD, too.
func TestPluginDescribesDevice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const said = `{"type":"memif","version":"1.1.0","memif":{"role":"master","path":"/run/m.sock","mode":"ethernet"}}`
	w.nads.add("demo/memif", `{"cniVersion":"1.0.0","type":"alpha","dir":"`+w.rec()+`","capabilities":{"CNIDeviceInfoFile":true},"describes":`+said+`}`)
	w.nads.add("demo/bad", `{"cniVersion":"1.0.0","type":"omega","dir":"`+w.rec()+`","behave":{"ADD":"fail"}}`)
	file := filepath.Join(w.dir, "devinfo/cni/demo-memif-a_net1")
	box := w.add("a", "memif")
	status, err := Status(box)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(status[1].DeviceInfo)
	if err != nil {
		t.Fatal(err)
	}
	w.same("device-info", string(text), said)
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.refused("b", "memif,bad", "no luck today")
	if files, err := os.ReadDir(filepath.Dir(file)); err != nil || len(files) > 0 {
		t.Errorf("device information is left: %v, %v", files, err)
	}
	w.empty()
}

// TestKubeletIsAway: a Pod whose networks take no device needs no kubelet; one
// that does is refused by name, with nothing made.
func TestKubeletIsAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	kubelet := &devices{err: errors.New("the kubelet is away")}
	w.devices = kubelet
	w.restart()
	w.nads.addDevice("demo/fast", "example.com/nic", `{"cniVersion":"1.0.0","type":"alpha","dir":"`+w.rec()+`"}`)
	w.nads.addDevice("demo/br", "bridge.network.kubevirt.io/br1", `{"cniVersion":"1.0.0","type":"bridge","bridge":"br1"}`)
	w.nads.add("demo/plain", `{"cniVersion":"1.0.0","type":"alpha","dir":"`+w.rec()+`"}`)
	w.add("a", "plain,br")
	if kubelet.asked > 0 {
		t.Errorf("the kubelet was asked %d times for nothing", kubelet.asked)
	}
	w.refused("b", "plain,fast", "look up devices of Pod demo/pod-b: the kubelet is away")
	w.podEmpty("b")
	w.end("a")
}

// TestDeviceOfHotplug: what is plugged in takes a device that is free, and gives
// it back when it is unplugged.
func TestDeviceOfHotplug(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.devices = &devices{held: map[string]map[string][]string{"demo/pod-a": {"example.com/nic": {"d1", "d2"}}}, offered: []string{"example.com/nic"}}
	w.restart()
	w.nads.addDevice("demo/fast", "example.com/nic", `{"cniVersion":"1.0.0","type":"alpha","dir":"`+w.rec()+`"}`)
	w.add("a", "fast")
	plug := netattach.Selection{Namespace: "demo", Name: "fast", Interface: "hot0"}
	for range 2 {
		if _, err := w.engine.Attach(t.Context(), "a", plug); err != nil {
			t.Fatal(err)
		}
		w.same("device of hot0", w.stdin("a", "hot0", "alpha")["deviceID"], "d2")
		third := netattach.Selection{Namespace: "demo", Name: "fast", Interface: "hot1"}
		if _, err := w.engine.Attach(t.Context(), "a", third); err == nil || !strings.Contains(err.Error(), "all that the Pod was allocated have a network (d1, d2)") {
			t.Errorf("a third network: %v", err)
		}
		if _, err := w.engine.Detach(t.Context(), "a", "hot0"); err != nil {
			t.Fatal(err)
		}
	}
	w.end("a")
}
