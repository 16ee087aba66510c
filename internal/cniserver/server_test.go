package cniserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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
	"github.com/containernetworking/cni/pkg/types"
	cni "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/dataplane"
	"github.com/weftnet/weft/internal/device"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/test/need"
)

// binDir has weft-cni as it is installed.
var binDir string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "weft-cniserver-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binDir = dir
	cmd := exec.Command("go", "build", "-o", dir+"/", "../../cmd/weft-cni", "../../cmd/weft-cni-thin")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build weft-cni: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// networks and pods are lookups over maps.
type networks map[string]*netattach.NetworkAttachmentDefinition

func (n networks) Definition(_ context.Context, namespace, name string) (*netattach.NetworkAttachmentDefinition, error) {
	return n[namespace+"/"+name], nil
}

func (n networks) Namespaces(_ context.Context, name string) ([]string, error) {
	var out []string
	for _, nad := range n {
		if nad.Name == name {
			out = append(out, nad.Namespace)
		}
	}
	return out, nil
}

type pods map[string]map[string]string

func (p pods) Annotations(_ context.Context, namespace, name, _ string) (map[string]string, error) {
	annotations, ok := p[namespace+"/"+name]
	if !ok {
		return nil, errors.New("no such Pod")
	}
	return annotations, nil
}

// node is a machine with an agent that answers CNI calls, and a runtime that
// makes them with its real library.
type node struct {
	t       *testing.T
	dir     string
	state   string // has the records
	host    string
	records *record.Store
	pods    pods
	runtime *libcni.CNIConfig
	engine  *chain.Engine
	stop    func()
	log     *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newNode(t *testing.T) *node {
	t.Helper()
	return newNodeIn(t, t.TempDir())
}

// newNodeIn keeps the records below that directory.
func newNodeIn(t *testing.T, state string) *node {
	t.Helper()
	need.Root(t)
	dir := t.TempDir()
	records, err := record.Open(filepath.Join(state, "attachments"), filepath.Join(state, "run", "attachments"))
	if err != nil {
		t.Fatal(err)
	}
	// Not libcni's own, which it makes at the first call, whoever makes that.
	executor := &invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}}
	n := &node{t: t, dir: dir, state: state, records: records, pods: pods{}, runtime: libcni.NewCNIConfigWithCacheDir([]string{binDir}, filepath.Join(dir, "cache"), executor), log: &syncBuffer{}}
	if err := os.Mkdir(filepath.Join(dir, "ns"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = linux.ReleaseNSDir(filepath.Join(dir, "ns")) }) // of a directory that goes
	n.host = n.namespace("host")
	n.start()
	return n
}

func (n *node) namespace(name string) string {
	n.t.Helper()
	path := filepath.Join(n.dir, "ns", name)
	if err := linux.CreateNS(path); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = linux.DeleteNS(path) }) // it may be gone
	return path
}

const primary = `{"cniVersion":"1.0.0","name":"primary","plugins":[{"type":"bridge","bridge":"cni0","isDefaultGateway":true,
	"ipam":{"type":"host-local","ranges":[[{"subnet":"10.91.0.0/24"}],[{"subnet":"fd91::/64"}]]}}]}`

// start runs the agent's part.
func (n *node) start() {
	n.t.Helper()
	plane, err := dataplane.New(dataplane.Config{Instance: "cnitest", HostNS: n.host})
	if err != nil {
		n.t.Fatal(err)
	}
	engine, err := chain.New(n.t.Context(), chain.Options{
		Instance: "cnitest", Machine: "machine", Records: n.records, Dataplane: plane, Host: plane.Host(), Addresses: ipam.NewMemory(), HostNS: n.host, Devices: device.NewKubelet("", n.dir),
		BinDirs: []string{filepath.Join(n.dir, "plugins")}, Log: slog.New(slog.NewTextHandler(n.log, nil)),
		Networks: networks{
			"demo/none":     {Namespace: "demo", Name: "none", Config: `{"cniVersion":"1.0.0","plugins":[]}`},
			"demo/hollow":   {Namespace: "demo", Name: "hollow", Config: `{"cniVersion":"1.0.0","plugins":[{"type":"bridge"},{}]}`},
			"demo/future":   {Namespace: "demo", Name: "future", Config: `{"cniVersion":"9.9.9","type":"bridge"}`},
			"demo/hang":     delegateTo("hang"),
			"demo/crash":    delegateTo("crash"),
			"demo/garbage":  delegateTo("garbage"),
			"demo/nothing":  delegateTo("nothing"),
			"demo/flood":    delegateTo("flood"),
			"demo/failing":  delegateTo("failing"),
			"demo/stubborn": delegateTo("stubborn"),
			"demo/gate":     delegateTo("gate"),
			"demo/fast": {
				Namespace: "demo", Name: "fast", Config: `{"cniVersion":"1.0.0","type":"stubborn"}`,
				Annotations: map[string]string{netattach.ResourceNameAnnotation: "example.com/nic"},
			},
			"other/red": {Namespace: "other", Name: "red", Config: `{"cniVersion":"1.0.0","type":"bridge","bridge":"red1"}`},
			"demo/red":  {Namespace: "demo", Name: "red", Config: `{"cniVersion":"1.0.0","type":"bridge","bridge":"red0","ipam":{"type":"host-local","subnet":"10.92.0.0/24"}}`},
		},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	if err := engine.Restore(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
	n.engine = engine
	server := New(Config{
		Socket: filepath.Join(n.dir, "cni.sock"), Queue: filepath.Join(n.dir, "dels"), Engine: engine, Pods: n.pods,
		Log: slog.New(slog.NewTextHandler(n.log, nil)),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("server: %v", err)
		}
		if err := plane.Close(); err != nil {
			n.t.Error(err)
		}
	})
	n.t.Cleanup(n.stop)
}

// list is the runtime's configuration.
func (n *node) list(version string, more string) *libcni.NetworkConfigList {
	n.t.Helper()
	text := fmt.Sprintf(`{"cniVersion":%q,"name":"weft","plugins":[{"type":"weft-cni","socket":%q,"queue":%q,"agentWait":"10s",
		"capabilities":{"io.kubernetes.cri.pod-annotations":true}%s}]}`, version, filepath.Join(n.dir, "cni.sock"), filepath.Join(n.dir, "dels"), more)
	list, err := libcni.NetworkConfFromBytes([]byte(text))
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

// delegate puts the primary network into the configuration.
const delegate = `,"delegates":[` + primary + `]`

func (n *node) pod(id string, annotations map[string]string) *libcni.RuntimeConf {
	n.t.Helper()
	n.pods["demo/"+id] = annotations
	return &libcni.RuntimeConf{
		ContainerID: id, NetNS: n.namespace(id), IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "demo"}, {"K8S_POD_NAME", id}, {"K8S_POD_UID", "uid-" + id}},
	}
}

func (n *node) links(ns string) []string {
	n.t.Helper()
	out, err := exec.Command("nsenter", "--net="+ns, "ip", "-j", "link").Output()
	if err != nil {
		n.t.Fatal(err)
	}
	var list []struct {
		IfName string `json:"ifname"`
	}
	if err := json.Unmarshal(out, &list); err != nil {
		n.t.Fatal(err)
	}
	var names []string
	for _, l := range list {
		if l.IfName != "lo" {
			names = append(names, l.IfName)
		}
	}
	return names
}

func (n *node) nothingLeft() {
	n.t.Helper()
	if links := n.links(n.host); len(links) > 0 {
		n.t.Errorf("the host still has %v", links)
	}
	ids, err := n.records.IDs()
	if err != nil || len(ids) > 0 {
		n.t.Errorf("records are left: %v (%v)", ids, err)
	}
}

func TestEveryVersion(t *testing.T) {
	n := newNode(t)
	for i, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		list := n.list(version, delegate)
		pod := n.pod(fmt.Sprintf("pod%d", i), map[string]string{"k8s.v1.cni.cncf.io/networks": "red@x0"})
		added, err := n.runtime.AddNetworkList(t.Context(), list, pod)
		if err != nil {
			t.Fatalf("%s: %v", version, err)
		}
		result, err := cni.NewResultFromResult(added)
		if err != nil {
			t.Fatalf("%s: %v", version, err)
		}
		if added.Version() != version || len(result.IPs) != 2 || !strings.HasPrefix(result.IPs[0].Address.String(), "10.91.0.") {
			t.Errorf("%s: result in version %s, %v", version, added.Version(), result.IPs)
		}
		if links := slices.Sorted(slices.Values(n.links(pod.NetNS))); !slices.Equal(links, []string{"eth0", "x0"}) {
			t.Errorf("%s: the Pod has %v", version, links)
		}
		if version != "0.3.1" { // CHECK began with 0.4.0
			if err := n.runtime.CheckNetworkList(t.Context(), list, pod); err != nil {
				t.Errorf("%s: CHECK: %v", version, err)
			}
		}
		if version == "1.1.0" {
			if err := n.runtime.GetStatusNetworkList(t.Context(), list); err != nil {
				t.Errorf("STATUS: %v", err)
			}
			if err := n.runtime.GCNetworkList(t.Context(), list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: pod.ContainerID, IfName: "eth0"}}}); err != nil {
				t.Errorf("GC: %v", err)
			}
		}
		for range 2 {
			if err := n.runtime.DelNetworkList(t.Context(), list, pod); err != nil {
				t.Errorf("%s: DEL: %v", version, err)
			}
		}
	}
	n.nothingLeft()
}

func TestCheckTellsTheDifference(t *testing.T) {
	n := newNode(t)
	list, pod := n.list("1.0.0", delegate), n.pod("changed", nil)
	if _, err := n.runtime.AddNetworkList(t.Context(), list, pod); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("nsenter", "--net="+pod.NetNS, "ip", "addr", "flush", "dev", "eth0", "scope", "global").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := n.runtime.CheckNetworkList(t.Context(), list, pod); err == nil || !strings.Contains(err.Error(), "10.91.0.") {
		t.Errorf("CHECK of a Pod whose address is gone: %v", err)
	}
	if err := n.runtime.DelNetworkList(t.Context(), list, pod); err != nil {
		t.Error(err)
	}
	n.nothingLeft()
}

// TestDelWhileAway: the runtime's DEL is done when the agent is back, though
// the Pod's namespace is gone by then.
func TestDelWhileAway(t *testing.T) {
	n := newNode(t)
	list, pod := n.list("1.0.0", delegate), n.pod("gone", map[string]string{"k8s.v1.cni.cncf.io/networks": "red"})
	if _, err := n.runtime.AddNetworkList(t.Context(), list, pod); err != nil {
		t.Fatal(err)
	}
	n.stop()
	if err := n.runtime.DelNetworkList(t.Context(), list, pod); err != nil {
		t.Fatal(err)
	}
	if err := linux.DeleteNS(pod.NetNS); err != nil {
		t.Fatal(err)
	}
	n.start()
	deadline := time.Now().Add(10 * time.Second)
	for {
		left, err := filepath.Glob(filepath.Join(n.dir, "dels", "*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still queued: %v\n%v", left, n.log)
		}
		time.Sleep(20 * time.Millisecond)
	}
	n.nothingLeft()
}

func TestClusterNetworkFile(t *testing.T) {
	n := newNode(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "10-primary.conflist"), []byte(primary), 0o600); err != nil {
		t.Fatal(err)
	}
	ready := filepath.Join(dir, "ready")
	list := n.list("1.1.0", fmt.Sprintf(`,"clusterNetwork":%q,"readinessindicatorfile":%q,"surprise":1`, dir+"/", ready))
	pod := n.pod("a", nil)
	_, err := n.runtime.AddNetworkList(t.Context(), list, pod)
	wantError(t, err, types.ErrTryAgainLater, "readinessindicatorfile", ready, "primary network")
	wantError(t, n.runtime.GetStatusNetworkList(t.Context(), list), types.ErrTryAgainLater, ready)
	if err := os.WriteFile(ready, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := n.runtime.AddNetworkList(t.Context(), list, pod); err != nil {
		t.Fatal(err)
	}
	if err := n.runtime.DelNetworkList(t.Context(), list, pod); err != nil {
		t.Fatal(err)
	}
	if log := n.log.String(); strings.Count(log, "key=surprise") != 1 {
		t.Errorf("the unknown key is to be named once:\n%s", log)
	}
	n.nothingLeft()
}

// TestThin: the plugin that needs no agent does the same, several at a time.
func TestThin(t *testing.T) {
	n := newNode(t)
	n.stop()
	list := func(more string) *libcni.NetworkConfigList {
		text := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"thin","plugins":[{"type":"weft-cni-thin","instance":"cnitest","stateDir":%q,"runDir":%q,
			"capabilities":{"io.kubernetes.cri.pod-annotations":true}%s}]}`, n.state, filepath.Join(n.state, "run"), more)
		list, err := libcni.NetworkConfFromBytes([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	const containers = 6
	var all []*libcni.RuntimeConf
	for i := range containers {
		all = append(all, n.pod(fmt.Sprintf("c%d", i), nil))
	}
	host, err := linux.OpenNS(n.host)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	inHost := func(f func() error) error { return host.Do(f) } // where a runtime runs
	var group sync.WaitGroup
	addresses := make([]string, containers)
	for i, pod := range all {
		group.Go(func() {
			err := inHost(func() error {
				added, err := n.runtime.AddNetworkList(t.Context(), list(delegate), pod)
				if err != nil {
					return err
				}
				result, err := cni.NewResultFromResult(added)
				if err == nil {
					addresses[i] = result.IPs[0].Address.String()
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	slices.Sort(addresses)
	if len(slices.Compact(slices.Clone(addresses))) != containers {
		t.Errorf("addresses are given twice: %v", addresses)
	}
	for _, pod := range all {
		err := inHost(func() error {
			return errors.Join(n.runtime.CheckNetworkList(t.Context(), list(delegate), pod), n.runtime.DelNetworkList(t.Context(), list(delegate), pod))
		})
		if err != nil {
			t.Error(err)
		}
	}
	pod := n.pod("asks", nil)
	pod.CapabilityArgs = map[string]any{"io.kubernetes.cri.pod-annotations": map[string]string{"k8s.v1.cni.cncf.io/networks": "red"}}
	err = inHost(func() error {
		_, err := n.runtime.AddNetworkList(t.Context(), list(delegate), pod)
		return err
	})
	wantError(t, err, types.ErrTryAgainLater, "demo/red", "agent is away")
	n.nothingLeft()
}

// TestHandedOver: a plain Pod that weft-cni hands over gets what the agent would
// have given it, addresses of another's IPAM included: ours are not unique in a
// cluster.
func TestHandedOver(t *testing.T) {
	n := newNode(t)
	n.plugins()
	plugins := filepath.Join(n.dir, "plugins")
	script := "#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND != ADD ] || echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.93.0.77/24\"}]}'\n"
	if err := os.WriteFile(filepath.Join(plugins, "whereabouts"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	n.stop()
	list := n.list("1.0.0", fmt.Sprintf(`,"agentWait":"0s","instance":"cnitest","stateDir":%q,"runDir":%q,"binDir":%q,
		"delegates":[{"cniVersion":"1.0.0","name":"main","type":"bridge","bridge":"main0","ipam":{"type":"whereabouts","range":"10.93.0.0/24"}}]`,
		n.state, filepath.Join(n.state, "run"), plugins))
	pod := n.pod("plain", nil)
	pod.CapabilityArgs = map[string]any{"io.kubernetes.cri.pod-annotations": map[string]string{"a": "b"}}
	host, err := linux.OpenNS(n.host)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	err = host.Do(func() error {
		added, err := n.runtime.AddNetworkList(t.Context(), list, pod)
		if err != nil {
			return err
		}
		result, err := cni.NewResultFromResult(added)
		if err == nil && (len(result.IPs) != 1 || result.IPs[0].Address.String() != "10.93.0.77/24") {
			t.Errorf("the Pod has %v, want what the plugin gave", result.IPs)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	n.start()
	if err := n.runtime.DelNetworkList(t.Context(), list, pod); err != nil {
		t.Error(err)
	}
	n.nothingLeft()
}

func TestNetworksOfEveryPod(t *testing.T) {
	n := newNode(t)
	dir := t.TempDir()
	files := map[string]string{
		"primary.conflist": primary,
		"green.conf":       `{"cniVersion":"1.0.0","name":"green","type":"bridge","bridge":"green0"}`,
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	more := fmt.Sprintf(`,"clusterNetwork":%q,"defaultNetworks":["red",%q],"multusNamespace":"demo","systemNamespaces":["infra"]`,
		filepath.Join(dir, "primary.conflist"), filepath.Join(dir, "green.conf"))
	annotations := map[string]string{"k8s.v1.cni.cncf.io/networks": "red"}
	for _, tt := range []struct {
		name, more, namespace string
		want                  []string
	}{
		{"clusterNetwork", more, "demo", []string{"eth0", "net1", "net2", "net3"}},
		{"system", strings.Replace(more, "infra", "demo", 1), "demo", []string{"eth0", "net1"}},
		{"delegates", `,"delegates":[` + primary + `,` + files["green.conf"] + `]`, "demo", []string{"eth0", "net1", "net2"}},
		// What the node's configuration names is no Pod's to bound, and a Pod's name no namespace.
		{"isolated", strings.Replace(more, `"demo"`, `"other"`, 1) + `,"namespaceIsolation":true`, "demo", []string{"eth0", "net1", "net2", "net3"}},
		{"infra", more, "demo", []string{"eth0", "net1", "net2", "net3"}},
	} {
		list, pod := n.list("1.0.0", tt.more), n.pod(tt.name, annotations)
		if _, err := n.runtime.AddNetworkList(t.Context(), list, pod); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if links := slices.Sorted(slices.Values(n.links(pod.NetNS))); !slices.Equal(links, tt.want) {
			t.Errorf("%s: the Pod has %v, want %v", tt.name, links, tt.want)
		}
		if err := n.runtime.DelNetworkList(t.Context(), list, pod); err != nil {
			t.Error(err)
		}
	}
	n.nothingLeft()
}

func TestIsolation(t *testing.T) {
	n := newNode(t)
	for _, tt := range []struct {
		name, global string
		annotations  map[string]string
		fine         bool
	}{
		{"own", "", map[string]string{"k8s.v1.cni.cncf.io/networks": "red"}, true},
		{"foreign", "", map[string]string{"k8s.v1.cni.cncf.io/networks": "other/red"}, false},
		{"global", "default, other", map[string]string{"k8s.v1.cni.cncf.io/networks": "other/red"}, true},
		{"no-longer-global", "else", map[string]string{"k8s.v1.cni.cncf.io/networks": "default/red"}, false},
		{"by-default-network", "", map[string]string{"v1.multus-cni.io/default-network": "other/red"}, false},
		{"by-name-alone", "", map[string]string{"v1.multus-cni.io/default-network": "red"}, false},
		{"global-default-network", "other", map[string]string{"v1.multus-cni.io/default-network": "other/red"}, true},
	} {
		list := n.list("1.0.0", delegate+fmt.Sprintf(`,"namespaceIsolation":true,"globalNamespaces":%q`, tt.global))
		pod := n.pod(tt.name, tt.annotations)
		_, err := n.runtime.AddNetworkList(t.Context(), list, pod)
		if tt.fine != (err == nil) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if !tt.fine {
			wantError(t, err, types.ErrInvalidNetworkConfig, "isolated by namespace", "globalNamespaces")
		}
		if err := n.runtime.DelNetworkList(t.Context(), list, pod); err != nil {
			t.Error(err)
		}
	}
	n.nothingLeft()
}

// TestKubeletAway: a Pod that needs a device waits for the kubelet, and nobody else.
func TestKubeletAway(t *testing.T) {
	n := newNode(t)
	list := n.list("1.0.0", delegate)
	plain, fast := n.pod("plain", map[string]string{"k8s.v1.cni.cncf.io/networks": "red"}), n.pod("fast", map[string]string{"k8s.v1.cni.cncf.io/networks": "red,fast"})
	if _, err := n.runtime.AddNetworkList(t.Context(), list, plain); err != nil {
		t.Error(err)
	}
	_, err := n.runtime.AddNetworkList(t.Context(), list, fast)
	wantError(t, err, types.ErrTryAgainLater, "Pod demo/fast", filepath.Join(n.dir, "pod-resources/kubelet.sock"), "does not tell which devices the Pod holds", "see that the kubelet of this node runs")
	if text := err.Error(); len(text) > maxError {
		t.Errorf("%d bytes are more than an event has: %s", len(text), text)
	}
	for _, pod := range []*libcni.RuntimeConf{plain, fast} {
		if err := n.runtime.DelNetworkList(t.Context(), list, pod); err != nil {
			t.Error(err)
		}
	}
	n.nothingLeft()
}

func wantError(t *testing.T, err error, code uint, want ...string) {
	t.Helper()
	e, ok := errors.AsType[*types.Error](err)
	if !ok {
		t.Errorf("got %v, want a CNI error", err)
		return
	}
	if e.Code != code {
		t.Errorf("code %d, want %d: %v", e.Code, code, e)
	}
	for _, text := range want {
		if !strings.Contains(e.Error(), text) {
			t.Errorf("error lacks %q: %v", text, e)
		}
	}
}
