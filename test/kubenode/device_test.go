package kubenode

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftnet/weft/test/kubelab"
	"github.com/weftnet/weft/test/machine"
)

// deviceManifest has Pods that hold devices, and a network of foreign plugins: one
// makes a link, one writes down what it is told. "radio" has one device in each container, "short"
// has one and wants two, "none" asks for none at all.
const deviceManifest = `
apiVersion: v1
kind: Namespace
metadata: {name: devices}
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: fast
  namespace: devices
  annotations: {k8s.v1.cni.cncf.io/resourceName: weft.example/nic}
spec:
  config: '{"cniVersion":"1.0.0","plugins":[
    {"type":"nic","bridge":"fast0","capabilities":{"deviceID":true}},
    {"type":"recorder","dir":"/opt/recorder","capabilities":{"deviceID":true,"CNIDeviceInfoFile":true}}]}'
---
apiVersion: v1
kind: Pod
metadata: {name: radio, namespace: devices, annotations: {k8s.v1.cni.cncf.io/networks: "fast,fast@fast1"}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: first, image: "lab.local/toolbox:1", imagePullPolicy: Never, resources: {limits: {weft.example/nic: 1}}}
    - {name: second, image: "lab.local/toolbox:1", imagePullPolicy: Never, resources: {limits: {weft.example/nic: 1}}}
---
apiVersion: v1
kind: Pod
metadata: {name: short, namespace: devices, annotations: {k8s.v1.cni.cncf.io/networks: "fast,fast"}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "lab.local/toolbox:1", imagePullPolicy: Never, resources: {limits: {weft.example/nic: 1}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: none, namespace: devices, annotations: {k8s.v1.cni.cncf.io/networks: fast}}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "lab.local/toolbox:1", imagePullPolicy: Never}]
`

// in gives the same world to a subtest.
func (w *world) in(t *testing.T) *world { return &world{t: t, c: w.c, bin: w.bin} }

// build builds programs of the tree where nodes see them.
func (w *world) build(packages ...string) string {
	w.t.Helper()
	dir := w.t.TempDir()
	cmd := exec.Command("go", append([]string{"build", "-o", dir + "/"}, packages...)...)
	cmd.Dir = machine.Tree()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("build: %v\n%s", err, out)
	}
	return dir
}

// devices has a device plugin on n1, and Pods that hold its devices.
func (w *world) devices() {
	w.t.Helper()
	n1 := w.c.Nodes()[0]
	bin := w.build("./test/kubenode/testdata/deviceplugin", "./internal/chain/testdata/recorder")
	w.on(n1, "mkdir -p /opt/recorder && cp "+bin+"/recorder /opt/cni/bin/ && cp /opt/cni/bin/bridge /opt/cni/bin/nic")
	stop := w.background(n1, bin+"/deviceplugin", "weft.example/nic", "4")
	defer stop()
	w.eventually("n1 has devices", func() error { return w.allocatable("4") })
	w.eventually("the manifest is applied", func() error { // the new namespace's service account comes a moment later
		_, err := w.c.Kubectl(w.t.Context(), deviceManifest, "apply", "-f", "-")
		return err
	})
	w.kubectl("-n", "devices", "wait", "--for=condition=Ready", "pod/radio", "--timeout=120s")

	first, second := w.nic("first"), w.nic("second")
	w.attachedDevices(map[string]string{"net1": first, "fast1": second})
	w.eventually("Pods without enough devices say so", func() error {
		out := w.kubectl("-n", "devices", "get", "events", "--field-selector=reason=FailedCreatePodSandBox", "-o", "jsonpath={.items[*].message}")
		for _, want := range []string{
			`the Pod was allocated none; request it in a container of the Pod: resources: {limits: {"weft.example/nic": 1}}`,
			`all that the Pod was allocated have a network (nic-`,
		} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("no event has %q: %s", want, out)
			}
		}
		return nil
	})
	w.kubectl("-n", "devices", "delete", "pods", "short", "none", "--now")
	// A network less gives its device back to the next one, after a kubelet's crash, too.
	if err := n1.Kill(kubelab.Kubelet); err != nil {
		w.t.Fatal(err)
	}
	w.eventually("n1 has devices again", func() error { return w.allocatable("4") })
	w.kubectl("-n", "devices", "annotate", "pod", "radio", "--overwrite", "k8s.v1.cni.cncf.io/networks=fast,fast@fast2")
	w.eventually("fast2 is plugged in, fast1 is not", func() error {
		status := w.status("-n", "devices", "pod/radio")
		if _, old := status["fast1"]; old || status["fast2"].Name == "" {
			return fmt.Errorf("network-status is %+v", status)
		}
		return nil
	})
	w.attachedDevices(map[string]string{"net1": first, "fast2": second})
	w.kubectl("-n", "devices", "delete", "pods", "--all", "--now")
	w.eventually("the plugin's state and the descriptions are gone", func() error {
		if out := w.on(n1, "ls /opt/recorder/state /var/run/k8s.cni.cncf.io/devinfo/cni | grep -v : || true"); strings.TrimSpace(out) != "" {
			return fmt.Errorf("there are %s", out)
		}
		return nil
	})
	w.kubectl("delete", "namespace", "devices", "--wait=false")
	w.on(n1, "ip link del fast0") // the reference plugin leaves its bridge
}

// allocatable wants that many devices on n1.
func (w *world) allocatable(want string) error {
	w.t.Helper()
	if out := w.kubectl("get", "node", "n1", "-o", `jsonpath={.status.allocatable.weft\.example/nic}`); out != want {
		return fmt.Errorf("it has %q", out)
	}
	return nil
}

// attachedDevices wants these devices on interfaces of Pod radio, as their plugins
// were told and as users are.
func (w *world) attachedDevices(want map[string]string) {
	w.t.Helper()
	n1 := w.c.Nodes()[0]
	for name, want := range want {
		var got struct {
			DeviceID, PCIBusID string
			RuntimeConfig      struct{ DeviceID, CNIDeviceInfoFile string }
		}
		text := w.on(n1, "cat /opt/recorder/state/*-"+name+"-recorder")
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			w.t.Fatalf("%s: %v", text, err)
		}
		if got.DeviceID != want || got.PCIBusID != want || got.RuntimeConfig.DeviceID != want {
			w.t.Errorf("the plugin of %s is told %s, and the container has %s", name, text, want)
		}
		number := strings.TrimPrefix(want, "nic-")
		if file := w.on(n1, "cat "+got.RuntimeConfig.CNIDeviceInfoFile); !strings.Contains(file, "/dev/vhost-vdpa-"+number) {
			w.t.Errorf("the file of %s says %s", name, file)
		}
		w.eventually("network-status tells the device of "+name, func() error {
			if info := w.status("-n", "devices", "pod/radio")[name].DeviceInfo; info.Type != "vdpa" || info.VDPA.Path != "/dev/vhost-vdpa-"+number {
				return fmt.Errorf("it tells %+v", info)
			}
			return nil
		})
	}
}

// nic is the device the kubelet gave a container of Pod radio.
func (w *world) nic(container string) string {
	w.t.Helper()
	return strings.TrimSpace(w.kubectl("-n", "devices", "exec", "radio", "-c", container, "--", "sh", "-c", "echo $NICS"))
}

// background starts a program on a node; stop ends it.
func (w *world) background(node *kubelab.Node, program string, args ...string) (stop func()) {
	w.t.Helper()
	cmd, err := node.Command(context.WithoutCancel(w.t.Context()), program, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	log, err := os.Create(program + ".log")
	if err != nil {
		w.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return func() {
		w.t.Helper()
		// By its name on that node: nsenter, which we started, would leave it there.
		w.on(node, "pkill -9 -x "+filepath.Base(program))
		<-ended
		if text, err := os.ReadFile(log.Name()); w.t.Failed() {
			w.t.Logf("%s says (%v): %s", program, err, text)
		}
	}
}
