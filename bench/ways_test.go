package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/test/need"
)

// way is one way to attach a Pod to the first n networks, and to detach it.
type way interface {
	attach(ctx context.Context, n int) error
	detach(ctx context.Context, n int) error
}

// TestFloor: bare netlink makes what weft makes, so that their times compare.
func TestFloor(t *testing.T) {
	need.Root(t)
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			all := ways(t, kind)
			weft, bare := all["weft"].(*engineWay), all["netlink"].(*bareWay)
			for _, w := range []way{weft, bare} {
				if err := w.attach(context.Background(), most); err != nil {
					t.Fatal(err)
				}
			}
			sides := map[string][2]*linux.NS{"pod": {weft.pod, bare.podNS}}
			if kind == "bridge" {
				sides["host"] = [2]*linux.NS{weft.host, bare.hostNS}
			}
			for side, ns := range sides {
				deadline := time.Now().Add(settleTime)
				for {
					diff := cmp.Diff(made(t, side, ns[0]), made(t, side, ns[1]))
					if diff == "" {
						break
					}
					if time.Now().After(deadline) {
						t.Errorf("%s: -weft +netlink\n%s", side, diff)
						break
					}
					time.Sleep(20 * time.Millisecond)
				}
			}
		})
	}
}

// made gives what an attachment made, in a namespace: all but bridges, and the
// host's ends of the neighbour, which the floor has not.
func made(t *testing.T, side string, ns *linux.NS) []string {
	t.Helper()
	lines := view(t, side, ns)
	for _, l := range links(t, ns) {
		if strings.HasPrefix(string(l.Name), "net") || l.Kind == "veth" && l.Master != 0 {
			lines = append(lines, fmt.Sprintf("%s link %s marked %v grouped %v", side, alias(string(l.Name)), l.Alias != "", l.Group != 0))
		}
	}
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(line, " br") || strings.Contains(line, "conf.br") })
	slices.Sort(lines)
	return slices.Compact(lines)
}

func links(t *testing.T, ns *linux.NS) []linux.Link {
	t.Helper()
	conn, err := linux.Dial(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	list, err := conn.Links()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// ways are all ways, each with a host and a Pod of its own.
func ways(tb testing.TB, kind string) map[string]way {
	tb.Helper()
	out := map[string]way{}
	w := newWorld(tb)
	confs := networkConfs(kind, tb.TempDir())
	out["reference"] = &execWay{dir: reference(tb), host: w.host, pod: w.pod(tb), confs: confs}

	w = newWorld(tb)
	nads := networks{}
	for i, conf := range confs {
		nads[fmt.Sprintf("net-%d", i)] = conf
	}
	weft := &engineWay{engine: newEngine(tb, w.host, nads), host: w.host, pod: w.pod(tb)}
	weft.neighbour(tb, w.pod(tb))
	out["weft"] = weft

	w = newWorld(tb)
	var bridges []string
	for i := range most {
		bridges = append(bridges, fmt.Sprintf("br%d", i))
		run(tb, w.host, "ip", "link", "add", bridges[i], "up", "type", "bridge")
	}
	out["netlink"] = newBareWay(tb, kind, w.host, w.pod(tb), bridges)
	return out
}

// most is how many networks a way knows.
const most = 8

// networkConfs are the networks, each with a bridge and a subnet of its own.
func networkConfs(kind, dataDir string) []string {
	link := `"type": "macvlan", "master": "eth0"`
	var out []string
	for i := range most {
		if kind == "bridge" {
			link = fmt.Sprintf(`"type": "bridge", "bridge": "br%d"`, i)
		}
		out = append(out, fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "net-%d", %s,
			"ipam": {"type": "host-local", "dataDir": %q, "subnet": "10.%d.0.0/16"}}`, i, link, dataDir, 70+i))
	}
	return out
}

// execWay runs the reference plugins, as a runtime does by way of Multus.
type execWay struct {
	dir       string
	host, pod *linux.NS
	confs     []string
}

func (w *execWay) attach(ctx context.Context, n int) error { return w.each(ctx, "ADD", n) }
func (w *execWay) detach(ctx context.Context, n int) error { return w.each(ctx, "DEL", n) }

func (w *execWay) each(ctx context.Context, command string, n int) error {
	for i := range n {
		c := call{command: command, sandbox: "sb1", netns: w.pod.Path(), ifName: fmt.Sprintf("net%d", i+1), conf: []byte(w.confs[i])}
		if _, err := c.exec(ctx, w.host, w.dir); err != nil {
			return err
		}
	}
	return nil
}

// engineWay is weft as weftd runs it: annotation, records on disk and all.
type engineWay struct {
	engine    *chain.Engine
	host, pod *linux.NS
}

func (w *engineWay) attach(ctx context.Context, n int) error {
	_, err := w.engine.Add(ctx, chain.Request{
		ID: "sb1", NetNS: w.pod.Path(), Pod: record.Pod{Namespace: "demo", Name: "a", UID: "u"},
		Annotations: map[string]string{netattach.NetworksAnnotation: annotation(n)},
	})
	return err
}

// neighbour attaches another Pod to all networks, for as long as the test runs:
// bridges stay, as they do with the other ways.
func (w *engineWay) neighbour(tb testing.TB, pod *linux.NS) {
	tb.Helper()
	_, err := w.engine.Add(context.Background(), chain.Request{
		ID: "neighbour", NetNS: pod.Path(), Pod: record.Pod{Namespace: "demo", Name: "n", UID: "n"},
		Annotations: map[string]string{netattach.NetworksAnnotation: annotation(most)},
	})
	if err != nil {
		tb.Fatal(err)
	}
}

func (w *engineWay) detach(ctx context.Context, _ int) error { return w.engine.Del(ctx, "sb1") }

// bareWay is the floor: the same links, addresses, settings and marks by the
// fewest messages of the common library, on sockets that are open already, with
// nothing decided, remembered or checked. TestFloor holds that they are the same.
type bareWay struct {
	kind         string
	hostNS       *linux.NS
	podNS        *linux.NS
	host, pod    *netlink.Handle
	bridges      []int // by index
	uplink       int
	hostEnd      string
	groupOfLinks uint32
	first        int // number of the first network, where another way has those before
}

func newBareWay(tb testing.TB, kind string, host, pod *linux.NS, bridges []string) *bareWay {
	tb.Helper()
	w := &bareWay{kind: kind, hostNS: host, podNS: pod, hostEnd: "vethbare0000", groupOfLinks: 4242}
	for ns, handle := range map[*linux.NS]**netlink.Handle{host: &w.host, pod: &w.pod} {
		err := ns.Do(func() error {
			var err error
			*handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
			return err
		})
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup((*handle).Close)
	}
	w.uplink = index(tb, w.host, "eth0")
	for _, name := range bridges {
		w.bridges = append(w.bridges, index(tb, w.host, name))
	}
	return w
}

func index(tb testing.TB, h *netlink.Handle, name string) int {
	tb.Helper()
	link, err := h.LinkByName(name)
	if err != nil {
		tb.Fatal(err)
	}
	return link.Attrs().Index
}

func (w *bareWay) attach(_ context.Context, n int) error {
	for i := range n {
		if err := w.create(i); err != nil {
			return err
		}
	}
	if err := w.sysctls(n); err != nil {
		return err
	}
	for i := range n {
		if err := w.configure(i); err != nil {
			return err
		}
	}
	return nil
}

func (w *bareWay) inPod(i int) string { return "net" + strconv.Itoa(w.first+i+1) }
func (w *bareWay) port(i int) string  { return w.hostEnd + strconv.Itoa(i) }

func (w *bareWay) create(i int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Group = w.groupOfLinks
	if w.kind == "macvlan" {
		attrs.Name, attrs.ParentIndex, attrs.Namespace = w.inPod(i), w.uplink, netlink.NsFd(w.podNS.FD())
		if err := w.host.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
			return fmt.Errorf("add macvlan: %w", err)
		}
		return nil
	}
	attrs.Name, attrs.MasterIndex = w.port(i), w.bridges[i]
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1 // the peer gets as many
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: w.inPod(i), PeerNamespace: netlink.NsFd(w.podNS.FD())}
	if err := w.host.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth: %w", err)
	}
	return errors.Join(w.host.LinkSetAlias(veth, mark), w.host.LinkSetUp(veth))
}

// mark stands for the owner's.
const mark = "bench:attach/sb1/net1"

// sysctls visits each namespace once for the settings netlink does not know.
func (w *bareWay) sysctls(n int) error {
	set := func(ns *linux.NS, family, key, value string, link func(int) string) error {
		for i := range n {
			if err := linux.SetSysctl("net/"+family+"/conf/"+link(i)+"/"+key, value); err != nil {
				return fmt.Errorf("in %s: %w", ns.Path(), err)
			}
		}
		return nil
	}
	if w.kind == "bridge" {
		err := w.hostNS.Do(func() error { return set(w.hostNS, "ipv6", "accept_ra", "0", w.port) })
		if err != nil {
			return err
		}
	}
	return w.podNS.Do(func() error {
		err := set(w.podNS, "ipv4", "arp_notify", "1", w.inPod)
		if w.kind == "macvlan" {
			return errors.Join(err, set(w.podNS, "ipv6", "ndisc_notify", "1", w.inPod))
		}
		return errors.Join(err, set(w.podNS, "ipv6", "accept_dad", "0", w.inPod))
	})
}

func (w *bareWay) configure(i int) error {
	link, err := w.pod.LinkByName(w.inPod(i))
	if err != nil {
		return err
	}
	if w.kind == "bridge" {
		if err := w.pod.LinkSetGroup(link, int(w.groupOfLinks)); err != nil {
			return err
		}
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, byte(70+w.first+i), 0, 3), Mask: net.CIDRMask(16, 32)}}
	return errors.Join(w.pod.LinkSetAlias(link, mark), w.pod.AddrAdd(link, addr), w.pod.LinkSetUp(link))
}

// detach deletes all links in one message, by their group: the kernel waits out
// its grace period once for all of them.
func (w *bareWay) detach(context.Context, int) error {
	ns := w.hostNS
	if w.kind == "macvlan" {
		ns = w.podNS
	}
	return ns.Do(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(w.groupOfLinks)))
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}
