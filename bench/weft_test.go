package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/dataplane"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
)

// native attaches by weft's own kinds, addresses and dataplane.
type native struct {
	plane     *dataplane.Dataplane
	host      *linux.NS
	allocator *ipam.Allocator
}

func newNative(tb testing.TB, host *linux.NS) *native {
	tb.Helper()
	plane, err := dataplane.New(dataplane.Config{Instance: "bench", HostNS: host.Path()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := plane.Close(); err != nil {
			tb.Error(err)
		}
	})
	return &native{plane: plane, host: host, allocator: ipam.NewAllocator(ipam.NewMemory())}
}

// attached is what one attachment has become.
type attached struct {
	out   kind.Output
	facts dataplane.Facts
	plan  netstate.Plan
}

// add attaches one interface.
func (n *native) add(ctx context.Context, c call) (attached, error) {
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(c.conf, &head); err != nil {
		return attached{}, err
	}
	k, ok := kind.Lookup(head.Type)
	if !ok {
		return attached{}, fmt.Errorf("%s is not native", head.Type)
	}
	conf, err := k.Parse(kind.Input{Config: c.conf, CNIArgs: c.args})
	if err != nil {
		return attached{}, err
	}
	given, err := n.allocator.Allocate(ctx, conf.IPAM(), ipam.AttachmentOwner(c.sandbox, c.ifName))
	if err != nil {
		return attached{}, err
	}
	facts, err := n.look(c.netns, conf.Needs())
	if err != nil {
		return attached{}, err
	}
	out, err := conf.Plan(kind.Request{
		Instance: "bench", Machine: "m", Sandbox: c.sandbox, IfName: netstate.IfName(c.ifName),
		Alias: netstate.Alias("bench", c.sandbox+"/"+c.ifName), SharedAlias: netstate.Alias("bench", "shared"),
		Addresses: given, Facts: facts,
	})
	if err != nil {
		return attached{}, err
	}
	out.Plan.Alias = netstate.Alias("bench", c.sandbox+"/"+c.ifName)
	// What forceAddress displaces goes as something an earlier plan wanted.
	last := netstate.Plan{Alias: out.Plan.Alias, Host: netstate.State{Addrs: out.Remove}}
	made, err := n.plane.Replace(ctx, c.netns, last, out.Plan)
	return attached{out: out, facts: made, plan: out.Plan}, err
}

// del detaches, by what add planned.
func (n *native) del(ctx context.Context, c call, a attached) error {
	return errors.Join(n.plane.Delete(ctx, c.netns, a.plan), n.allocator.Release(ctx, ipam.AttachmentOwner(c.sandbox, c.ifName)))
}

// look answers the questions of a kind.
func (n *native) look(netns string, needs []kind.Query) (kind.Facts, error) {
	facts := kind.Facts{Links: map[kind.Query]kind.Link{}}
	_, err := os.Stat("/proc/sys/net/ipv6/conf/all/optimistic_dad")
	facts.OptimisticDAD = err == nil
	for _, q := range needs {
		path := n.host.Path()
		if q.Side == netstate.Pod {
			path = netns
		}
		link, ok, err := lookUp(path, q)
		if err != nil {
			return facts, err
		}
		if ok {
			facts.Links[q] = link
		}
	}
	return facts, nil
}

// result is the CNI 1.0.0 result of an attachment.
func (a attached) result(netns string) []byte {
	doc := map[string]any{"cniVersion": "1.0.0"}
	var links, ips, routes []any
	for _, i := range a.out.Result.Interfaces {
		link := map[string]any{"name": string(i.Name), "mac": string(i.MAC)}
		if i.Side == netstate.Pod {
			link["sandbox"] = netns
		}
		if made, ok := a.facts.Link(i.Side, i.Name); ok {
			link["mac"] = string(made.MAC)
		}
		links = append(links, link)
	}
	for _, ip := range a.out.Result.IPs {
		item := map[string]any{"interface": ip.Interface, "address": ip.Prefix.String()}
		if ip.Gateway.IsValid() {
			item["gateway"] = ip.Gateway.String()
		}
		ips = append(ips, item)
	}
	for _, r := range a.out.Result.Routes {
		item := map[string]any{"dst": r.Dst.String()}
		if r.Via.IsValid() {
			item["gw"] = r.Via.String()
		}
		if r.MTU != 0 {
			item["mtu"] = r.MTU
		}
		if r.Priority != 0 {
			item["priority"] = r.Priority
		}
		if r.Table != nil {
			item["table"] = *r.Table
		}
		if r.Scope != nil {
			item["scope"] = *r.Scope
		}
		routes = append(routes, item)
	}
	dns := map[string]any{}
	d := a.out.Result.DNS
	for key, list := range map[string][]string{"nameservers": d.Nameservers, "search": d.Search, "options": d.Options} {
		if len(list) > 0 {
			dns[key] = list
		}
	}
	if d.Domain != "" {
		dns["domain"] = d.Domain
	}
	if len(dns) > 0 {
		doc["dns"] = dns
	}
	for key, list := range map[string][]any{"interfaces": links, "ips": ips, "routes": routes} {
		if len(list) > 0 {
			doc[key] = list
		}
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		panic(err) // texts and numbers always encode
	}
	return raw
}

// lookUp observes one link for a kind.
func lookUp(path string, q kind.Query) (kind.Link, bool, error) {
	ns, err := linux.OpenNS(path)
	if err != nil {
		return kind.Link{}, false, err
	}
	defer ns.Close()
	conn, err := linux.Dial(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return kind.Link{}, false, err
	}
	defer conn.Close()
	link, err := findLink(conn, q)
	if errors.Is(err, linux.ErrNoLink) {
		return kind.Link{}, false, nil
	}
	if err != nil {
		return kind.Link{}, false, err
	}
	out := kind.Link{Name: link.Name, Kind: link.Kind, MAC: link.MAC, MTU: link.MTU, Alias: link.Alias}
	addrs, err := conn.Addrs(link.Index)
	for _, a := range addrs {
		out.Addrs = append(out.Addrs, a.Prefix)
	}
	return out, true, err
}

func findLink(conn *linux.Conn, q kind.Query) (linux.Link, error) {
	if q.Name != "" {
		return conn.LinkByName(q.Name)
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := conn.Routes(family, 0)
		if err != nil {
			return linux.Link{}, err
		}
		for _, r := range routes {
			if r.Dst.Bits() == 0 {
				return conn.LinkByIndex(r.Index)
			}
		}
	}
	return linux.Link{}, linux.ErrNoLink
}
