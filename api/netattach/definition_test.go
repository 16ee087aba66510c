package netattach

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

func TestParseConfig(t *testing.T) {
	tests := []struct {
		name, config string
		want         NetConf
	}{
		{"single", `{"cniVersion":"0.3.1","name":"n","type":"bridge","capabilities":{"ips":true,"mac":false},"ipam":{"type":"static"}}`, NetConf{
			Name: "n", CNIVersion: "0.3.1",
			Plugins: []PluginConf{{Type: "bridge", Capabilities: []string{"ips"}, IPAMType: "static", Bytes: []byte(`{"cniVersion":"0.3.1","name":"n","type":"bridge","capabilities":{"ips":true,"mac":false},"ipam":{"type":"static"}}`)}},
			Bytes:   []byte(`{"cniVersion":"0.3.1","name":"n","plugins":[{"cniVersion":"0.3.1","name":"n","type":"bridge","capabilities":{"ips":true,"mac":false},"ipam":{"type":"static"}}]}`),
		}},
		{"single without name and version", `{"type":"macvlan"}`, NetConf{
			Name: "blue", Plugins: []PluginConf{{Type: "macvlan", Bytes: []byte(`{"name":"blue","type":"macvlan"}`)}},
			Bytes: []byte(`{"name":"blue","plugins":[{"name":"blue","type":"macvlan"}]}`),
		}},
		{"empty name", `{"name":"","type":"macvlan","ipam":{}}`, NetConf{
			Name: "blue", Plugins: []PluginConf{{Type: "macvlan", Bytes: []byte(`{"name":"blue","type":"macvlan","ipam":{}}`)}},
			Bytes: []byte(`{"name":"blue","plugins":[{"name":"blue","type":"macvlan","ipam":{}}]}`),
		}},
		{"list", `{"cniVersion":"1.0.0","disableCheck":true,"plugins":[{"type":"bridge"},{"type":"tuning","sysctl":{"a":"b"}}]}`, NetConf{
			Name: "blue", CNIVersion: "1.0.0", DisableCheck: true,
			Plugins: []PluginConf{{Type: "bridge", Bytes: []byte(`{"type":"bridge"}`)}, {Type: "tuning", Bytes: []byte(`{"type":"tuning","sysctl":{"a":"b"}}`)}},
			Bytes:   []byte(`{"cniVersion":"1.0.0","name":"blue","disableCheck":true,"plugins":[{"type":"bridge"},{"type":"tuning","sysctl":{"a":"b"}}]}`),
		}},
		{"several versions", `{"cniVersion":"0.4.0","cniVersions":["1.0.0","9.0.0"],"plugins":[{"type":"bridge"}]}`, NetConf{
			Name: "blue", CNIVersion: "1.0.0", Plugins: []PluginConf{{Type: "bridge", Bytes: []byte(`{"type":"bridge"}`)}},
			Bytes: []byte(`{"cniVersion":"1.0.0","name":"blue","plugins":[{"type":"bridge"}]}`),
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseConfig([]byte(tt.config), "blue")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(*got, tt.want); diff != "" {
				t.Errorf("got -, want +:\n%s", diff)
			}
			list, err := libcni.NetworkConfFromBytes(got.Bytes)
			if err != nil {
				t.Fatalf("libcni does not take %s: %v", got.Bytes, err)
			}
			if list.Name != got.Name || len(list.Plugins) != len(got.Plugins) {
				t.Errorf("libcni reads %s with %d plugins", list.Name, len(list.Plugins))
			}
			again, err := ParseConfig(got.Bytes, "other")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(again, got); diff != "" {
				t.Errorf("round trip: got -, want +:\n%s", diff)
			}
		})
	}
}

func TestParseConfigRefuses(t *testing.T) {
	tests := []struct{ name, config, want string }{
		{"empty", " ", "spec.config: is empty"},
		{"not JSON", "{\n\"type\": bridge}", `spec.config "{ "type": bridge}": is not valid JSON: invalid character 'b' looking for beginning of value; correct the JSON at line 2, column 9`},
		{"list", "[]", `spec.config "[]": is a list where an object is wanted`},
		{"null", "null", `spec.config "null": is null where`},
		{"cut", `{"type":"bridge"`, `spec.config "{"type":"bridge"": is not valid JSON: it ends too early`},
		{"no type", `{"name":"a"}`, "spec.config.type: is missing, and so is plugins"},
		{"no plugins", `{"plugins":[]}`, `spec.config.plugins "[]": lists no plugin`},
		{"null plugins", `{"plugins":null}`, "spec.config.type: is missing"},
		{"null plugin", `{"plugins":[null]}`, `spec.config.plugins[0] "null": is null`},
		{"plugin without type", `{"plugins":[{"type":"bridge"},{}]}`, "spec.config.plugins[1].type: is missing"},
		{"plugins an object", `{"plugins":{"type":"bridge"}}`, `spec.config.plugins "{"type":"bridge"}": is an object where a list is wanted`},
		{"both", `{"type":"bridge","plugins":[]}`, `spec.config.plugins "[]": stands beside type`},
		{"type a number", `{"type":5}`, `spec.config.type "5": is a number`},
		{"type a path", `{"type":"../sh"}`, `spec.config.type "../sh": is no plugin name`},
		{"name", `{"name":"a/b","type":"bridge"}`, `spec.config.name "a/b": is no CNI network name`},
		{"version", `{"cniVersion":"2.0","type":"bridge"}`, `spec.config.cniVersion "2.0": is no version of the CNI specification; write one of 0.1.0`},
		{"capabilities", `{"type":"bridge","capabilities":["ips"]}`, `spec.config.capabilities "["ips"]": is no object of booleans`},
		{"ipam without type", `{"type":"bridge","ipam":{"range":"10.0.0.0/24"}}`, "spec.config.ipam.type: is missing"},
		{"ipam a string", `{"type":"bridge","ipam":"static"}`, `spec.config.ipam "static": is a string`},
		{"ipam path", `{"plugins":[{"type":"bridge","ipam":{"type":"a/b"}}]}`, `spec.config.plugins[0].ipam.type "a/b"`},
		{"disableCheck", `{"type":"bridge","disableCheck":1}`, `spec.config.disableCheck "1": is no boolean`},
		{"key twice", `{"type":"bridge","type":"macvlan"}`, `spec.config.type "macvlan": is given twice`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseConfig([]byte(tt.config), "blue")
			if err == nil {
				t.Fatal("took it")
			}
			checkHints(t, err)
			if !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("got  %s\nwant %s", err, tt.want)
			}
		})
	}
}

func TestFromObject(t *testing.T) {
	doc := map[string]any{
		"metadata": map[string]any{"name": "blue", "namespace": "demo", "annotations": map[string]any{ResourceNameAnnotation: "intel.com/vf"}},
		"spec":     map[string]any{"config": `{"type":"bridge"}`},
	}
	got, err := FromObject(doc)
	if err != nil {
		t.Fatal(err)
	}
	if got.FullName() != "demo/blue" || got.Config != `{"type":"bridge"}` || got.ResourceName() != "intel.com/vf" {
		t.Errorf("got %+v", got)
	}
	for _, bad := range []map[string]any{
		{"spec": map[string]any{"config": map[string]any{"type": "bridge"}}},
		{"metadata": map[string]any{"name": 5}},
		{"spec": "x"},
	} {
		_, err := FromObject(bad)
		if err == nil {
			t.Errorf("took %v", bad)
			continue
		}
		checkHints(t, err)
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, seed := range []string{"", "{}", "null", "[]", `{"type":"bridge"}`, `{"plugins":[]}`, `{"plugins":[null]}`, `{"cniVersions":["1.0.0"],"plugins":[{"type":"a","capabilities":{"ips":true},"ipam":{"type":"b"}}]}`, `{"name":5}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, config string) {
		got, err := ParseConfig([]byte(config), "blue")
		if err != nil {
			checkHints(t, err)
			return
		}
		if len(got.Plugins) == 0 || !json.Valid(got.Bytes) {
			t.Errorf("got %+v", got)
		}
		again, err := ParseConfig(got.Bytes, "blue")
		if err != nil {
			t.Fatalf("our own text %s: %v", got.Bytes, err)
		}
		if again.Name != got.Name || len(again.Plugins) != len(got.Plugins) {
			t.Errorf("got %+v, want %+v", again, got)
		}
	})
}
