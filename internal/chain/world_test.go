package chain

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/dataplane"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/test/need"
)

// binDir holds the compiled recorder under several names and links to the real
// plugins of this machine.
var binDir string

// debianPlugins is where package containernetworking-plugins puts them.
const debianPlugins = "/usr/lib/cni"

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "weft-chain")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binDir = dir
	recorder := filepath.Join(dir, "recorder")
	build := exec.Command("go", "build", "-o", recorder, "./testdata/recorder")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build recorder: %v\n%s", err, out)
		return 1
	}
	for _, name := range []string{"alpha", "omega", "recipam"} {
		if err := os.Link(recorder, filepath.Join(dir, name)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	for _, name := range []string{"tuning", "ptp", "host-local", "sbr", "portmap"} {
		if _, err := os.Stat(filepath.Join(debianPlugins, name)); err == nil {
			if err := os.Symlink(filepath.Join(debianPlugins, name), filepath.Join(dir, name)); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
	}
	return m.Run()
}

// needPlugin skips a test whose real plugin is not there, but never in CI.
func needPlugin(t testing.TB, name string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(binDir, name)); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("plugin %s is missing: apt-get install containernetworking-plugins", name)
		}
		t.Skipf("plugin %s is missing: apt-get install containernetworking-plugins", name)
	}
}

// networks is a lookup over a map.
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

func (n networks) add(fullName, config string) {
	ns, name, _ := strings.Cut(fullName, "/")
	n[fullName] = &netattach.NetworkAttachmentDefinition{Namespace: ns, Name: name, Config: config}
}

// world is a machine of its own: a namespace that plays the host's, with a link
// to the outside, and an engine with everything real.
type world struct {
	t        testing.TB
	dir      string // plugins' state
	host     string
	nads     networks
	defaults string
	records  *record.Store
	memory   *ipam.Memory
	engine   *Engine
	boot     string
	timeout  time.Duration
	devices  Devices
	log      bytes.Buffer
	wrap     func(Dataplane) Dataplane
	// cluster, if set, makes the machine a cluster's node.
	cluster func(*Options)
}

const instance = "chaintest"

// defaultConf is like the default network weft itself brings.
const defaultConf = `{"cniVersion":"1.0.0","name":"default","type":"bridge","bridge":"weft0","isDefaultGateway":true,"ipMasq":true,
	"ipam":{"type":"host-local","ranges":[[{"subnet":"10.88.0.0/24"}],[{"subnet":"fd88::/64"}]]}}`

func newWorld(t testing.TB) *world {
	t.Helper()
	need.Root(t)
	w := &world{t: t, dir: t.TempDir(), nads: networks{}, defaults: defaultConf, boot: "boot-1", timeout: 20 * time.Second}
	nsDir := filepath.Join(w.dir, "ns")
	if err := os.MkdirAll(nsDir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := linux.ReleaseNSDir(nsDir); err != nil {
			t.Errorf("release %s: %v", nsDir, err)
		}
	})
	w.host = w.namespace("host")
	w.in(w.host, "ip", "link", "set", "lo", "up")
	// The way out: a veth whose other end is a machine on the LAN.
	outside := w.namespace("outside")
	w.in(w.host, "ip", "link", "add", "uplink", "type", "veth", "peer", "name", "lan")
	w.moveLink("lan", outside)
	w.in(w.host, "ip", "link", "set", "uplink", "up")
	w.in(outside, "ip", "link", "set", "lan", "up")
	w.in(w.host, "ip", "addr", "add", "192.0.2.1/24", "dev", "uplink")
	w.in(outside, "ip", "addr", "add", "192.0.2.9/24", "dev", "lan")
	records, err := record.Open(filepath.Join(w.dir, "records"), filepath.Join(w.dir, "run"))
	if err != nil {
		t.Fatal(err)
	}
	w.records = records
	w.restart()
	return w
}

// moveLink moves a link of the host's namespace into another one.
func (w *world) moveLink(name, ns string) {
	w.t.Helper()
	w.in(w.host, "ip", "link", "set", name, "netns", ns)
}

// namespace makes one that goes with the test.
func (w *world) namespace(name string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, "ns", name)
	if err := linux.CreateNS(path); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := linux.DeleteNS(path); err != nil {
			w.t.Errorf("delete namespace: %v", err)
		}
	})
	return path
}

// restart makes a new engine over the same records, as a new process would.
func (w *world) restart() {
	w.t.Helper()
	w.memory = ipam.NewMemory()
	dp, err := dataplane.New(dataplane.Config{Instance: instance, HostNS: w.host})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = dp.Close() })
	var plane Dataplane = dp
	if w.wrap != nil {
		plane = w.wrap(dp)
	}
	options := Options{
		Instance: instance, Machine: "machine", Records: w.records, Dataplane: plane, Host: dp.Host(), Addresses: w.memory, Networks: w.nads,
		Default: DefaultNetwork{Config: []byte(w.defaults)}, BinDirs: []string{binDir}, PluginTimeout: w.timeout, HostNS: w.host, BootID: w.boot,
		Devices: w.devices, DeviceDir: filepath.Join(w.dir, "devinfo"),
		Log: slog.New(slog.NewTextHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	if w.cluster != nil {
		w.cluster(&options)
	}
	w.engine, err = New(w.t.Context(), options)
	if err != nil {
		w.t.Fatal(err)
	}
}

// in runs a program in a namespace.
func (w *world) in(ns string, args ...string) string {
	w.t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + ns}, args...)...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// request asks for a Pod's networks.
func (w *world) request(id, annotation string) Request {
	return Request{
		ID: id, NetNS: filepath.Join(w.dir, "ns", id), Pod: record.Pod{Namespace: "demo", Name: "pod-" + id, UID: "uid-" + id},
		Annotations: map[string]string{netattach.NetworksAnnotation: annotation},
	}
}

// add makes a namespace and adds it.
func (w *world) add(id, annotation string) *record.Sandbox {
	w.t.Helper()
	w.namespace(id)
	box, err := w.engine.Add(w.t.Context(), w.request(id, annotation))
	if err != nil {
		w.t.Fatalf("add: %v", err)
	}
	return box
}

// refused adds and wants an error that holds all of want.
func (w *world) refused(id, annotation string, want ...string) error {
	w.t.Helper()
	w.namespace(id)
	box, err := w.engine.Add(w.t.Context(), w.request(id, annotation))
	if err == nil {
		w.t.Fatalf("attached: %+v", box)
	}
	for _, text := range want {
		if !strings.Contains(err.Error(), text) {
			w.t.Errorf("error lacks %q:\n%v", text, err)
		}
	}
	return err
}

// links lists the links of a namespace but lo, with addresses and routes.
func (w *world) links(ns string) []string {
	w.t.Helper()
	var list []struct {
		IfName string `json:"ifname"`
	}
	w.json(ns, &list, "ip", "-j", "link")
	var out []string
	for _, l := range list {
		if l.IfName != "lo" {
			out = append(out, l.IfName)
		}
	}
	slices.Sort(out)
	return out
}

func (w *world) json(ns string, into any, args ...string) {
	w.t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + ns}, args...)...).Output()
	if err != nil {
		w.t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	if err := json.Unmarshal(out, into); err != nil {
		w.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// addrs lists the addresses of a link that are no link-local ones.
func (w *world) addrs(ns, link string) []string {
	w.t.Helper()
	var list []struct {
		AddrInfo []struct {
			Local     string `json:"local"`
			PrefixLen int    `json:"prefixlen"`
			Scope     string `json:"scope"`
		} `json:"addr_info"`
	}
	w.json(ns, &list, "ip", "-j", "addr", "show", "dev", link)
	var out []string
	for _, l := range list {
		for _, a := range l.AddrInfo {
			if a.Scope != "link" {
				out = append(out, fmt.Sprintf("%s/%d", a.Local, a.PrefixLen))
			}
		}
	}
	return out
}

// defaultsOf lists the default routes of a namespace: GATEWAY dev LINK.
func (w *world) defaultsOf(ns string) []string {
	w.t.Helper()
	var out []string
	for _, family := range []string{"-4", "-6"} {
		var list []struct {
			Gateway string `json:"gateway"`
			Dev     string `json:"dev"`
		}
		w.json(ns, &list, "ip", family, "-j", "route", "show", "default")
		for _, r := range list {
			out = append(out, r.Gateway+" dev "+r.Dev)
		}
	}
	return out
}

// pluginState lists what recorder and host-local keep.
func (w *world) pluginState() []string {
	w.t.Helper()
	var out []string
	for _, dir := range []string{"rec/state", "host-local"} {
		err := filepath.WalkDir(filepath.Join(w.dir, dir), func(path string, entry os.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			name := filepath.Base(path)
			if err == nil && !entry.IsDir() && name != "lock" && !strings.HasPrefix(name, "last_reserved_ip") {
				out = append(out, strings.TrimPrefix(path, w.dir+"/"))
			}
			return err
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return out
}

// rec is the directory of the recorder.
func (w *world) rec() string {
	dir := filepath.Join(w.dir, "rec")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

// called is one call of the recorder.
type called struct {
	Verb, Plugin, IfName, NetNS, Args, Name string
	PrevResult                              bool
	RuntimeConfig, Config                   json.RawMessage
}

// calls reads what the recorder wrote down.
func (w *world) calls() []called {
	w.t.Helper()
	data, err := os.ReadFile(filepath.Join(w.rec(), "calls"))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	var out []called
	for line := range strings.Lines(string(data)) {
		var c called
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			w.t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

func (w *world) verbs() []string {
	var out []string
	for _, c := range w.calls() {
		out = append(out, c.Verb+" "+c.Plugin+" "+c.IfName)
	}
	return out
}

// empty wants a machine as it was before the first Add.
func (w *world) empty() {
	w.t.Helper()
	w.emptyBut()
}

// unmount has the namespace of a sandbox go, also when a program that another test
// is just starting still has its file open.
func (w *world) unmount(id string) {
	w.t.Helper()
	w.in(w.host, "umount", "-l", w.pod(id))
}

// end takes a sandbox off its networks, and nothing of it or others is left.
func (w *world) end(id string) {
	w.t.Helper()
	if err := w.engine.Del(w.t.Context(), id); err != nil {
		w.t.Errorf("del: %v", err)
	}
	w.empty()
}

func (w *world) emptyBut(hostLinks ...string) {
	w.t.Helper()
	want := append([]string{"uplink"}, hostLinks...)
	slices.Sort(want)
	// A veth whose other namespace was just deleted goes a moment later.
	var links []string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if links = w.links(w.host); slices.Equal(links, want) {
			break
		}
	}
	if !slices.Equal(links, want) {
		w.t.Errorf("host has links %v, want %v", links, want)
	}
	if tables := w.in(w.host, "nft", "list", "tables"); strings.Contains(tables, "weft") {
		w.t.Errorf("host has tables:\n%s", tables)
	}
	if ids, err := w.records.IDs(); err != nil || len(ids) > 0 {
		w.t.Errorf("records left: %v, %v", ids, err)
	}
	if leases := w.memory.Leases(); len(leases) > 0 {
		w.t.Errorf("addresses held: %v", leases)
	}
	if state := w.pluginState(); len(state) > 0 {
		w.t.Errorf("foreign plugins hold: %v", state)
	}
	if files, err := filepath.Glob(filepath.Join(w.dir, "devinfo/cni/*")); err != nil || len(files) > 0 {
		w.t.Errorf("device information is left: %v, %v", files, err)
	}
}

// podEmpty wants nothing but lo in a sandbox.
func (w *world) podEmpty(id string) {
	w.t.Helper()
	if links := w.links(filepath.Join(w.dir, "ns", id)); len(links) > 0 {
		w.t.Errorf("sandbox %s has links %v", id, links)
	}
}

func (w *world) pod(id string) string { return filepath.Join(w.dir, "ns", id) }

func (w *world) same(what string, got, want any) {
	w.t.Helper()
	if g, x := fmt.Sprint(got), fmt.Sprint(want); g != x {
		w.t.Errorf("%s: got %s, want %s", what, g, x)
	}
}
