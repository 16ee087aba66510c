package bench

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/weftnet/weft/test/need"
)

// TestBothRefuse: what the reference refuses weft refuses too, names the field
// in its words, and leaves nothing behind.
func TestBothRefuse(t *testing.T) {
	need.Root(t)
	dir := reference(t)
	for _, c := range []struct {
		sameCase
		want string
	}{
		{sameCase{name: "hairpin and promiscuous", conf: `{"type": "bridge", "bridge": "br0", "hairpinMode": true, "promiscMode": true}`}, "promiscMode"},
		{sameCase{name: "disabled interface with ipam", conf: `{"type": "bridge", "bridge": "br0", "disableContainerInterface": true, ` + pool + `}`}, "disableContainerInterface"},
		{sameCase{name: "vlan id", conf: `{"type": "bridge", "bridge": "br0", "vlan": 5000}`}, "vlan"},
		{sameCase{name: "vlan trunk", conf: `{"type": "bridge", "bridge": "br0", "vlanTrunk": [{"minID": 9, "maxID": 8}]}`}, "vlanTrunk[0].maxID"},
		{sameCase{name: "vlan filtering, which this kernel lacks", conf: `{"type": "bridge", "bridge": "br0", "vlan": 5}`}, "cannot filter VLANs"},
		{sameCase{name: "link that is no bridge", conf: `{"type": "bridge", "bridge": "eth0"}`}, "bridge"},
		{sameCase{name: "bridge with another address", conf: `{"type": "bridge", "bridge": "br0", "isGateway": true, ` + pool + `}`, prepare: []string{"link add br0 type bridge", "addr add 10.66.0.1/24 dev br0"}}, "bridge"},
		{sameCase{name: "mac", conf: `{"type": "bridge", "bridge": "br0", "runtimeConfig": {"mac": "x"}}`}, "runtimeConfig.mac"},
		{sameCase{name: "address out of range", conf: `{"type": "bridge", "bridge": "br0", "runtimeConfig": {"ips": ["10.99.0.1"]}, ` + pool + `}`}, "runtimeConfig.ips[0]"},
		{sameCase{name: "address of the gateway", conf: `{"type": "bridge", "bridge": "br0", "runtimeConfig": {"ips": ["10.77.0.1"]}, ` + pool + `}`}, "runtimeConfig.ips[0]"},
		{sameCase{name: "host bits in the subnet", conf: `{"type": "bridge", "bridge": "br0", "ipam": {"type": "host-local", "subnet": "10.77.0.5/24"}}`}, "ipam.subnet"},
		{sameCase{name: "overlapping ranges", conf: `{"type": "bridge", "bridge": "br0", "ipam": {"type": "host-local", "ranges": [` + v4 + `, ` + v4 + `]}}`}, "ipam.ranges[1][0]"},
		{sameCase{name: "macvlan mode", conf: `{"type": "macvlan", "master": "eth0", "mode": "x"}`}, "mode"},
		{sameCase{name: "macvlan without master", conf: `{"type": "macvlan", "master": "eth7"}`}, "master"},
		{sameCase{name: "macvlan without default route", conf: `{"type": "macvlan"}`, prepare: []string{"route del default"}}, "master"},
		{sameCase{name: "macvlan mtu", conf: `{"type": "macvlan", "master": "eth0", "mtu": 9000}`}, "mtu"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			theirs, ours := c.place(t), c.place(t)
			before := ours.state(t, nil)
			add := call{command: "ADD", sandbox: "sb1", netns: theirs.pod.Path(), ifName: "net1", conf: c.config(t.TempDir())}
			if out, err := add.exec(context.Background(), theirs.host, dir); err == nil {
				t.Errorf("the reference takes it: %s", out)
			}
			n := newNative(t, ours.host)
			add.netns = ours.pod.Path()
			made, err := n.add(context.Background(), add)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("weft says %v, want it to name %s", err, c.want)
			}
			if err := n.del(context.Background(), add, made); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(before, ours.state(t, nil)); diff != "" {
				t.Errorf("left behind (-before +after):\n%s", diff)
			}
		})
	}
}
