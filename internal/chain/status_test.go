package chain

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// TestStatus: what plugins print, and what a user reads of it.
func TestStatus(t *testing.T) {
	t.Parallel()
	eth0 := []record.Link{{Side: netstate.Host, Name: "cali1", Index: 3, MAC: "ee:ee:ee:ee:ee:ee", MTU: 1440}, {Side: netstate.Pod, Name: "eth0", Index: 4, MAC: "02:00:00:00:00:04", MTU: 1440}}
	gateway := func(texts ...string) (routes []netstate.Route) {
		for _, text := range texts {
			via, _ := netip.ParseAddr(text) // empty: a route without gateway
			routes = append(routes, netstate.Route{Dst: netip.MustParsePrefix("0.0.0.0/0"), Link: "eth0", Via: via})
		}
		return routes
	}
	for _, tt := range []struct {
		name, result string
		links        []record.Link
		gateways     []netstate.Route
		isDefault    bool
		want         string
	}{
		{
			name: "one interface has all addresses", isDefault: true, links: eth0, gateways: gateway("10.0.0.1"),
			result: `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/n"}],"ips":[{"address":"10.0.0.5/24","gateway":"10.0.0.1"},{"address":"fd00::5/64","interface":0}],"dns":{"nameservers":["10.0.0.53"],"search":["a"]}}`,
			want:   `[{"name":"demo/x","interface":"eth0","ips":["10.0.0.5","fd00::5"],"mac":"02:00:00:00:00:04","mtu":1440,"default":true,"dns":{"nameservers":["10.0.0.53"],"search":["a"]},"gateway":["10.0.0.1"]}]`,
		},
		{
			name: "a plugin that names its host's end alone", isDefault: true, links: eth0,
			result: `{"cniVersion":"1.0.0","interfaces":[{"name":"cali1"}],"ips":[{"address":"10.0.0.5/32"}]}`,
			want:   `[{"name":"demo/x","interface":"eth0","ips":["10.0.0.5"],"mac":"02:00:00:00:00:04","mtu":1440,"default":true,"dns":{}}]`,
		},
		{
			name: "several interfaces", isDefault: true, gateways: gateway("10.0.1.1"),
			result: `{"cniVersion":"1.0.0","interfaces":[{"name":"br0"},{"name":"a0","sandbox":"/n","mac":"02:00:00:00:00:0a"},{"name":"b0","sandbox":"/n","mac":"02:00:00:00:00:0b"}],
				"ips":[{"address":"10.0.0.5/24","interface":1},{"address":"10.0.1.5/24","interface":2,"gateway":"10.0.1.1"},{"address":"10.0.2.5/24"},{"address":"10.0.9.1/24","interface":0}]}`,
			want: `[{"name":"demo/x","interface":"a0","ips":["10.0.0.5"],"mac":"02:00:00:00:00:0a","dns":{},"gateway":["10.0.1.1"]},
				{"name":"demo/x","interface":"b0","ips":["10.0.1.5","10.0.2.5"],"mac":"02:00:00:00:00:0b","default":true,"dns":{},"gateway":["10.0.1.1"]}]`,
		},
		{
			name: "several interfaces without a gateway", isDefault: true,
			result: `{"cniVersion":"1.0.0","interfaces":[{"name":"a0","sandbox":"/n"},{"name":"b0","sandbox":"/n"}]}`,
			want:   `[{"name":"demo/x","interface":"a0","default":true,"dns":{}},{"name":"demo/x","interface":"b0","dns":{}}]`,
		},
		{
			name: "neither interface nor address", result: `{"cniVersion":"1.0.0"}`,
			want: `[{"name":"demo/x","dns":{}}]`,
		},
		{name: "no result at all", want: `[{"name":"demo/x","dns":{}}]`},
		{
			name: "a default route without gateway", links: eth0, gateways: gateway(""),
			result: `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/n"}],"ips":[{"address":"10.0.0.5/32"}],"routes":[{"dst":"0.0.0.0/0"}]}`,
			want:   `[{"name":"demo/x","interface":"eth0","ips":["10.0.0.5"],"mac":"02:00:00:00:00:04","mtu":1440,"dns":{}}]`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := &record.Attachment{Network: "demo/x", Interface: "eth0", Stage: record.Attached, Default: tt.isDefault, Links: tt.links, HasDefaults: tt.gateways, Result: json.RawMessage(tt.result)}
			list, err := Status(&record.Sandbox{Attachments: []*record.Attachment{a, {Network: "demo/failed", Stage: record.Failed}}})
			if err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(list)
			if err != nil {
				t.Fatal(err)
			}
			var got, want any
			if err := json.Unmarshal(text, &got); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(got, want); diff != "" {
				t.Errorf("got -, want +:\n%s", diff)
			}
		})
	}
}
