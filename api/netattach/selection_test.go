package netattach

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weftnet/weft/internal/hint"
)

var equal = cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.IgnoreFields(Selection{}, "Field")}

func TestParseNetworks(t *testing.T) {
	addr := netip.MustParseAddr
	tests := []struct {
		name, annotation string
		want             []Selection
	}{
		{"absent", "", nil},
		{"short", "a, other/b@x0 ,c.d", []Selection{
			{Name: "a", Namespace: "demo"}, {Name: "b", Namespace: "other", Interface: "x0"}, {Name: "c.d", Namespace: "demo"},
		}},
		{"same network twice", "a,a", []Selection{{Name: "a", Namespace: "demo"}, {Name: "a", Namespace: "demo"}}},
		{"upper case and dots in an interface name", "a@Eth0.5", []Selection{{Name: "a", Namespace: "demo", Interface: "Eth0.5"}}},
		{"empty list", "[]", []Selection{}},
		{"minimal", `[{"name":"a"}]`, []Selection{{Name: "a", Namespace: "demo"}}},
		{"null fields are absent", `[{"name":"a","cni-args":null,"ips":null,"namespace":null}]`, []Selection{{Name: "a", Namespace: "demo"}}},
		{"alias of interface", `[{"name":"a","interfaceRequest":"x1"}]`, []Selection{{Name: "a", Namespace: "demo", Interface: "x1"}}},
		{"empty default-route is not absent", `[{"name":"a","default-route":[]}]`, []Selection{{Name: "a", Namespace: "demo", DefaultRoute: []netip.Addr{}}}},
		{"keys of others", `[{"name":"a","org.example.color":{"red":true}}]`, []Selection{{Name: "a", Namespace: "demo"}}},
		{"InfiniBand", `[{"name":"a","mac":"80:00:11:22:33:44:55:66:77:88:99:AA:bb:cc:dd:ee:ff:00:11:22"}]`, []Selection{{Name: "a", Namespace: "demo", MAC: "80:00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff:00:11:22"}}},
		{"claim", `[{"name":"a","ipam-claim-reference":"vm.a"}]`, []Selection{{Name: "a", Namespace: "demo", IPAMClaimReference: "vm.a"}}},
		{
			"every field", `[{"name":"a","namespace":"other","ips":["10.1.2.3/24","fd00::5"],"mac":"02:AA:00:00:00:01",
			"infiniband-guid":"C2:11:22:33:44:55:66:77","interface":"x0",
			"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"TCP","hostIP":"192.0.2.1"},{"hostPort":1,"containerPort":65535}],
			"bandwidth":{"ingressRate":1000,"ingressBurst":2000,"egressRate":3,"egressBurst":4},
			"deviceID":"0000:03:02.1","cni-args":{"k":{"deep":[1]},"s":"v"},"default-route":["10.1.2.1","fd00::1"]}]`,
			[]Selection{{
				Name: "a", Namespace: "other", MAC: "02:aa:00:00:00:01", InfinibandGUID: "c2:11:22:33:44:55:66:77", Interface: "x0",
				IPs:          []IPRequest{{addr("10.1.2.3"), 24}, {addr("fd00::5"), -1}},
				PortMappings: []PortMapping{{8080, 80, "tcp", "192.0.2.1"}, {HostPort: 1, ContainerPort: 65535}},
				Bandwidth:    &Bandwidth{1000, 2000, 3, 4}, DeviceID: "0000:03:02.1",
				CNIArgs:      map[string]json.RawMessage{"k": json.RawMessage(`{"deep":[1]}`), "s": json.RawMessage(`"v"`)},
				DefaultRoute: []netip.Addr{addr("10.1.2.1"), addr("fd00::1")},
			}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseNetworks(tt.annotation, "demo")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(got, tt.want, equal); diff != "" {
				t.Errorf("got -, want +:\n%s", diff)
			}
			text, err := MarshalNetworks(got)
			if err != nil {
				t.Fatal(err)
			}
			again, err := ParseNetworks(text, "another")
			if err != nil {
				t.Fatalf("our own text %s: %v", text, err)
			}
			if diff := cmp.Diff(again, got, equal, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("round trip of %s: got -, want +:\n%s", text, diff)
			}
			for i := range again {
				if (again[i].DefaultRoute == nil) != (got[i].DefaultRoute == nil) {
					t.Errorf("round trip of %s: absent and empty default-route got mixed up", text)
				}
			}
		})
	}
}

func TestParseNetworksRefuses(t *testing.T) {
	const key = "annotation k8s.v1.cni.cncf.io/networks"
	tests := []struct {
		name, annotation string
		// want is the beginning of one line per error, in order.
		want []string
	}{
		{"blank", "  ", []string{key + ": is blank; name a network"}},
		{"trailing comma", "a,", []string{key + "[1]: is empty; remove the comma"}},
		{"two slashes", "a/b/c", []string{key + `[0].name "b/c": is no object name`}},
		{"no name", "ns/", []string{key + "[0].name: is missing"}},
		{"no namespace", "/a", []string{key + `[0].namespace: is no namespace`}},
		{"nothing after @", "a@", []string{key + "[0].interface: is an empty interface name"}},
		{"two @", "a@b@c@0123456789012345", []string{key + `[0].interface "b@c@0123456789012345": is longer than the 15 bytes`}},
		{"upper case name", "A", []string{key + `[0].name "A": is no object name`}},
		{"same interface twice", "a@x0,b@x0", []string{key + `[1].interface "x0": is already the interface of ` + key + "[0]; give each"}},
		{"loopback", "a@lo", []string{key + `[0].interface "lo": is the loopback link`}},
		{"dots", "a@..", []string{key + `[0].interface "..": is no name`}},
		{"slash in interface", "a@x/y", []string{key + `[0].interface "x/y": has a character no link name may have`}},
		{"null", "null", []string{key + ` "null": is null where a list is wanted; write name,name`}},
		{"object", `{"name":"a"}`, []string{key + ` "{"name":"a"}": is an object where a list is wanted; put [ ] around it`}},
		{"string", `"a"`, []string{key + ` ""a"": is a string where a list is wanted`}},
		{"list of null", "[null]", []string{key + `[0] "null": is null where an object is wanted; write { ... }`}},
		{"list of empty object", "[{}]", []string{key + "[0].name: is missing; name a NetworkAttachmentDefinition"}},
		{"list of strings", `["a"]`, []string{key + `[0] "a": is a string where an object is wanted`}},
		{"not JSON", "[{\"name\":\"a\",\n \"mac\":}]", []string{key + ` "[{"name":"a", "mac":}]": is not valid JSON: invalid character '}' looking for beginning of value; correct the JSON at line 2, column 8`}},
		{"cut", `[{"name":"a"`, []string{key + ` "[{"name":"a"": is not valid JSON: it ends too early`}},
		{"more behind", `[] []`, []string{key + ` "[] []": has text behind the end`}},
		{"unknown key", `[{"name":"a","ip":["10.0.0.1"]}]`, []string{key + `[0].ip "["10.0.0.1"]": is no key of a network selection; known keys are name, namespace, ips, mac, infiniband-guid, interface, interfaceRequest, portMappings, bandwidth, deviceID, cni-args, default-route, ipam-claim-reference`}},
		{"wrong case", `[{"Name":"a"}]`, []string{key + `[0].Name "`, key + "[0].name: is missing"}},
		{"key twice", `[{"name":"a","name":"b"}]`, []string{key + `[0].name "b": is given twice`}},
		{"wrong type", `[{"name":5}]`, []string{key + `[0].name "5": is a number where a string is wanted`, key + "[0].name"}},
		{"ips no list", `[{"name":"a","ips":"10.0.0.1"}]`, []string{key + `[0].ips "10.0.0.1": is a string where a list of strings is wanted`}},
		{
			"ips no addresses", `[{"name":"a","ips":["x","10.0.0.1/33","","224.0.0.1","fe80::1%eth0","0.0.0.0",null]}]`,
			[]string{key + `[0].ips[6] "null"`},
		},
		{"ips each", `[{"name":"a","ips":["x","10.0.0.1/33","","224.0.0.1","fe80::1%eth0","0.0.0.0"]}]`, []string{
			key + `[0].ips[0] "x": is no IP address; write it like`, key + `[0].ips[1] "10.0.0.1/33": is no address with prefix length`, key + `[0].ips[2]: is no IP address`,
			key + `[0].ips[3] "224.0.0.1": is no address an interface`, key + `[0].ips[4] "fe80::1%eth0": is no address an`, key + `[0].ips[5] "0.0.0.0"`,
		}},
		{"ip twice", `[{"name":"a","ips":["10.0.0.1","10.0.0.1/24"]}]`, []string{key + `[0].ips[1] "10.0.0.1/24": is asked for twice`}},
		{"mac", `[{"name":"a","mac":"02:00"}]`, []string{key + `[0].mac "02:00": is no MAC address`}},
		{"mac of 8 bytes", `[{"name":"a","mac":"02:00:00:00:00:00:00:01"}]`, []string{key + `[0].mac "02:`}},
		{"multicast mac", `[{"name":"a","mac":"01:00:5e:00:00:01"}]`, []string{key + `[0].mac "01:00:5e:00:00:01": is a multicast address`}},
		{"zero mac", `[{"name":"a","mac":"00:00:00:00:00:00"}]`, []string{key + `[0].mac "00:00:00:00:00:00": is all zeros`}},
		{"guid of 6 bytes", `[{"name":"a","infiniband-guid":"02:00:00:00:00:01"}]`, []string{key + `[0].infiniband-guid "02:00:00:00:00:01": is no 64-bit GUID`}},
		{"aliases differ", `[{"name":"a","interface":"x0","interfaceRequest":"x1"}]`, []string{key + `[0].interfaceRequest "x1": differs from its alias, x0`}},
		{"control character", `[{"name":"a","interface":"x\u0007"}]`, []string{key + `[0].interface "x`}},
		{"ports", `[{"name":"a","portMappings":[{"hostPort":0,"containerPort":80},{"hostPort":80},null,{"hostPort":1,"containerPort":2,"protocol":"icmp"},{"hostPort":1,"containerPort":2,"hostIP":"x"},{"port":1}]}]`, []string{
			key + `[0].portMappings[0].hostPort "0": is out of range; write a number from 1 to 65535`, key + `[0].portMappings[1] "{"hostPort":80}": lacks hostPort or containerPort`,
			key + `[0].portMappings[2] "null": is null`, key + `[0].portMappings[3].protocol "icmp": is no protocol with ports`, key + `[0].portMappings[4].hostIP "x": is no IP address`,
			key + `[0].portMappings[5].port "1": is no key of a port mapping`,
		}},
		{"bandwidth", `[{"name":"a","bandwidth":{"ingressRate":5,"egressBurst":"x","rate":1}}]`, []string{
			key + `[0].bandwidth.egressBurst "x": is no whole number`, key + `[0].bandwidth.rate "1": is no key of bandwidth`, key + `[0].bandwidth.ingressBurst "0": does not fit ingressRate 5`,
		}},
		{"cni-args", `[{"name":"a","cni-args":[]}]`, []string{key + `[0].cni-args "[]": is a list where an object is wanted`}},
		{"gateway", `[{"name":"a","default-route":["10.0.0.1/24"]}]`, []string{key + `[0].default-route[0] "10.0.0.1/24": is no gateway address`}},
		{
			"two gateways of a family", `[{"name":"a","default-route":["10.0.0.1"]},{"name":"b","default-route":["fd00::1","10.0.0.2"]}]`,
			[]string{key + `[1].default-route[1] "10.0.0.2": is a second default route of its family; ` + key + "[0].default-route[0] is the first"},
		},
		{"ips and claim", `[{"name":"a","ips":["10.0.0.1"],"ipam-claim-reference":"c"}]`, []string{key + `[0].ipam-claim-reference "c": stands beside ips`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseNetworks(tt.annotation, "demo")
			if err == nil {
				t.Fatalf("took it: %+v", got)
			}
			checkHints(t, err)
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Errorf("got %d errors, want %d:\n%s", len(lines), len(tt.want), err)
			}
			for i := range min(len(lines), len(tt.want)) {
				if !strings.HasPrefix(lines[i], tt.want[i]) {
					t.Errorf("got  %s\nwant %s", lines[i], tt.want[i])
				}
			}
		})
	}
}

// checkHints fails unless err consists of hints with a remedy and nothing else.
func checkHints(t *testing.T, err error) {
	t.Helper()
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, part := range joined.Unwrap() {
			checkHints(t, part)
		}
		return
	}
	h, ok := err.(*hint.Error) //nolint:errorlint // this walks the tree itself
	if !ok {
		t.Errorf("%T is no hint: %v", err, err)
		return
	}
	if h.Remedy == "" || h.Problem == "" {
		t.Errorf("hint without problem or remedy: %+v", h)
	}
}

func TestParseDefaultNetwork(t *testing.T) {
	got, err := ParseDefaultNetwork("blue", "kube-system")
	if err != nil {
		t.Fatal(err)
	}
	if want := "kube-system/blue"; got.FullName() != want {
		t.Errorf("got %s, want %s", got.FullName(), want)
	}
	if got, err := ParseDefaultNetwork("", "kube-system"); got != nil || err != nil {
		t.Errorf("empty: got %v, %v", got, err)
	}
	for _, bad := range []string{"a,b", "[]", "null", "A"} {
		_, err := ParseDefaultNetwork(bad, "kube-system")
		if err == nil {
			t.Errorf("took %q", bad)
			continue
		}
		checkHints(t, err)
		if !strings.HasPrefix(err.Error(), "annotation v1.multus-cni.io/default-network") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseNetworks(f *testing.F) {
	for _, seed := range []string{"", "a", "a/b@c,d", "[]", "[null]", "{}", "null", `[{"name":"a"}]`, `[{"name":"a","ips":["10.0.0.1/24"],"mac":"02:00:00:00:00:01","portMappings":[{"hostPort":1,"containerPort":2}],"bandwidth":{},"cni-args":{},"default-route":[]}]`, `["`, `[{"name"`, `[{"":""}]`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, annotation string) {
		list, err := ParseNetworks(annotation, "demo")
		if err != nil {
			checkHints(t, err)
			return
		}
		text, err := MarshalNetworks(list)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseNetworks(text, "demo")
		if err != nil {
			t.Fatalf("our own text %s: %v", text, err)
		}
		textAgain, err := MarshalNetworks(again)
		if err != nil {
			t.Fatal(err)
		}
		if text != textAgain {
			t.Errorf("got %s, want %s", textAgain, text)
		}
	})
}
