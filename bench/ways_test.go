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
	out["weft"] = &engineWay{engine: newEngine(tb, w.host, nads), pod: w.pod(tb)}

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

func (w *engineWay) detach(ctx context.Context, _ int) error { return w.engine.Del(ctx, "sb1") }

// bareWay is the floor: the same links and addresses by the fewest messages,
// with nothing decided, remembered or checked, on sockets that are open already.
type bareWay struct {
	kind      string
	host, pod *netlink.Handle
	podFD     int
	bridges   [most]int // by index; filled in when first used
	uplink    int
	hostNS    *linux.NS
}

func newBareWay(tb testing.TB, kind string, host, pod *linux.NS) *bareWay {
	tb.Helper()
	w := &bareWay{kind: kind, podFD: pod.FD(), hostNS: host}
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
	uplink, err := w.host.LinkByName("eth0")
	if err != nil {
		tb.Fatal(err)
	}
	w.uplink = uplink.Attrs().Index
	return w
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
	inPod := "net" + strconv.Itoa(i+1)
	if w.kind == "macvlan" {
		attrs.Name, attrs.ParentIndex, attrs.Namespace = inPod, w.uplink, netlink.NsFd(w.podFD)
		if err := w.host.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
			return fmt.Errorf("add macvlan: %w", err)
		}
	} else {
		bridge, err := w.bridge(i)
		if err != nil {
			return err
		}
		attrs.Name, attrs.MasterIndex, attrs.Flags = "bare"+strconv.Itoa(i), bridge, net.FlagUp
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: inPod, PeerNamespace: netlink.NsFd(w.podFD)}
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

// bridge makes a bridge as part of the first attachment and finds it later:
// those of weft go with the last attachment as well.
func (w *bareWay) bridge(i int) (int, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Flags = "br"+strconv.Itoa(i), net.FlagUp
	link := &netlink.Bridge{LinkAttrs: attrs}
	if err := w.host.LinkAdd(link); err != nil {
		return 0, fmt.Errorf("add bridge: %w", err)
	}
	made, err := w.host.LinkByName(attrs.Name)
	if err != nil {
		return 0, err
	}
	return made.Attrs().Index, nil
}

// detach deletes all links in one message, by a group, as the kernel waits out
// its grace period once for all of them.
func (w *bareWay) detach(_ context.Context, n int) error {
	const group = 4242
	for i := range n {
		names := map[string]*netlink.Handle{"net" + strconv.Itoa(i+1): w.pod}
		if w.kind == "bridge" {
			names = map[string]*netlink.Handle{"bare" + strconv.Itoa(i): w.host, "br" + strconv.Itoa(i): w.host}
		}
		for name, handle := range names {
			link, err := handle.LinkByName(name)
			if err != nil {
				return err
			}
			if err := handle.LinkSetGroup(link, group); err != nil {
				return err
			}
		}
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	ns := w.hostNS
	_ = ns
	return nil
}
