package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/kube"
	"github.com/weftnet/weft/test/kubelab"
	"github.com/weftnet/weft/test/machine"
)

func TestMain(m *testing.M) { kubelab.Main(m) }

// programs are weft-node with its failpoint, the CNI programs and a plugin that keeps
// state, built once.
var programs struct {
	once sync.Once
	err  error
}

func build(dir string) error {
	for _, what := range [][]string{
		{"-tags", "failpoint", "-o", dir + "/", "./cmd/weft-node", "./cmd/weft-cni", "./cmd/weft-cni-thin"},
		{"-o", dir + "/alpha", "./internal/chain/testdata/recorder"},
	} {
		cmd := exec.Command("go", append([]string{"build"}, what...)...)
		cmd.Dir = machine.Tree()
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build: %w\n%s", err, out)
		}
	}
	return nil
}

// lab is one node: the real agent as a process in a network namespace of the
// cluster's, by way of a proxy to a real API server, and a runtime that calls
// weft-cni by its real library.
type lab struct {
	t       *testing.T
	c       *kubelab.Cluster
	proxy   *kubelab.Proxy
	api     *kube.Store
	bin     string
	dir     string // of the agent
	ns      string // Kubernetes namespace
	base    []string
	runtime *libcni.CNIConfig
	// plugin is the runtime's configuration of it: type and what goes with that.
	plugin string
	agent  *exec.Cmd
	ended  chan struct{}
	pods   int
	flags  []string // more of weft-node's
}

func newLab(t *testing.T) *lab {
	t.Helper()
	c := kubelab.Shared(t)
	bin := filepath.Join(c.Dir, "weft") // goes with the cluster
	programs.once.Do(func() { programs.err = errors.Join(os.MkdirAll(bin, 0o755), build(bin)) })
	if programs.err != nil {
		t.Fatal(programs.err)
	}
	client, err := kubeapi.Open(c.Kubeconfig(), kubeapi.Options{Dial: c.Dial})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	executor := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}}
	l := &lab{
		t: t, c: c, proxy: c.Proxy(t), api: kube.New(client), bin: bin, dir: dir, ns: strings.ToLower(t.Name()),
		runtime: libcni.NewCNIConfigWithCacheDir([]string{bin}, filepath.Join(dir, "cache"), executor),
	}
	for _, sub := range []string{"ns", "rec"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l.plugin = fmt.Sprintf(`"type":"weft-cni","socket":%q,"queue":%q,"agentWait":"0s"`, l.socket(), filepath.Join(dir, "dels"))
	l.base = l.hostLinks()
	l.make("Node", "v1", "", "n1", nil) // Pods of a node that is not there are collected
	l.make("Namespace", "v1", "", l.ns, nil)
	t.Cleanup(func() {
		if l.agent != nil {
			l.kill()
		}
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "log")) // none: it never began
			t.Logf("weft-node:\n%s", text[max(0, len(text)-8000):])
		}
		_ = linux.ReleaseNSDir(filepath.Join(dir, "ns")) // of a directory that goes
	})
	return l
}

// runningLab has an agent and networks.
func runningLab(t *testing.T) *lab {
	t.Helper()
	l := newLab(t)
	l.start()
	l.define()
	return l
}

// thinLab has networks, and the thin plugin instead of an agent.
func thinLab(t *testing.T) *lab {
	t.Helper()
	l := runningLab(t) // which makes the kind of networks
	l.kill()
	l.thin()
	return l
}

func (l *lab) make(kind, version, namespace, name string, more map[string]any) *store.Object {
	l.t.Helper()
	obj := &store.Object{Object: map[string]any{"apiVersion": version, "kind": kind, "metadata": map[string]any{"name": name}}}
	if namespace != "" {
		obj.SetNamespace(namespace)
	}
	for key, value := range more {
		if key == "annotations" {
			obj.SetAnnotations(value.(map[string]string))
			continue
		}
		obj.Object[key] = value
	}
	var made *store.Object
	l.eventually("create "+kind+" "+name, func() (err error) { // its kind, or the service account of its namespace, may be yet to come
		if made, err = l.api.Create(l.t.Context(), obj); errors.Is(err, store.ErrExists) {
			return nil
		}
		return err
	})
	return made
}

func (l *lab) eventually(what string, try func() error) {
	l.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// labWeb is where the agent serves metrics and probes.
const labWeb = "127.0.0.1:10970"

// start starts the agent; false if it ended before it listened.
func (l *lab) start(env ...string) bool {
	l.t.Helper()
	kubeconfig, err := l.proxy.Kubeconfig(l.c.Kubeconfig())
	if err != nil {
		l.t.Fatal(err)
	}
	l.agent = exec.Command("nsenter", "--net="+l.c.NetNS(), "--", filepath.Join(l.bin, "weft-node"),
		"--root", l.dir, "--node", "n1", "--kubeconfig", kubeconfig, "--cni-bin-dirs", l.bin, "--http-address", labWeb, "--pprof")
	l.agent.Args = append(l.agent.Args, l.flags...)
	l.agent.Env = append(os.Environ(), env...)
	log, err := os.OpenFile(filepath.Join(l.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	defer log.Close()
	l.agent.Stdout, l.agent.Stderr = log, log
	if err := l.agent.Start(); err != nil {
		l.t.Fatal(err)
	}
	ended, agent := make(chan struct{}), l.agent
	l.ended = ended
	go func() {
		defer close(ended)
		_ = agent.Wait() // killed, by us or itself
	}()
	listens := false
	l.eventually("the agent listens", func() error {
		select {
		case <-ended:
			return nil
		default:
		}
		conn, err := net.Dial("unix", l.socket())
		if err != nil {
			return err
		}
		listens = true
		return conn.Close()
	})
	return listens
}

func (l *lab) socket() string { return filepath.Join(l.dir, "run", "cni.sock") }

// kill ends the agent as a crash would.
func (l *lab) kill() {
	l.t.Helper()
	_ = l.agent.Process.Kill() // it may have ended by itself
	<-l.ended
	l.agent = nil
}

// Networks of the lab: one of ours, one with a foreign plugin behind ours.
func (l *lab) define() {
	l.t.Helper()
	l.nad("blue", `{"cniVersion":"1.0.0","type":"bridge","bridge":"blue0","ipam":{"type":"host-local","subnet":"10.62.0.0/24"}}`)
	l.nad("tuned", `{"cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"tuned0","ipam":{"type":"host-local","subnet":"10.63.0.0/24"}},{"type":"alpha","dir":"`+l.dir+`/rec"}]}`)
}

func (l *lab) nad(name, config string) {
	l.t.Helper()
	l.make(networks.DefinitionKind.Kind, "k8s.cni.cncf.io/v1", l.ns, name, map[string]any{"spec": map[string]any{"config": config}})
}

// list is the runtime's configuration.
func (l *lab) list() *libcni.NetworkConfigList {
	l.t.Helper()
	list, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"weft","plugins":[{%s,"capabilities":{%q:true},
		"delegates":[{"cniVersion":"1.0.0","name":"primary","type":"bridge","bridge":"primary0","isDefaultGateway":true,"ipMasq":true,
		"ipam":{"type":"host-local","subnet":"10.61.0.0/24"}}],"namespaceIsolation":true}]}`, l.plugin, "io.kubernetes.cri.pod-annotations"))
	if err != nil {
		l.t.Fatal(err)
	}
	return list
}

// call runs f in the network namespace a runtime would be in.
func (l *lab) call(f func() error) error {
	host, err := linux.OpenNS(l.c.NetNS())
	if err != nil {
		return err
	}
	return errors.Join(host.Do(f), host.Close())
}

// pod is one in the API, and its sandboxes.
type pod struct {
	*lab
	key         store.Key
	uid         string
	annotations map[string]string
	sandboxes   int
	// now is the last sandbox.
	now *libcni.RuntimeConf
}

func (l *lab) pod(networks string) *pod {
	l.t.Helper()
	annotations := map[string]string{}
	if networks != "" {
		annotations[netattach.NetworksAnnotation] = networks
	}
	return l.podWith(annotations)
}

// podWith makes a Pod that has its annotations from the start: one added later
// may reach the agent's informer after the ADD.
func (l *lab) podWith(annotations map[string]string) *pod {
	l.t.Helper()
	l.pods++
	return l.podNamed(fmt.Sprintf("pod%d", l.pods), annotations)
}

func (l *lab) podNamed(name string, annotations map[string]string) *pod {
	l.t.Helper()
	p := &pod{lab: l, key: store.Key{Namespace: l.ns, Name: name}, annotations: maps.Clone(annotations)}
	made := l.make("Pod", "v1", l.ns, p.key.Name, map[string]any{"annotations": p.annotations, "spec": map[string]any{
		"nodeName": "n1", "containers": []any{map[string]any{"name": "c", "image": "none"}}, "tolerations": []any{map[string]any{"operator": "Exists"}},
	}})
	p.uid = string(made.GetUID())
	return p
}

// attached makes a Pod and attaches it; see sandbox.
func (l *lab) attached(networks string, told bool) *pod {
	l.t.Helper()
	p := l.pod(networks)
	p.sandbox(told)
	if err := p.add(); err != nil {
		l.t.Fatalf("ADD: %v", err)
	}
	return p
}

func (p *pod) annotate(key, text string) {
	p.t.Helper()
	changes := map[string]any{"metadata": map[string]any{"annotations": map[string]any{key: text}}}
	if _, err := p.api.Patch(p.t.Context(), podKind, p.key, changes, store.Precondition{}); err != nil {
		p.t.Fatal(err)
	}
}

// sandbox makes a new one. told: the runtime passes the annotations.
func (p *pod) sandbox(told bool) {
	p.t.Helper()
	p.sandboxes++
	id := fmt.Sprintf("%.40s-%d", p.key.Name, p.sandboxes)
	p.now = &libcni.RuntimeConf{
		ContainerID: id, NetNS: filepath.Join(p.dir, "ns", id), IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.ns}, {"K8S_POD_NAME", p.key.Name}, {"K8S_POD_UID", p.uid}},
	}
	if told {
		p.now.CapabilityArgs = map[string]any{"io.kubernetes.cri.pod-annotations": p.annotations}
	}
	if err := linux.CreateNS(p.now.NetNS); err != nil {
		p.t.Fatal(err)
	}
	ns := p.now.NetNS
	p.t.Cleanup(func() { _ = linux.DeleteNS(ns) }) // it may be gone
}

func (p *pod) add() error {
	return p.call(func() error {
		_, err := p.runtime.AddNetworkList(p.t.Context(), p.list(), p.now)
		return err
	})
}

func (p *pod) check() {
	p.t.Helper()
	if err := p.call(func() error { return p.runtime.CheckNetworkList(p.t.Context(), p.list(), p.now) }); err != nil {
		p.t.Errorf("CHECK: %v", err)
	}
}

func (p *pod) del() {
	p.t.Helper()
	if err := p.call(func() error { return p.runtime.DelNetworkList(p.t.Context(), p.list(), p.now) }); err != nil {
		p.t.Errorf("DEL: %v", err)
	}
}

// end is DEL and the end of the namespace, in the runtime's order.
func (p *pod) end() {
	p.t.Helper()
	p.del()
	if err := linux.DeleteNS(p.now.NetNS); err != nil {
		p.t.Error(err)
	}
}

// addresses gives the IPv4 addresses in the namespace by interface.
func (p *pod) addresses() map[string]string {
	p.t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(p.in(p.now.NetNS, "ip", "-4", "-br", "addr")) {
		if fields := strings.Fields(line); len(fields) > 2 {
			name, _, _ := strings.Cut(fields[0], "@")
			out[name], _, _ = strings.Cut(fields[2], "/")
		}
	}
	return out
}

func (p *pod) statusText() (string, error) {
	obj, err := p.api.Get(p.t.Context(), podKind, p.key)
	if err != nil {
		return "", err
	}
	return obj.GetAnnotations()[netattach.StatusAnnotation], nil
}

// status gives the addresses network-status tells of, by interface.
func (p *pod) status() (map[string]string, error) {
	text, err := p.statusText()
	out := map[string]string{}
	if text == "" || err != nil {
		return out, err
	}
	var list []struct {
		Interface string   `json:"interface"`
		IPs       []string `json:"ips"`
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, err
	}
	for _, e := range list {
		out[e.Interface] = strings.Join(e.IPs, ",")
	}
	return out, nil
}

// agrees waits until network-status tells what the Pod has, and has the Pod have
// these interfaces.
func (p *pod) agrees(interfaces ...string) {
	p.t.Helper()
	have := p.addresses()
	delete(have, "lo")
	var names []string
	for name := range have {
		names = append(names, name)
	}
	if slices.Sort(names); !slices.Equal(names, interfaces) {
		p.t.Errorf("the Pod has %v, want %v", have, interfaces)
	}
	p.eventually("network-status of "+p.key.Name, func() error {
		tells, err := p.status()
		if err == nil && fmt.Sprint(tells) != fmt.Sprint(have) {
			err = fmt.Errorf("it tells %v, and the Pod has %v", tells, have)
		}
		return err
	})
}

func (l *lab) in(ns string, command ...string) string {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), kubelab.Patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + ns, "--"}, command...)...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%v: %v\n%s", command, err, out)
	}
	return string(out)
}

func (l *lab) hostLinks() []string {
	l.t.Helper()
	var names []string
	for line := range strings.Lines(l.in(l.c.NetNS(), "ip", "-br", "link")) {
		names = append(names, strings.Fields(line)[0])
	}
	return names
}

// leftovers is what of weft's is there, of everything it may have.
func (l *lab) leftovers() error {
	var left []string
	for _, name := range l.hostLinks() {
		if !slices.Contains(l.base, name) {
			left = append(left, "link "+name)
		}
	}
	if tables := l.in(l.c.NetNS(), "nft", "list", "tables"); strings.Contains(tables, "weft") {
		left = append(left, tables)
	}
	for _, pattern := range []string{"attachments/*.json*", "run/attachments/*.json*", "dels/*", "claims/*", "leases/*.json", "rec/state/*"} {
		files, err := filepath.Glob(filepath.Join(l.dir, pattern))
		if err != nil {
			return err
		}
		left = append(left, files...)
	}
	if len(left) > 0 {
		return fmt.Errorf("left are %v", left)
	}
	return nil
}

func (l *lab) nothingLeft() {
	l.t.Helper()
	l.eventually("nothing is left", l.leftovers)
}
