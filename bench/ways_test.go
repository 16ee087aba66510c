package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/record"
)

// way is one way to attach a Pod to the first n networks, and to detach it.
type way interface {
	attach(ctx context.Context, n int) error
	detach(ctx context.Context, n int) error
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
	weft := &engineWay{engine: newEngine(tb, w.host, nads), pod: w.pod(tb)}
	weft.neighbour(tb, w.pod(tb))
	out["weft"] = weft

	w = newWorld(tb)
	out["netlink"] = newBareWay(tb, kind, w.host, w.pod(tb))
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
	engine *chain.Engine
	pod    *linux.NS
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

// bareWay is the floor: the same links and addresses by the fewest messages of
// the common library, on sockets that are open already, with nothing decided,
// set beside them, remembered or checked.
type bareWay struct {
	kind         string
	hostNS       *linux.NS
	podNS        *linux.NS
	host, pod    *netlink.Handle
	bridges      []int // by index
	uplink       int
	hostEnd      string
	groupOfLinks uint32
}

func newBareWay(tb testing.TB, kind string, host, pod *linux.NS) *bareWay {
	tb.Helper()
	w := &bareWay{kind: kind, hostNS: host, podNS: pod, hostEnd: "bare", groupOfLinks: 4242}
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
	for i := range most {
		name := fmt.Sprintf("br%d", i)
		run(tb, host, "ip", "link", "add", name, "up", "type", "bridge")
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
		if err := w.one(i); err != nil {
			return err
		}
	}
	return nil
}

func (w *bareWay) one(i int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Group = w.groupOfLinks
	inPod := "net" + strconv.Itoa(i+1)
	if w.kind == "macvlan" {
		attrs.Name, attrs.ParentIndex, attrs.Namespace = inPod, w.uplink, netlink.NsFd(w.podNS.FD())
		if err := w.host.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
			return fmt.Errorf("add macvlan: %w", err)
		}
	} else {
		attrs.Name, attrs.MasterIndex, attrs.Flags = w.hostEnd+strconv.Itoa(i), w.bridges[i], net.FlagUp
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: inPod, PeerNamespace: netlink.NsFd(w.podNS.FD())}
		if err := w.host.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth: %w", err)
		}
	}
	link, err := w.pod.LinkByName(inPod)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, byte(70+i), 0, 2), Mask: net.CIDRMask(16, 32)}}
	return errors.Join(w.pod.AddrAdd(link, addr), w.pod.LinkSetUp(link))
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
