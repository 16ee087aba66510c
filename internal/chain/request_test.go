package chain

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/api/netattach"
)

// TestDefaultNetworkRequests: what a Pod asks of the default network it chose is
// honoured as it is of the others, by ours and by foreign plugins.
func TestDefaultNetworkRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("kube-system/ours", plainBridge)
	w.nads.add("kube-system/theirs", `{"cniVersion":"1.0.0","plugins":[{"type":"alpha","dir":"`+w.rec()+`","capabilities":{"ips":true,"mac":true,"portMappings":true},
		"gives":{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.7/24"}]}},{"type":"omega","dir":"`+w.rec()+`"}]}`)
	add := func(id, annotation string) error {
		w.namespace(id)
		req := w.request(id, "")
		req.Annotations[netattach.DefaultNetworkAnnotation] = annotation
		req.RuntimeConfig = map[string]json.RawMessage{"portMappings": json.RawMessage(`[{"hostPort":80,"containerPort":8080}]`)}
		_, err := w.engine.Add(t.Context(), req)
		return err
	}
	if err := add("a", `[{"name":"ours","ips":["10.22.0.77/24"],"mac":"02:00:00:00:00:77","interface":"first"}]`); err != nil {
		t.Fatal(err)
	}
	w.same("addresses", w.addrs(w.pod("a"), "first"), []string{"10.22.0.77/24"})
	if link := w.in(w.pod("a"), "ip", "link", "show", "first"); !strings.Contains(link, "02:00:00:00:00:77") {
		t.Errorf("link: %s", link)
	}
	if err := add("b", `[{"name":"theirs","ips":["10.9.0.7"],"mac":"02:00:00:00:00:78","cni-args":{"color":"blue"}}]`); err != nil {
		t.Fatal(err)
	}
	w.same("capabilities", w.stdin("b", "eth0", "alpha")["runtimeConfig"], map[string]any{
		"ips": []any{"10.9.0.7"}, "mac": "02:00:00:00:00:78", "portMappings": []any{map[string]any{"hostPort": 80.0, "containerPort": 8080.0}},
	})
	w.same("cni-args", w.stdin("b", "eth0", "omega")["args"], map[string]any{"cni": map[string]any{"color": "blue"}})
	w.same("capabilities of one that declares none", w.stdin("b", "eth0", "omega")["runtimeConfig"], nil)
	if args := w.calls()[0].Args; !strings.Contains(args, "MAC=02:00:00:00:00:78") || !strings.Contains(args, "IP=10.9.0.7") {
		t.Errorf("CNI_ARGS are %s", args)
	}
	// One that gives another address than the one asked for is taken back.
	if err := add("c", `[{"name":"theirs","ips":["10.9.0.8"]}]`); err == nil || !strings.Contains(err.Error(), `default-network[0].ips[0] "10.9.0.8": network kube-system/theirs gave another address`) {
		t.Errorf("another address: %v", err)
	}
	for _, id := range []string{"a", "b"} {
		if err := w.engine.Del(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	w.empty()
}

// TestOwnRequests: of two attachments to one network each gets its own, and what
// the runtime says of the Pod neither, whatever they declare.
func TestOwnRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/x", `{"cniVersion":"1.0.0","type":"alpha","dir":"`+w.rec()+`","capabilities":{"portMappings":true,"bandwidth":true,"infinibandGUID":true,"aliases":true}}`)
	w.namespace("a")
	req := w.request("a", `[{"name":"x","portMappings":[{"hostPort":1,"containerPort":2}],"cni-args":{"n":1}},{"name":"x","bandwidth":{"ingressRate":1,"ingressBurst":2},"infiniband-guid":"c2:11:22:33:44:55:66:77"},{"name":"x"}]`)
	req.RuntimeConfig = map[string]json.RawMessage{"portMappings": json.RawMessage(`[{"hostPort":80}]`), "aliases": json.RawMessage(`["a"]`)}
	if _, err := w.engine.Add(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"net1": map[string]any{"portMappings": []any{map[string]any{"hostPort": 1.0, "containerPort": 2.0}}},
		"net2": map[string]any{"bandwidth": map[string]any{"ingressRate": 1.0, "ingressBurst": 2.0}, "infinibandGUID": "c2:11:22:33:44:55:66:77"},
		"net3": nil,
	} {
		w.same("runtimeConfig of "+name, w.stdin("a", name, "alpha")["runtimeConfig"], want)
	}
	w.same("args", []any{w.stdin("a", "net1", "alpha")["args"], w.stdin("a", "net2", "alpha")["args"]}, []any{map[string]any{"cni": map[string]any{"n": 1.0}}, nil})
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	// DEL gets what ADD got.
	calls := w.calls()
	slices.Reverse(calls)
	w.same("runtimeConfig at DEL", string(calls[0].RuntimeConfig), `{"portMappings":[{"hostPort":1,"containerPort":2}]}`)
	w.empty()
}
