package dataplane

import (
	"errors"
	"fmt"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
)

// session is one call's view of both namespaces of a sandbox.
type session struct {
	d          *Dataplane
	last, want netstate.Plan // normalized
	// scope holds the marks whose bearers are ours to change and delete here.
	scope map[string]bool
	// searchHost says that the record does not name our links on the host.
	searchHost bool
	host, pod  *view
	// opened is the Pod's namespace, if this session opened it.
	opened *linux.NS
	// oldSysctls are the values this call has overwritten.
	oldSysctls []SysctlFact
}

// view is one namespace as a session knows it.
type view struct {
	side netstate.Side
	ns   *linux.NS
	conn *linux.Conn
	// links caches what has been read, by name; a link known to be absent has
	// Index 0. complete says that every link of the namespace has been read.
	links    map[netstate.IfName]linux.Link
	complete bool
	// nft, if set, gives a nft that waits for the script of this namespace's tables.
	nft func() (*nftProgram, error)
}

// open prepares a session. Without a path there is no Pod side.
func (d *Dataplane) open(netns string, last, want netstate.Plan) (*session, error) {
	if netns == "" {
		return d.openIn(nil, last, want)
	}
	ns, err := linux.OpenNS(netns)
	if err != nil {
		return nil, err
	}
	s, err := d.openIn(ns, last, want)
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	s.opened = ns
	return s, nil
}

// openIn prepares a session with a Pod's namespace that stays its caller's; nil:
// there is no Pod side.
func (d *Dataplane) openIn(ns *linux.NS, last, want netstate.Plan) (*session, error) {
	s := &session{
		d: d, last: last.Normalize(), want: want.Normalize(), scope: map[string]bool{},
		host: &view{side: netstate.Host, ns: d.hostNS, conn: d.host, links: map[netstate.IfName]linux.Link{}},
	}
	for _, p := range []*netstate.Plan{&s.last, &s.want} {
		if p.Alias != "" {
			s.scope[p.Alias] = true
		}
		for _, side := range []netstate.Side{netstate.Host, netstate.Pod} {
			for _, l := range p.At(side).Links {
				if l.Presence == netstate.Owned && l.Alias != "" {
					s.scope[l.Alias] = true
				}
			}
		}
	}
	if err := s.validate(); err != nil {
		return nil, err
	}
	if ns == nil {
		return s, nil
	}
	conn, err := ns.Route()
	if err != nil {
		return nil, err
	}
	s.pod = &view{side: netstate.Pod, ns: ns, conn: conn, links: map[netstate.IfName]linux.Link{}}
	return s, nil
}

// validate refuses plans that could not be recognised or undone later.
func (s *session) validate() error {
	var errs []error
	for _, side := range []netstate.Side{netstate.Host, netstate.Pod} {
		for _, l := range s.want.At(side).Links {
			if l.Presence != netstate.Existing && l.Alias == "" {
				errs = append(errs, fmt.Errorf("link %s of the plan has no mark: set its alias or the plan's", l.Name))
			}
		}
		for _, t := range s.want.At(side).Tables {
			if t.Alias == "" {
				errs = append(errs, fmt.Errorf("table %s of the plan has no mark: set its alias or the plan's", t.Name))
			}
		}
	}
	return errors.Join(errs...)
}

func (s *session) close() {
	for _, v := range s.views() {
		if v.nft == nil {
			continue
		}
		if p, err := v.nft(); err == nil {
			p.abandon()
		}
	}
	if s.opened != nil {
		_ = s.opened.Close() // only gone through; the kernel has nothing left to tell
	}
}

// views gives the sides there are.
func (s *session) views() []*view {
	if s.pod == nil {
		return []*view{s.host}
	}
	return []*view{s.host, s.pod}
}

// at gives one side, or an error for a plan that needs a Pod without one.
func (s *session) at(side netstate.Side) (*view, error) {
	if side == netstate.Host {
		return s.host, nil
	}
	if s.pod == nil {
		return nil, errors.New("the plan is about a Pod's namespace, but none was given")
	}
	return s.pod, nil
}

// forget drops what was read.
func (s *session) forget() {
	for _, v := range s.views() {
		clear(v.links)
		v.complete = false
	}
}

// link looks a link up, in what has been read or in the kernel. The error is
// linux.ErrNoLink if there is none.
func (v *view) link(name netstate.IfName) (linux.Link, error) {
	l, known := v.links[name]
	switch {
	case known && l.Index != 0:
		return l, nil
	case known || v.complete:
		return linux.Link{}, linux.ErrNoLink
	}
	l, err := v.conn.LinkByName(name)
	if err != nil && !errors.Is(err, linux.ErrNoLink) {
		return linux.Link{}, err
	}
	v.links[name] = l
	return l, err
}

// byIndex looks a link up by index.
func (v *view) byIndex(index int) (linux.Link, error) {
	for _, l := range v.links {
		if l.Index == index {
			return l, nil
		}
	}
	if v.complete {
		return linux.Link{}, linux.ErrNoLink
	}
	l, err := v.conn.LinkByIndex(index)
	if err == nil {
		v.links[l.Name] = l
	}
	return l, err
}

// readAll reads every link of the namespace.
func (v *view) readAll() error {
	links, err := v.conn.Links()
	if err != nil {
		return err
	}
	clear(v.links)
	for _, l := range links {
		v.links[l.Name] = l
	}
	v.complete = true
	return nil
}

// changed drops what was read of one link, because it is about to change.
func (v *view) changed(name netstate.IfName) {
	delete(v.links, name)
	v.complete = false
}
