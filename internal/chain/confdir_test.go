package chain

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/record"
)

// TestConfigOfFile: a network whose definition has no config is in a file of its
// name, lists first, and one broken file is nobody else's trouble.
func TestConfigOfFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := filepath.Join(w.dir, "net.d")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	recorder := func(name, plugin string) string {
		return `{"cniVersion":"1.0.0","name":"` + name + `","plugins":[{"type":"` + plugin + `","dir":"` + w.rec() + `"}]}`
	}
	for file, text := range map[string]string{
		"00-broken.conflist": `{"name":"thick`,
		"10-thick.conf":      `{"cniVersion":"1.0.0","name":"thick","type":"omega","dir":"` + w.rec() + `"}`,
		"20-other.conflist":  recorder("other", "omega"),
		"30-thick.conflist":  recorder("thick", "alpha"),
		"40-thin.json":       `{"cniVersion":"1.0.0","name":"thin","type":"omega","dir":"` + w.rec() + `"}`,
		"50-thick.txt":       recorder("missing", "alpha"),
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"thick", "thin", "missing"} {
		w.nads.add("demo/"+name, "")
	}
	add := func(id, annotation string, more func(*Request)) (*record.Sandbox, error) {
		w.namespace(id)
		req := w.request(id, annotation)
		req.ConfDir = dir
		if more != nil {
			more(&req)
		}
		return w.engine.Add(t.Context(), req)
	}
	box, err := add("a", "thick,thin", nil)
	if err != nil {
		t.Fatal(err)
	}
	w.same("ADDs", w.verbs(), []string{"ADD alpha net1", "ADD omega net2"})
	w.same("name", box.Find("net1").Network, "demo/thick")
	if _, err := w.engine.Attach(t.Context(), "a", netattach.Selection{Namespace: "demo", Name: "thin", Interface: "hot0"}); err != nil {
		t.Error(err)
	}
	_, err = add("b", "missing", nil)
	if want := `network demo/missing: spec.config: is empty, and no file in ` + dir + ` has the name "missing"; correct 00-broken.conflist (unexpected end of JSON input), or write a CNI configuration`; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	// The node's own configuration names networks of the API or of a file.
	if box, err = add("c", "", func(req *Request) {
		req.Default = &DefaultNetwork{Namespace: "kube-system", Name: "other"}
		req.Everywhere = []DefaultNetwork{{Namespace: "kube-system", Name: "thin"}}
	}); err != nil {
		t.Fatal(err)
	}
	w.same("names", []string{box.Attachments[0].Network, box.Attachments[1].Network}, []string{"other", "thin"})
	// A Pod's annotations name networks of the API alone.
	if _, err := add("d", "other", nil); err == nil || !strings.Contains(err.Error(), "there is no NetworkAttachmentDefinition demo/other") {
		t.Errorf("a file by annotation: %v", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "c"} {
		if err := w.engine.Del(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	w.empty()
}
