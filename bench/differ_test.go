package bench

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/test/need"
)

// sameCase is one config given to both.
type sameCase struct {
	name, conf, args string
	// prepare is run in the host's namespace of both worlds first: one `ip`
	// command a line.
	prepare []string
	// keep are MAC addresses that must be the same, because somebody chose them.
	keep  []string
	known []known
}

// known is a difference on purpose: lines only weft or only the reference has
// after ADD, and, if it lasts, after DEL.
type known struct {
	why          string
	ours, theirs []string
	lasts        bool
}

const (
	v4    = `[{"subnet": "10.77.0.0/24"}]`
	v6    = `[{"subnet": "fd77::/64"}]`
	pool  = `"ipam": {"type": "host-local", "dataDir": "DATADIR", "ranges": [` + v4 + `]}`
	dual  = `"ipam": {"type": "host-local", "dataDir": "DATADIR", "ranges": [` + v4 + `, ` + v6 + `], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "198.51.100.0/24", "gw": "10.77.0.9"}, {"dst": "fd99::/64"}, {"dst": "203.0.113.0/24", "priority": 50, "table": 123}, {"dst": "203.0.113.0/25", "scope": 253, "gw": "0.0.0.0"}]}`
	fixed = `"ipam": {"type": "static", "addresses": [{"address": "10.77.0.5/24", "gateway": "10.77.0.254"}, {"address": "fd77::5/64"}], "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.77.0.53"], "search": ["x.example"]}}`
)

var sameCases = []sameCase{
	{name: "bridge of layer 2", conf: `{"type": "bridge", "bridge": "br0"}`},
	{name: "bridge plain", conf: `{"type": "bridge", "bridge": "br0", ` + pool + `}`},
	{name: "bridge default name", conf: `{"type": "bridge", ` + pool + `}`},
	{name: "bridge gateway, masquerade", conf: `{"type": "bridge", "bridge": "br0", "isGateway": true, "ipMasq": true, ` + pool + `}`},
	{name: "bridge default gateway dual stack", conf: `{"type": "bridge", "bridge": "br0", "isDefaultGateway": true, "ipam": {"type": "host-local", "dataDir": "DATADIR", "ranges": [` + v4 + `, ` + v6 + `]}}`},
	{name: "bridge hairpin", conf: `{"type": "bridge", "bridge": "br0", "hairpinMode": true, ` + pool + `}`},
	{name: "bridge promiscuous", conf: `{"type": "bridge", "bridge": "br0", "promiscMode": true, ` + pool + `}`},
	{name: "bridge mtu", conf: `{"type": "bridge", "bridge": "br0", "mtu": 1400, "isGateway": true, ` + pool + `}`},
	{name: "bridge mac by args", conf: `{"type": "bridge", "bridge": "br0", "args": {"cni": {"mac": "02:00:00:00:00:11"}}, ` + pool + `}`, args: "IgnoreUnknown=1;MAC=02:00:00:00:00:22", keep: []string{"02:00:00:00:00:11"}},
	{name: "bridge mac and ip by CNI_ARGS", conf: `{"type": "bridge", "bridge": "br0", ` + pool + `}`, args: "IgnoreUnknown=1;MAC=02:00:00:00:00:22;IP=10.77.0.88", keep: []string{"02:00:00:00:00:22"}},
	{name: "bridge mac and ips by capability", conf: `{"type": "bridge", "bridge": "br0", "runtimeConfig": {"mac": "02:00:00:00:00:33", "ips": ["10.77.0.99/24", "fd77::99"]}, ` + dual + `}`, keep: []string{"02:00:00:00:00:33"}, args: ""},
	{name: "bridge port isolation", conf: `{"type": "bridge", "bridge": "br0", "portIsolation": true, ` + pool + `}`},
	{name: "bridge disabled container interface", conf: `{"type": "bridge", "bridge": "br0", "disableContainerInterface": true}`, known: []known{{
		why:    "the reference lets the bridge come up before its first port, so that it runs for a moment and takes a link-local address",
		theirs: []string{"host addr fe80::<mac>/64 dev br0 scope link tentative false"}, lasts: true,
	}}},
	{name: "bridge enabledad", conf: `{"type": "bridge", "bridge": "br0", "enabledad": true, ` + dual + `}`},
	{name: "bridge routes", conf: `{"type": "bridge", "bridge": "br0", "dns": {"nameservers": ["10.77.0.1"]}, ` + dual + `}`},
	{name: "bridge static", conf: `{"type": "bridge", "bridge": "br0", "isGateway": true, ` + fixed + `}`},
	{name: "bridge static by capability", conf: `{"type": "bridge", "bridge": "br0", "runtimeConfig": {"ips": ["10.77.0.6/24"]}, ` + fixed + `}`},
	{name: "bridge that exists", conf: `{"type": "bridge", "bridge": "br0", "mtu": 1400, "isGateway": true, ` + pool + `}`, prepare: []string{"link add br0 address 02:00:00:00:00:b0 type bridge", "addr add 10.77.0.1/24 dev br0"}, keep: []string{"02:00:00:00:00:b0"}, known: []known{strangersRA}},
	{name: "bridge that exists, address forced", conf: `{"type": "bridge", "bridge": "br0", "isGateway": true, "forceAddress": true, ` + pool + `}`, prepare: []string{"link add br0 address 02:00:00:00:00:b0 type bridge", "addr add 10.66.0.1/24 dev br0"}, keep: []string{"02:00:00:00:00:b0"}, known: []known{strangersRA}},
	{
		name: "bridge route mtu", conf: `{"type": "bridge", "bridge": "br0", "ipam": {"type": "host-local", "dataDir": "DATADIR", "ranges": [` + v4 + `], "routes": [{"dst": "0.0.0.0/0", "mtu": 1300}]}}`,
		known: []known{{
			why:    "the reference writes a route's mtu and advmss into its result and not into the kernel",
			ours:   []string{"pod route default via 10.77.0.1 dev net1 scope global metric 0 table main [{1300 0}]"},
			theirs: []string{"pod route default via 10.77.0.1 dev net1 scope global metric 0 table main []"},
		}},
	},
	{name: "macvlan of layer 2", conf: `{"type": "macvlan", "master": "eth0"}`},
	{name: "macvlan of the default route", conf: `{"type": "macvlan", ` + pool + `}`},
	{name: "macvlan bridge", conf: `{"type": "macvlan", "master": "eth0", "mode": "bridge", ` + pool + `}`},
	{name: "macvlan private", conf: `{"type": "macvlan", "master": "eth0", "mode": "private", ` + pool + `}`},
	{name: "macvlan vepa", conf: `{"type": "macvlan", "master": "eth0", "mode": "vepa", ` + pool + `}`},
	{name: "macvlan passthru", conf: `{"type": "macvlan", "master": "eth0", "mode": "passthru", ` + pool + `}`, keep: []string{"02:00:00:00:00:e0"}},
	{name: "macvlan mtu and queue", conf: `{"type": "macvlan", "master": "eth0", "mtu": 1400, "bcqueuelen": 500, ` + pool + `}`},
	{name: "macvlan mac", conf: `{"type": "macvlan", "master": "eth0", "mac": "02:00:00:00:00:44", ` + pool + `}`, keep: []string{"02:00:00:00:00:44"}},
	{name: "macvlan mac by capability", conf: `{"type": "macvlan", "master": "eth0", "mac": "02:00:00:00:00:44", "runtimeConfig": {"mac": "02:00:00:00:00:55"}, ` + pool + `}`, keep: []string{"02:00:00:00:00:55"}},
	{name: "macvlan dual stack and routes", conf: `{"type": "macvlan", "master": "eth0", "dns": {"domain": "x.example"}, ` + dual + `}`},
	{name: "macvlan static", conf: `{"type": "macvlan", "master": "eth0", ` + fixed + `}`, known: []known{{
		why:  "the reference macvlan drops the DNS of its IPAM, the reference bridge keeps it",
		ours: []string{`result  "dns": {`, `result   "nameservers": [`, `result    "10.77.0.53"`, "result   ],", `result   "search": [`, `result    "x.example"`, "result   ]", "result  },"},
	}}},
}

// strangersRA: weft changes no setting of a link it did not make.
var strangersRA = known{
	why:    "the reference stops a bridge that somebody else made from taking router advertisements, which may be the host's own uplink",
	ours:   []string{"host sysctl net.ipv6.conf.br0.accept_ra = 1"},
	theirs: []string{"host sysctl net.ipv6.conf.br0.accept_ra = 0"},
	lasts:  true,
}

func TestSameAsReference(t *testing.T) {
	need.Root(t)
	dir := reference(t)
	for _, c := range sameCases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			theirs, ours := c.place(t), c.place(t)

			add := call{command: "ADD", sandbox: "sb1", netns: theirs.pod.Path(), ifName: "net1", args: c.args, conf: c.config(t.TempDir())}
			raw, err := add.exec(ctx, theirs.host, dir)
			if err != nil {
				t.Fatal(err)
			}
			n := newNative(t, ours.host)
			own := add
			own.netns = ours.pod.Path()
			made, err := n.add(ctx, own)
			if err != nil {
				t.Fatal(err)
			}
			usable(t, "weft", ours.pod)
			c.compare(t, "after ADD",
				func() []string {
					return append(cniResult(t, raw, theirs.pod.Path(), c.keep...), theirs.state(t, c.keep)...)
				},
				func() []string {
					return append(cniResult(t, made.result(ours.pod.Path()), ours.pod.Path(), c.keep...), ours.state(t, c.keep)...)
				})
			if ops, err := n.plane.Check(ctx, own.netns, made.plan); err != nil || len(ops) > 0 {
				t.Errorf("CHECK after ADD: %v %v", ops, err)
			}

			add.command = "DEL"
			if _, err := add.exec(ctx, theirs.host, dir); err != nil {
				t.Fatal(err)
			}
			if err := n.del(ctx, own, made); err != nil {
				t.Fatal(err)
			}
			c.compare(t, afterDEL,
				func() []string { return theirs.state(t, c.keep) }, func() []string { return emptied(ours.state(t, c.keep)) })
		})
	}
}

// emptied forgives a difference on purpose: a bridge that lost its last port
// keeps the MTU of its network with weft, and falls back to 1500 with the
// reference plugin, which never sets it on the bridge itself.
func emptied(lines []string) []string {
	for i, line := range lines {
		if strings.HasPrefix(line, "host link br0 kind bridge mtu 1400 ") {
			lines[i] = strings.Replace(line, "mtu 1400", "mtu 1500", 1)
		}
	}
	return lines
}

// config completes a config with what every one has.
func (c sameCase) config(dataDir string) []byte {
	conf := strings.Replace(c.conf, "{", `{"cniVersion": "1.0.0", "name": "lab", `, 1)
	return []byte(strings.ReplaceAll(conf, "DATADIR", dataDir))
}

// place is a host with one Pod.
type place struct {
	host, pod *linux.NS
}

// place makes the world of one run.
func (c sameCase) place(t *testing.T) place {
	t.Helper()
	w := newWorld(t)
	for _, line := range c.prepare {
		run(t, w.host, "ip", strings.Fields(line)...)
	}
	return place{w.host, w.pod(t)}
}

func (p place) state(t *testing.T, keep []string) []string {
	t.Helper()
	return append(view(t, "host", p.host, keep...), view(t, "pod", p.pod, keep...)...)
}

// settleTime is how long the kernel may take to bring links up or down
// (linkwatch, up to 1 s) and to end duplicate address detection (2 s).
const settleTime = 10 * time.Second

const afterDEL = "after DEL"

// compare looks at both, without their known differences, until they are the
// same or time is up. A known difference that is not there fails as well.
func (c sameCase) compare(t *testing.T, when string, theirs, ours func() []string) {
	t.Helper()
	deadline := time.Now().Add(settleTime)
	for {
		reference, weft := theirs(), ours()
		var missing []string
		for _, k := range c.known {
			if when == afterDEL && !k.lasts {
				continue
			}
			for _, line := range k.theirs {
				reference, missing = without(reference, line, missing)
			}
			for _, line := range k.ours {
				weft, missing = without(weft, line, missing)
			}
		}
		diff := cmp.Diff(reference, weft)
		if diff == "" && len(missing) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s (-reference +weft):\n%s\nknown differences that are not there: %q", when, diff, missing)
			return
		}
	}
}

// without takes the first such line out, or adds it to those that are missing.
func without(lines []string, line string, missing []string) (rest, more []string) {
	i := slices.Index(lines, line)
	if i < 0 {
		return lines, append(missing, line)
	}
	return slices.Delete(lines, i, i+1), missing
}
