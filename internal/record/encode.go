package record

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/weftnet/weft/internal/netstate"
)

// encode gives the JSON that encoding/json would, without reflection: a record is
// written twice in every ADD, between programs that have filled the caches, and
// there encoding/json takes 130 µs of them, this a fifth. TestEncode holds both
// to the same; what an ADD seldom has goes through encoding/json here too.
func encode(s *Sandbox) ([]byte, error) {
	w := writer{text: make([]byte, 0, 1024*(1+3*len(s.Attachments)))}
	w.open('{')
	w.number("version", int64(s.Version))
	w.string("id", s.ID)
	w.string("netns", s.NetNS)
	w.key("pod")
	w.open('{')
	w.set("namespace", s.Pod.Namespace)
	w.set("name", s.Pod.Name)
	w.set("uid", s.Pod.UID)
	w.close('}')
	w.set("vm", s.VM)
	w.string("bootID", s.BootID)
	w.flag("durable", s.Durable)
	if s.Isolation != nil {
		w.other("isolation", s.Isolation)
	}
	w.set("confDir", s.ConfDir)
	w.key("attachments")
	if s.Attachments == nil {
		w.raw("null")
	} else {
		list(&w, s.Attachments, (*writer).attachment)
	}
	w.close('}')
	return w.text, w.err
}

// writer appends JSON.
type writer struct {
	text []byte
	err  error
}

func (w *writer) raw(text string) { w.text = append(w.text, text...) }

// comma goes before everything but the first in an object or a list.
func (w *writer) comma() {
	if last := w.text[len(w.text)-1]; last != '{' && last != '[' && last != ':' {
		w.text = append(w.text, ',')
	}
}

func (w *writer) open(c byte) {
	if len(w.text) > 0 {
		w.comma()
	}
	w.text = append(w.text, c)
}

func (w *writer) close(c byte) { w.text = append(w.text, c) }

func (w *writer) key(name string) {
	w.comma()
	w.text = append(w.text, '"')
	w.text = append(w.text, name...)
	w.text = append(w.text, '"', ':')
}

// value writes a text, which a name or address mostly is: nothing to escape.
func (w *writer) value(text string) {
	w.comma()
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			w.any(text)
			return
		}
	}
	w.text = append(w.text, '"')
	w.text = append(w.text, text...)
	w.text = append(w.text, '"')
}

func (w *writer) any(value any) {
	text, err := json.Marshal(value)
	if err != nil && w.err == nil {
		w.err = fmt.Errorf("encode %T: %w", value, err)
	}
	w.text = append(w.text, text...)
}

func (w *writer) other(key string, value any) {
	w.key(key)
	w.any(value)
}

func (w *writer) string(key, text string) {
	w.key(key)
	w.value(text)
}

// set, flag, count and number write what is not zero; so do prefix and addr.
func (w *writer) set(key, text string) {
	if text != "" {
		w.string(key, text)
	}
}

func (w *writer) flag(key string, on bool) {
	if on {
		w.key(key)
		w.raw("true")
	}
}

func (w *writer) optional(key string, on *bool) {
	if on != nil {
		w.key(key)
		w.text = strconv.AppendBool(w.text, *on)
	}
}

func (w *writer) number(key string, n int64) {
	w.key(key)
	w.text = strconv.AppendInt(w.text, n, 10)
}

func (w *writer) count(key string, n int) {
	if n != 0 {
		w.number(key, int64(n))
	}
}

func (w *writer) prefix(key string, p netip.Prefix) {
	if p != (netip.Prefix{}) {
		w.key(key)
		w.prefixValue(p)
	}
}

func (w *writer) prefixValue(p netip.Prefix) {
	w.comma()
	w.text = append(w.text, '"')
	w.text, _ = p.AppendText(w.text) // never fails
	w.text = append(w.text, '"')
}

func (w *writer) addr(key string, a netip.Addr) {
	if a != (netip.Addr{}) {
		w.address(key, a)
	}
}

func (w *writer) address(key string, a netip.Addr) {
	w.key(key)
	w.text = append(w.text, '"')
	w.text, _ = a.AppendText(w.text) // never fails
	w.text = append(w.text, '"')
}

// json writes what is JSON already, on one line: a record is one.
func (w *writer) json(key string, text json.RawMessage) {
	w.key(key)
	switch {
	case text == nil:
		w.raw("null")
	case bytes.ContainsAny(text, "\n\r") || !json.Valid(text):
		w.any(text)
	default:
		w.text = append(w.text, text...)
	}
}

func list[T any](w *writer, of []T, one func(*writer, T)) {
	w.open('[')
	for _, v := range of {
		one(w, v)
	}
	w.close(']')
}

func some[T any](w *writer, key string, of []T, one func(*writer, T)) {
	if len(of) > 0 {
		w.key(key)
		list(w, of, one)
	}
}

func (w *writer) attachment(a *Attachment) {
	if a == nil {
		w.comma()
		w.raw("null")
		return
	}
	w.open('{')
	w.string("network", a.Network)
	w.string("interface", string(a.Interface))
	w.flag("default", a.Default)
	w.string("stage", string(a.Stage))
	w.set("reason", a.Reason)
	w.string("kind", string(a.Kind))
	w.count("since", a.Since)
	w.json("config", a.Config)
	if a.Selection != nil {
		w.other("selection", a.Selection)
	}
	some(w, "cniArgs", a.CNIArgs, func(w *writer, arg [2]string) { list(w, arg[:], (*writer).value) })
	if len(a.CapabilityArgs) > 0 {
		w.other("capabilityArgs", a.CapabilityArgs)
	}
	w.flag("nativeMain", a.NativeMain)
	w.set("ipam", a.IPAM)
	w.set("resource", a.Resource)
	w.set("device", a.Device)
	w.set("deviceFile", a.DeviceFile)
	if a.DeviceInfo != nil {
		w.other("deviceInfo", a.DeviceInfo)
	}
	w.set("alias", a.Alias)
	w.plan(&a.Plan)
	some(w, "defaults", a.Defaults, (*writer).route)
	some(w, "hasDefaults", a.HasDefaults, (*writer).route)
	some(w, "masquerade", a.Masquerade, (*writer).prefixValue)
	some(w, "leases", a.Leases, (*writer).lease)
	w.flag("leased", a.Leased)
	w.set("claim", a.Claim)
	w.set("claimOwner", a.ClaimOwner)
	some(w, "links", a.Links, (*writer).made)
	some(w, "byPlugins", a.ByPlugins, (*writer).value)
	if len(a.Result) > 0 {
		w.json("result", a.Result)
	}
	some(w, "moved", a.Moved, (*writer).prefixValue)
	w.close('}')
}

func (w *writer) lease(l Lease) {
	w.open('{')
	w.string("scope", l.Scope)
	w.address("addr", l.Addr)
	w.string("owner", l.Owner)
	w.close('}')
}

func (w *writer) made(l Link) {
	w.open('{')
	w.string("side", string(l.Side))
	w.string("name", string(l.Name))
	w.number("index", int64(l.Index))
	w.set("kind", string(l.Kind))
	w.set("mac", string(l.MAC))
	w.count("mtu", l.MTU)
	w.set("alias", l.Alias)
	w.flag("up", l.Up)
	some(w, "addrs", l.Addrs, (*writer).prefixValue)
	w.close('}')
}

// plan leaves out what is empty, as the tags of netstate's types say it.
func (w *writer) plan(p *netstate.Plan) {
	start := len(w.text)
	w.key("plan")
	empty := len(w.text)
	w.open('{')
	w.set("Alias", p.Alias)
	w.state("Host", &p.Host)
	w.state("Pod", &p.Pod)
	if len(w.text) == empty+1 {
		w.text = w.text[:start]
		return
	}
	w.close('}')
}

func (w *writer) state(key string, s *netstate.State) {
	start := len(w.text)
	w.key(key)
	empty := len(w.text)
	w.open('{')
	some(w, "Links", s.Links, (*writer).link)
	some(w, "Addrs", s.Addrs, (*writer).addrOn)
	some(w, "Routes", s.Routes, (*writer).route)
	some(w, "Sysctls", s.Sysctls, (*writer).sysctl)
	if len(s.Rules) > 0 {
		w.other("Rules", s.Rules)
	}
	if len(s.FDB) > 0 {
		w.other("FDB", s.FDB)
	}
	if len(s.Tables) > 0 {
		w.other("Tables", s.Tables)
	}
	if len(w.text) == empty+1 {
		w.text = w.text[:start]
		return
	}
	w.close('}')
}

func (w *writer) link(l netstate.Link) {
	w.open('{')
	w.set("Name", string(l.Name))
	w.set("Kind", string(l.Kind))
	w.set("Presence", string(l.Presence))
	w.set("Alias", l.Alias)
	w.count("Group", int(l.Group))
	w.set("MAC", string(l.MAC))
	w.count("MTU", l.MTU)
	w.count("TxQueueLen", l.TxQueueLen)
	w.flag("Up", l.Up)
	w.optional("Promisc", l.Promisc)
	w.optional("AllMulticast", l.AllMulticast)
	w.set("Master", string(l.Master))
	if l.Port != nil {
		w.other("Port", l.Port)
	}
	w.flag("NoAddrs", l.NoAddrs)
	w.flag("NoIPv6LinkLocal", l.NoIPv6LinkLocal)
	if v := l.Veth; v != nil {
		w.key("Veth")
		w.open('{')
		w.set("PeerSide", string(v.PeerSide))
		w.set("PeerName", string(v.PeerName))
		w.close('}')
	}
	if l.Bridge != nil {
		w.other("Bridge", l.Bridge)
	}
	if m := l.Macvlan; m != nil {
		w.key("Macvlan")
		w.open('{')
		w.set("ParentSide", string(m.ParentSide))
		w.set("Parent", string(m.Parent))
		w.set("Mode", m.Mode)
		w.count("BCQueueLen", int(m.BCQueueLen))
		w.close('}')
	}
	if l.Tap != nil {
		w.other("Tap", l.Tap)
	}
	w.close('}')
}

func (w *writer) addrOn(a netstate.Addr) {
	w.open('{')
	w.set("Link", string(a.Link))
	w.prefix("Prefix", a.Prefix)
	w.flag("NoDAD", a.NoDAD)
	w.addr("Peer", a.Peer)
	w.flag("Settle", a.Settle)
	w.flag("Shared", a.Shared)
	w.close('}')
}

func (w *writer) route(r netstate.Route) {
	w.open('{')
	w.prefix("Dst", r.Dst)
	w.set("Link", string(r.Link))
	w.addr("Via", r.Via)
	w.addr("Src", r.Src)
	w.count("Table", r.Table)
	w.count("Metric", r.Metric)
	w.count("MTU", r.MTU)
	w.count("AdvMSS", r.AdvMSS)
	w.count("Scope", int(r.Scope))
	w.flag("OnLink", r.OnLink)
	w.count("Protocol", r.Protocol)
	w.flag("IfAbsent", r.IfAbsent)
	w.flag("Local", r.Local)
	w.close('}')
}

func (w *writer) sysctl(c netstate.Sysctl) {
	w.open('{')
	w.set("Path", c.Path)
	w.set("Value", c.Value)
	w.close('}')
}
