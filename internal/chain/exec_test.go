package chain

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/test/need"
)

// chained is a network of a native bridge and a recorder that misbehaves.
func chained(rec, behave string) string {
	return `{"cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"s0","ipam":{"type":"host-local","subnet":"10.6.0.0/24"}},{"type":"alpha","dir":"` + rec + `","behave":{` + behave + `}}]}`
}

func TestPluginMisbehaves(t *testing.T) {
	t.Parallel()
	tests := []struct {
		how  string
		kind error
		want []string
	}{
		{"hang", ErrPluginHung, []string{`network demo/bad: CNI ADD of plugin "alpha": did not answer: killed after 500ms; see what it waits for`}},
		{"fork", ErrPluginHung, []string{`did not answer: killed after 500ms`}},
		{"crash", ErrPluginFailed, []string{`plugin "alpha": failed: it crashed: killed: it wrote "about to crash"`}},
		{"garbage", ErrPluginGarbage, []string{`plugin "alpha": printed no CNI result: it claims success with "<html>not today</html>"; report it`}},
		{"null", ErrPluginGarbage, []string{`it claims success with "null"`}},
		{"fail", ErrPluginFailed, []string{`plugin "alpha": failed: code 7: no luck today: the stars; correct`}},
		{"silent", ErrPluginFailed, []string{`failed: status 3 and no CNI error`}},
	}
	for _, tt := range tests {
		t.Run(tt.how, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.timeout = 500 * time.Millisecond
			if !errors.Is(tt.kind, ErrPluginHung) {
				w.timeout = 20 * time.Second
			}
			w.restart()
			w.nads.add("demo/bad", chained(w.rec(), `"ADD":"`+tt.how+`"`))
			start := time.Now()
			err := w.refused("a", "bad", tt.want...)
			if !errors.Is(err, tt.kind) {
				t.Errorf("%v is no %v", err, tt.kind)
			}
			if h, ok := errors.AsType[*hint.Error](err); !ok || h.Remedy == "" {
				t.Errorf("%v has no remedy", err)
			}
			if own, ok := errors.AsType[*types.Error](err); tt.how == "fail" && (!ok || own.Code != 7) {
				t.Errorf("the plugin's own error is lost: %v", own)
			}
			if took := time.Since(start); took > 15*time.Second {
				t.Errorf("took %s", took)
			}
			w.same("verbs", w.verbs(), []string{"ADD alpha net1", "DEL alpha net1"})
			w.podEmpty("a")
			w.empty()
		})
	}
}

// TestHungPluginDiesWithItsChildren looks for the child in /proc.
func TestHungPluginDiesWithItsChildren(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pids := filepath.Join(dir, "pids")
	script := "#!/bin/sh\nsleep 3600 &\necho $$ $! > " + pids + "\nwait\n"
	if err := os.WriteFile(filepath.Join(dir, "forks"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	r := runner{rooms: &rooms{}, binDirs: []string{dir}, deadline: 300 * time.Millisecond}
	_, err := r.run(t.Context(), call{plugin: "forks", verb: "ADD", config: []byte("{}")})
	if !errors.Is(err, ErrPluginHung) {
		t.Fatal(err)
	}
	text, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range strings.Fields(string(text)) {
		gone := false
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline) && !gone; time.Sleep(10 * time.Millisecond) {
			status, err := os.ReadFile("/proc/" + pid + "/stat")
			gone = err != nil || strings.Contains(string(status), ") Z ") // nobody reaps in some containers
		}
		if !gone {
			t.Errorf("process %s lives", pid)
		}
	}
}

func TestCallerGivesUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/bad", chained(w.rec(), `"ADD":"hang"`))
	w.namespace("a")
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	_, err := w.engine.Add(ctx, w.request("a", "bad"))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "its caller gave up") {
		t.Errorf("got %v", err)
	}
	w.podEmpty("a") // the roll-back outlives its caller
	w.empty()
}

func TestPluginIsMissing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/bad", `{"type":"nosuch"}`)
	w.nads.add("demo/badipam", `{"type":"bridge","bridge":"s0","ipam":{"type":"nosuchipam"}}`)
	err := w.refused("a", "bad,badipam", `network demo/bad: CNI ADD of plugin "nosuch": is not installed: no such file in `+binDir, "install it there, or use one that is there: alpha, ", `network demo/badipam: CNI ADD of plugin "nosuchipam": is not installed`)
	if !errors.Is(err, ErrNoPlugin) {
		t.Errorf("got %v", err)
	}
	w.same("calls", len(w.calls()), 0)
	w.podEmpty("a")
	w.empty()
}

func TestPluginIsNoProgram(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "text"), []byte("hello"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := runner{rooms: &rooms{}, binDirs: []string{dir}, deadline: time.Second}
	_, err := r.run(t.Context(), call{plugin: "text", verb: "ADD", network: "demo/x", config: []byte("{}")})
	if !errors.Is(err, ErrPluginFailed) || !strings.Contains(err.Error(), "exec format error; see whether the file is an executable") {
		t.Errorf("got %v", err)
	}
}

func TestOutputIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "noisy"), []byte("#!/bin/sh\nhead -c 20000000 /dev/zero\nhead -c 20000000 /dev/zero >&2\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := runner{rooms: &rooms{}, binDirs: []string{dir}, deadline: time.Minute}
	c := call{plugin: "noisy", verb: "ADD", config: []byte("{}")}
	stdout, err := r.run(t.Context(), c)
	if err != nil || len(stdout) != maxOutput {
		t.Errorf("got %d bytes, %v", len(stdout), err)
	}
	if _, err := c.result(stdout); !errors.Is(err, ErrPluginGarbage) || len(err.Error()) > 2000 {
		t.Errorf("got %v", err)
	}
}

func FuzzResult(f *testing.F) {
	for _, seed := range []string{"", "null", "{}", `{"cniVersion":"1.0.0","interfaces":[null],"ips":[null],"routes":[null]}`, `{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.1/24"}}`, `{"cniVersion":5}`, `{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1/24","interface":7}]}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, out string) { checkResult(t, []byte(out)) })
}

// TestHostRoot runs a plugin in the root directory of the machine around a
// container: it is found there, and sees the files there.
func TestHostRoot(t *testing.T) {
	t.Parallel()
	need.Root(t)
	root := t.TempDir()
	for _, dir := range []string{"plugins", "out"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(binDir, "alpha"), filepath.Join(root, "plugins", "alpha")); err != nil {
		t.Fatal(err)
	}
	r := runner{rooms: &rooms{}, binDirs: []string{"/plugins"}, root: root, deadline: 20 * time.Second}
	c := call{plugin: "alpha", verb: "ADD", network: "demo/x", sandbox: "s", ifName: "x0", netns: "/n", config: []byte(`{"cniVersion":"1.0.0","name":"x","type":"alpha","dir":"/out"}`)}
	if _, err := r.run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if found, err := filepath.Glob(filepath.Join(root, "out", "*")); err != nil || len(found) == 0 {
		t.Errorf("the plugin wrote nothing below its root (%v)", err)
	}
	c.plugin = "beta"
	if _, err := r.run(t.Context(), c); !errors.Is(err, ErrNoPlugin) || !strings.Contains(err.Error(), "no such file in /plugins; install it there, or use one that is there: alpha") {
		t.Errorf("a plugin that is not there: %v", err)
	}
}
