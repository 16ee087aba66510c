package netattach

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	nadv1 "github.com/k8snetworkplumbingwg/network-attachment-definition-client/pkg/apis/k8s.cni.cncf.io/v1"
)

func TestStatus(t *testing.T) {
	list := []NetworkStatus{
		{Name: "cbr0", Interface: "eth0", IPs: []string{"10.244.0.5", "fd00::5"}, MAC: "02:00:00:00:00:01", MTU: 1500, Default: true, Gateway: []string{"10.244.0.1", "fd00::1"}},
		{
			Name: "demo/blue", Interface: "net1", DNS: DNS{Nameservers: []string{"10.0.0.53"}, Domain: "d", Search: []string{"s"}, Options: []string{"o"}},
			DeviceInfo: &DeviceInfo{Type: "pci", Version: DeviceInfoVersion, PCI: &PCIDevice{PCIAddress: "0000:03:02.1"}},
		},
		{Name: "demo/tuned"},
	}
	got, err := MarshalStatus(list)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{
    "name": "cbr0",
    "interface": "eth0",
    "ips": [
        "10.244.0.5",
        "fd00::5"
    ],
    "mac": "02:00:00:00:00:01",
    "mtu": 1500,
    "default": true,
    "dns": {},
    "gateway": [
        "10.244.0.1",
        "fd00::1"
    ]
},{
    "name": "demo/blue",
    "interface": "net1",
    "dns": {
        "nameservers": [
            "10.0.0.53"
        ],
        "domain": "d",
        "search": [
            "s"
        ],
        "options": [
            "o"
        ]
    },
    "device-info": {
        "type": "pci",
        "version": "1.1.0",
        "pci": {
            "pci-address": "0000:03:02.1"
        }
    }
},{
    "name": "demo/tuned",
    "dns": {}
}]`
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("got -, want +:\n%s", diff)
	}
	again, err := ParseStatus(got)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(again, list); diff != "" {
		t.Errorf("round trip: got -, want +:\n%s", diff)
	}
	// The standard's own types must read the same out of it and write the same text.
	for i, el := range list {
		ours, err := json.MarshalIndent(el, "", "    ")
		if err != nil {
			t.Fatal(err)
		}
		var theirs nadv1.NetworkStatus
		if err := json.Unmarshal(ours, &theirs); err != nil {
			t.Fatal(err)
		}
		text, err := json.MarshalIndent(theirs, "", "    ")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(ours), string(text)); diff != "" {
			t.Errorf("element %d: ours -, the standard's +:\n%s", i, diff)
		}
	}
	if empty, err := MarshalStatus(nil); err != nil || empty != "[]" {
		t.Errorf("no networks: got %q, %v", empty, err)
	}
}

// TestSelectionWire holds the JSON of a Selection against the standard's type.
func TestSelectionWire(t *testing.T) {
	list, err := ParseNetworks(`[{"name":"a","namespace":"b","ips":["10.0.0.1/24"],"mac":"02:00:00:00:00:01","infiniband-guid":"c2:11:22:33:44:55:66:77","interface":"x0","portMappings":[{"hostPort":1,"containerPort":2,"protocol":"tcp","hostIP":"1.2.3.4"}],"bandwidth":{"ingressRate":1,"ingressBurst":2,"egressRate":3,"egressBurst":4},"cni-args":{"k":"v"},"default-route":["10.0.0.254"]},{"name":"c","ipam-claim-reference":"d"}]`, "x")
	if err != nil {
		t.Fatal(err)
	}
	ours, err := MarshalNetworks(list)
	if err != nil {
		t.Fatal(err)
	}
	var theirs []nadv1.NetworkSelectionElement
	if err := json.Unmarshal([]byte(ours), &theirs); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(ours, string(text)); diff != "" {
		t.Errorf("ours -, the standard's +:\n%s", diff)
	}
}

func TestParseStatusRefuses(t *testing.T) {
	for _, bad := range []string{"{}", "[null]", "x", `[{"name":5}]`, `[{}`, "[] x"} {
		_, err := ParseStatus(bad)
		if err == nil {
			t.Errorf("took %q", bad)
			continue
		}
		checkHints(t, err)
	}
	got, err := ParseStatus(`[{"name":"a","default-route":["10.0.0.1"],"dns":{}}]`)
	if err != nil || len(got) != 1 {
		t.Errorf("unknown key: got %v, %v", got, err)
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add("[]")
	f.Add(`[{"name":"a","dns":{},"device-info":{"type":"pci","pci":{}}}]`)
	f.Add("[null]")
	f.Fuzz(func(t *testing.T, annotation string) {
		list, err := ParseStatus(annotation)
		if err != nil {
			checkHints(t, err)
			return
		}
		text, err := MarshalStatus(list)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseStatus(text)
		if err != nil {
			t.Fatalf("our own text %s: %v", text, err)
		}
		if diff := cmp.Diff(again, list, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("got -, want +:\n%s", diff)
		}
	})
}
