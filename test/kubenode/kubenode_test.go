// Package kubenode runs weft's node agent on real Kubernetes nodes: kubelet and
// containerd call weft-cni, kubectl is the user.
package kubenode

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/test/kubelab"
	"github.com/weftnet/weft/test/machine"
)

func TestMain(m *testing.M) { kubelab.Main(m) }

// world is a cluster whose nodes have weft.
type world struct {
	t   *testing.T
	c   *kubelab.Cluster
	bin string
}

func (w *world) kubectl(args ...string) string {
	w.t.Helper()
	out, err := w.c.Kubectl(w.t.Context(), "", args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) apply(manifest string) {
	w.t.Helper()
	if _, err := w.c.Kubectl(w.t.Context(), manifest, "apply", "-f", "-"); err != nil {
		w.t.Fatal(err)
	}
}

// on runs a program on a node.
func (w *world) on(node *kubelab.Node, command string) string {
	w.t.Helper()
	out, err := node.Exec(w.t.Context(), "sh", "-c", command)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) eventually(what string, try func() error) {
	w.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// config is the CNI configuration weft is installed with: the primary network is
// the one that was there.
const config = `{"cniVersion":"1.0.0","name":"weft","plugins":[{"type":"weft-cni",
	"clusterNetwork":"/etc/cni/net.d/10-primary.conflist",
	"capabilities":{"io.kubernetes.cri.pod-annotations":true,"portMappings":true}}]}`

// install puts weft on a node and starts its agent.
func (w *world) install(node *kubelab.Node) {
	w.t.Helper()
	w.on(node, "cp "+w.bin+"/weft-cni "+w.bin+"/weft-cni-thin /opt/cni/bin/")
	w.startAgent(node)
	w.eventually("the agent listens", func() error {
		_, err := node.Exec(w.t.Context(), "test", "-S", "/run/weft/cni.sock")
		return err
	})
	w.on(node, "printf %s '"+config+"' >/etc/cni/net.d/.weft && mv /etc/cni/net.d/.weft /etc/cni/net.d/00-weft.conflist")
}

func (w *world) startAgent(node *kubelab.Node) {
	w.t.Helper()
	w.startAgentWith(node, w.c.Kubeconfig())
}

func (w *world) startAgentWith(node *kubelab.Node, kubeconfig string) {
	w.t.Helper()
	cmd, err := node.Command(context.WithoutCancel(w.t.Context()), w.bin+"/weft-node", "--node", node.Name, "--kubeconfig", kubeconfig, "--collect-after", "40s")
	if err != nil {
		w.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(w.bin, node.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }() // killed by the test or with the node
}

func (w *world) killAgent(node *kubelab.Node) {
	w.t.Helper()
	w.on(node, "pkill -9 -x weft-node; while pgrep -x weft-node >/dev/null; do sleep 0.05; done")
}

func newWorld(t *testing.T) *world {
	t.Helper()
	kubelab.Require(t)
	bin := t.TempDir()
	cmd := exec.Command("go", "build", "-o", bin+"/", "./cmd/weft-node", "./cmd/weft-cni", "./cmd/weft-cni-thin")
	cmd.Dir = machine.Tree()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	w := &world{t: t, bin: bin, c: kubelab.New(t, kubelab.Options{Nodes: 2, Images: []string{busyboxImage(t)}})}
	t.Cleanup(func() {
		if t.Failed() {
			for _, node := range w.c.Nodes() {
				text, _ := os.ReadFile(filepath.Join(bin, node.Name+".log")) // none: it never began
				t.Logf("weft-node on %s:\n%s", node.Name, text)
			}
		}
	})
	w.apply(definitionCRD)
	w.kubectl("wait", "--for=condition=Established", "crd/network-attachment-definitions.k8s.cni.cncf.io", "--timeout=60s")
	for _, node := range w.c.Nodes() {
		w.install(node)
	}
	return w
}

const definitionCRD = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: network-attachment-definitions.k8s.cni.cncf.io}
spec:
  group: k8s.cni.cncf.io
  scope: Namespaced
  names: {plural: network-attachment-definitions, singular: network-attachment-definition, kind: NetworkAttachmentDefinition, shortNames: [net-attach-def]}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {config: {type: string}}}}}}
`

// macvlanConf stands on the nodes' uplink, so it reaches from node to node. Its
// addresses are asked for: host-local gives each node the same ones.
const macvlanConf = `
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: macvlan-conf}
spec:
  config: '{"cniVersion":"1.0.0","type":"macvlan","master":"eth0","mode":"bridge","ipam":{"type":"host-local","subnet":"192.168.77.0/24"}}'
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: blue}
spec:
  config: '{"cniVersion":"1.0.0","type":"bridge","bridge":"blue0","ipam":{"type":"host-local","subnet":"10.50.0.0/24"}}'
`

// deployment is one Pod on a node, with a networks annotation.
func deployment(name, node, networks string) string {
	return fmt.Sprintf(`---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}, annotations: {k8s.v1.cni.cncf.io/networks: '%[3]s'}}
    spec:
      nodeName: %[2]s
      terminationGracePeriodSeconds: 0
      tolerations: [{operator: Exists}]
      containers: [{name: c, image: "lab.local/toolbox:1", imagePullPolicy: Never, command: [sleep, infinity]}]
`, name, node, networks)
}

// pod gives the name of a Deployment's Pod.
func (w *world) pod(deployment string) string {
	w.t.Helper()
	var name string
	w.eventually("one Pod of "+deployment, func() error {
		out := w.kubectl("get", "pods", "-l", "app="+deployment, "--field-selector=status.phase=Running", "-o", "name")
		names := strings.Fields(out)
		if len(names) != 1 {
			return fmt.Errorf("there are %v", names)
		}
		name = names[0]
		return nil
	})
	return name
}

func (w *world) rollout(names ...string) {
	w.t.Helper()
	for _, name := range names {
		w.kubectl("rollout", "status", "deployment/"+name, "--timeout=120s")
	}
}

// element is one entry of network-status.
type element struct {
	Name       string   `json:"name"`
	Interface  string   `json:"interface"`
	IPs        []string `json:"ips"`
	MAC        string   `json:"mac"`
	Default    bool     `json:"default"`
	Gateway    []string `json:"gateway"`
	DeviceInfo struct {
		Type string `json:"type"`
		VDPA struct {
			Path string `json:"path"`
		} `json:"vdpa"`
	} `json:"device-info"`
}

func (w *world) status(pod ...string) map[string]element {
	w.t.Helper()
	byInterface := map[string]element{}
	w.eventually(fmt.Sprintf("network-status of %v", pod), func() error {
		out := w.kubectl(append([]string{"get", "-o", `jsonpath={.metadata.annotations.k8s\.v1\.cni\.cncf\.io/network-status}`}, pod...)...)
		var list []element
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return fmt.Errorf("%q: %w", out, err)
		}
		clear(byInterface)
		for _, e := range list {
			byInterface[e.Interface] = e
		}
		return nil
	})
	return byInterface
}

func (w *world) ping(from, to string) error {
	_, err := w.c.Kubectl(w.t.Context(), "", "exec", from, "--", "ping", "-c", "1", "-W", "2", to)
	return err
}

// TestNode is the hands-on exercise of a Multus course on two nodes, then what
// may go wrong.
func TestNode(t *testing.T) {
	w := newWorld(t)
	w.apply(macvlanConf +
		deployment("a", "n1", `[{"name":"macvlan-conf","ips":["192.168.77.10"]}]`) +
		deployment("b", "n2", `[{"name":"macvlan-conf","ips":["192.168.77.11"]}]`) +
		deployment("c", "n2", ""))
	w.rollout("a", "b", "c")
	a, b, c := w.pod("a"), w.pod("b"), w.pod("c")
	if got := w.status(b)["net1"]; got.Name != "default/macvlan-conf" || !slices.Equal(got.IPs, []string{"192.168.77.11"}) || got.Default {
		t.Errorf("network-status of b tells of net1: %+v", got)
	}
	if got := w.status(b)["eth0"]; !got.Default || len(got.IPs) != 1 {
		t.Errorf("network-status of b tells of eth0: %+v", got)
	}
	w.eventually("a reaches b across nodes on net1", func() error { return w.ping(a, "192.168.77.11") })
	w.eventually("a reaches b across nodes on eth0", func() error { return w.ping(a, w.status(b)["eth0"].IPs[0]) })
	if err := w.ping(c, "192.168.77.10"); err == nil {
		t.Error("c reaches a network it has no part in")
	}
	w.eventually("events tell what a has", func() error {
		out := w.kubectl("get", "events", "--field-selector=reason=AddedInterface,involvedObject.name="+strings.TrimPrefix(a, "pod/"), "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(out, "net1 [192.168.77.10/24] from default/macvlan-conf") {
			return fmt.Errorf("they tell %q", out)
		}
		return nil
	})
	w.apply(deployment("lost", "n1", "nowhere"))
	w.eventually("events tell the network that is not there", func() error {
		out := w.kubectl("get", "events", "--field-selector=reason=NoNetworkFound", "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(out, "default/nowhere") {
			return fmt.Errorf("they tell %q", out)
		}
		return nil
	})
	w.kubectl("delete", "deployment", "lost")
	takenBack := w.stray(w.c.Nodes()[0])
	told := w.drift(b)
	w.hotplug(a)
	told()
	w.together(map[string]func(*world){"5G": (*world).fiveG, "multus": (*world).multus, "isolation": (*world).isolation})
	takenBack()
	w.outages(a, "192.168.77.11")
	w.thinNode()
	w.agentAway()
	w.reboot()
	w.nothingLeft()
}

// hotplug changes the annotation of a running Pod, the network's own end
// included.
func (w *world) hotplug(pod string) {
	w.t.Helper()
	annotate := func(networks string) {
		w.kubectl("annotate", pod, "--overwrite", "k8s.v1.cni.cncf.io/networks="+networks)
	}
	has := func(want ...string) {
		w.t.Helper()
		w.eventually(fmt.Sprintf("%s has %v", pod, want), func() error {
			out := w.kubectl("exec", pod, "--", "ip", "-br", "link")
			var links []string
			for line := range strings.Lines(out) {
				if name, _, _ := strings.Cut(strings.Fields(line)[0], "@"); name != "lo" {
					links = append(links, name)
				}
			}
			if slices.Sort(links); !slices.Equal(links, want) {
				return fmt.Errorf("it has %v", links)
			}
			return nil
		})
	}
	const old = `{"name":"macvlan-conf","ips":["192.168.77.10"]}`
	annotate("[" + old + `,{"name":"blue"},{"name":"blue","interface":"hot0"}]`)
	has("eth0", "hot0", "net1", "net2")
	w.eventually("network-status tells the new ones", func() error {
		if got := w.status(pod)["hot0"]; len(got.IPs) != 1 || got.Name != "default/blue" {
			return fmt.Errorf("it tells %+v", got)
		}
		return nil
	})
	w.kubectl("delete", "net-attach-def", "blue")
	annotate("[" + old + `]`)
	has("eth0", "net1")
	w.apply(macvlanConf)
}

// agentAway kills the agent: a plain Pod starts without it, one with networks
// waits for it, and what ends meanwhile is cleaned up later.
func (w *world) agentAway() {
	w.t.Helper()
	n2 := w.c.Nodes()[1]
	w.killAgent(n2)
	w.apply(deployment("plain", "n2", "") + deployment("waits", "n2", "blue"))
	w.rollout("plain")
	w.kubectl("delete", "deployment", "b", "--wait")
	w.eventually("b's sandbox ends without an agent", func() error {
		if out := w.on(n2, "grep -l POD_NAME=b- /var/lib/weft/dels/* 2>/dev/null || true"); out == "" {
			return fmt.Errorf("its DEL was not kept")
		}
		return nil
	})
	if out := w.kubectl("get", "pods", "-l", "app=waits", "-o", "jsonpath={.items[*].status.phase}"); out != "Pending" {
		w.t.Errorf("a Pod with a second network is %s while no agent runs", out)
	}
	w.startAgent(n2)
	w.rollout("waits")
	if got := w.status(w.pod("waits"))["net1"]; len(got.IPs) != 1 {
		w.t.Errorf("network-status of the Pod that waited: %+v", got)
	}
	w.eventually("the kept DELs are done", func() error {
		if out := w.on(n2, "ls /var/lib/weft/dels | wc -l"); strings.TrimSpace(out) != "0" {
			return fmt.Errorf("%s are left", out)
		}
		return nil
	})
	if out := w.on(n2, "grep -l 192.168.77.11 /var/lib/weft/attachments/* /run/weft/attachments/* || true"); out != "" {
		w.t.Errorf("a record of b is left: %s", out)
	}
}

// reboot takes a node's power away. Its Pods come back with their networks.
func (w *world) reboot() {
	w.t.Helper()
	n1 := w.c.Nodes()[0]
	if err := n1.Stop(); err != nil {
		w.t.Fatal(err)
	}
	if err := n1.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.startAgent(n1)
	w.rollout("a")
	w.eventually("a is back on its network", func() error {
		pod := w.pod("a")
		out, err := w.c.Kubectl(w.t.Context(), "", "exec", pod, "--", "ip", "-4", "-br", "addr", "show", "dev", "net1")
		if err == nil && !strings.Contains(out, "192.168.77.10/24") {
			err = fmt.Errorf("net1 has %s", out)
		}
		return err
	})
}

func (w *world) nothingLeft() {
	w.t.Helper()
	w.kubectl("delete", "deployments", "--all", "--wait")
	for _, node := range w.c.Nodes() {
		w.eventually("nothing is left on "+node.Name, func() error {
			links := w.on(node, "ip -br link | grep -E 'weft|blue0|red0|@eth0' || true")
			records := w.on(node, "ls /var/lib/weft/attachments /run/weft/attachments | grep json || true")
			if links+records != "" {
				return fmt.Errorf("links %q, records %q", links, records)
			}
			return nil
		})
	}
}
