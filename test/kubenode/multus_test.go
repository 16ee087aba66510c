package kubenode

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/test/kubelab"
	"github.com/weftnet/weft/test/machine"
)

// busyboxImage packs this machine's busybox under the name that manifests of
// users give it, so that they are applied unchanged.
func busyboxImage(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "root")
	for _, dir := range []string{"bin", "tmp", "proc", "sys", "dev", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	install := exec.Command("sh", "-c", `cp "$0" "$1/bin/busybox" && for applet in $("$0" --list); do [ $applet = busybox ] || ln -s busybox "$1/bin/$applet"; done`, program, root)
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	archive := filepath.Join(t.TempDir(), "busybox.tar")
	if err := kubelab.Pack(archive, "docker.io/library/busybox:1.37", root); err != nil {
		t.Fatal(err)
	}
	return archive
}

// together runs parts that do not meet as subtests at the same time: most of what
// they do is wait.
func (w *world) together(parts map[string]func(*world)) {
	w.t.Helper()
	w.t.Run("together", func(t *testing.T) {
		for name, part := range parts {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				part(w.in(t))
			})
		}
	})
}

// file applies or deletes a manifest as it is.
func (w *world) file(verb string, path ...string) {
	w.t.Helper()
	w.kubectl(verb, "-f", filepath.Join(append([]string{machine.Tree()}, path...)...))
}

func (w *world) exec(pod string, command ...string) string {
	w.t.Helper()
	return w.kubectl(append([]string{"exec", pod, "--"}, command...)...)
}

// defaults gives the default routes in a Pod.
func (w *world) defaults(pod string) (routes []string) {
	w.t.Helper()
	for line := range strings.Lines(w.exec(pod, "ip", "route")) {
		if strings.HasPrefix(line, "default ") {
			routes = append(routes, strings.TrimSpace(line))
		}
	}
	return routes
}

// fiveG is examples/kube/5g.yaml: a phone's packet crosses the user plane function
// from node to node, on secondary networks alone.
func (w *world) fiveG() {
	w.t.Helper()
	w.file("apply", "examples/kube/5g.yaml")
	w.rollout("amf", "smf", "upf", "gnb", "dn")
	gnb, smf, upf := w.pod("gnb"), w.pod("smf"), w.pod("upf")
	status := w.status(upf)
	for name, want := range map[string]element{
		"n3": {Name: "default/n3", IPs: []string{"10.100.3.30"}},
		"n4": {Name: "default/n4", IPs: []string{"10.100.4.30"}},
		"n6": {Name: "default/n6", IPs: []string{"10.100.6.30"}, Gateway: []string{"10.100.6.1"}},
	} {
		got := status[name]
		if got.Name != want.Name || !slices.Equal(got.IPs, want.IPs) || !slices.Equal(got.Gateway, want.Gateway) || got.Default {
			w.t.Errorf("network-status of upf tells of %s: %+v, want %+v", name, got, want)
		}
	}
	if got := status["eth0"]; !got.Default || len(got.Gateway) > 0 {
		w.t.Errorf("network-status of upf tells of eth0: %+v", got)
	}
	for _, tt := range []struct{ pod, want string }{
		{upf, "default via 10.100.6.1 dev n6"}, {gnb, "default via 10.100.3.30 dev n3"}, {smf, "dev eth0"},
	} {
		if routes := w.defaults(tt.pod); len(routes) != 1 || !strings.Contains(routes[0], tt.want) {
			w.t.Errorf("default routes of %s: %q, want one: %s", tt.pod, routes, tt.want)
		}
	}
	w.eventually("the radio reaches amf on N2", func() error { return w.ping(gnb, "10.100.2.20") })
	w.eventually("smf reaches upf on N4", func() error { return w.ping(smf, "10.100.4.30") })
	w.eventually("the radio reaches the data network by upf", func() error { return w.ping(gnb, "10.100.6.1") })
	if out := w.exec(gnb, "traceroute", "-n", "-w", "2", "-m", "3", "10.100.6.1"); !strings.Contains(out, " 10.100.3.30 ") {
		w.t.Errorf("it goes by another way: %s", out)
	}
	if err := w.ping(smf, "10.100.3.10"); err == nil {
		w.t.Error("smf reaches the radio's network")
	}
	w.file("delete", "examples/kube/5g.yaml")
	w.kubectl("wait", "--for=delete", "pod", "-l", "app in (amf,smf,upf,gnb,dn)", "--timeout=60s")
}

// multus applies manifests in the form of Multus' own end-to-end tests, unchanged:
// two workers that a link eth1 joins, Pods with addresses asked for, default
// routes, a static Pod, plugins chained by a directory.
func (w *world) multus() {
	w.t.Helper()
	w.join()
	n1 := w.c.Nodes()[0]
	dir := filepath.Join(machine.Tree(), "test/kubenode/testdata/multus")
	w.file("apply", "test/kubenode/testdata/multus/macvlan.yaml")
	w.file("apply", "test/kubenode/testdata/multus/default-route.yaml")
	w.file("apply", "test/kubenode/testdata/multus/static-network.yaml")
	w.on(n1, "mkdir -p /etc/kubernetes/manifests && cp "+dir+"/static-pod.yaml /etc/kubernetes/manifests/")
	for _, app := range []string{"multus-macvlan", "multus-default-route"} {
		w.kubectl("wait", "--for=condition=Ready", "pod", "-l", "app="+app, "--timeout=120s")
	}
	w.eventually("left reaches right", func() error { return w.ping("left", "10.1.1.12") })
	w.eventually("right reaches left", func() error { return w.ping("right", "10.1.1.11") })
	if out := w.exec("right", "ip", "link", "show", "net1"); !strings.Contains(out, "02:42:ac:00:00:12") {
		w.t.Errorf("net1 of right is %s", out)
	}
	for pod, want := range map[string]string{"by-net1": "default via 10.1.2.254 dev net1", "by-eth0": "default via 10.244.1.1 dev eth0"} {
		if routes := w.defaults(pod); !slices.Equal(routes, []string{want}) {
			w.t.Errorf("default routes of %s: %q, want %s", pod, routes, want)
		}
		link := want[strings.LastIndex(want, " ")+1:]
		for name, e := range w.status("pod", pod) {
			if has := len(e.Gateway) > 0; has != (name == link) {
				w.t.Errorf("network-status of %s tells gateways %v of %s", pod, e.Gateway, name)
			}
		}
	}
	w.kubectl("wait", "--for=create", "pod/static-web-n1", "--timeout=60s")
	w.kubectl("wait", "--for=condition=Ready", "pod/static-web-n1", "--timeout=60s")
	if got := w.status("pod/static-web-n1")["net1"]; got.Name != "default/bridge-nad" || len(got.IPs) != 1 || !strings.HasPrefix(got.IPs[0], "10.10.") {
		w.t.Errorf("network-status of the static Pod: %+v", got)
	}
	w.on(n1, "rm /etc/kubernetes/manifests/static-pod.yaml")
	w.chained(n1, filepath.Join(dir, "chained.conf"))
	w.file("delete", "test/kubenode/testdata/multus/macvlan.yaml")
	w.file("delete", "test/kubenode/testdata/multus/default-route.yaml")
	w.kubectl("wait", "--for=delete", "pod/static-web-n1", "--timeout=60s")
	w.file("delete", "test/kubenode/testdata/multus/static-network.yaml")
}

// join links the nodes by an eth1 of their own.
func (w *world) join() {
	w.t.Helper()
	run := func(args ...string) {
		if out, err := w.c.Command(w.t.Context(), "ip", args...).CombinedOutput(); err != nil {
			w.t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	run("link", "add", "left", "type", "veth", "peer", "name", "right")
	for i, name := range []string{"left", "right"} {
		node := w.c.Nodes()[i]
		pid, err := os.ReadFile(filepath.Join(node.Dir, "init.pid"))
		if err != nil {
			w.t.Fatal(err)
		}
		run("link", "set", name, "netns", strings.TrimSpace(string(pid)), "name", "eth1")
		w.on(node, "ip link set eth1 up")
	}
}

// chained drops a plugin into the directory of the primary network's list, as
// runtimes take them: new Pods have it, through weft.
func (w *world) chained(node *kubelab.Node, file string) {
	w.t.Helper()
	w.on(node, "mkdir /etc/cni/net.d/cluster && cp "+file+" /etc/cni/net.d/cluster/")
	w.apply(deployment("chained", node.Name, ""))
	w.rollout("chained")
	if got := strings.TrimSpace(w.exec(w.pod("chained"), "cat", "/proc/sys/net/ipv4/conf/eth0/arp_filter")); got != "1" {
		w.t.Errorf("the chained plugin's setting is %s", got)
	}
	w.on(node, "rm -r /etc/cni/net.d/cluster")
	w.kubectl("delete", "deployment", "chained", "--wait")
}

const isolationManifest = `
apiVersion: v1
kind: Namespace
metadata: {name: tenant}
---
apiVersion: v1
kind: Namespace
metadata: {name: other}
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: own, namespace: tenant}
spec: {config: '{"cniVersion":"1.0.0","type":"bridge","bridge":"own0"}'}
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: secret, namespace: other}
spec: {config: '{"cniVersion":"1.0.0","type":"bridge","bridge":"secret0"}'}
`

func tenantPod(name, annotation, networks string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: tenant, annotations: {%s: '%s'}}
spec:
  nodeName: n2
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "lab.local/toolbox:1", imagePullPolicy: Never, command: [sleep, infinity]}]
`, name, annotation, networks)
}

// isolation is namespaceIsolation on a node: a Pod has networks of its own
// namespace and of default, and no way to another's.
func (w *world) isolation() {
	w.t.Helper()
	const networks, defaultNetwork = "k8s.v1.cni.cncf.io/networks", "v1.multus-cni.io/default-network"
	n2 := w.c.Nodes()[1]
	configure := func(text string) {
		w.on(n2, "printf %s '"+text+"' >/etc/cni/net.d/.weft && mv /etc/cni/net.d/.weft /etc/cni/net.d/00-weft.conflist")
	}
	w.apply(isolationManifest)
	configure(strings.Replace(config, `"clusterNetwork"`, `"namespaceIsolation":true,"clusterNetwork"`, 1))
	refused := func(pod string) string {
		return w.kubectl("-n", "tenant", "get", "events", "--field-selector=reason=FailedCreatePodSandBox,involvedObject.name="+pod, "-o", "jsonpath={.items[*].message}")
	}
	// The runtime takes a moment to read its configuration anew.
	try := 0
	w.eventually("another namespace's network is refused", func() error {
		try++
		pod := fmt.Sprint("try-", try)
		w.apply(tenantPod(pod, networks, "other/secret"))
		for {
			if out := refused(pod); strings.Contains(out, `annotation k8s.v1.cni.cncf.io/networks[0].namespace "other": networks are isolated by namespace, and the Pod is in tenant`) {
				return nil
			}
			if phase := w.kubectl("-n", "tenant", "get", "pod", pod, "-o", "jsonpath={.status.phase}"); phase == "Running" {
				return fmt.Errorf("%s runs", pod)
			}
		}
	})
	w.apply(tenantPod("around", defaultNetwork, "other/secret") + tenantPod("fine", networks, "own,default/blue"))
	w.kubectl("-n", "tenant", "wait", "--for=condition=Ready", "pod/fine", "--timeout=60s")
	w.eventually("the default network is no way around", func() error {
		if out := refused("around"); !strings.Contains(out, "annotation v1.multus-cni.io/default-network[0].namespace") {
			return fmt.Errorf("events say %q", out)
		}
		return nil
	})
	// Neither is a change of a running Pod: what it may have comes, after what it may not.
	w.kubectl("-n", "tenant", "annotate", "pod", "fine", "--overwrite", networks+"=own,default/blue,other/secret@bad0,own@good0")
	w.eventually("own@good0 comes", func() error {
		out := w.kubectl("-n", "tenant", "exec", "fine", "--", "ip", "-br", "link")
		if strings.Contains(out, "bad0") {
			w.t.Fatalf("a running Pod got another namespace's network: %s", out)
		}
		if !strings.Contains(out, "good0") {
			return fmt.Errorf("it has %s", out)
		}
		return nil
	})
	configure(config)
	w.kubectl("delete", "namespace", "tenant", "other", "--wait")
}
