package bench

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/linux"
)

// ipLink is what `ip -j -d addr` says of a link, as far as it is compared.
type ipLink struct {
	Name     string   `json:"ifname"`
	Link     string   `json:"link"`
	Flags    []string `json:"flags"`
	MTU      int      `json:"mtu"`
	Master   string   `json:"master"`
	State    string   `json:"operstate"`
	Address  string   `json:"address"`
	Promisc  int      `json:"promiscuity"`
	LinkInfo struct {
		Kind  string         `json:"info_kind"`
		Data  map[string]any `json:"info_data"`
		Slave map[string]any `json:"info_slave_data"`
	} `json:"linkinfo"`
	Addrs []struct {
		Local     string `json:"local"`
		Length    int    `json:"prefixlen"`
		Scope     string `json:"scope"`
		Tentative bool   `json:"tentative"`
		NoDAD     bool   `json:"nodad"`
		Optimist  bool   `json:"optimistic"`
	} `json:"addr_info"`
}

// ipRoute is what `ip -j route` says.
type ipRoute struct {
	Dst      string `json:"dst"`
	Gateway  string `json:"gateway"`
	Dev      string `json:"dev"`
	Protocol string `json:"protocol"`
	Scope    string `json:"scope"`
	Metric   int    `json:"metric"`
	Table    string `json:"table"`
	Metrics  []struct {
		MTU    int `json:"mtu"`
		AdvMSS int `json:"advmss"`
	} `json:"metrics"`
}

// dataKeys and slaveKeys are the settings of links that are compared.
var (
	dataKeys  = []string{"mode", "bcqueuelen", "vlan_filtering", "stp_state", "mcast_snooping", "ageing_time"}
	slaveKeys = []string{"hairpin", "isolated", "learning", "flood"}
	sysctls   = []string{
		"net.ipv4.conf.%s.arp_notify", "net.ipv6.conf.%s.accept_dad", "net.ipv6.conf.%s.disable_ipv6",
		"net.ipv6.conf.%s.keep_addr_on_down", "net.ipv6.conf.%s.ndisc_notify", "net.ipv6.conf.%s.accept_ra",
	}
)

// view gives what a namespace has, one line per object. Host ends of veth
// pairs are named alike, and so are MAC addresses but those in keep.
func view(tb testing.TB, side string, ns *linux.NS, keep ...string) []string {
	tb.Helper()
	var links []ipLink
	decodeJSON(tb, run(tb, ns, "ip", "-j", "-d", "addr"), &links)
	var out []string
	add := func(format string, args ...any) { out = append(out, side+" "+fmt.Sprintf(format, args...)) }
	for _, l := range links {
		if l.Name == "lo" || l.Name == "eth0" && side == "host" {
			continue
		}
		name := alias(l.Name)
		add("link %s kind %s mtu %d state %s master %s lower %s promisc %d flags %s",
			name, l.LinkInfo.Kind, l.MTU, l.State, alias(l.Master), lower(l), l.Promisc, flags(l.Flags))
		add("link %s address %s", name, mac(l.Address, keep))
		for _, key := range dataKeys {
			if v, ok := l.LinkInfo.Data[key]; ok {
				add("link %s %s %v", name, key, v)
			}
		}
		for _, key := range slaveKeys {
			if v, ok := l.LinkInfo.Slave[key]; ok {
				add("link %s port %s %v", name, key, v)
			}
		}
		for _, a := range l.Addrs {
			local := a.Local
			if a.Scope == "link" && strings.HasPrefix(local, "fe80:") {
				local = "fe80::<mac>"
			}
			add("addr %s/%d dev %s scope %s tentative %v", local, a.Length, name, a.Scope, a.Tentative)
		}
		for _, key := range sysctls {
			key := fmt.Sprintf(key, l.Name)
			value := strings.TrimSpace(run(tb, ns, "sysctl", "-n", strings.ReplaceAll(key, ".", "/")))
			add("sysctl %s = %s", strings.ReplaceAll(key, l.Name, name), value)
		}
	}
	for _, family := range []string{"-4", "-6"} {
		var routes []ipRoute
		decodeJSON(tb, run(tb, ns, "ip", "-j", "-d", family, "route", "show", "table", "all"), &routes)
		for _, r := range routes {
			if r.Protocol == "kernel" || r.Table == "local" || side == "host" && r.Dev == "eth0" {
				continue
			}
			add("route %s via %s dev %s scope %s metric %d table %s %v", r.Dst, r.Gateway, alias(r.Dev), r.Scope, r.Metric, r.Table, r.Metrics)
		}
	}
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		add("sysctl %s = %s", key, strings.TrimSpace(run(tb, ns, "sysctl", "-n", key)))
	}
	slices.Sort(out)
	return out
}

func decodeJSON(tb testing.TB, text string, into any) {
	tb.Helper()
	if strings.TrimSpace(text) == "" {
		return
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		tb.Fatalf("%v in %s", err, text)
	}
}

// alias gives the host end of a Pod's veth pair one name, whoever made it.
func alias(name string) string {
	if len(name) >= 12 && (strings.HasPrefix(name, "veth") || strings.HasPrefix(name, "weft")) {
		return "VETH"
	}
	return name
}

// lower names the link a macvlan stands on, which is in another namespace.
func lower(l ipLink) string {
	if l.LinkInfo.Kind == "macvlan" && l.Link != "" {
		return l.Link
	}
	return "-"
}

func mac(text string, keep []string) string {
	if slices.Contains(keep, text) {
		return text
	}
	return "<mac>"
}

// flags leaves out what is told by the state, or changes by itself.
func flags(list []string) string {
	drop := []string{"LOWER_UP", "NO-CARRIER", "M-DOWN"}
	kept := slices.DeleteFunc(slices.Clone(list), func(f string) bool { return slices.Contains(drop, f) })
	slices.Sort(kept)
	return strings.Join(kept, ",")
}

// usable fails on an address of a Pod that a program could not bind to.
func usable(tb testing.TB, who string, pod *linux.NS) {
	tb.Helper()
	var links []ipLink
	decodeJSON(tb, run(tb, pod, "ip", "-j", "-d", "addr"), &links)
	for _, l := range links {
		for _, a := range l.Addrs {
			if a.Scope == "global" && a.Tentative && !a.Optimist {
				tb.Errorf("%s answers while %s on %s is tentative", who, a.Local, l.Name)
			}
		}
	}
}

// cniResult gives a CNI result in canonical text.
func cniResult(tb testing.TB, raw []byte, sandbox string, keep ...string) []string {
	tb.Helper()
	var doc map[string]any
	decodeJSON(tb, string(raw), &doc)
	list, _ := doc["interfaces"].([]any)
	for _, item := range list {
		link := item.(map[string]any)
		link["name"] = alias(link["name"].(string))
		if text, ok := link["mac"].(string); ok {
			link["mac"] = mac(text, keep)
		}
		if link["sandbox"] == sandbox {
			link["sandbox"] = "<sandbox>"
		}
	}
	text, err := json.MarshalIndent(doc, "", " ")
	if err != nil {
		tb.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		out = append(out, "result "+strings.TrimRight(line, "\n"))
	}
	return out
}
