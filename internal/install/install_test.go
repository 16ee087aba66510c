package install

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// node is the directories of a machine, and an installer that looks when told.
type node struct {
	*Installer
	t   *testing.T
	log *bytes.Buffer
	now time.Time
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	var log bytes.Buffer
	n := &node{t: t, log: &log, now: time.Now(), Installer: &Installer{
		From: filepath.Join(dir, "from"), BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"), Settings: filepath.Join(dir, "settings"),
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	}}
	for _, name := range Programs {
		n.file(filepath.Join(n.From, name), "program "+name)
	}
	if err := n.Prepare(); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *node) file(path, content string) {
	n.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) conf(name, content string) {
	n.t.Helper()
	n.file(filepath.Join(n.ConfDir, name), content)
}

func (n *node) remove(name string) {
	n.t.Helper()
	if err := os.Remove(filepath.Join(n.ConfDir, name)); err != nil {
		n.t.Fatal(err)
	}
}

// settle looks as often as it takes to act.
func (n *node) settle() {
	n.step(n.now)
	n.step(n.now)
}

// has wants our configuration's plugin to have this JSON, its list these name
// and version; empty: that there is no file.
func (n *node) has(head, plugin string) {
	n.t.Helper()
	text, err := os.ReadFile(filepath.Join(n.ConfDir, ConfigFile))
	if os.IsNotExist(err) && head == "" {
		return
	}
	var list struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err == nil {
		err = json.Unmarshal(text, &list)
	}
	if err != nil || len(list.Plugins) != 1 {
		n.t.Fatalf("the configuration is %q (%v), want %s; log:\n%s", text, err, plugin, n.log)
	}
	got, err := json.Marshal(list.Plugins[0]) // sorted keys
	if err != nil {
		n.t.Fatal(err)
	}
	want := strings.ReplaceAll(plugin, "DIR", n.ConfDir)
	if string(got) != want || list.Name+" "+list.CNIVersion != head {
		n.t.Errorf("the configuration is %s %s %s, want %s %s; log:\n%s", list.Name, list.CNIVersion, got, head, want, n.log)
	}
}

// plugin is what stands in our file for a primary network without capabilities.
func follows(name string) string {
	return `{"capabilities":{"io.kubernetes.cri.pod-annotations":true},"clusterNetwork":"DIR/` + name + `","type":"weft-cni"}`
}

const bridge = `{"cniVersion":"0.4.0","name":"cluster","plugins":[{"type":"bridge"}]}`

func TestFollowsThePrimary(t *testing.T) {
	n := newNode(t)
	n.settle()
	n.has("", "")
	if !strings.Contains(n.log.String(), "install the primary network plugin") {
		t.Errorf("no word about the missing primary: %s", n.log)
	}
	n.conf("10-primary.conflist", bridge)
	n.step(n.now)
	n.has("", "") // it may be half of what is to come
	n.step(n.now)
	n.has("weft 0.4.0", follows("10-primary.conflist"))

	n.conf("20-other.conf", `{"cniVersion":"1.0.0","name":"other","type":"ptp"}`)
	n.settle()
	n.has("weft 0.4.0", follows("10-primary.conflist"))

	// Replaced by one that wants more.
	n.conf("10-primary.conflist", `{"cniVersion":"1.1.0","name":"c","plugins":[
		{"type":"bridge","capabilities":{"ips":true}},{"type":"portmap","capabilities":{"portMappings":true,"bandwidth":false}}]}`)
	n.settle()
	n.has("weft 1.1.0", `{"capabilities":{"io.kubernetes.cri.pod-annotations":true,"ips":true,"portMappings":true},"clusterNetwork":"DIR/10-primary.conflist","type":"weft-cni"}`)

	n.remove("10-primary.conflist")
	n.settle()
	n.has("weft 1.0.0", follows("20-other.conf"))

	// One earlier by name is the primary: so would the runtime have it.
	n.conf("05-first.json", `{"cniVersion":"9.9.9","name":"first","type":"bridge"}`)
	n.settle()
	n.has("weft 1.0.0", follows("05-first.json"))

	// Without any, ours stays: Pods fail and are tried again, with all networks.
	n.remove("05-first.json")
	n.remove("20-other.conf")
	n.settle()
	n.has("weft 1.0.0", follows("05-first.json"))
}

// TestChained: what others put into the directory of the primary's name is of it;
// half a file there is no reason to take another primary.
func TestChained(t *testing.T) {
	n := newNode(t)
	n.conf("10-primary.conflist", `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"bridge","capabilities":{"ips":true}}]}`)
	n.conf("20-other.conf", `{"cniVersion":"1.0.0","name":"other","type":"ptp"}`)
	if err := os.Mkdir(filepath.Join(n.ConfDir, "cbr0"), 0o755); err != nil {
		t.Fatal(err)
	}
	const notes = `"io.kubernetes.cri.pod-annotations":true,"ips":true`
	n.conf("cbr0/10-portmap.conf", `{"type":"portmap","capab`)
	n.settle()
	n.has("weft 1.0.0", `{"capabilities":{`+notes+`},"clusterNetwork":"DIR/10-primary.conflist","type":"weft-cni"}`)
	n.conf("cbr0/10-portmap.conf", `{"type":"portmap","capabilities":{"portMappings":true}}`)
	n.settle()
	n.has("weft 1.0.0", `{"capabilities":{`+notes+`,"portMappings":true},"clusterNetwork":"DIR/10-primary.conflist","type":"weft-cni"}`)
	n.conf("10-primary.conflist", `{"cniVersion":"1.0.0","name":"cbr0","loadOnlyInlinedPlugins":true,"plugins":[{"type":"bridge","capabilities":{"ips":true}}]}`)
	n.settle()
	n.has("weft 1.0.0", `{"capabilities":{`+notes+`},"clusterNetwork":"DIR/10-primary.conflist","type":"weft-cni"}`)
}

// TestHalfWritten writes a primary's configuration byte by byte, with a look
// after each, as runs of a slow writer would.
func TestHalfWritten(t *testing.T) {
	n := newNode(t)
	n.conf("20-later.conf", `{"cniVersion":"1.0.0","name":"later","type":"ptp"}`)
	for i := range len(bridge) {
		n.conf("10-primary.conflist", bridge[:i])
		n.settle()
		n.has("", "") // neither half of the first nor the second by name
	}
	n.conf("10-primary.conflist", bridge)
	n.settle()
	n.has("weft 0.4.0", follows("10-primary.conflist"))

	// Rewritten in place, and the writer dies: the network stays for a while,
	// then it is clear that this is no primary.
	n.conf("10-primary.conflist", bridge[:20])
	n.settle()
	n.has("weft 0.4.0", follows("10-primary.conflist"))
	if !strings.Contains(n.log.String(), "no complete JSON document") || !strings.Contains(n.log.String(), "10-primary.conflist") {
		t.Errorf("no word about the half-written file: %s", n.log)
	}
	n.now = n.now.Add(unfinished + time.Second)
	n.settle()
	n.has("weft 1.0.0", follows("20-later.conf"))
}

func TestBadPrimaries(t *testing.T) {
	for content, problem := range map[string]string{
		"":                                    "no complete JSON",
		"[1]":                                 "no complete JSON",
		bridge + bridge:                       "no complete JSON",
		"null":                                "names no plugin",
		`{"plugins":[]}`:                      "names no plugin",
		`{"plugins":[{"type":"a"},{}]}`:       "names no plugin",
		`{"type":7}`:                          "no complete JSON",
		`{"type":"multus-shim"}`:              "weft takes that place",
		`{"plugins":[{"type":"weft-cni"}]}`:   "weft takes that place",
		`{"type":"a","capabilities":["ips"]}`: "no complete JSON",
	} {
		n := newNode(t)
		n.conf("10-bad.conf", content)
		n.now = n.now.Add(time.Hour)
		n.settle()
		n.has("", "")
		if !strings.Contains(n.log.String(), problem) {
			t.Errorf("%s: the log says %s, want %q", content, n.log, problem)
		}
	}
}

func TestSettings(t *testing.T) {
	const notes = `"io.kubernetes.cri.pod-annotations":true`
	for _, tt := range []struct{ name, settings, head, plugin string }{
		{"empty", " ", "weft 0.4.0", follows("10-primary.conflist")},
		{
			"keys of ours and of Multus", `{"name":"mine","type":"multus","agentWait":"60s","namespaceIsolation":true,"capabilities":{"mac":true},"socketDir":"/run/multus"}`, "mine 0.4.0",
			`{"agentWait":"60s","capabilities":{` + notes + `,"mac":true},"clusterNetwork":"DIR/10-primary.conflist","namespaceIsolation":true,"type":"weft-cni"}`,
		},
		{
			"a list", `{"cniVersion":"1.0.0","name":"multus","plugins":[{"type":"multus","readinessindicatorfile":"/x"}]}`, "multus 1.0.0",
			`{"capabilities":{` + notes + `},"clusterNetwork":"DIR/10-primary.conflist","readinessindicatorfile":"/x","type":"weft-cni"}`,
		},
		{"another primary", `{"multusMasterCNI":"20-other.conf","overrideNetworkName":true}`, "other 1.0.0", follows("20-other.conf")},
		{"a network of the API", `{"clusterNetwork":"nad"}`, "weft 1.0.0", `{"capabilities":{` + notes + `},"clusterNetwork":"nad","type":"weft-cni"}`},
		{"a file", `{"clusterNetwork":"DIR/20-other.conf"}`, "weft 1.0.0", follows("20-other.conf")},
		{"delegates", `{"delegates":[{"type":"bridge"}]}`, "weft 1.0.0", `{"capabilities":{` + notes + `},"delegates":[{"type":"bridge"}],"type":"weft-cni"}`},
	} {
		n := newNode(t)
		n.conf("10-primary.conflist", bridge)
		n.conf("20-other.conf", `{"cniVersion":"1.0.0","name":"other","type":"ptp"}`)
		n.file(n.Settings, strings.ReplaceAll(tt.settings, "DIR", n.ConfDir))
		n.settle()
		t.Run(tt.name, func(t *testing.T) { n.t = t; n.has(tt.head, tt.plugin) })
	}
	for settings, problem := range map[string]string{
		"{": "unexpected end", `{"name":1}`: "name:", `{"plugins":[]}`: "0 elements", "[]": "cannot be used", `{"clusterNetwork":"/no/such"}`: "/no/such",
	} {
		n := newNode(t)
		n.conf("10-primary.conflist", bridge)
		n.settle()
		n.file(n.Settings, settings)
		n.settle()
		n.has("weft 0.4.0", follows("10-primary.conflist")) // the last that was right
		if !strings.Contains(n.log.String(), problem) {
			t.Errorf("%s: the log says %s, want %q", settings, n.log, problem)
		}
	}
}

func TestPrograms(t *testing.T) {
	n := newNode(t)
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(n.BinDir, name))
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(n.BinDir, name))
		if err != nil || info.Mode() != 0o755 {
			t.Errorf("%s has mode %v, %v", name, info.Mode(), err)
		}
		return string(text)
	}
	before, err := os.Stat(filepath.Join(n.BinDir, "weft-cni-thin"))
	if err != nil {
		t.Fatal(err)
	}
	n.file(filepath.Join(n.From, "weft-cni"), "newer")
	n.file(filepath.Join(n.BinDir, unfinishedPrefix+"123"), "half")
	n.file(filepath.Join(n.ConfDir, unfinishedPrefix+"456"), "half")
	if err := n.Prepare(); err != nil {
		t.Fatal(err)
	}
	if read("weft-cni") != "newer" || read("weft-cni-thin") != "program weft-cni-thin" {
		t.Error("the programs are not those we came with")
	}
	if after, err := os.Stat(filepath.Join(n.BinDir, "weft-cni-thin")); err != nil || !os.SameFile(before, after) {
		t.Errorf("a program was written again though it is the same (%v)", err)
	}
	for _, dir := range []string{n.BinDir, n.ConfDir} {
		if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 { // the pattern is right
			t.Errorf("unfinished files are left: %v", left)
		}
	}
	if err := os.Remove(filepath.Join(n.From, "weft-cni")); err != nil {
		t.Fatal(err)
	}
	if err := n.Prepare(); err == nil || !strings.Contains(err.Error(), "beside weft-node") {
		t.Errorf("without a program: %v", err)
	}
}

// TestRestores has somebody take the configuration away, and Run put it back.
func TestRestores(t *testing.T) {
	n := newNode(t)
	n.conf("10-primary.conflist", bridge)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	ours := filepath.Join(n.ConfDir, ConfigFile)
	wait := func() {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat(ours); err == nil {
				return
			} else if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	wait()
	if err := os.Remove(ours); err != nil {
		t.Fatal(err)
	}
	wait()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	n.has("weft 0.4.0", follows("10-primary.conflist")) // ours stays when we end
}

func TestConfig(t *testing.T) {
	n := newNode(t)
	if _, err := Config(n.ConfDir); err == nil || !strings.Contains(err.Error(), "not installed") {
		t.Errorf("before: %v", err)
	}
	n.conf("10-primary.conflist", bridge)
	n.settle()
	got, err := Config(n.ConfDir)
	want := `{"capabilities":{"io.kubernetes.cri.pod-annotations":true},"clusterNetwork":"` + n.ConfDir + `/10-primary.conflist","cniVersion":"0.4.0","name":"weft","type":"weft-cni"}`
	if string(got) != want || err != nil {
		t.Errorf("%s (%v), want %s", got, err, want)
	}
}

const childEnv = "WEFT_INSTALL_CHILD"

// TestInstallerKilled ends installers at any moment with SIGKILL, while the primary's
// configuration changes: what the runtime reads is one that was meant, whole.
func TestInstallerKilled(t *testing.T) {
	n := newNode(t)
	if dir := os.Getenv(childEnv); dir != "" {
		reinstall(n, dir)
	}
	dir := t.TempDir()
	n.ConfDir, n.BinDir = filepath.Join(dir, "net.d"), filepath.Join(dir, "bin")
	written := 0
	for round := range 25 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestInstallerKilled$")
		cmd.Env = append(os.Environ(), childEnv+"="+dir, "TMPDIR="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 1+round%3)); err != nil { // so often it has installed
			t.Fatal(err)
		}
		time.Sleep(time.Duration(round) * 700 * time.Microsecond) // when is the point, not what for
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		for _, name := range Programs {
			text, err := os.ReadFile(filepath.Join(n.BinDir, name))
			if err == nil && len(text) != programSize {
				t.Fatalf("round %d: %s has %d bytes", round, name, len(text))
			}
		}
		text, err := os.ReadFile(filepath.Join(n.ConfDir, ConfigFile))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil || !json.Valid(text) {
			t.Fatalf("round %d: the configuration is %q (%v)", round, text, err)
		}
		written++
	}
	if written == 0 {
		t.Error("no installer lived long enough")
	}
	if err := n.Prepare(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{n.BinDir, n.ConfDir} {
		if left, _ := filepath.Glob(filepath.Join(dir, unfinishedPrefix+"*")); len(left) > 0 { // the pattern is right
			t.Errorf("unfinished files are left: %v", left)
		}
	}
}

const programSize = 1 << 20

// reinstall installs again and again, until it is killed.
func reinstall(n *node, dir string) {
	n.ConfDir, n.BinDir = filepath.Join(dir, "net.d"), filepath.Join(dir, "bin")
	for i := 0; ; i++ {
		fmt.Print("x")
		for _, name := range Programs {
			n.file(filepath.Join(n.From, name), strings.Repeat(fmt.Sprint(i%10), programSize))
		}
		if err := n.Prepare(); err != nil {
			panic(err)
		}
		n.conf("10-primary.conflist", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge","capabilities":{"c%d":true}}]}`, i))
		n.settle()
	}
}
