package chain

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

func TestAddDelNative(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/lan", `{"cniVersion":"1.0.0","type":"macvlan","master":"uplink","ipam":{"type":"whereabouts","range":"192.0.2.0/24","range_start":"192.0.2.100","range_end":"192.0.2.120"}}`)
	w.nads.add("other/blue", `{"cniVersion":"0.3.1","name":"blue","type":"bridge","bridge":"blue0","ipam":{"type":"static","addresses":[{"address":"10.5.0.7/24"}]}}`)
	w.nads.add("demo/l2", `{"type":"bridge","bridge":"blue0"}`)
	box := w.add("a", "lan, other/blue@b0, l2")

	w.same("links", w.links(w.pod("a")), []string{"b0", "eth0", "net1", "net3"})
	w.same("eth0", w.addrs(w.pod("a"), "eth0"), []string{"10.88.0.2/24", "fd88::2/64"})
	w.same("net1", w.addrs(w.pod("a"), "net1"), []string{"192.0.2.100/24"})
	w.same("b0", w.addrs(w.pod("a"), "b0"), []string{"10.5.0.7/24"})
	w.same("net3", w.addrs(w.pod("a"), "net3"), []string{})
	w.same("default routes", w.defaultsOf(w.pod("a")), []string{"10.88.0.1 dev eth0", "fd88::1 dev eth0"})
	w.in(w.pod("a"), "ping", "-c1", "-W2", "-q", "10.88.0.1")
	w.in(w.pod("a"), "ping", "-c1", "-W2", "-q", "192.0.2.9") // directly, by macvlan
	if table := w.in(w.host, "nft", "list", "ruleset"); !strings.Contains(table, "10.88.0.0/24") {
		t.Errorf("no masquerading:\n%s", table)
	}

	text, err := Status(box)
	if err != nil {
		t.Fatal(err)
	}
	w.same("elements", len(text), 4)
	for i, want := range []string{"default eth0 [10.88.0.2 fd88::2] true", "demo/lan net1 [192.0.2.100] false", "other/blue b0 [10.5.0.7] false", "demo/l2 net3 [] false"} {
		s := text[i]
		w.same("status", strings.Join([]string{s.Name, s.Interface, "[" + strings.Join(s.IPs, " ") + "]", map[bool]string{true: "true", false: "false"}[s.Default]}, " "), want)
		if s.MTU != 1500 || len(s.MAC) != 17 {
			t.Errorf("%s has MTU %d and MAC %q", s.Name, s.MTU, s.MAC)
		}
	}
	w.same("gateways", text[0].Gateway, []string{"10.88.0.1", "fd88::1"})

	if err := w.engine.Check(t.Context(), "a"); err != nil {
		t.Errorf("check: %v", err)
	}
	again, err := w.engine.Add(t.Context(), w.request("a", "lan"))
	if err != nil {
		t.Fatal(err)
	}
	w.same("second add", len(again.Attachments), 4)

	w.end("a")
	w.podEmpty("a")
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Errorf("second del: %v", err)
	}
}

// TestRecord holds what stands on disk after an Add.
func TestRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("a", "")
	box, err := w.records.Load("a")
	if err != nil {
		t.Fatal(err)
	}
	a := box.Attachments[0]
	w.same("sandbox", []any{box.NetNS, box.Pod, box.BootID, box.Durable}, []any{w.pod("a"), record.Pod{Namespace: "demo", Name: "pod-a", UID: "uid-a"}, "boot-1", false})
	w.same("attachment", []any{a.Network, a.Interface, a.Default, a.Stage, a.Kind, a.NativeMain}, []any{"default", "eth0", true, record.Attached, record.Native, true})
	if len(a.Leases) != 2 || a.Leases[0].Addr.String() != "10.88.0.2" || a.Leases[1].Addr.String() != "fd88::2" {
		t.Errorf("leases %v", a.Leases)
	}
	var sides []netstate.Side
	for _, l := range a.Links {
		if l.Index == 0 || l.MAC == "" || l.MTU != 1500 || l.Alias == "" {
			t.Errorf("link %+v", l)
		}
		sides = append(sides, l.Side)
	}
	w.same("sides", sides, []netstate.Side{netstate.Host, netstate.Host, netstate.Pod})
	result, err := Result(a)
	if err != nil {
		t.Fatal(err)
	}
	w.same("interfaces", len(result.Interfaces), 3)
	w.same("sandbox of the interface", result.Interfaces[2].Sandbox, w.pod("a"))
}

func TestForeignChain(t *testing.T) {
	t.Parallel()
	needPlugin(t, "tuning")
	w := newWorld(t)
	rec := w.rec()
	w.nads.add("demo/tuned", `{"cniVersion":"1.0.0","name":"tuned","plugins":[
		{"type":"bridge","bridge":"t0","ipam":{"type":"host-local","subnet":"10.6.0.0/24"}},
		{"type":"tuning","sysctl":{"net.ipv4.conf.net1.arp_filter":"1"},"capabilities":{"mac":true},"mtu":1400},
		{"type":"alpha","dir":"`+rec+`","capabilities":{"portMappings":true}},
		{"type":"omega","dir":"`+rec+`","args":{"cni":{"color":"red","shape":"round"}}}]}`)
	box := w.add("a", `[{"name":"tuned","mac":"02:00:00:00:00:77","ips":["10.6.0.9"],"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}],"cni-args":{"color":"blue"}}]`)

	w.same("sysctl", strings.TrimSpace(w.in(w.pod("a"), "cat", "/proc/sys/net/ipv4/conf/net1/arp_filter")), "1")
	w.same("addresses", w.addrs(w.pod("a"), "net1"), []string{"10.6.0.9/24"})
	if link := w.in(w.pod("a"), "ip", "link", "show", "net1"); !strings.Contains(link, "02:00:00:00:00:77") || !strings.Contains(link, "mtu 1400") {
		t.Errorf("link:\n%s", link)
	}
	w.same("verbs", w.verbs(), []string{"ADD alpha net1", "ADD omega net1"})
	calls := w.calls()
	w.same("capability to who declares it", string(calls[0].RuntimeConfig), `{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`)
	w.same("capability to who does not", string(calls[1].RuntimeConfig), "null")
	w.same("prevResult", []bool{calls[0].PrevResult, calls[1].PrevResult}, []bool{true, true})
	w.same("netns", calls[0].NetNS, w.pod("a"))
	for _, want := range []string{"IgnoreUnknown=1", "K8S_POD_NAMESPACE=demo", "K8S_POD_NAME=pod-a", "K8S_POD_UID=uid-a", "K8S_POD_INFRA_CONTAINER_ID=a", "MAC=02:00:00:00:00:77", "IP=10.6.0.9"} {
		if !strings.Contains(";"+calls[0].Args+";", ";"+want+";") {
			t.Errorf("CNI_ARGS %q lacks %s", calls[0].Args, want)
		}
	}
	var args struct{ CNI map[string]string }
	if err := json.Unmarshal(calls[1].Config, &args); err != nil {
		t.Fatal(err)
	}
	w.same("cni-args over the network's own", args.CNI, map[string]string{"color": "blue", "shape": "round"})
	w.same("durable", box.Durable, true)
	if err := w.engine.Check(t.Context(), "a"); err != nil && !strings.Contains(err.Error(), "mtu 1400") {
		t.Errorf("check: %v", err)
	}
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.same("verbs", w.verbs()[len(w.verbs())-2:], []string{"DEL omega net1", "DEL alpha net1"})
	w.podEmpty("a")
	w.empty()
}

// TestForeignMain has a real plugin with a real IPAM make the default network.
func TestForeignMain(t *testing.T) {
	t.Parallel()
	needPlugin(t, "ptp")
	needPlugin(t, "host-local")
	w := newWorld(t)
	w.defaults = `{"cniVersion":"1.0.0","name":"p2p","type":"ptp","ipam":{"type":"host-local","dataDir":"` + w.dir + `/host-local","subnet":"10.7.0.0/24","routes":[{"dst":"0.0.0.0/0"}]}}`
	w.nads.add("demo/l2", `{"type":"bridge","bridge":"blue0"}`)
	w.restart()
	box := w.add("a", "l2")
	w.same("links", w.links(w.pod("a")), []string{"eth0", "net1"})
	w.same("eth0", w.addrs(w.pod("a"), "eth0"), []string{"10.7.0.2/24"})
	status, err := Status(box)
	if err != nil {
		t.Fatal(err)
	}
	w.same("status", []any{status[0].Name, status[0].Interface, status[0].IPs, status[0].Default, status[0].Gateway, status[0].MTU}, []any{"p2p", "eth0", []string{"10.7.0.2"}, true, []string{"10.7.0.1"}, 1500})
	if err := w.engine.Check(t.Context(), "a"); err != nil {
		t.Errorf("check: %v", err)
	}
	w.in(w.pod("a"), "ip", "link", "set", "eth0", "address", "02:00:00:00:00:99")
	if err := w.engine.Check(t.Context(), "a"); !errors.Is(err, ErrChanged) {
		t.Errorf("check after a change: %v", err)
	}
	w.end("a")
	w.podEmpty("a")
}

// TestForeignIPAM has a native plugin take its addresses from a binary.
func TestForeignIPAM(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/ext", `{"cniVersion":"1.0.0","type":"bridge","bridge":"x0","isGateway":true,"ipam":{"type":"recipam","dir":"`+w.rec()+`","gives":{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.5/24"}],"routes":[{"dst":"10.99.0.0/16","gw":"10.9.0.1"}],"dns":{"nameservers":["10.9.0.53"]}}}}`)
	box := w.add("a", "ext")
	w.same("net1", w.addrs(w.pod("a"), "net1"), []string{"10.9.0.5/24"})
	w.same("bridge is the gateway", w.addrs(w.host, "x0"), []string{"10.9.0.1/24"})
	if route := w.in(w.pod("a"), "ip", "route", "get", "10.99.1.1"); !strings.Contains(route, "via 10.9.0.1 dev net1") {
		t.Errorf("route: %s", route)
	}
	status, err := Status(box)
	if err != nil {
		t.Fatal(err)
	}
	w.same("status", []any{status[1].IPs, status[1].DNS.Nameservers}, []any{[]string{"10.9.0.5"}, []string{"10.9.0.53"}})
	w.same("verbs", w.verbs(), []string{"ADD recipam net1"})
	if err := w.engine.Check(t.Context(), "a"); err != nil {
		t.Errorf("check: %v", err)
	}
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.same("verbs", w.verbs(), []string{"ADD recipam net1", "CHECK recipam net1", "DEL recipam net1"})
	w.podEmpty("a")
	w.empty()
}

// TestClusterIPAM: in a cluster, addresses that are unique there come from their
// plugin, if it is installed; what it gave is taken back by it.
func TestClusterIPAM(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const head = `{"cniVersion":"1.0.0","type":"bridge","bridge":"x0","ipam":{"type":"whereabouts","range":"10.9.0.0/24"`
	w.nads.add("demo/ours", head+"}}")
	w.nads.add("demo/theirs", head+`,"dir":"`+w.rec()+`","gives":{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.5/24"}]}}}`)
	for i, tt := range []struct {
		network            string
		cluster, installed bool
		address            string
	}{{"ours", false, true, "10.9.0.1/24"}, {"ours", true, false, "10.9.0.1/24"}, {"theirs", true, true, "10.9.0.5/24"}} {
		dirs := []string{t.TempDir(), binDir}
		if tt.installed {
			if err := os.Symlink(filepath.Join(binDir, "recorder"), filepath.Join(dirs[0], "whereabouts")); err != nil {
				t.Fatal(err)
			}
		}
		w.engine.Cluster, w.engine.runner.binDirs = tt.cluster, dirs
		id := fmt.Sprint("pod", i)
		w.add(id, tt.network)
		w.same("address of "+id, w.addrs(w.pod(id), "net1"), []string{tt.address})
		if err := w.engine.Del(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	w.same("calls", w.verbs(), []string{"ADD whereabouts net1", "DEL whereabouts net1"})
	if log := w.log.String(); strings.Count(log, "unique on this machine only") != 1 {
		t.Errorf("the plugin that is missing is to be told of once:\n%s", log)
	}
	w.empty()
}

func TestDelWithoutNamespace(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/c", `{"cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"c0","ipam":{"type":"host-local","subnet":"10.6.0.0/24"}},{"type":"alpha","dir":"`+w.rec()+`"}]}`)
	w.nads.add("demo/lan", `{"type":"macvlan","master":"uplink"}`)
	w.add("a", "c,lan")
	w.unmount("a")
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	calls := w.calls()
	w.same("netns told to DEL", calls[len(calls)-1].Verb+" "+calls[len(calls)-1].NetNS, "DEL ")
	w.empty()
}

func TestNamespaceMadeAnew(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("a", "")
	w.unmount("a")
	w.namespace("a")
	box, err := w.engine.Add(t.Context(), w.request("a", ""))
	if err != nil {
		t.Fatal(err)
	}
	w.same("links", w.links(w.pod("a")), []string{"eth0"})
	w.same("attachments", len(box.Attachments), 1)
	w.end("a")
}

func TestSharedBridgeStaysWhileClaimed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("a", "")
	w.add("b", "")
	w.in(w.pod("a"), "ping", "-c1", "-W2", "-q", "10.88.0.3")
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.in(w.pod("b"), "ping", "-c1", "-W2", "-q", "10.88.0.1")
	w.same("bridge", w.addrs(w.host, "weft0"), []string{"10.88.0.1/24", "fd88::1/64"})
	w.end("b")
}

func TestStrangersBridgeIsLeftAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.in(w.host, "ip", "link", "add", "theirs", "type", "bridge")
	w.in(w.host, "ip", "link", "set", "theirs", "up")
	w.nads.add("demo/l2", `{"type":"bridge","bridge":"theirs"}`)
	w.add("a", "l2")
	if err := w.engine.Del(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	w.emptyBut("theirs")
	w.restart()
	if err := w.engine.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.emptyBut("theirs")
}

func TestDefaultNetworkAnnotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("kube-system/lan", `{"type":"macvlan","master":"uplink","ipam":{"type":"static","addresses":[{"address":"192.0.2.50/24","gateway":"192.0.2.9"}],"routes":[{"dst":"0.0.0.0/0"}]}}`)
	w.namespace("a")
	req := w.request("a", "")
	req.Annotations[netattach.DefaultNetworkAnnotation] = "lan"
	box, err := w.engine.Add(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	w.same("eth0", w.addrs(w.pod("a"), "eth0"), []string{"192.0.2.50/24"})
	status, err := Status(box)
	if err != nil {
		t.Fatal(err)
	}
	w.same("status", []any{len(status), status[0].Name, status[0].Default, status[0].Gateway}, []any{1, "kube-system/lan", true, []string{"192.0.2.9"}})
	w.namespace("b")
	req = w.request("b", "")
	req.Annotations[netattach.DefaultNetworkAnnotation] = "demo/lan"
	_, err = w.engine.Add(t.Context(), req)
	if !errors.Is(err, ErrUnknownNetwork) || !strings.Contains(err.Error(), `one of that name is in namespace kube-system: write kube-system/lan`) {
		t.Errorf("unknown: %v", err)
	}
	w.end("a")
}

// TestLinkInContainer stacks a macvlan on the Pod's own eth0, which is planned
// in the same Add, and one on an interface that is there already.
func TestLinkInContainer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/on", `{"type":"macvlan","master":"eth0","linkInContainer":true,"ipam":{"type":"static","addresses":[{"address":"10.44.0.1/24"}]}}`)
	w.nads.add("demo/on2", `{"type":"macvlan","master":"eth0","linkInContainer":true,"ipam":{"type":"static","addresses":[{"address":"10.44.0.2/24"}]}}`)
	w.nads.add("demo/lost", `{"type":"macvlan","master":"eth5","linkInContainer":true}`)
	w.add("a", "on")
	if _, err := w.engine.Attach(t.Context(), "a", netattach.Selection{Namespace: "demo", Name: "on2", Interface: "m2"}); err != nil {
		t.Fatal(err)
	}
	w.same("links", w.links(w.pod("a")), []string{"eth0", "m2", "net1"})
	w.same("m2", w.addrs(w.pod("a"), "m2"), []string{"10.44.0.2/24"})
	w.refused("b", "lost", `network demo/lost: spec.config.master "eth5": there is no such link on the Pod`, "eth0")
	if err := w.engine.Check(t.Context(), "a"); err != nil {
		t.Errorf("check: %v", err)
	}
	w.end("a")
	w.podEmpty("a")
}

// TestOneMACAtOnce: of Pods that ask for one MAC at the same moment, one gets it.
func TestOneMACAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.nads.add("demo/plain", plainBridge)
	const pods = 8
	var requests []Request
	for i := range pods {
		id := fmt.Sprint("m", i)
		w.namespace(id)
		requests = append(requests, w.request(id, `[{"name":"plain","mac":"02:00:00:00:00:07"}]`))
	}
	var attached atomic.Int32
	var group sync.WaitGroup
	for _, request := range requests {
		group.Go(func() {
			_, err := w.engine.Add(t.Context(), request)
			switch {
			case err == nil:
				attached.Add(1)
			case !strings.Contains(err.Error(), "is already the MAC of interface net1 of Pod demo/pod-m"):
				t.Errorf("add %s: %v", request.ID, err)
			}
		})
	}
	group.Wait()
	if attached.Load() != 1 {
		t.Errorf("%d Pods have the MAC", attached.Load())
	}
	for _, request := range requests {
		if err := w.engine.Del(t.Context(), request.ID); err != nil {
			t.Errorf("del: %v", err)
		}
	}
	w.empty()
}
