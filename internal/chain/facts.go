package chain

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// look is one call's reading eyes in the namespaces of a sandbox.
type look struct {
	host    *linux.Conn
	podPath string
	pod     *linux.NS // nil until somebody looks there
	// seen are links of the host, for who changes something next.
	seen []linux.Link
	// often: the look is one of many, without the plugins that made what is there.
	often bool
}

// leaves says whether what the vendor of a primary network may have changed since
// is left alone.
func (l *look) leaves(a *record.Attachment) bool { return l.often && a.Default && !a.NativeMain }

func (e *Engine) look(podPath string) *look { return &look{host: e.Host, podPath: podPath} }

func (l *look) close() {
	if l.pod != nil {
		_ = l.pod.Close() // only gone through
	}
}

// namespace is the Pod's.
func (l *look) namespace() (*linux.NS, error) {
	if l.pod != nil {
		return l.pod, nil
	}
	ns, err := linux.OpenNS(l.podPath)
	if err != nil {
		return nil, err
	}
	l.pod = ns
	return ns, nil
}

func (l *look) conn(side netstate.Side) (*linux.Conn, error) {
	if side == netstate.Host {
		return l.host, nil
	}
	ns, err := l.namespace()
	if err != nil {
		return nil, err
	}
	return ns.Route()
}

// lastSeen gives the links of the host that were looked at since it was last asked.
func (l *look) lastSeen() []linux.Link {
	seen := l.seen
	l.seen = nil
	return seen
}

// facts answers what a native kind needs to know. made are links of the Pod
// that are planned and not there yet.
func (l *look) facts(queries []kind.Query, made []netstate.Link) (kind.Facts, error) {
	facts := kind.Facts{Links: map[kind.Query]kind.Link{}}
	for _, q := range queries {
		found, err := l.find(q, made)
		if errors.Is(err, linux.ErrNoLink) {
			if err := l.names(&facts, q.Side, made); err != nil {
				return facts, err
			}
			continue
		}
		if err != nil {
			return facts, fmt.Errorf("look at link %s: %w", q.Name, err)
		}
		facts.Links[q] = found
	}
	return facts, nil
}

func (l *look) find(q kind.Query, made []netstate.Link) (kind.Link, error) {
	if q.Side == netstate.Pod {
		for _, m := range made {
			if m.Name == q.Name {
				return kind.Link{Name: m.Name, Kind: m.Kind, MAC: m.MAC, MTU: m.MTU, Alias: m.Alias}, nil
			}
		}
	}
	conn, err := l.conn(q.Side)
	if err != nil {
		return kind.Link{}, err
	}
	var link linux.Link
	if q.Name != "" {
		link, err = conn.LinkByName(q.Name)
	} else {
		link, err = defaultLink(conn)
	}
	if err != nil {
		return kind.Link{}, err
	}
	if q.Side == netstate.Host {
		l.seen = append(l.seen, link)
	}
	out := kind.Link{Name: link.Name, Kind: link.Kind, MAC: link.MAC, MTU: link.MTU, Alias: link.Alias}
	if !q.Addrs {
		return out, nil
	}
	addrs, err := conn.Addrs(link.Index)
	if err != nil {
		return kind.Link{}, err
	}
	for _, a := range addrs {
		out.Addrs = append(out.Addrs, a.Prefix)
	}
	return out, nil
}

// defaultLink finds the link of the default route, IPv4 before IPv6, lowest
// metric first.
func defaultLink(conn *linux.Conn) (linux.Link, error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := conn.Routes(family, 0)
		if err != nil {
			return linux.Link{}, err
		}
		best := -1
		for i, r := range routes {
			if isDefaultRoute(r.Route) && r.Index != 0 && (best < 0 || r.Metric < routes[best].Metric) {
				best = i
			}
		}
		if best >= 0 {
			return conn.LinkByIndex(routes[best].Index)
		}
	}
	return linux.Link{}, linux.ErrNoLink
}

// names lists the links of a side, for the remedy of an error.
func (l *look) names(facts *kind.Facts, side netstate.Side, made []netstate.Link) error {
	if facts.Names[side] != nil {
		return nil
	}
	conn, err := l.conn(side)
	if err != nil {
		return err
	}
	links, err := conn.Links()
	if err != nil {
		return err
	}
	names := []netstate.IfName{}
	for _, link := range links {
		if side == netstate.Host && link.Master != 0 {
			continue // a bridge's port, such as each Pod's: nothing else can stand on it
		}
		names = append(names, link.Name)
	}
	if side == netstate.Pod {
		for _, m := range made {
			names = append(names, m.Name)
		}
	}
	if facts.Names == nil {
		facts.Names = map[netstate.Side][]netstate.IfName{}
	}
	facts.Names[side] = names
	return nil
}

// podLinks reads links of the Pod that somebody else made; those that are not
// there are left out.
func (l *look) podLinks(names []netstate.IfName) ([]record.Link, error) {
	conn, err := l.conn(netstate.Pod)
	if err != nil {
		return nil, err
	}
	var out []record.Link
	for _, name := range names {
		link, err := conn.LinkByName(name)
		if errors.Is(err, linux.ErrNoLink) {
			continue
		}
		if err != nil {
			return nil, err
		}
		addrs, err := lasting(conn, link)
		if err != nil {
			return nil, err
		}
		out = append(out, record.Link{
			Side: netstate.Pod, Name: link.Name, Index: link.Index, Kind: link.Kind, MAC: link.MAC, MTU: link.MTU, Alias: link.Alias,
			Up: link.Flags&unix.IFF_UP != 0, Addrs: addrs,
		})
	}
	return out, nil
}

// podDefaults reads the default routes of one link of the Pod, but for those of
// router advertisements: the kernel owns them.
func (l *look) podDefaults(name netstate.IfName) ([]netstate.Route, error) {
	conn, err := l.conn(netstate.Pod)
	if err != nil {
		return nil, err
	}
	link, err := conn.LinkByName(name)
	if errors.Is(err, linux.ErrNoLink) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []netstate.Route
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := conn.Routes(family, link.Index)
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			if isDefaultRoute(r.Route) && r.Protocol != unix.RTPROT_RA {
				r.Link = name
				out = append(out, r.Route)
			}
		}
	}
	return out, nil
}

// kernelFacts are those that do not change while the machine runs.
func kernelFacts() (noIPv6, optimisticDAD bool) {
	_, err := os.Stat("/proc/sys/net/ipv6")
	noIPv6 = errors.Is(err, os.ErrNotExist)
	_, err = os.Stat("/proc/sys/net/ipv6/conf/all/optimistic_dad")
	return noIPv6, err == nil
}

// isGone says whether an error means that there is no such namespace.
func isGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, linux.ErrNotNS)
}

// namespaceGone says whether the path leads to no network namespace any more.
func namespaceGone(path string) bool {
	ns, err := linux.OpenNS(path)
	if err == nil {
		_ = ns.Close() // only looked at
	}
	return isGone(err)
}
