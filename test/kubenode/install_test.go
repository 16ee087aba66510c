package kubenode

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/test/kubelab"
	"github.com/weftnet/weft/test/machine"
)

// manifest is what people install.
func manifest() string { return filepath.Join(machine.Tree(), "deploy", "weft.yaml") }

// image packs weft's image under the name that the manifest asks for.
func image(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(manifest())
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), `image: "`)
	name, _, ok := strings.Cut(rest, `"`)
	if !ok {
		t.Fatalf("%s names no image", manifest())
	}
	dir := t.TempDir()
	if out, err := exec.Command(filepath.Join(machine.Tree(), "deploy", "image.sh"), filepath.Join(dir, "root")).CombinedOutput(); err != nil {
		t.Fatalf("image.sh: %v\n%s", err, out)
	}
	archive := filepath.Join(dir, "weft.tar")
	if err := kubelab.Pack(archive, "docker.io/"+name, filepath.Join(dir, "root"), "/usr/bin/weft-node"); err != nil {
		t.Fatal(err)
	}
	return archive
}

// installed waits for the DaemonSet of the manifest.
func (w *world) installed() {
	w.t.Helper()
	w.kubectl("apply", "-f", manifest())
	w.kubectl("-n", "kube-system", "rollout", "status", "daemonset/weft", "--timeout=180s")
}

// TestInstall is the life of the plain manifest: installed, used, upgraded,
// deleted, installed again.
func TestInstall(t *testing.T) {
	kubelab.Require(t)
	w := &world{t: t, c: kubelab.New(t, kubelab.Options{Nodes: 2, Proxy: true, Images: []string{image(t)}})}
	t.Cleanup(func() {
		if t.Failed() {
			out, err := w.c.Kubectl(context.WithoutCancel(t.Context()), "", "-n", "kube-system", "logs", "daemonset/weft", "--all-pods", "--prefix", "--tail=60")
			t.Logf("the agents say (%v):\n%s", err, out)
		}
	})
	w.installed()
	w.kubectl("wait", "--for=condition=Established", "crd/network-attachment-definitions.k8s.cni.cncf.io", "--timeout=60s")
	w.apply(macvlanConf + foreignConf +
		deployment("a", "n1", `[{"name":"macvlan-conf","ips":["192.168.77.10"]},{"name":"red"}]`) +
		deployment("b", "n2", `[{"name":"macvlan-conf","ips":["192.168.77.11"]},{"name":"red"}]`))
	w.rollout("a", "b")
	a, b := w.pod("a"), w.pod("b")
	if got := w.status(a); len(got["net1"].IPs) != 1 || len(got["net2"].IPs) != 1 {
		t.Errorf("network-status of a: %+v", got)
	}
	if got := strings.TrimSpace(w.kubectl("exec", a, "--", "cat", "/proc/sys/net/ipv4/conf/net2/arp_filter")); got != "1" {
		t.Errorf("the foreign plugin's setting is %s", got)
	}
	if out := w.on(w.c.Nodes()[0], "nft list ruleset | grep -c masquerade"); out == "0\n" {
		t.Error("no rule masquerades the addresses of network red")
	}
	w.eventually("a reaches b on net1", func() error { return w.ping(a, "192.168.77.11") })
	w.policy(a, b)
	w.leases()
	w.advised()
	w.machines()
	told := w.keptAhead()
	w.web()
	w.rival()
	t.Run("devices", func(t *testing.T) { w.in(t).devices() })
	told()
	w.primaryChanges()
	w.upgrade()
	w.uninstalled(a)
}

// advised: with the controller, nodes take the lowest addresses of a range.
func (w *world) advised() {
	w.t.Helper()
	w.kubectl("-n", "kube-system", "rollout", "status", "deployment/weft-controller", "--timeout=120s")
	w.eventually("both agents know the adviser", func() error {
		logs := w.kubectl("-n", "kube-system", "logs", "daemonset/weft", "--all-pods")
		if n := strings.Count(logs, "chosen with the cluster's adviser"); n < 2 {
			return fmt.Errorf("%d say so; the controller says:\n%s", n, w.kubectl("-n", "kube-system", "logs", "deployment/weft-controller", "--all-pods", "--tail=20"))
		}
		return nil
	})
	w.apply(`---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: advised}
spec:
  config: '{"cniVersion":"1.0.0","type":"bridge","bridge":"adv0","ipam":{"type":"whereabouts","range":"10.88.0.0/16"}}'
`)
	var got []string
	for i, node := range []string{"n1", "n2", "n1"} {
		name := fmt.Sprint("advised", i)
		w.apply(deployment(name, node, `[{"name":"advised"}]`))
		w.rollout(name)
		got = append(got, w.status(w.pod(name))["net1"].IPs...)
	}
	if want := []string{"10.88.0.1", "10.88.0.2", "10.88.0.3"}; !slices.Equal(got, want) {
		w.t.Errorf("got %v, want %v", got, want)
	}
	w.kubectl("delete", "deployment", "advised0", "advised1", "advised2")
}

// web asks the agents for metrics and how they are, also while the API server is
// away: a working agent must not be started anew for that.
func (w *world) web() {
	w.t.Helper()
	const agent = "http://127.0.0.1:10970"
	for _, node := range w.c.Nodes() {
		if out := w.on(node, "curl -sf "+agent+"/metrics"); !strings.Contains(out, `weft_cni_duration_seconds_count{phase="total",plugin="",verb="ADD"}`) || !strings.Contains(out, "weft_build_info{") {
			w.t.Errorf("the metrics of %s are\n%s", node.Name, out)
		}
	}
	if err := w.c.Kill(kubelab.APIServer); err != nil {
		w.t.Fatal(err)
	}
	for _, node := range w.c.Nodes() {
		w.on(node, "curl -sf "+agent+"/healthz "+agent+"/readyz")
		if code, err := node.Exec(w.t.Context(), "curl", "-sf", agent+"/debug/pprof/"); err == nil {
			w.t.Errorf("profiles are served without --pprof: %s", code)
		}
	}
	if err := w.c.WaitAPI(); err != nil {
		w.t.Fatal(err)
	}
}

// rival puts a configuration before ours, which an event of the node tells.
func (w *world) rival() {
	w.t.Helper()
	n2 := w.c.Nodes()[1]
	w.on(n2, "cp /etc/cni/net.d/10-primary.conflist /etc/cni/net.d/00-first.conflist")
	w.eventually("an event tells that another configuration takes node n2", func() error {
		out := w.kubectl("get", "events", "--field-selector=reason=WeftNotCalled,involvedObject.kind=Node,involvedObject.name=n2", "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(out, "/etc/cni/net.d/00-first.conflist") {
			return fmt.Errorf("there are %q", out)
		}
		return nil
	})
	w.on(n2, "rm /etc/cni/net.d/00-first.conflist")
	w.eventually("the primary network is the one that was", func() error {
		if out := w.on(n2, "cat /etc/cni/net.d/00-weft.conflist"); !strings.Contains(out, "10-primary.conflist") {
			return fmt.Errorf("our configuration is %s", out)
		}
		return nil
	})
}

// foreignConf needs everything of the agent's container: nft for masquerading, a
// writable sysctl, the node's own plugins with their libraries.
const foreignConf = `---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: red}
spec:
  config: '{"cniVersion":"1.0.0","plugins":[
    {"type":"bridge","bridge":"red0","isDefaultGateway":false,"isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","subnet":"10.60.0.0/16"}},
    {"type":"tuning","sysctl":{"net.ipv4.conf.net2.arp_filter":"1"}}]}'
`

// agentOn gives the agent's Pod of a node.
func (w *world) agentOn(node string) string {
	w.t.Helper()
	return w.kubectl("-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/name=weft", "--field-selector=spec.nodeName="+node, "-o", "jsonpath={.items[0].metadata.name}")
}

// policy does with the token of n1's agent what it should and should not do.
func (w *world) policy(own, other string) {
	w.t.Helper()
	bound := strings.TrimSpace(w.kubectl("-n", "kube-system", "create", "token", "weft", "--bound-object-kind=Pod", "--bound-object-name="+w.agentOn("n1")))
	loose := strings.TrimSpace(w.kubectl("-n", "kube-system", "create", "token", "weft"))
	const key = "k8s.v1.cni.cncf.io/network-status"
	w.apply(networks.ClaimCRD)
	w.kubectl("wait", "--for=condition=Established", "crd/ipamclaims.k8s.cni.cncf.io", "--timeout=60s")
	w.apply(claimObject("free") + claimObject("other"))
	w.kubectl("annotate", "ipamclaim", "other", "weft.network/node=n2")
	w.apply(leaseObject("10.99.0.9", "n2"))
	for _, tt := range []struct {
		name, token string
		refused     string // what the answer says; empty: it is done
		args        []string
	}{
		{"status of its own Pod", bound, "", []string{"annotate", own, "--overwrite", key + "=[]"}},
		{"status of another node's Pod", bound, "may change Pods of that node only", []string{"annotate", other, "--overwrite", key + "=[]"}},
		{"status by a token of no node", loose, "may change Pods of", []string{"annotate", own, "--overwrite", key + "=[ ]"}},
		{"condition of its own Pod", bound, "", w.patchStatus(own, conditions(`{"type":"weft.network/NetworksReady","status":"True","reason":"AsMade"}`))},
		{"condition of another node's Pod", bound, "may change Pods of that node only", w.patchStatus(other, conditions(`{"type":"weft.network/NetworksReady","status":"True"}`))},
		{"another condition", bound, "condition weft.network/NetworksReady", w.patchStatus(own, conditions(`{"type":"Ready","status":"False"}`))},
		{"a condition less", bound, "condition weft.network/NetworksReady", w.patchStatus(own, conditions(`{"type":"Ready","$patch":"delete"}`))},
		{"the Pod's address", bound, "condition weft.network/NetworksReady", w.patchStatus(own, `{"status":{"podIP":"192.0.2.1","podIPs":[{"$patch":"replace"},{"ip":"192.0.2.1"}]}}`)},
		{"the Pod's phase", bound, "condition weft.network/NetworksReady", w.patchStatus(own, `{"status":{"phase":"Failed"}}`)},
		{"an annotation by way of the status", bound, "network-status of a Pod only", w.patchStatus(own, `{"metadata":{"annotations":{"x":"y"}}}`)},
		{"another annotation", bound, "network-status of a Pod only", []string{"annotate", own, "x=y"}},
		{"an annotation less", bound, "network-status of a Pod only", []string{"annotate", own, "k8s.v1.cni.cncf.io/networks-"}},
		{"an annotation changed", bound, "network-status of a Pod only", []string{"annotate", own, "--overwrite", "k8s.v1.cni.cncf.io/networks="}},
		{"a label", bound, "network-status of a Pod only", []string{"label", own, "x=y"}},
		{"an image", bound, "network-status of a Pod only", []string{"set", "image", own, "c=lab.local/pause:1"}},
		{"claim for another node", bound, "IPAMClaims of its own node", []string{"annotate", "ipamclaim", "free", "weft.network/node=n2"}},
		{"claim of another node", bound, "IPAMClaims of its own node", []string{"annotate", "ipamclaim", "other", "--overwrite", "weft.network/node=n1"}},
		{"claim for its node", bound, "", []string{"annotate", "ipamclaim", "free", "weft.network/node=n1"}},
		{"addresses of its claim", bound, "", w.patchClaim("free")},
		{"addresses of another's claim", bound, "IPAMClaims of its own node", w.patchClaim("other")},
		{"a claim's network", bound, "the status of an IPAMClaim only", []string{"patch", "ipamclaim", "free", "--type=merge", "-p", `{"spec":{"network":"x"}}`}},
		{"address for its node", bound, "", w.createLease("10.99.0.1", "n1")},
		{"address for another node", bound, "AddressLeases of that node only", w.createLease("10.99.0.2", "n2")},
		{"address that is held", bound, "already exists", w.createLease("10.99.0.1", "n1")},
		{"no address", bound, "is no IP address", w.createLease("10.99.0", "n1")},
		{"give back its address", bound, "", []string{"delete", "addrlease", "10.99.0.1", "--wait=false"}},
		{"give back another node's address", bound, "AddressLeases of that node only", []string{"delete", "addrlease", "10.99.0.9", "--wait=false"}},
		{"tell of its node's addresses", bound, "", w.createBindings("n1")},
		{"tell of another node's addresses", bound, "addresses of its own node only", w.createBindings("n2")},
		{"change an address", bound, "forbidden", []string{"label", "addrlease", "10.99.0.9", "x=y"}},
		{"delete a Pod", bound, "forbidden", []string{"delete", own}},
		{"read a Secret", bound, "forbidden", []string{"-n", "kube-system", "get", "secrets"}},
		{"delete the kind", bound, "forbidden", []string{"delete", "crd", "network-attachment-definitions.k8s.cni.cncf.io"}},
		{"make another kind", bound, "NetworkAttachmentDefinition only", []string{"create", "-f", w.otherKind()}},
	} {
		command := w.c.Command(w.t.Context(), "kubectl", append([]string{"--kubeconfig=/dev/null", "--server=" + w.c.Server, "--certificate-authority=" + filepath.Join(w.c.Dir, "ca.crt"), "--token=" + tt.token}, tt.args...)...)
		if tt.args[0] == "curl" { // kubectl reads what it patches, which is more than an agent may
			command = w.c.Command(w.t.Context(), "curl", append([]string{"-sS", "--fail-with-body", "--cacert", filepath.Join(w.c.Dir, "ca.crt"), "-H", "Authorization: Bearer " + tt.token}, tt.args[1:]...)...)
		}
		out, err := command.CombinedOutput()
		if refused := err != nil; refused != (tt.refused != "") || !strings.Contains(string(out), tt.refused) {
			w.t.Errorf("%s with the agent's token: %v, %s", tt.name, err, out)
		}
	}
}

func leaseObject(ip, node string) string {
	return fmt.Sprintf(`{"apiVersion":"weft.network/v1alpha1","kind":"AddressLease","metadata":{"name":%q},
		"spec":{"ip":%q,"scope":"whereabouts:","node":%q,"owner":{"kind":"Pod"}}}`, ip, ip, node)
}

// createLease makes an AddressLease, as an agent does.
func (w *world) createLease(ip, node string) []string {
	return []string{
		"curl", "-X", "POST", "-H", "Content-Type: application/json", "-d", leaseObject(ip, node), w.c.Server + "/apis/weft.network/v1alpha1/addressleases",
	}
}

// createBindings makes the NodeAddresses of a node, as its agent does.
func (w *world) createBindings(node string) []string {
	return []string{
		"curl", "-X", "POST", "-H", "Content-Type: application/json",
		"-d", fmt.Sprintf(`{"apiVersion":"weft.network/v1alpha1","kind":"NodeAddresses","metadata":{"name":%q},"spec":{"bindings":[]}}`, node),
		w.c.Server + "/apis/weft.network/v1alpha1/nodeaddresses",
	}
}

// patchClaim writes an IPAMClaim's addresses, as an agent does.
func (w *world) patchClaim(name string) []string {
	return []string{
		"curl", "-X", "PATCH", "-H", "Content-Type: application/merge-patch+json", "-d", `{"status":{"ips":["10.0.0.1/24"]}}`,
		w.c.Server + "/apis/k8s.cni.cncf.io/v1alpha1/namespaces/default/ipamclaims/" + name + "/status",
	}
}

// patchStatus gives the arguments that patch the status of a Pod.
func (w *world) patchStatus(pod, patch string) []string {
	return []string{
		"curl", "-X", "PATCH", "-H", "Content-Type: application/strategic-merge-patch+json", "-d", patch,
		w.c.Server + "/api/v1/namespaces/default/pods/" + strings.TrimPrefix(pod, "pod/") + "/status",
	}
}

func conditions(one string) string { return `{"status":{"conditions":[` + one + `]}}` }

// primaryChanges has the primary network's plugin write its configuration anew,
// slowly and in place. Ours follows when it is whole, and Pods get what it says.
func (w *world) primaryChanges() {
	w.t.Helper()
	n2 := w.c.Nodes()[1]
	const primary, ours = "/etc/cni/net.d/10-primary.conflist", "/etc/cni/net.d/00-weft.conflist"
	before := w.on(n2, "cat "+ours)
	whole := w.on(n2, "cat "+primary)
	changed := strings.Replace(whole, `"type":"bridge",`, `"type":"bridge","mtu":1400,"capabilities":{"ips":true},`, 1)
	w.on(n2, "printf %s '"+changed[:len(changed)/2]+"' >"+primary)
	w.eventually("the agent tells of the half-written file", func() error {
		if out := w.kubectl("-n", "kube-system", "logs", w.agentOn("n2")); !strings.Contains(out, "is no complete JSON document") {
			return fmt.Errorf("it says %s", out)
		}
		return nil
	})
	if after := w.on(n2, "cat "+ours); after != before {
		w.t.Errorf("half a file changed ours to %s", after)
	}
	w.on(n2, "printf %s '"+changed+"' >"+primary)
	w.eventually("our configuration has the primary's new capability", func() error {
		if out := w.on(n2, "cat "+ours); !strings.Contains(out, `"ips": true`) {
			return fmt.Errorf("it is %s", out)
		}
		return nil
	})
	w.apply(deployment("narrow", "n2", ""))
	w.rollout("narrow")
	if out := w.kubectl("exec", w.pod("narrow"), "--", "ip", "link", "show", "eth0"); !strings.Contains(out, "mtu 1400") {
		w.t.Errorf("eth0 of a new Pod is %s", out)
	}
	w.kubectl("delete", "deployment", "narrow", "--wait")
}

func (w *world) otherKind() string {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "crd.yaml")
	other := strings.NewReplacer("network-attachment-definition", "other", "NetworkAttachmentDefinition", "Other", "net-attach-def", "oth").Replace(definitionCRD)
	if err := os.WriteFile(path, []byte(other), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// upgrade restarts all agents while Pods are made. All of them come up, with
// their networks, and the kubelet never had to try a second time.
func (w *world) upgrade() {
	w.t.Helper()
	w.kubectl("-n", "kube-system", "rollout", "restart", "daemonset/weft")
	done := make(chan error, 1)
	go func() {
		_, err := w.c.Kubectl(w.t.Context(), "", "-n", "kube-system", "rollout", "status", "daemonset/weft", "--timeout=180s")
		done <- err
	}()
	count := 0
	for ended := false; !ended; {
		select {
		case err := <-done:
			if err != nil {
				w.t.Fatal(err)
			}
			ended = true
		default:
		}
		w.apply(churnPod(count, "n1") + churnPod(count, "n2"))
		count++
	}
	w.kubectl("wait", "--for=condition=Ready", "pod", "-l", "churn=yes", "--timeout=180s")
	for i := range count {
		for _, node := range []string{"n1", "n2"} {
			if got := w.status(fmt.Sprintf("pod/churn-%d-%s", i, node))["net1"]; len(got.IPs) != 1 {
				w.t.Errorf("Pod %d on %s has %+v", i, node, got)
			}
		}
	}
	w.t.Logf("%d Pods were made on each node meanwhile", count)
	if out := w.kubectl("get", "events", "--field-selector=reason=FailedCreatePodSandBox", "-o", "jsonpath={.items[*].message}"); out != "" {
		w.t.Errorf("a sandbox failed: %s", out)
	}
	w.kubectl("delete", "pods", "-l", "churn=yes", "--now")
}

func churnPod(i int, node string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: churn-%d-%s, labels: {churn: "yes"}, annotations: {k8s.v1.cni.cncf.io/networks: blue}}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "lab.local/pause:1", imagePullPolicy: Never}]
`, i, node)
}

// uninstalled deletes all that the manifest made: Pods keep what they have, the
// configuration and the networks stay. Applied again, all is as it was.
func (w *world) uninstalled(a string) {
	w.t.Helper()
	w.kubectl("delete", "-f", manifest(), "--wait")
	w.kubectl("-n", "kube-system", "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=weft", "--timeout=60s")
	for _, node := range w.c.Nodes() {
		w.on(node, "test -s /etc/cni/net.d/00-weft.conflist && test -x /opt/cni/bin/weft-cni")
	}
	if err := w.ping(a, "192.168.77.11"); err != nil {
		w.t.Errorf("without agents, a does not reach b: %v", err)
	}
	w.kubectl("get", "net-attach-def", "red")
	w.apply(deployment("plain", "n1", "") + deployment("later", "n1", "blue"))
	w.rollout("plain")
	plain := w.pod("plain")
	was := w.kubectl("exec", plain, "--", "ip", "-br", "-4", "addr", "show", "eth0")
	began := time.Now()
	w.installed()
	w.rollout("later")
	w.t.Logf("a Pod that waited for the agent is ready %s after the manifest", time.Since(began).Round(time.Second))
	if got := w.status(w.pod("later"))["net1"]; len(got.IPs) != 1 {
		w.t.Errorf("network-status of the Pod that waited: %+v", got)
	}
	if err := w.ping(a, "192.168.77.11"); err != nil {
		w.t.Errorf("with agents again, a does not reach b: %v", err)
	}
	// What weft-cni-thin attached meanwhile is the agent's now.
	if now := w.kubectl("exec", plain, "--", "ip", "-br", "-4", "addr", "show", "eth0"); now != was {
		w.t.Errorf("a Pod that began without the agent had %s, and has %s", was, now)
	}
	w.kubectl("-n", "kube-system", "delete", "deployment", "weft-controller", "--wait") // its Pods have attachments, too
	w.nothingLeft()
}

func claimObject(name string) string {
	return fmt.Sprintf(`---
apiVersion: k8s.cni.cncf.io/v1alpha1
kind: IPAMClaim
metadata: {name: %s}
spec: {network: blue, interface: net1}
`, name)
}
