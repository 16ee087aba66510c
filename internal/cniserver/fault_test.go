package cniserver

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/test/need"
)

// misbehaving are plugins as they should not be, but for their DEL.
var misbehaving = map[string]string{
	"hang":     "sleep 3600",
	"crash":    "echo about to crash >&2; kill -SEGV $$",
	"garbage":  "echo '<html>not today</html>'",
	"nothing":  "exit 0",
	"flood":    "yes '{\"cniVersion\":' | head -c 30000000; yes noise | head -c 30000000 >&2",
	"failing":  `echo '{"cniVersion":"1.0.0","code":7,"msg":"'$(yes x | head -c 3000 | tr -d '\n')'"}'; exit 1`,
	"gate":     "touch $0.running.$$; while [ ! -e $0.open ]; do sleep 0.1; done; rm $0.running.$$; echo '{\"cniVersion\":\"1.0.0\"}'",
	"stubborn": `echo '{"cniVersion":"1.0.0"}'`,
}

// delegateTo is a network of one of them, behind a link that is ours.
func delegateTo(plugin string) *netattach.NetworkAttachmentDefinition {
	return &netattach.NetworkAttachmentDefinition{
		Namespace: "demo", Name: plugin, Config: `{"cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"bad0"},{"type":"` + plugin + `"}]}`,
	}
}

// plugins installs them. The DEL of stubborn hangs as long as the file of that
// name is there.
func (n *node) plugins() (stubborn string) {
	n.t.Helper()
	dir := filepath.Join(n.dir, "plugins")
	stubborn = filepath.Join(n.dir, "stubborn")
	if err := os.Mkdir(dir, 0o700); err != nil {
		n.t.Fatal(err)
	}
	for name, add := range misbehaving {
		del := "exit 0"
		if name == "stubborn" {
			del = "[ ! -e " + stubborn + " ] || sleep 3600"
		}
		script := "#!/bin/sh\nif [ $CNI_COMMAND = DEL ]; then " + del + "; exit 0; fi\ncat >/dev/null\n" + add + "\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			n.t.Fatal(err)
		}
	}
	return stubborn
}

// maxError is what survives in a kubelet event, and libcni's words around it.
const maxError = 600 + 100

// TestFaults: what users, disks and other plugins do wrong is refused with words
// that say what to do, and leaves nothing. Faults of the API server are
// nodeagent's, a record that is damaged is TestDamagedRecord's.
func TestFaults(t *testing.T) {
	n := newNode(t)
	n.plugins()
	const bad = types.ErrInvalidNetworkConfig
	short := delegate + `,"pluginTimeout":"700ms"`
	for _, tt := range []struct {
		name, networks, more string
		code                 uint
		want                 []string
	}{
		{"annotation null", "[null]", delegate, bad, []string{"networks[0]", "write {"}},
		{"annotation object", "{}", delegate, bad, []string{"networks", "put [ ] around it"}},
		{"annotation cut", `[{"name":"red"`, delegate, bad, []string{"networks", "ends too early"}},
		{"unknown network", "blue", delegate, bad, []string{"networks[0]", "demo/blue", "create it"}},
		{"long annotation", strings.Repeat("no-such-network-of-this-name,", 60) + "x", delegate, bad, []string{"no-such-network"}},
		{"NAD without plugins", "none", delegate, bad, []string{"demo/none", "plugins", "lists no plugin"}},
		{"NAD with an empty plugin", "hollow", delegate, bad, []string{"demo/hollow", "plugins[1].type", "is missing"}},
		{"NAD of CNI 9.9.9", "future", delegate, bad, []string{"demo/future", "cniVersion", "9.9.9", "write one of"}},
		{"no primary", "", `,"clusterNetwork":"/no/such.conflist"`, bad, []string{"clusterNetwork", "/no/such.conflist", "install the primary"}},
		{"no plugins", "", `,"delegates":[{"cniVersion":"1.0.0","name":"x","plugins":[]}]`, bad, []string{"plugins"}},
		{"empty plugin", "", `,"delegates":[{"cniVersion":"1.0.0","name":"x","plugins":[{}]}]`, bad, []string{"plugins[0]"}},
		{"delegates of CNI 9.9.9", "", `,"delegates":[{"cniVersion":"9.9.9","name":"x","type":"bridge"}]`, bad, []string{"cniVersion", "9.9.9", "write one of"}},
		{"wrong types", "", `,"delegates":3`, bad, []string{"network configuration", "correct the file"}},
		{"odd timeout", "", delegate + `,"pluginTimeout":"soon"`, bad, []string{"pluginTimeout", "soon", "like 30s"}},
		{"plugin that hangs", "hang", short, bad, []string{"demo/hang", "did not answer", "killed after 700ms", "run it by hand"}},
		{"plugin that crashes", "crash", delegate, bad, []string{"demo/crash", "it crashed: segmentation fault", "about to crash", "report it"}},
		{"plugin that prints garbage", "garbage", delegate, bad, []string{"demo/garbage", "printed no CNI result", "not today", "report it"}},
		{"plugin that prints nothing", "nothing", delegate, bad, []string{"demo/nothing", "printed no CNI result", "report it"}},
		{"plugin that floods", "flood", delegate, bad, []string{"demo/flood", "printed no CNI result"}},
		{"plugin that says much", "failing", delegate, bad, []string{"demo/failing", "code 7", "xxx", "xxx; correct the network's config"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			list := n.list("1.0.0", tt.more)
			pod := n.pod(strings.ReplaceAll(tt.name, " ", "-"), map[string]string{"k8s.v1.cni.cncf.io/networks": tt.networks})
			_, err := n.runtime.AddNetworkList(t.Context(), list, pod)
			wantError(t, err, tt.code, tt.want...)
			if err != nil && len(err.Error()) > maxError {
				t.Errorf("%d bytes: %v", len(err.Error()), err)
			}
			if links := n.links(pod.NetNS); len(links) > 0 {
				t.Errorf("the Pod has %v", links)
			}
			if err := n.runtime.DelNetworkList(t.Context(), list, pod); err != nil {
				t.Errorf("DEL: %v", err)
			}
			n.nothingLeft()
		})
	}
}

// TestRuntimeOfTheFuture: libcni and weft-cni agree on no version.
func TestRuntimeOfTheFuture(t *testing.T) {
	n := newNode(t)
	pod := n.pod("future", nil)
	_, err := n.runtime.AddNetworkList(t.Context(), n.list("9.9.9", delegate), pod)
	wantError(t, err, types.ErrIncompatibleCNIVersion, "9.9.9", "1.1.0")
	n.nothingLeft()
}

// TestPluginHangsAtDel: the DEL ends in time and says so; the runtime's next one
// finishes it.
func TestPluginHangsAtDel(t *testing.T) {
	n := newNode(t)
	stubborn := n.plugins()
	list := n.list("1.0.0", delegate+`,"pluginTimeout":"700ms"`)
	pod := n.pod("a", map[string]string{"k8s.v1.cni.cncf.io/networks": "stubborn"})
	if _, err := n.runtime.AddNetworkList(t.Context(), list, pod); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stubborn, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := n.runtime.DelNetworkList(t.Context(), list, pod)
	wantError(t, err, types.ErrInvalidNetworkConfig, "detach net1", "did not answer", "killed after 700ms")
	if ids, err := n.records.IDs(); err != nil || !slices.Equal(ids, []string{"a"}) {
		t.Errorf("records: %v (%v)", ids, err)
	}
	if err := os.Remove(stubborn); err != nil {
		t.Fatal(err)
	}
	if err := n.runtime.DelNetworkList(t.Context(), list, pod); err != nil {
		t.Error(err)
	}
	n.nothingLeft()
}

// TestPluginHangsForMany: as many Pods as a node has wait for a plugin that hangs;
// few processes of it run, and the others' Pods start and end.
func TestPluginHangsForMany(t *testing.T) {
	n := newNode(t)
	n.plugins()
	gate := filepath.Join(n.dir, "plugins", "gate")
	open := func() error { return os.WriteFile(gate+".open", nil, 0o600) }
	defer func() { _ = open() }() // nothing waits when the test has failed
	const count, most = 100, 32
	list := n.list("1.0.0", delegate)
	var all []*libcni.RuntimeConf
	for i := range count {
		all = append(all, n.pod(fmt.Sprintf("waits%d", i), map[string]string{"k8s.v1.cni.cncf.io/networks": "gate"}))
	}
	running := func() int {
		files, err := filepath.Glob(gate + ".running.*")
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	var group sync.WaitGroup
	for _, pod := range all {
		group.Go(func() {
			if _, err := n.runtime.AddNetworkList(t.Context(), list, pod); err != nil {
				t.Errorf("%s: %v", pod.ContainerID, err)
			}
		})
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not in a minute: %s; %d processes run", what, running())
			}
		}
	}
	eventually("every place is taken, and every record written", func() bool {
		ids, err := n.records.IDs()
		return err == nil && len(ids) == count && running() == most
	})
	other := n.pod("other", map[string]string{"k8s.v1.cni.cncf.io/networks": "red"})
	if _, err := n.runtime.AddNetworkList(t.Context(), list, other); err != nil {
		t.Errorf("ADD meanwhile: %v", err)
	}
	if err := n.runtime.DelNetworkList(t.Context(), list, other); err != nil {
		t.Errorf("DEL meanwhile: %v", err)
	}
	if got := running(); got != most {
		t.Errorf("%d processes run, want %d", got, most)
	}
	if err := open(); err != nil {
		t.Fatal(err)
	}
	group.Wait()
	for _, pod := range all {
		group.Go(func() {
			if err := n.runtime.DelNetworkList(t.Context(), list, pod); err != nil {
				t.Errorf("%s: %v", pod.ContainerID, err)
			}
		})
	}
	group.Wait()
	n.nothingLeft()
}

// TestLeftDelHangs: a DEL that was left for the agent and hangs is tried further,
// told of once, and keeps no Pod from starting.
func TestLeftDelHangs(t *testing.T) {
	n := newNode(t)
	stubborn := n.plugins()
	list, pod := n.list("1.0.0", delegate), n.pod("a", map[string]string{"k8s.v1.cni.cncf.io/networks": "stubborn"})
	if _, err := n.runtime.AddNetworkList(t.Context(), list, pod); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stubborn, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.stop()
	if err := n.runtime.DelNetworkList(t.Context(), list, pod); err != nil { // kept
		t.Fatal(err)
	}
	n.start()
	next := n.pod("b", nil)
	if _, err := n.runtime.AddNetworkList(t.Context(), list, next); err != nil { // waits 10 s for an agent; the plugin hangs for a minute
		t.Errorf("ADD while a DEL that was left hangs: %v", err)
	}
	if err := os.Remove(stubborn); err != nil {
		t.Fatal(err)
	}
	n.stop() // the plugin is killed with the agent
	n.start()
	for _, p := range []*libcni.RuntimeConf{pod, next} {
		if err := n.runtime.DelNetworkList(t.Context(), list, p); err != nil {
			t.Error(err)
		}
	}
	n.nothingLeft()
}

// TestLeftDelIsToldOnce, and again when it is another one.
func TestLeftDelIsToldOnce(t *testing.T) {
	log, dir := &syncBuffer{}, t.TempDir()
	s := New(Config{Queue: dir, Log: slog.New(slog.NewTextHandler(log, nil))})
	path := filepath.Join(dir, "x.json")
	for i, tt := range []struct {
		text string
		told int
	}{{"{}", 1}, {"{}", 1}, {"{", 2}, {"", 2}, {"{", 3}} {
		err := os.WriteFile(path, []byte(tt.text), 0o600)
		if tt.text == "" {
			err = os.Remove(path)
		}
		if err != nil {
			t.Fatal(err)
		}
		s.drain(t.Context())
		if told := strings.Count(log.String(), "a DEL that was left"); told != tt.told {
			t.Errorf("drain %d: told %d times, want %d:\n%s", i, told, tt.told, log)
		}
		if kept := len(s.undone); kept != s.Load().Kept || kept > 0 != (tt.text != "") {
			t.Errorf("drain %d: remembers %d DELs, and %d are left", i, kept, s.Load().Kept)
		}
	}
}

// TestDamagedRecord: a record that was cut costs its own sandbox nothing but
// what foreign plugins hold.
func TestDamagedRecord(t *testing.T) {
	n := newNode(t)
	list := n.list("1.1.0", delegate)
	for name, spoil := range map[string]func(path string, text []byte) error{
		"empty":   func(path string, _ []byte) error { return os.Truncate(path, 0) },
		"half":    func(path string, text []byte) error { return os.WriteFile(path, text[:len(text)/2], 0o600) },
		"missing": func(path string, _ []byte) error { return os.Remove(path) },
		"seen by GC": func(path string, _ []byte) error {
			err := os.Truncate(path, 0)
			if gcErr := n.runtime.GCNetworkList(t.Context(), list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "seen-by-GC", IfName: "eth0"}}}); gcErr == nil {
				err = errors.Join(err, errors.New("GC does not tell of a damaged record"))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			name = strings.ReplaceAll(name, " ", "-")
			pod := n.pod(name, map[string]string{"k8s.v1.cni.cncf.io/networks": "red"})
			damage := func() {
				t.Helper()
				if _, err := n.runtime.AddNetworkList(t.Context(), list, pod); err != nil {
					t.Fatal(err)
				}
				path := n.records.Path(name, false)
				text, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				first, _, _ := strings.Cut(string(text), "\n") // later lines repeat it
				if err := spoil(path, []byte(first)); err != nil {
					t.Fatal(err)
				}
			}
			damage()
			if err := n.runtime.DelNetworkList(t.Context(), list, pod); err != nil {
				t.Errorf("DEL: %v", err)
			}
			n.nothingLeft()
			damage() // gets the same addresses, or ADD would fail one day
			added, err := n.runtime.AddNetworkList(t.Context(), list, pod)
			if err != nil {
				t.Fatalf("ADD over a damaged record: %v", err)
			}
			if links := slices.Sorted(slices.Values(n.links(pod.NetNS))); added == nil || !slices.Equal(links, []string{"eth0", "net1"}) {
				t.Errorf("the Pod has %v", links)
			}
			if err := n.runtime.DelNetworkList(t.Context(), list, pod); err != nil {
				t.Error(err)
			}
			n.nothingLeft()
		})
	}
	if log := n.log.String(); !strings.Contains(log, ".json.damaged") {
		t.Errorf("the log does not say where a damaged record lies:\n%s", log)
	}
}

// TestFullDisk: without room for its record a Pod is refused whole; what was
// attached before is detached all the same.
func TestFullDisk(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // the server has it open
	n := newNodeIn(t, dir)
	list := n.list("1.0.0", delegate)
	filler := filepath.Join(dir, "filler")
	fill := func(room int64) {
		t.Helper()
		file, err := os.Create(filler)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		written, err := io.Copy(file, zeros{})
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("fill the disk: %v", err)
		}
		if err := file.Truncate(max(0, written-room)); err != nil {
			t.Fatal(err)
		}
	}
	// Room for nothing, and for as many pages that a later line does not fit.
	for _, pages := range []int64{0, 1, 2, 3} {
		t.Run(fmt.Sprintf("%d pages", pages), func(t *testing.T) {
			pod := n.pod(fmt.Sprintf("full%d", pages), map[string]string{"k8s.v1.cni.cncf.io/networks": "red,red,red,red"})
			before := n.pod(fmt.Sprintf("before%d", pages), map[string]string{"k8s.v1.cni.cncf.io/networks": "red"})
			if _, err := n.runtime.AddNetworkList(t.Context(), list, before); err != nil {
				t.Fatal(err)
			}
			fill(pages * int64(os.Getpagesize()))
			_, err := n.runtime.AddNetworkList(t.Context(), list, pod)
			wantError(t, err, types.ErrIOFailure, "cannot be written", "no space left on device", "free space on the filesystem of")
			if err != nil && len(err.Error()) > maxError {
				t.Errorf("%d bytes: %v", len(err.Error()), err)
			}
			if links := n.links(pod.NetNS); len(links) > 0 {
				t.Errorf("the Pod has %v", links)
			}
			for _, p := range []*libcni.RuntimeConf{pod, before} {
				if err := n.runtime.DelNetworkList(t.Context(), list, p); err != nil {
					t.Errorf("DEL on a full disk: %v", err)
				}
			}
			n.nothingLeft()
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			if _, err := n.runtime.AddNetworkList(t.Context(), list, pod); err != nil {
				t.Errorf("ADD when there is room again: %v", err)
			}
			if err := n.runtime.DelNetworkList(t.Context(), list, pod); err != nil {
				t.Error(err)
			}
			n.nothingLeft()
		})
	}
}

// zeros has no end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
