package chain

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/record"
)

// checkResult puts a plugin's output through everything that reads it: nothing
// may panic, whatever it is.
func checkResult(t *testing.T, out []byte) {
	t.Helper()
	result, err := call{plugin: "p", verb: "ADD", config: []byte(`{"cniVersion":"1.0.0"}`)}.result(out)
	if err != nil {
		return
	}
	a := &record.Attachment{Network: "n", Interface: "net1", Stage: record.Attached, Default: true}
	if a.Result, err = encodeResult(result); err != nil {
		return
	}
	_ = honoured(&attachment{rec: a, result: result, Delegate: Delegate{Selection: &netattach.Selection{MAC: "02:00:00:00:00:01"}}})
	if _, err := Status(&record.Sandbox{Attachments: []*record.Attachment{a}}); err != nil {
		return
	}
	_ = addressesIn(a)
	if err := setDefaults(a, nil); err != nil {
		t.Errorf("set default routes of %s: %v", a.Result, err)
	}
}

// question asks about a Pod in demo with these networks.
func question(t *testing.T, annotation string, nads networks) Question {
	t.Helper()
	selections, err := netattach.ParseNetworks(annotation, "demo")
	if err != nil {
		t.Fatal(err)
	}
	conf, err := netattach.ParseConfig([]byte(`{"name":"default","type":"bridge","ipam":{"type":"host-local","subnet":"10.88.0.0/24"}}`), "default")
	if err != nil {
		t.Fatal(err)
	}
	q := Question{
		Sandbox: "s", Pod: record.Pod{Namespace: "demo", Name: "p"}, IfName: "eth0", Default: conf, DefaultName: "default",
		Selections: selections, First: 1, Definitions: nads, Elsewhere: map[string][]string{}, Kinds: kind.Lookup,
	}
	for _, s := range selections {
		if nads[s.FullName()] == nil {
			q.Elsewhere[s.Name], _ = nads.Namespaces(context.Background(), s.Name) // never fails
		}
	}
	return q
}

func TestResolveNames(t *testing.T) {
	t.Parallel()
	nads := networks{}
	nads.add("demo/a", `{"type":"macvlan","master":"eth0"}`)
	nads.add("demo/b", `{"type":"anything"}`)
	tests := []struct{ annotation, want string }{
		{"", "default:eth0"},
		{"a,b", "default:eth0 demo/a:net1 demo/b:net2"},
		{"a,b@foo0,a", "default:eth0 demo/a:net1 demo/b:foo0 demo/a:net3"},
		{"a@net2,b@net1", "default:eth0 demo/a:net2 demo/b:net1"},
	}
	for _, tt := range tests {
		got, err := Resolve(question(t, tt.annotation, nads))
		if err != nil {
			t.Errorf("%s: %v", tt.annotation, err)
			continue
		}
		var text []string
		for _, d := range got {
			text = append(text, d.Network+":"+string(d.Interface))
		}
		if joined := strings.Join(text, " "); joined != tt.want {
			t.Errorf("%s: got %s, want %s", tt.annotation, joined, tt.want)
		}
	}
}

func TestResolveRefuses(t *testing.T) {
	t.Parallel()
	nads := networks{}
	nads.add("demo/l2", `{"type":"macvlan","master":"eth0"}`)
	nads.add("demo/l3", `{"type":"macvlan","master":"eth0","ipam":{"type":"host-local","subnet":"10.1.0.0/24"}}`)
	nads.add("demo/dhcp", `{"type":"macvlan","master":"eth0","ipam":{"type":"dhcp"}}`)
	nads.add("demo/foreign", `{"type":"calico"}`)
	nads.add("demo/broken", `{"type":`)
	nads.add("demo/badrange", `{"type":"bridge","ipam":{"type":"host-local","subnet":"10.1.0.0/33"}}`)
	nads.add("blue/there", `{"type":"bridge"}`)
	nads.add("green/there", `{"type":"bridge"}`)
	const key = "annotation k8s.v1.cni.cncf.io/networks"
	tests := []struct {
		name, annotation string
		want             []string
	}{
		{"unknown", "nowhere", []string{key + `[0].name "nowhere": there is no NetworkAttachmentDefinition demo/nowhere: no such network; create it, or correct the name`}},
		{"elsewhere", "there", []string{`; one of that name is in namespace blue, green: write blue/there, or create it in demo`}},
		{"default's interface", "l2@eth0", []string{key + `[0].interface "eth0": is already the interface of default`}},
		{"numbered name taken", "l2@net2,l2", []string{key + `[1] "demo/l2": would get the interface net2 by its place, which demo/l2 has`}},
		{"broken NAD", "broken", []string{`network demo/broken: spec.config "{"type":": is not valid JSON`}},
		{"bad range", "badrange", []string{`network demo/badrange: spec.config.ipam.subnet "10.1.0.0/33"`}},
		{"several at once", "nowhere,broken,l2@eth0", []string{"no such network", "is not valid JSON", "already the interface"}},
		{"ips without ipam", `[{"name":"l2","ips":["10.0.0.5"]}]`, []string{key + `[0].ips "10.0.0.5": network demo/l2 has no ipam`}},
		{"ips of dhcp", `[{"name":"dhcp","ips":["10.0.0.5"]}]`, []string{`takes its addresses by DHCP, whose server decides`}},
		{"portMappings", `[{"name":"l3","portMappings":[{"hostPort":1,"containerPort":2}]}]`, []string{key + `[0].portMappings: no plugin of network demo/l3 declares the capability portMappings; add {"type": "portmap"`}},
		{"bandwidth", `[{"name":"foreign","bandwidth":{"ingressRate":1,"ingressBurst":2}}]`, []string{key + `[0].bandwidth: no plugin of network demo/foreign declares`}},
		{"guid", `[{"name":"l3","infiniband-guid":"c2:11:22:33:44:55:66:77"}]`, []string{key + `[0].infiniband-guid: no plugin`}},
		{"device", `[{"name":"l3","deviceID":"0000:01:00.0"}]`, []string{key + `[0].deviceID "0000:01:00.0": network demo/l3 is of type macvlan, which attaches no device`}},
		{"claim of a foreign one", `[{"name":"foreign","ipam-claim-reference":"c"}]`, []string{key + `[0].ipam-claim-reference "c": the addresses of network demo/foreign are not given by weft`}},
		{"same MAC", `[{"name":"l2","mac":"02:00:00:00:00:01"},{"name":"l2","mac":"02:00:00:00:00:01"}]`, []string{key + `[1].mac "02:00:00:00:00:01": is already the MAC of net1 on network demo/l2`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := Resolve(question(t, tt.annotation, nads))
			if err == nil {
				t.Fatalf("resolved to %+v", got)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error lacks %q:\n%v", want, err)
				}
			}
			if h, ok := errors.AsType[*hint.Error](err); !ok || h.Remedy == "" {
				t.Errorf("%v has no remedy", err)
			}
		})
	}
}

// TestResolveCapabilities holds who is told what.
func TestResolveCapabilities(t *testing.T) {
	t.Parallel()
	nads := networks{}
	nads.add("demo/x", `{"plugins":[{"type":"one","capabilities":{"ips":true,"portMappings":true}},{"type":"two","capabilities":{"mac":true}},{"type":"three"}]}`)
	q := question(t, `[{"name":"x","ips":["10.0.0.5/24"],"mac":"02:00:00:00:00:01"}]`, nads)
	// What the runtime says of the Pod is for the default network alone.
	q.RuntimeConfig = map[string]json.RawMessage{"portMappings": json.RawMessage(`[{"hostPort":80}]`)}
	q.CNIArgs = [][2]string{{"K8S_POD_NAME", "forged"}, {"COLOR", "red"}, {"BAD", "a;b"}}
	got, err := Resolve(q)
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for i := range got[1].Conf.Plugins {
		config, err := pluginConfig(got[1].Conf, &got[1].Conf.Plugins[i], got[1].CapabilityArgs)
		if err != nil {
			t.Fatal(err)
		}
		var c struct {
			RuntimeConfig json.RawMessage `json:"runtimeConfig"`
		}
		if err := json.Unmarshal(config, &c); err != nil {
			t.Fatal(err)
		}
		told = append(told, string(c.RuntimeConfig))
	}
	if want := []string{`{"ips":["10.0.0.5/24"]}`, `{"mac":"02:00:00:00:00:01"}`, ""}; !slices.Equal(told, want) {
		t.Errorf("got %q, want %q", told, want)
	}
	if args, want := joinArgs(got[1].CNIArgs), "IgnoreUnknown=1;K8S_POD_NAMESPACE=demo;K8S_POD_NAME=p;K8S_POD_INFRA_CONTAINER_ID=s;K8S_POD_UID=;COLOR=red;MAC=02:00:00:00:00:01;IP=10.0.0.5/24"; args != want {
		t.Errorf("got %s, want %s", args, want)
	}
}

func FuzzResolve(f *testing.F) {
	f.Add(`[{"name":"x","ips":["10.0.0.5"],"cni-args":{"a":1}}]`, `{"type":"bridge","ipam":{"type":"host-local","subnet":"10.0.0.0/24"},"args":{"cni":{}}}`)
	f.Add("x", `{"plugins":[{"type":"macvlan","args":null},{"type":"a","capabilities":{"mac":true}}]}`)
	f.Add(`[{"name":"x","cni-args":{"a":1}}]`, `{"type":"bridge","args":[]}`)
	f.Add(`[{"name":"x","cni-args":{"a":1}}]`, `{"type":"bridge","args":null}`)
	f.Add(`[{"name":"x","cni-args":{"a":1}}]`, `{"type":"bridge","args":{"cni":null}}`)
	f.Fuzz(func(t *testing.T, annotation, config string) {
		selections, err := netattach.ParseNetworks(annotation, "demo")
		if err != nil {
			return
		}
		nads := networks{}
		nads.add("demo/x", config)
		delegates, err := Resolve(Question{Selections: selections, First: 1, Definitions: nads, Kinds: kind.Lookup})
		if err == nil && len(delegates) != len(selections) {
			t.Errorf("got %d delegates of %d selections", len(delegates), len(selections))
		}
	})
}
