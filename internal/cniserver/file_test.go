package cniserver

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/hint"
)

// TestFiles reads configurations of a node from a container: its root is
// elsewhere, and its links lead where they lead on the node.
func TestFiles(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const list = `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"bridge"}]}`
	write("etc/cni/net.d/10-cbr0.conflist", list)
	write("etc/cni/net.d/20-more.conflist", strings.Replace(list, "cbr0", "more", 1))
	write("etc/cni/net.d/more/20-b.conf", `{"type":"omega"}`)
	write("etc/cni/net.d/more/10-a.conf", `{"type":"alpha","x":1}`)
	write("etc/cni/net.d/more/README", "no plugin")
	write("etc/cni/net.d/30-alone.conflist", `{"name":"more","loadOnlyInlinedPlugins":true,"plugins":[{"type":"bridge"}]}`)
	write("etc/cni/net.d/40-bad.conflist", `{"name":"bad","plugins":[{"type":"bridge"}]}`)
	write("etc/cni/net.d/bad/x.conf", `{"type":`)
	write("etc/cni/net.d/50-out.conflist", `{"name":"..","plugins":[{"type":"bridge"}]}`)
	write("etc/cni/out.conf", `{"type":"stranger"}`)
	write("run/ready", "")
	if err := os.MkdirAll(filepath.Join(root, "var/empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/run", filepath.Join(root, "var/run")); err != nil {
		t.Fatal(err)
	}
	f := files{root}
	for _, tt := range []struct{ path, want string }{
		{"/etc/cni/net.d", "bridge"},
		{"/etc/cni/net.d/10-cbr0.conflist", "bridge"},
		{"/etc/cni/net.d/20-more.conflist", "bridge alpha omega"},
		{"/etc/cni/net.d/30-alone.conflist", "bridge"},
		{"/etc/cni/net.d/50-out.conflist", "bridge"},
	} {
		text, err := f.config(tt.path)
		var got struct {
			CNIVersion string
			Plugins    []struct{ Type string }
		}
		if err == nil {
			err = json.Unmarshal(text, &got)
		}
		var types []string
		for _, plugin := range got.Plugins {
			types = append(types, plugin.Type)
		}
		if chain := strings.Join(types, " "); err != nil || chain != tt.want {
			t.Errorf("%s has %s (%v), want %s", tt.path, chain, err, tt.want)
		}
	}
	for path, want := range map[string]string{
		"/etc/cni/net.d/40-bad.conflist": `"/etc/cni/net.d/bad/x.conf": cannot be chained to network bad: it is no JSON document; correct the file`,
		"/var/empty":                     `"/var/empty": has no file *.conf`,
		"/none":                          `"/none": cannot be read`,
	} {
		_, err := f.config(path)
		if _, ok := errors.AsType[*hint.Error](err); !ok || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", path, err, want)
		}
	}
	if !f.there("/var/run/ready") || f.there("/var/run/else") {
		t.Error("the readiness file is not looked for where the node has it")
	}
}

// TestArgs: what runtimes write there is taken as it is.
func TestArgs(t *testing.T) {
	t.Parallel()
	args := parseArgs("IgnoreUnknown=1;K8S_POD_NAMESPACE=demo;K8S_POD_NAME=a;K8S_POD_UID=u;FILTER=a=b;;EMPTY=;K8S_POD_INFRA_CONTAINER_ID=c;odd;")
	if args.namespace != "demo" || args.name != "a" || args.uid != "u" {
		t.Errorf("the Pod is %+v", args)
	}
	want := [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "demo"}, {"K8S_POD_NAME", "a"}, {"K8S_POD_UID", "u"}, {"FILTER", "a=b"}, {"EMPTY", ""}, {"K8S_POD_INFRA_CONTAINER_ID", "c"}}
	if diff := cmp.Diff(args.all, want); diff != "" {
		t.Errorf("got -, want +:\n%s", diff)
	}
}
