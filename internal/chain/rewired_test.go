package chain

import (
	"errors"
	"strings"
	"testing"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/netstate"
)

// rewire does to a Pod's link what KubeVirt's virt-launcher does for the bridge
// binding (pkg/network/setup/netpod): the link is renamed, takes the bridge's
// MAC, loses its addresses and becomes a port that does not learn; a TAP beside
// it is the guest's; and a link of the old name keeps the old MAC, MTU and
// addresses. There it is of type dummy, which not every kernel has: here it is a
// bridge, also down.
func (w *world) rewire(id, link string) {
	w.t.Helper()
	short := strings.TrimPrefix(link, "pod")
	w.in(w.pod(id), "sh", "-ec", `
		link=$1 nic=$2-nic bridge=k6t-$2 tap=tap$2
		mac=$(cat /sys/class/net/$link/address 2>/dev/null || ip -o link show $link | sed 's/.*link.ether \([0-9a-f:]*\).*/\1/')
		addresses=$(ip -o addr show dev $link scope global | awk '{print $4}')
		ip link add $bridge type bridge
		ip link set $bridge up
		[ -z "$addresses" ] || ip addr add 169.254.75.10/32 dev $bridge
		ip link set $link down
		ip link set $link name $nic
		ip addr flush dev $nic
		ip link set $nic address $(ip -o link show $bridge | sed 's/.*link.ether \([0-9a-f:]*\).*/\1/')
		ip link set $nic master $bridge
		bridge link set dev $nic learning off
		ip link set $nic up
		ip tuntap add $tap mode tap user 107 group 107
		ip link set $tap master $bridge up
		ip link add $link type bridge
		ip link set $link address $mac mtu 1500
		for a in $addresses; do ip addr add $a dev $link; done
		sysctl -qw net.ipv4.conf.all.arp_ignore=1`, "rewire", link, short)
}

// unplug is what the launcher takes away again when a NIC is unplugged.
func (w *world) unplug(id, link string) {
	w.t.Helper()
	short := strings.TrimPrefix(link, "pod")
	for _, name := range []string{"k6t-" + short, "tap" + short, link} {
		w.in(w.pod(id), "ip", "link", "del", name)
	}
}

// launcherPod is a Pod with a link of every sort, each rewired.
func launcherPod(t *testing.T, w *world) {
	t.Helper()
	needPlugin(t, "ptp")
	w.nads.add("demo/plain", plainBridge)
	w.nads.add("demo/lan", `{"cniVersion":"1.0.0","type":"macvlan","master":"uplink","ipam":{"type":"host-local","subnet":"192.0.2.0/24","rangeStart":"192.0.2.100"}}`)
	w.nads.add("demo/p2p", `{"cniVersion":"1.0.0","name":"p2p","plugins":[{"type":"ptp","ipMasq":true,"ipam":{"type":"host-local","dataDir":"`+w.dir+`/host-local","subnet":"10.7.0.0/24"}},{"type":"alpha","dir":"`+w.rec()+`"}]}`)
	w.nads.add("demo/tuned", `{"cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"t0","ipam":{"type":"host-local","subnet":"10.6.0.0/24"}},{"type":"omega","dir":"`+w.rec()+`"}]}`)
	w.add("a", "plain@pod16477688c0e,lan@net2,p2p@podb1f51a511f1,tuned@net4")
	for _, link := range launcherLinks {
		w.rewire("a", link)
	}
}

var launcherLinks = []string{"pod16477688c0e", "net2", "podb1f51a511f1", "net4"}

// left is what the launcher's own links are, with the one that was in the way of
// a DEL moved aside.
var left = []string{
	"aside0", "aside1", "k6t-16477688c0e", "k6t-b1f51a511f1", "k6t-net2", "k6t-net4", "net2", "pod16477688c0e",
	"tap16477688c0e", "tapb1f51a511f1", "tapnet2", "tapnet4",
}

func TestRewiredPod(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	launcherPod(t, w)
	if err := w.engine.Check(t.Context(), "a"); err != nil {
		t.Errorf("check: %v", err)
	}
	for _, told := range []string{"interface=pod16477688c0e link=16477688c0e-nic", "interface=net2 link=net2-nic", "interface=podb1f51a511f1 link=b1f51a511f1-nic"} {
		if !strings.Contains(w.log.String(), "rewired") || !strings.Contains(w.log.String(), told) {
			t.Errorf("the log does not tell of %s:\n%s", told, w.log.String())
		}
	}
	for _, call := range w.verbs() {
		if strings.HasPrefix(call, "CHECK") {
			t.Errorf("a plugin was asked about a link that is not as it left it: %s", call)
		}
	}
	w.restart()
	if err := w.engine.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.engine.Check(t.Context(), "a"); err != nil {
		t.Errorf("check after a restart: %v", err)
	}
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.same("links left", w.links(w.pod("a")), left)
	w.same("plugins called", w.verbs()[2:], []string{"DEL omega net4", "DEL alpha podb1f51a511f1"})
	if rules := w.in(w.host, "sh", "-c", "iptables-save -t nat 2>/dev/null || true"); strings.Contains(rules, "10.7.0") {
		t.Errorf("rules left:\n%s", rules)
	}
	w.empty()
}

// TestKilledInDelOfRewired dies at every step, so also between giving a link its
// name back and the plugin's DEL.
func TestKilledInDelOfRewired(t *testing.T) {
	t.Parallel()
	needPlugin(t, "ptp")
	w := newWorld(t)
	w.nads.add("demo/p2p", `{"cniVersion":"1.0.0","name":"p2p","type":"ptp","ipMasq":true,"ipam":{"type":"host-local","dataDir":"`+w.dir+`/host-local","subnet":"10.7.0.0/24"}}`)
	walk(t, func(n int) bool {
		w.add("a", "p2p")
		w.rewire("a", "net1")
		at := stopAt(w.engine, n, errKilled)
		if err := w.engine.Del(t.Context(), "a"); at() != "" && !errors.Is(err, errKilled) {
			t.Fatalf("killed before %s: %v", at(), err)
		}
		w.restart()
		if err := w.engine.Restore(t.Context()); err != nil {
			t.Fatalf("restore after a crash before %s: %v", at(), err)
		}
		if err := w.engine.Del(t.Context(), "a"); err != nil {
			t.Fatalf("del after a crash before %s: %v", at(), err)
		}
		w.same("links left after a crash before "+at(), w.links(w.pod("a")), []string{"aside0", "k6t-net1", "tapnet1"})
		w.empty()
		w.unmount("a")
		return at() != "" && !t.Failed()
	})
}

// TestRewiredAddAgain has the runtime repeat an ADD, which must not take a
// guest's links away.
func TestRewiredAddAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/plain", plainBridge)
	w.add("a", "plain")
	w.rewire("a", "net1")
	before := w.in(w.pod("a"), "ip", "-o", "link")
	if _, err := w.engine.Add(t.Context(), w.request("a", "plain")); err != nil {
		t.Fatal(err)
	}
	w.same("links", w.in(w.pod("a"), "ip", "-o", "link"), before)
	w.end("a")
}

// TestRewiredIsNoExcuse has things break in a Pod that rewired its links.
func TestRewiredIsNoExcuse(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		inPod bool
		harm  []string
		want  string
	}{
		"its link is gone":       {true, []string{"ip", "link", "del", "net2-nic"}, "link net2"},
		"the host's end is down": {false, []string{"sh", "-ec", `ip link set $(ip -o link show master plain0 | sed 's/^[0-9]*: \([^@:]*\).*/\1/') down`}, "ip link set"},
		"the bridge is gone":     {false, []string{"ip", "link", "del", "plain0"}, "ip link add plain0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.nads.add("demo/plain", `{"cniVersion":"1.0.0","type":"bridge","bridge":"plain0"}`)
			w.nads.add("demo/lan", `{"cniVersion":"1.0.0","type":"macvlan","master":"uplink"}`)
			w.add("a", "plain,lan")
			w.rewire("a", "net1")
			w.rewire("a", "net2")
			where := w.host
			if tt.inPod {
				where = w.pod("a")
			}
			if err := w.engine.Check(t.Context(), "a"); err != nil {
				t.Errorf("before: %v", err)
			}
			w.in(where, tt.harm...)
			if err := w.engine.Check(t.Context(), "a"); !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("check: %v", err)
			}
			w.end("a")
		})
	}
}

// TestRewiredHotplug plugs into such a Pod and unplugs from it, as KubeVirt does:
// the launcher takes its own links away first.
func TestRewiredHotplug(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	launcherPod(t, w)
	standIn := w.addrs(w.pod("a"), "net2")
	w.nads.add("demo/way", `{"cniVersion":"1.0.0","type":"bridge","bridge":"way0","isGateway":true,"ipam":{"type":"host-local","subnet":"10.23.0.0/24","gateway":"10.23.0.1"}}`)
	selections, err := netattach.ParseNetworks(`[{"name":"way","interface":"x0","default-route":["10.23.0.1"]}]`, "demo")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.engine.Attach(t.Context(), "a", selections[0]); err != nil {
		t.Fatal(err)
	}
	w.same("addresses of the launcher's own link", w.addrs(w.pod("a"), "net2"), standIn)
	for _, link := range launcherLinks {
		w.unplug("a", link)
	}
	for _, a := range []string{"net4", "podb1f51a511f1", "net2", "pod16477688c0e", "x0"} {
		if _, err := w.engine.Detach(t.Context(), "a", netstate.IfName(a)); err != nil {
			t.Fatalf("detach %s: %v", a, err)
		}
	}
	w.same("links left", w.links(w.pod("a")), []string{"eth0"})
	w.end("a")
	w.podEmpty("a")
}

// TestMasqueradedPod has the launcher do what it does for the masquerade binding:
// the Pod's link stays as it is, beside a bridge, a TAP and rules.
func TestMasqueradedPod(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("a", "")
	w.in(w.pod("a"), "sh", "-ec", `
		ip link add k6t-eth0 address 02:00:00:00:00:00 type bridge
		ip addr add 10.0.2.1/24 dev k6t-eth0
		ip addr add fd10:0:2::1/120 dev k6t-eth0 nodad
		ip link set k6t-eth0 up
		ip tuntap add tap0 mode tap user 107 group 107
		ip link set tap0 master k6t-eth0 up
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.k6t-eth0.route_localnet=1
		nft 'add table ip nat; add chain ip nat prerouting { type nat hook prerouting priority -100; }; add rule ip nat prerouting iifname eth0 counter dnat to 10.0.2.2'`)
	if err := w.engine.Check(t.Context(), "a"); err != nil {
		t.Errorf("check: %v", err)
	}
	if strings.Contains(w.log.String(), "rewired") {
		t.Errorf("its link counts as rewired:\n%s", w.log.String())
	}
	w.in(w.pod("a"), "ip", "addr", "del", "10.88.0.2/24", "dev", "eth0")
	if err := w.engine.Check(t.Context(), "a"); !errors.Is(err, ErrChanged) {
		t.Errorf("check without the address: %v", err)
	}
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.same("links left", w.links(w.pod("a")), []string{"k6t-eth0", "tap0"})
	w.empty()
}
