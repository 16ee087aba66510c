package chain

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/dataplane"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// mixed is a Pod of every sort of attachment: bridge (default), macvlan, a
// native bridge with foreign plugins behind it, one with a foreign IPAM, and
// one that is foreign from the start and has a device.
func mixed(w *world) string {
	rec := w.rec()
	w.nads.add("demo/lan", `{"cniVersion":"1.0.0","type":"macvlan","master":"uplink","ipam":{"type":"host-local","subnet":"192.0.2.0/24","rangeStart":"192.0.2.100"}}`)
	w.nads.add("demo/tuned", `{"cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"t0","ipMasq":true,"isGateway":true,"ipam":{"type":"host-local","subnet":"10.6.0.0/24"}},
		{"type":"alpha","dir":"`+rec+`"},{"type":"omega","dir":"`+rec+`"}]}`)
	w.nads.add("demo/ext", `{"cniVersion":"1.0.0","type":"bridge","bridge":"x0","ipam":{"type":"recipam","dir":"`+rec+`","gives":{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.5/24"}]}}}`)
	w.nads.addDevice("demo/p2p", "example.com/nic", `{"cniVersion":"1.0.0","name":"p2p","plugins":[{"type":"ptp","ipam":{"type":"host-local","dataDir":"`+w.dir+`/host-local","subnet":"10.7.0.0/24"}},{"type":"alpha","dir":"`+rec+`","capabilities":{"CNIDeviceInfoFile":true},"describes":{"type":"pci"}}]}`)
	w.devices = &devices{always: map[string][]string{"example.com/nic": {"d1"}}}
	w.restart()
	return `[{"name":"lan"},{"name":"tuned","default-route":["10.6.0.1"]},{"name":"ext"},{"name":"p2p"}]`
}

// stopAt makes the n-th step end with err, and tells which step that was.
func stopAt(e *Engine, n int, err error) (at func() string) {
	count, name := 0, ""
	e.beforeStep = func(step string) error {
		count++
		if count-1 == n {
			name = step
			return err
		}
		return nil
	}
	return func() string { return name }
}

// walk calls body for n = 0, 1, ... until it says that there was no step n.
func walk(t *testing.T, body func(n int) (more bool)) {
	t.Helper()
	stride := 1
	if testing.Short() {
		stride = 7
	}
	for n := 0; body(n); n += stride {
		if n > 200 {
			t.Fatal("the walk has no end")
		}
	}
}

// walked ends a walk through an ADD of sandbox a, whose last turn stopped nowhere.
func (w *world) walked(err error) (more bool) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
	w.engine.beforeStep = nil
	w.end("a")
	return false
}

func TestKilledInAdd(t *testing.T) {
	t.Parallel()
	needPlugin(t, "ptp")
	w := newWorld(t)
	annotation := mixed(w)
	w.namespace("a")
	var steps []string
	walk(t, func(n int) bool {
		at := stopAt(w.engine, n, errKilled)
		_, err := w.engine.Add(t.Context(), w.request("a", annotation))
		if at() == "" {
			return w.walked(err)
		}
		if !errors.Is(err, errKilled) {
			t.Fatalf("killed before %s: %v", at(), err)
		}
		steps = append(steps, at())
		w.restart()
		if err := w.engine.Restore(t.Context()); err != nil {
			t.Fatalf("restore after a crash before %s: %v", at(), err)
		}
		if at() == "result written" {
			w.same("links after a crash at the very end", w.links(w.pod("a")), []string{"eth0", "net1", "net2", "net3", "net4"})
		} else {
			w.podEmpty("a")
			w.empty()
		}
		box, err := w.engine.Add(t.Context(), w.request("a", annotation))
		if err != nil {
			t.Fatalf("add after a crash before %s: %v", at(), err)
		}
		w.same("attachments", len(box.Attachments), 5)
		w.same("links", w.links(w.pod("a")), []string{"eth0", "net1", "net2", "net3", "net4"})
		checkAgreement(t, w, "a")
		if err := w.engine.Del(t.Context(), "a"); err != nil {
			t.Fatalf("del after a crash before %s: %v", at(), err)
		}
		w.podEmpty("a")
		w.empty()
		if t.Failed() {
			t.Fatalf("after a crash before %s", at())
		}
		return true
	})
	t.Logf("killed before each of: %s", strings.Join(steps, ", "))
	if !testing.Short() && len(steps) < 15 {
		t.Errorf("only %d steps", len(steps))
	}
}

// TestKilledInAddWithoutRestore has the runtime call again while the same
// engine lives: Add must find its way without Restore.
func TestKilledInAddWithoutRestore(t *testing.T) {
	t.Parallel()
	needPlugin(t, "ptp")
	w := newWorld(t)
	annotation := mixed(w)
	w.namespace("a")
	walk(t, func(n int) bool {
		at := stopAt(w.engine, n, errKilled)
		_, _ = w.engine.Add(t.Context(), w.request("a", annotation)) // killed, or not
		w.engine.beforeStep = nil
		if _, err := w.engine.Add(t.Context(), w.request("a", annotation)); err != nil {
			t.Fatalf("add after a crash before %s: %v", at(), err)
		}
		checkAgreement(t, w, "a")
		w.end("a")
		w.podEmpty("a")
		return at() != "" && !t.Failed()
	})
}

func TestKilledInDel(t *testing.T) {
	t.Parallel()
	needPlugin(t, "ptp")
	w := newWorld(t)
	annotation := mixed(w)
	w.namespace("a")
	var steps []string
	walk(t, func(n int) bool {
		w.engine.beforeStep = nil
		if _, err := w.engine.Add(t.Context(), w.request("a", annotation)); err != nil {
			t.Fatal(err)
		}
		at := stopAt(w.engine, n, errKilled)
		err := w.engine.Del(t.Context(), "a")
		if at() == "" {
			if err != nil {
				t.Fatal(err)
			}
			return false
		}
		steps = append(steps, at())
		w.restart()
		if err := w.engine.Restore(t.Context()); err != nil {
			t.Fatalf("restore after a crash before %s: %v", at(), err)
		}
		if err := w.engine.Del(t.Context(), "a"); err != nil {
			t.Fatalf("del after a crash before %s: %v", at(), err)
		}
		w.podEmpty("a")
		w.empty()
		if t.Failed() {
			t.Fatalf("after a crash before %s", at())
		}
		return true
	})
	t.Logf("killed before each of: %s", strings.Join(steps, ", "))
}

// TestKilledInRestore kills the engine that repairs what another one left.
func TestKilledInRestore(t *testing.T) {
	t.Parallel()
	needPlugin(t, "ptp")
	w := newWorld(t)
	annotation := mixed(w)
	w.namespace("a")
	walk(t, func(n int) bool {
		stopAt(w.engine, 14, errKilled) // somewhere in the middle
		if _, err := w.engine.Add(t.Context(), w.request("a", annotation)); !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		w.restart()
		at := stopAt(w.engine, n, errKilled)
		err := w.engine.Restore(t.Context())
		if killed := at() != ""; killed != errors.Is(err, errKilled) {
			t.Fatalf("killed before %q: %v", at(), err)
		}
		w.restart()
		if err := w.engine.Restore(t.Context()); err != nil {
			t.Fatalf("restore after a crash before %s: %v", at(), err)
		}
		w.podEmpty("a")
		w.empty()
		return at() != "" && !t.Failed()
	})
}

// TestFailedStep fails every step in turn, and wants nothing left.
func TestFailedStep(t *testing.T) {
	t.Parallel()
	needPlugin(t, "ptp")
	w := newWorld(t)
	annotation := mixed(w)
	w.namespace("a")
	broken := errors.New("broken on purpose")
	walk(t, func(n int) bool {
		at := stopAt(w.engine, n, broken)
		_, err := w.engine.Add(t.Context(), w.request("a", annotation))
		if at() == "" {
			return w.walked(err)
		}
		if !errors.Is(err, broken) {
			t.Fatalf("failed at %s: %v", at(), err)
		}
		w.podEmpty("a")
		w.empty()
		if t.Failed() {
			t.Fatalf("after a failure at %s", at())
		}
		return true
	})
}

// flaky is a dataplane whose n-th Replace does part of its work and then fails
// or dies.
type flaky struct {
	Dataplane
	n   *int
	err error
}

func (f flaky) ReplaceIn(ctx context.Context, pod *linux.NS, last, want netstate.Plan, seen []linux.Link) (dataplane.Facts, error) {
	*f.n--
	if *f.n != 0 {
		return f.Dataplane.ReplaceIn(ctx, pod, last, want, seen)
	}
	half := want
	half.Pod.Addrs, half.Pod.Routes, half.Pod.Sysctls, half.Host.Tables = nil, nil, nil, nil
	if _, err := f.Dataplane.ReplaceIn(ctx, pod, last, half, seen); err != nil {
		return dataplane.Facts{}, err
	}
	return dataplane.Facts{}, f.err
}

func TestHalfApplied(t *testing.T) {
	t.Parallel()
	needPlugin(t, "ptp")
	broken := errors.New("broken on purpose")
	for _, cause := range []error{broken, errKilled} {
		t.Run(cause.Error(), func(t *testing.T) {
			w := newWorld(t)
			annotation := mixed(w)
			w.namespace("a")
			left := 0
			w.wrap = func(d Dataplane) Dataplane { return flaky{d, &left, cause} }
			w.restart()
			for n := 1; ; n++ {
				left = n
				_, err := w.engine.Add(t.Context(), w.request("a", annotation))
				if left > 0 { // not reached
					if err != nil {
						t.Fatal(err)
					}
					break
				}
				if !errors.Is(err, cause) {
					t.Fatalf("replace %d: %v", n, err)
				}
				if errors.Is(cause, errKilled) {
					w.restart()
					if err := w.engine.Restore(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				w.podEmpty("a")
				w.empty()
			}
			left = 0
			w.end("a")
		})
	}
}

func TestRestoreAfterReboot(t *testing.T) {
	t.Parallel()
	needPlugin(t, "ptp")
	w := newWorld(t)
	w.add("a", mixed(w))
	// What a reboot takes along, and what it does not.
	w.unmount("a")
	for _, link := range []string{"weft0", "t0", "x0"} {
		w.in(w.host, "ip", "link", "del", link)
	}
	w.in(w.host, "nft", "flush", "ruleset")
	for _, link := range w.links(w.host) {
		if link != "uplink" {
			w.in(w.host, "sh", "-c", "ip link del "+link+" 2>/dev/null || true")
		}
	}
	if len(w.pluginState()) == 0 {
		t.Fatal("no foreign state to care for")
	}
	w.boot = "boot-2"
	w.restart()
	if len(w.memory.Leases()) == 0 {
		t.Error("the new engine does not hold the addresses of the records")
	}
	if err := w.engine.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.empty()
	for _, c := range w.calls() {
		if c.Verb == "DEL" && c.NetNS != "" {
			t.Errorf("DEL after a reboot was told of namespace %s", c.NetNS)
		}
	}
	w.add("a", mixed(w))
	w.end("a")
}

func TestRestoreKeepsWhatIsWhole(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("a", "")
	w.add("b", "")
	w.in(w.host, "ip", "link", "add", "weftstray", "type", "bridge")
	w.in(w.host, "ip", "link", "set", "weftstray", "alias", netstate.Alias(instance, ownerAttachment+"gone/eth0"))
	w.in(w.host, "ip", "link", "add", "otherstray", "type", "bridge")
	w.in(w.host, "ip", "link", "set", "otherstray", "alias", netstate.Alias("another", ownerAttachment+"gone/eth0"))
	w.restart()
	if err := w.engine.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.in(w.pod("a"), "ping", "-c1", "-W2", "-q", "10.88.0.3")
	checkAgreement(t, w, "a")
	links := strings.Join(w.links(w.host), " ")
	if strings.Contains(links, "weftstray") || !strings.Contains(links, "otherstray") {
		t.Errorf("links: %s", links)
	}
	box := w.add("c", "")
	w.same("next address", box.Attachments[0].Leases[0].Addr, "10.88.0.4")
	for _, id := range []string{"a", "b", "c"} {
		if err := w.engine.Del(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	w.emptyBut("otherstray")
}

func TestDamagedRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("a", "")
	w.add("b", "")
	path := w.records.Path("a", false)
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	w.restart()
	if err := w.engine.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	damaged, err := w.records.Damaged()
	if err != nil || len(damaged) != 1 {
		t.Errorf("set aside: %v, %v", damaged, err)
	}
	if !strings.Contains(w.log.String(), "a.json.damaged") {
		t.Errorf("nobody was told:\n%s", w.log.String())
	}
	w.podEmpty("a") // the veth went with its host's end
	w.in(w.pod("b"), "ping", "-c1", "-W2", "-q", "10.88.0.1")
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	// Damaged while the engine runs: DEL salvages by itself.
	if err := os.Truncate(w.records.Path("b", false), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.engine.Del(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	w.podEmpty("b")
}

// TestNewerRecord wants nothing touched of a sandbox that a later weft wrote.
func TestNewerRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("a", "")
	path := w.records.Path("a", false)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	newer := strings.ReplaceAll(string(text), `"version":1`, `"version":9`)
	if err := os.WriteFile(path, []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	w.restart()
	if err := w.engine.Restore(t.Context()); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("restore: %v", err)
	}
	w.in(w.pod("a"), "ping", "-c1", "-W2", "-q", "10.88.0.1")
	if table := w.in(w.host, "nft", "list", "ruleset"); !strings.Contains(table, "10.88.0.0/24") {
		t.Errorf("masquerading is gone:\n%s", table)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	w.restart()
	w.end("a")
}

// TestDelGoesOn wants DEL to take away all it can, and to keep a record of the
// rest until that is gone too.
func TestDelGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rec := w.rec()
	w.nads.add("demo/sticky", `{"cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"s0","ipam":{"type":"host-local","subnet":"10.6.0.0/24"}},{"type":"alpha","dir":"`+rec+`"},{"type":"omega","dir":"`+rec+`"}]}`)
	w.add("a", "sticky")
	// The plugin is missing for a while.
	w.engine.runner.binDirs = []string{w.t.TempDir()}
	if err := os.Link(filepath.Join(binDir, "alpha"), filepath.Join(w.engine.runner.binDirs[0], "alpha")); err != nil {
		t.Fatal(err)
	}
	err := w.engine.Del(t.Context(), "a")
	w.engine.runner.binDirs = []string{binDir}
	if !errors.Is(err, ErrNoPlugin) || !strings.Contains(err.Error(), `network demo/sticky: CNI DEL of plugin "omega": is not installed`) {
		t.Errorf("got %v", err)
	}
	w.podEmpty("a")
	w.same("alpha was asked nevertheless", w.verbs()[len(w.verbs())-1], "DEL alpha net1")
	box, loadErr := w.records.Load("a")
	if loadErr != nil {
		t.Fatal(loadErr)
	}
	w.same("what is left", len(box.Attachments), 1)
	w.same("stage", []any{box.Attachments[0].Stage, strings.Contains(box.Attachments[0].Reason, "omega")}, []any{record.Detaching, true})
	w.end("a")
}
