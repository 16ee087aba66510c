package bench

import (
	"context"
	"os/exec"
	"testing"

	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/nft"
)

// pings says whether an echo comes back within a second.
func pings(ns *linux.NS, to string) bool {
	return ns.Do(exec.Command("ping", "-c", "1", "-W", "1", "-n", to).Run) == nil
}

// TestMasquerade: a Pod reaches the outside, which has no route back to it,
// with ipMasq and only then.
func TestMasquerade(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	for _, args := range [][]string{{"addr", "add", "192.0.2.1/24", "dev", "out0"}, {"addr", "add", "2001:db8::1/64", "dev", "out0", "nodad"}} {
		run(t, w.outside, "ip", args...)
	}
	run(t, w.host, "ip", "addr", "add", "2001:db8::10/64", "dev", "eth0", "nodad")
	n, pod := newNative(t, w.host), w.pod(t)
	made, err := n.add(ctx, call{sandbox: "sb1", netns: pod.Path(), ifName: "net1", conf: []byte(`{"name": "lab", "type": "bridge", "bridge": "br0",
		"isDefaultGateway": true, "ipMasq": true, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]]}}`)})
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"192.0.2.1", "2001:db8::1"} {
		if pings(pod, to) {
			t.Errorf("%s answers without masquerade: the test cannot tell", to)
		}
	}
	table := kind.MasqueradeTable("weft-masquerade", netstate.Alias("bench", "shared"), made.out.Masquerade)
	plan := netstate.Plan{Alias: table.Alias, Host: netstate.State{Tables: []nft.Table{table}}}
	if _, err := n.plane.Apply(ctx, "", plan); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"192.0.2.1", "2001:db8::1", "10.77.0.1", "fd77::1"} {
		if !pings(pod, to) {
			t.Errorf("%s does not answer", to)
		}
	}
}

// TestSpoofCheck: with macspoofchk a Pod that changes its MAC is cut off, and
// its neighbour is not.
func TestSpoofCheck(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	n := newNative(t, w.host)
	conf := []byte(`{"name": "lab", "type": "bridge", "bridge": "br0", "isGateway": true, "macspoofchk": true, "ipam": {"type": "host-local", "subnet": "10.77.0.0/24"}}`)
	pods := map[string]*linux.NS{}
	calls, made := map[string]call{}, map[string]attached{}
	for _, sandbox := range []string{"sb1", "sb2"} {
		pods[sandbox] = w.pod(t)
		calls[sandbox] = call{sandbox: sandbox, netns: pods[sandbox].Path(), ifName: "net1", conf: conf}
		var err error
		if made[sandbox], err = n.add(ctx, calls[sandbox]); err != nil {
			t.Fatal(err)
		}
	}
	if !pings(pods["sb1"], "10.77.0.1") || !pings(pods["sb2"], "10.77.0.2") {
		t.Fatal("no answer with the MAC that was given")
	}
	run(t, pods["sb1"], "ip", "link", "set", "net1", "address", "02:00:00:00:00:66")
	if pings(pods["sb1"], "10.77.0.1") {
		t.Error("an answer with another MAC")
	}
	if !pings(pods["sb2"], "10.77.0.1") {
		t.Error("the neighbour is cut off")
	}
	for sandbox, c := range calls {
		if err := n.del(ctx, c, made[sandbox]); err != nil {
			t.Error(err)
		}
	}
	if left := run(t, w.host, "nft", "list", "tables"); left != "" {
		t.Errorf("tables left behind: %s", left)
	}
}
