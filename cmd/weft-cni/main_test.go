package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/cniwire"
)

// plugin and bare are built once: the program, and a bare one to compare with.
var plugin, bare string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "weft-cni-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	plugin, bare = filepath.Join(dir, "weft-cni"), filepath.Join(dir, "skel")
	for program, path := range map[string]string{plugin: ".", bare: "./testdata/skel"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, path)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", path, err, out)
			return 1
		}
	}
	return m.Run()
}

// call is one run of the plugin.
type call struct {
	dir     string // socket, queue and thin program are in it
	command string
	config  map[string]any
}

func newCall(t *testing.T, command string) *call {
	t.Helper()
	dir := t.TempDir()
	return &call{dir: dir, command: command, config: map[string]any{
		"cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "agentWait": "100ms",
		"socket": filepath.Join(dir, "s"), "queue": filepath.Join(dir, "queue"), "thin": filepath.Join(dir, "thin"),
	}}
}

func (c *call) run(t *testing.T) (stdout string, code int) {
	t.Helper()
	config, err := json.Marshal(c.config)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(plugin)
	cmd.Stdin = bytes.NewReader(config)
	cmd.Env = []string{
		"CNI_COMMAND=" + c.command, "CNI_CONTAINERID=abc", "CNI_NETNS=/proc/self/ns/net", "CNI_IFNAME=eth0",
		"CNI_ARGS=K8S_POD_NAME=p;K8S_POD_NAMESPACE=n", "CNI_PATH=/opt/cni/bin", "CNI_NETNS_OVERRIDE=1", "PATH=" + os.Getenv("PATH"),
	}
	out, err := cmd.Output()
	if _, ok := err.(*exec.ExitError); err != nil && !ok { //nolint:errorlint // it is never wrapped
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// fails wants the CNI error of that code whose text has all of want.
func (c *call) fails(t *testing.T, code int, want ...string) {
	t.Helper()
	out, exit := c.run(t)
	var e struct {
		Code         int
		Msg, Details string
	}
	if err := json.Unmarshal([]byte(out), &e); err != nil || exit == 0 || e.Code != code {
		t.Errorf("%s ends with %d and %q, want an error with code %d", c.command, exit, out, code)
	}
	for _, text := range want {
		if !strings.Contains(e.Msg+" "+e.Details, text) {
			t.Errorf("%s says %q, want %q in it", c.command, e.Msg+" "+e.Details, text)
		}
	}
}

// serve answers one request on the call's socket.
func (c *call) serve(t *testing.T, answer func(net.Conn)) {
	t.Helper()
	listener, err := net.Listen("unix", c.config["socket"].(string)) //nolint:forcetypeassert // newCall set it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		answer(conn)
	}()
}

func (c *call) queued(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(c.dir, "queue", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestPassesOn(t *testing.T) {
	for _, command := range []string{"ADD", "DEL", "CHECK", "STATUS", "GC"} {
		c := newCall(t, command)
		c.config["prevResult"] = map[string]any{"cniVersion": "1.1.0"}
		if command == "GC" {
			c.config["cni.dev/valid-attachments"] = []any{}
		}
		got := make(chan cniwire.Request, 1)
		c.serve(t, func(conn net.Conn) {
			var request cniwire.Request
			if err := cniwire.Read(conn, &request); err != nil {
				t.Error(err)
			}
			got <- request
			if err := cniwire.Write(conn, cniwire.Response{Result: json.RawMessage(`{"cniVersion":"1.1.0"}`)}); err != nil {
				t.Error(err)
			}
		})
		if out, code := c.run(t); code != 0 || out != `{"cniVersion":"1.1.0"}` {
			t.Errorf("%s prints %q and ends with %d", command, out, code)
		}
		request := <-got
		if request.Command != command || !strings.Contains(string(request.Config), `"type":"weft-cni"`) {
			t.Errorf("%s: the agent got %+v", command, request)
		}
		if command == "ADD" && (request.ContainerID != "abc" || request.IfName != "eth0" || request.NetNS == "" || request.Args != "K8S_POD_NAME=p;K8S_POD_NAMESPACE=n" || request.Path != "/opt/cni/bin") {
			t.Errorf("ADD: the agent got %+v", request)
		}
	}
}

func TestAgentsError(t *testing.T) {
	c := newCall(t, "ADD")
	c.serve(t, func(conn net.Conn) {
		var request cniwire.Request
		_ = cniwire.Read(conn, &request) // another test looks at it
		_ = cniwire.Write(conn, cniwire.Response{Error: &cniwire.Error{Code: 7, Msg: "no", Details: "because"}})
	})
	c.fails(t, 7, "no", "because")
}

func TestAgentAway(t *testing.T) {
	for _, command := range []string{"ADD", "CHECK"} {
		c := newCall(t, command)
		c.config["prevResult"] = map[string]any{"cniVersion": "1.1.0"}
		c.fails(t, 11, "weft's agent is away", "weft-node")
	}
	// It waits for one that comes.
	c := newCall(t, "ADD")
	c.config["agentWait"] = "20s"
	time.AfterFunc(200*time.Millisecond, func() {
		c.serve(t, func(conn net.Conn) {
			var request cniwire.Request
			_ = cniwire.Read(conn, &request) // another test looks at it
			_ = cniwire.Write(conn, cniwire.Response{})
		})
	})
	if out, code := c.run(t); code != 0 {
		t.Errorf("with an agent that comes late: %d, %s", code, out)
	}
}

func TestAgentDiesMeanwhile(t *testing.T) {
	dies := func(conn net.Conn) {
		var request cniwire.Request
		_ = cniwire.Read(conn, &request) // and no answer
	}
	c := newCall(t, "ADD")
	c.serve(t, dies)
	c.fails(t, 11, "did not answer")
	c = newCall(t, "DEL")
	c.serve(t, dies)
	if out, code := c.run(t); code != 0 || len(c.queued(t)) != 1 {
		t.Errorf("DEL ends with %d, %q; queued: %v", code, out, c.queued(t))
	}
}

func TestDelIsKept(t *testing.T) {
	c := newCall(t, "DEL")
	for range 2 { // the runtime may repeat it
		if out, code := c.run(t); code != 0 {
			t.Errorf("DEL ends with %d, %s", code, out)
		}
	}
	files := c.queued(t)
	if len(files) != 1 {
		t.Fatalf("queued: %v", files)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	var request cniwire.Request
	if err := json.Unmarshal(text, &request); err != nil || request.Command != "DEL" || request.ContainerID != "abc" || request.IfName != "eth0" {
		t.Errorf("queued %s (%v)", text, err)
	}
	c.config["queue"] = "/proc/no/such"
	c.fails(t, 11, "cannot be kept", "see that files can be written in /proc/no")
}

func TestHandsOver(t *testing.T) {
	for _, tt := range []struct {
		name, command string
		change        func(config map[string]any)
		over          bool
	}{
		{"status", "STATUS", func(map[string]any) {}, true},
		{"plain Pod", "ADD", annotated(map[string]string{"a": "b"}), true},
		{"Pod without annotations", "ADD", annotated(map[string]string{}), true},
		{"Pod with networks", "ADD", annotated(map[string]string{networksAnnotation: "x"}), false},
		{"Pod with a default network", "ADD", annotated(map[string]string{defaultNetworkAnnotation: "x"}), false},
		{"runtime that tells none", "ADD", func(map[string]any) {}, false},
		{"default networks", "ADD", func(config map[string]any) {
			annotated(map[string]string{})(config)
			config["defaultNetworks"] = []string{"y"}
		}, false},
	} {
		c := newCall(t, tt.command)
		tt.change(c.config)
		script := "#!/bin/sh\necho \"$CNI_COMMAND $CNI_CONTAINERID $(cat | wc -c)\"\n"
		if err := os.WriteFile(filepath.Join(c.dir, "thin"), []byte(script), 0o700); err != nil { //nolint:gosec // it is run
			t.Fatal(err)
		}
		if !tt.over {
			c.fails(t, 11, "away")
			continue
		}
		config, err := json.Marshal(c.config)
		if err != nil {
			t.Fatal(err)
		}
		if out, code := c.run(t); code != 0 || strings.TrimSpace(out) != fmt.Sprintf("%s abc %d", tt.command, len(config)) && tt.command == "ADD" {
			t.Errorf("%s: %d, %q", tt.name, code, out)
		}
		if err := os.Remove(filepath.Join(c.dir, "thin")); err != nil {
			t.Fatal(err)
		}
		c.fails(t, 11, "away", "thin")
	}
}

func annotated(annotations map[string]string) func(map[string]any) {
	return func(config map[string]any) {
		config["runtimeConfig"] = map[string]any{"io.kubernetes.cri.pod-annotations": annotations}
	}
}

func TestBadConfig(t *testing.T) {
	c := newCall(t, "ADD")
	c.config["agentWait"] = "soon"
	c.fails(t, 7, "agentWait", "soon", "20s")
	c = newCall(t, "ADD")
	c.config["cniVersion"] = "9.9.9"
	c.fails(t, 1, "9.9.9")
}

func TestVersion(t *testing.T) {
	c := newCall(t, "VERSION")
	if out, code := c.run(t); code != 0 || !strings.Contains(out, `"supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]`) {
		t.Errorf("%d, %s", code, out)
	}
}

// Bounds of what is started for every call of the runtime.
const (
	maxPackages = 15
	maxSize     = 4 << 20 // bytes
	maxStart    = 1.5     // times a bare skel program
)

func TestIsSmall(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if list := strings.Fields(string(out)); len(list) > maxPackages {
		t.Errorf("%d packages that are not the standard library's, at most %d: %v", len(list), maxPackages, list)
	}
	info, err := os.Stat(plugin)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > maxSize {
		t.Errorf("%d bytes, at most %d", info.Size(), maxSize)
	}
}

// TestStartsFast compares runs by turns; a busy machine disturbs even that, so
// one good round of five is enough.
func TestStartsFast(t *testing.T) {
	const runs = 41
	var ratio float64
	for range 5 {
		var ours, floor []time.Duration
		for range runs {
			ours, floor = append(ours, start(t, plugin)), append(floor, start(t, bare))
		}
		slices.Sort(ours)
		slices.Sort(floor)
		ratio = float64(ours[runs/2]) / float64(floor[runs/2])
		if ratio <= maxStart {
			t.Logf("weft-cni %s, bare skel program %s: %.2fx", ours[runs/2], floor[runs/2], ratio)
			return
		}
	}
	t.Errorf("weft-cni takes %.2f times what a bare skel program takes to start, at most %.1f", ratio, maxStart)
}

func start(t *testing.T, program string) time.Duration {
	t.Helper()
	cmd := exec.Command(program)
	cmd.Env = []string{"CNI_COMMAND=VERSION"}
	cmd.Stdin = strings.NewReader(`{"cniVersion":"1.1.0"}`)
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return time.Since(begin)
}
