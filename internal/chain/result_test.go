package chain

import (
	"encoding/json"
	"net"
	"reflect"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	cni "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
)

// TestEncodeResult: what is recorded is what the library would have written.
func TestEncodeResult(t *testing.T) {
	if got, want := reflect.TypeFor[written]().NumField(), reflect.TypeFor[cni.Result]().NumField(); got != want {
		t.Errorf("written has %d fields, cni.Result %d", got, want)
	}
	address := func(text string) net.IPNet {
		ip, n, err := net.ParseCIDR(text)
		if err != nil {
			t.Fatal(err)
		}
		n.IP = ip
		return *n
	}
	priority, scope := 7, 253
	full := &cni.Result{
		CNIVersion: cni.ImplementedSpecVersion,
		Interfaces: []*cni.Interface{{Name: "br0", Mac: "02:00:00:00:00:01"}, {Name: "net1", Mac: "02:00:00:00:00:02", Mtu: 1400, Sandbox: "/x"}},
		IPs: []*cni.IPConfig{
			{Interface: cni.Int(1), Address: address("10.0.0.5/24"), Gateway: net.ParseIP("10.0.0.1")},
			{Address: address("fd00::5/64")},
		},
		Routes: []*types.Route{
			{Dst: address("0.0.0.0/0"), GW: net.ParseIP("10.0.0.1")},
			{Dst: address("fd01::/64"), MTU: 1300, AdvMSS: 1200, Priority: priority, Table: &priority, Scope: &scope},
		},
		DNS: types.DNS{Nameservers: []string{"10.0.0.53"}, Domain: "a.test", Search: []string{"b.test"}, Options: []string{"ndots:2"}},
	}
	for name, result := range map[string]*cni.Result{
		"full": full, "no DNS": {CNIVersion: full.CNIVersion, Interfaces: full.Interfaces, IPs: full.IPs}, "empty": {CNIVersion: full.CNIVersion},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := encodeResult(result)
			if err != nil {
				t.Fatal(err)
			}
			library, err := json.Marshal(result)
			if err != nil {
				t.Fatal(err)
			}
			var got, want any
			if err := json.Unmarshal(raw, &got); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(library, &want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(got, want); diff != "" {
				t.Errorf("-recorded +library\n%s", diff)
			}
		})
	}
}
