package chain

import (
	"fmt"
	"reflect"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/kind"
)

// TestParsedIsAsRead resolves every question with and without what is remembered
// of the questions before it.
func TestParsedIsAsRead(t *testing.T) {
	parsed := newParsedConfigs()
	definition := func(bridge string) map[string]*netattach.NetworkAttachmentDefinition {
		config := fmt.Sprintf(`{"cniVersion": "1.0.0", "type": "bridge", "bridge": %q, "capabilities": {"mac": true}, "ipam": {"type": "host-local", "subnet": "10.1.0.0/16"}}`, bridge)
		return map[string]*netattach.NetworkAttachmentDefinition{"demo/blue": {Namespace: "demo", Name: "blue", Config: config}}
	}
	mac := `[{"name": "blue", "mac": "02:00:00:00:00:01"}]`
	args := `[{"name": "blue", "cni-args": {"mac": "02:00:00:00:00:02"}}]`
	for i, c := range []struct{ bridge, annotation string }{
		{"br0", "blue"}, {"br0", "blue"}, {"br0", mac}, {"br0", args}, {"br0", "blue"}, {"br1", "blue"}, {"br1", mac}, {"br0", "blue"}, {"a/b", "blue"}, {"a/b", "blue"},
	} {
		selections, err := netattach.ParseNetworks(c.annotation, "demo")
		if err != nil {
			t.Fatal(err)
		}
		question := Question{Sandbox: fmt.Sprint("sb", i), Selections: selections, First: 1, Definitions: definition(c.bridge), Kinds: kind.Lookup}
		want, wantErr := Resolve(question)
		question.parsed = parsed
		got, gotErr := Resolve(question)
		if diff := cmp.Diff(fmt.Sprint(wantErr), fmt.Sprint(gotErr)); diff != "" {
			t.Errorf("question %d: -read +remembered\n%s", i, diff)
		}
		if diff := cmp.Diff(want, got, cmp.Exporter(func(reflect.Type) bool { return true })); diff != "" {
			t.Errorf("question %d: -read +remembered\n%s", i, diff)
		}
	}
	for i := range 2 * maxParsed {
		if _, err := parsed.config(fmt.Sprintf(`{"cniVersion": "1.0.0", "type": "bridge", "bridge": "br%d"}`, i), "x"); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(parsed.byText); got > maxParsed || got != len(parsed.byConf) {
		t.Errorf("%d and %d configs are remembered, want at most %d", got, len(parsed.byConf), maxParsed)
	}
}

// TestParsedIsShared attaches Pods to one network at the same time; the race
// detector watches what they share.
func TestParsedIsShared(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/blue", `{"cniVersion": "1.0.0", "type": "bridge", "bridge": "blue0", "isGateway": true, "ipam": {"type": "host-local", "subnet": "10.1.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]}}`)
	var wg sync.WaitGroup
	for i := range 6 {
		id := fmt.Sprintf("p%d", i)
		w.namespace(id)
		req := w.request(id, "blue, blue")
		wg.Go(func() {
			if _, err := w.engine.Add(t.Context(), req); err != nil {
				t.Error(err)
			}
			if err := w.engine.Check(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
