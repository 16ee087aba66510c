// Package dataplane is the only writer of kernel network state: it observes
// what is there, lets netstate.Diff order the way to what is wanted, and walks
// it. Every call may be repeated after a crash at any point.
//
// It does not decide what should be there, keeps nothing on disk, and never
// changes or deletes what does not carry weft's mark, except the attributes of
// links a plan calls Existing or Shared, and the names Rename is told of.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
)

// rounds bounds how often Apply looks again after it has taken something away.
const rounds = 6

// Config says for whom and where a Dataplane works.
type Config struct {
	// Instance is the instance of weft whose marks are ours.
	Instance string
	// HostNS is the path of the namespace that plans call the host's; empty: the
	// one this process started in.
	HostNS string
	// NFT is the nft program; empty: "nft" from PATH.
	NFT string
}

// Dataplane writes the network state of one machine. It is safe for use by
// several goroutines as long as no two work on one sandbox.
type Dataplane struct {
	instance string
	nft      string
	hostNS   *linux.NS
	host     *linux.Conn
	remover  *remover

	// beforeStep, if set, is asked before each write to the kernel and stops the
	// run by its error. Only tests set it.
	beforeStep func(step string) error
}

// New opens the host's namespace.
func New(cfg Config) (*Dataplane, error) {
	path := cfg.HostNS
	if path == "" {
		path = "/proc/self/ns/net"
	}
	ns, err := linux.OpenNS(path)
	if err != nil {
		return nil, err
	}
	conn, err := linux.Dial(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	// Of its own: to delete links takes long, and others want to look meanwhile.
	deletes, err := linux.Dial(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(err, conn.Close(), ns.Close())
	}
	d := &Dataplane{instance: cfg.Instance, nft: cfg.NFT, hostNS: ns, host: conn}
	d.remover = &remover{conn: deletes, step: d.step}
	if d.nft == "" {
		d.nft = "nft"
	}
	return d, nil
}

// Close lets go of the host's namespace. What was applied stays.
func (d *Dataplane) Close() error {
	return errors.Join(d.remover.conn.Close(), d.host.Close(), d.hostNS.Close())
}

// Host is a connection in the host's namespace for others to read through, as
// long as the Dataplane is open.
func (d *Dataplane) Host() *linux.Conn { return d.host }

// Apply makes the namespaces of a sandbox as wanted: netns is the path of the
// Pod's, empty for a plan that touches the host only. Links, addresses, routes
// and tables that carry the plan's mark and are not wanted go. What the wanted
// links have is returned.
func (d *Dataplane) Apply(ctx context.Context, netns string, want netstate.Plan) (Facts, error) {
	return d.Replace(ctx, netns, netstate.Plan{Alias: want.Alias}, want)
}

// Replace is Apply for a plan that takes the place of another one: what has no
// mark of its own (rules, forwarding entries, addresses and routes on links of
// others) goes too if last wanted it and want does not.
func (d *Dataplane) Replace(ctx context.Context, netns string, last, want netstate.Plan) (Facts, error) {
	s, err := d.open(netns, last, want)
	if err != nil {
		return Facts{}, err
	}
	defer s.close()
	return s.replace(ctx)
}

// ReplaceIn is Replace for a Pod's namespace that is open. seen are links of the
// host as they were a moment ago, those with index 0 not there: nobody looks again
// unless the kernel says otherwise.
func (d *Dataplane) ReplaceIn(ctx context.Context, pod *linux.NS, last, want netstate.Plan, seen []linux.Link) (Facts, error) {
	s, err := d.openIn(pod, last, want)
	if err != nil {
		return Facts{}, err
	}
	defer s.close()
	for _, l := range seen {
		s.host.links[l.Name] = l
	}
	return s.replace(ctx)
}

func (s *session) replace(ctx context.Context) (Facts, error) {
	facts := Facts{}
	for range rounds {
		have, err := s.observe()
		if err != nil {
			return Facts{}, err
		}
		ops := netstate.Diff(have, s.want)
		for _, op := range ops {
			if v, err := s.at(op.Side); err == nil && op.Verb == netstate.SetTable {
				s.expectTables(v)
			}
		}
		n := disruptive(have, s.want, ops)
		if n > 0 {
			// The kernel may take more along than it is told to (routes and secondary
			// addresses go with an address): look again before building on it.
			ops = ops[:n]
		}
		facts.Ops += len(ops)
		err = s.run(ctx, have, ops)
		if err != nil && !errors.Is(err, errRace) {
			return Facts{}, err
		}
		if err == nil && n == 0 {
			return s.finish(ctx, facts)
		}
		s.forget()
	}
	return Facts{}, fmt.Errorf("apply plan: the namespace still differs after %d rounds; somebody else changes it", rounds)
}

// disruptive gives how many of the operations come before it is certain that
// what was observed of the rest still holds: up to the last one that takes
// something away or changes a link that was there before.
func disruptive(have, want netstate.Plan, ops []netstate.Op) int {
	n := 0
	for i, op := range ops {
		switch op.Verb {
		case netstate.SetLink, netstate.SetPort:
			name := want.At(op.Side).Links[op.Index].Name
			if _, there := find(have.At(op.Side).Links, name); there {
				n = i + 1
			}
		default:
			if op.Deletes() {
				n = i + 1
			}
		}
	}
	return n
}

// Observe reads back what both namespaces have of what the plan names and of
// what carries its mark, in the plan's own types.
func (d *Dataplane) Observe(_ context.Context, netns string, what netstate.Plan) (netstate.Plan, error) {
	s, err := d.open(netns, netstate.Plan{Alias: what.Alias}, what)
	if err != nil {
		return netstate.Plan{}, err
	}
	defer s.close()
	return s.observe()
}

// Check gives the operations that would make the namespaces as wanted. None
// means that they are.
func (d *Dataplane) Check(ctx context.Context, netns string, want netstate.Plan) ([]netstate.Op, error) {
	have, err := d.Observe(ctx, netns, want)
	if err != nil {
		return nil, err
	}
	return netstate.Diff(have, want), nil
}

// Delete removes what was made for a plan, on both sides. last is the plan as
// it was recorded; a record without links (only Alias set) makes it search
// the whole host for the mark. A namespace that is gone is no error: what it held is gone,
// what the host has left is removed. Shared links and addresses stay for Prune.
func (d *Dataplane) Delete(ctx context.Context, netns string, last netstate.Plan) error {
	s, err := d.open(netns, last, netstate.Plan{})
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, linux.ErrNotNS) {
		s, err = d.open("", last, netstate.Plan{})
	}
	if err != nil {
		return err
	}
	defer s.close()
	s.searchHost = len(s.last.Host.Links)+len(s.last.Pod.Links) == 0
	have, err := s.observe()
	if err != nil {
		return err
	}
	return s.run(ctx, have, netstate.Diff(have, s.want))
}
