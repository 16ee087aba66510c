package dataplane

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
)

// vethInfoPeer is VETH_INFO_PEER (include/uapi/linux/veth.h).
const vethInfoPeer = 1

// errRace means that a link or table turned up between our look and our message:
// another attachment made the one both share, or a stranger took the name. The
// next look tells which.
var errRace = errors.New("somebody else made it meanwhile")

// createFlags makes a link and fails if the name is taken.
const createFlags = unix.NLM_F_CREATE | unix.NLM_F_EXCL

// addLink makes a link in its namespace at once, with all the kernel takes in
// the creating message, and marks it in a second one. Between the two the link
// is known as ours by its group.
func (s *session) addLink(v *view, l netstate.Link, f netstate.Fields) error {
	if l.Kind == netstate.KindTap {
		return s.addTap(v, l, f)
	}
	payload := []nl.NetlinkRequestData{head(0, l, f)}
	now := f
	if l.Kind == netstate.KindBridge {
		// A bridge whose MTU was set after creation keeps it; else ports change it
		// (BROPT_MTU_SET_BY_USER, net/bridge/br_device.c).
		now &^= netstate.FieldMTU
	}
	for _, a := range createAttrs(l, now) {
		payload = append(payload, a)
	}
	if f.Has(netstate.FieldMaster) {
		master, err := v.index(l.Master)
		if err != nil {
			return err
		}
		payload = append(payload, nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(master))))
		v.changed(l.Master) // a bridge without a MAC of its own takes a port's
	}
	maker, more, err := s.creation(v, l, f)
	if err != nil {
		return err
	}
	v.changed(l.Name)
	err = s.do(maker.conn, "create link", unix.RTM_NEWLINK, createFlags, append(payload, more...)...)
	if errors.Is(err, unix.EEXIST) {
		return errRace
	}
	if err != nil {
		return createError(l, err)
	}
	if err := s.complete(v, l, f&^netstate.FieldUp); err != nil {
		return err
	}
	if l.Veth != nil {
		other, peer, fields, err := s.peer(v, l)
		if err != nil {
			return err
		}
		other.changed(peer.Name)
		if err := s.complete(other, peer, fields); err != nil {
			return err
		}
	}
	if !f.Has(netstate.FieldMaster) {
		return nil
	}
	// Read again now: once links come up, the kernel is busy with them under the
	// lock that reading takes.
	_, err = v.index(l.Master)
	return err
}

// creation gives the namespace to send the creating message from and the
// attributes that depend on the kind.
func (s *session) creation(v *view, l netstate.Link, f netstate.Fields) (*view, []nl.NetlinkRequestData, error) {
	switch {
	case l.Kind == netstate.KindVeth && l.Veth != nil:
		info, err := s.vethInfo(v, l)
		if err != nil {
			return nil, nil, err
		}
		payload := []nl.NetlinkRequestData{info}
		for _, a := range oneQueue() {
			payload = append(payload, a)
		}
		return v, payload, nil
	case l.Kind == netstate.KindMacvlan && l.Macvlan != nil:
		return s.macvlanCreation(v, l, f)
	case l.Kind == netstate.KindBridge:
		return v, []nl.NetlinkRequestData{linkInfo(l, f)}, nil
	}
	return nil, nil, fmt.Errorf("link %s: cannot make one of type %q from what the plan says", l.Name, l.Kind)
}

// peer gives the other end of a veth pair, its namespace and what it is to have.
func (s *session) peer(v *view, l netstate.Link) (*view, netstate.Link, netstate.Fields, error) {
	other, err := s.at(l.Veth.PeerSide)
	if err != nil {
		return nil, netstate.Link{}, 0, err
	}
	peer, ok := find(s.want.At(other.side).Links, l.Veth.PeerName)
	if !ok {
		// The plan does not speak of it: it gets the mark and nothing else.
		peer = netstate.Link{
			Name: l.Veth.PeerName, Kind: netstate.KindVeth, Presence: netstate.Owned, Alias: l.Alias, Group: l.Group,
			Veth: &netstate.Veth{PeerSide: v.side, PeerName: l.Name},
		}
	}
	return other, peer, netstate.PeerFields(&s.want, other.side, peer), nil
}

// vethInfo describes the peer, which is made in its own namespace under its
// final name.
func (s *session) vethInfo(v *view, l netstate.Link) (*nl.RtAttr, error) {
	other, peer, f, err := s.peer(v, l)
	if err != nil {
		return nil, err
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	data := info.AddRtAttr(unix.IFLA_INFO_DATA, nil).AddRtAttr(vethInfoPeer, nil)
	// The kernel configures the peer before the two ends know each other, and
	// refuses to open it (ENOTCONN, veth_open): it comes up when it is marked.
	data.AddChild(head(0, peer, f&^netstate.FieldUp))
	for _, a := range append(createAttrs(peer, f), oneQueue()...) {
		data.AddChild(a)
	}
	if other != v {
		data.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(other.ns.FD())))
	}
	return info, nil
}

// oneQueue asks for one queue each way. The kernel uses no more of a veth unless
// someone says so by ethtool -L, but makes one for each processor the machine
// may have (veth_get_num_queues, drivers/net/veth.c), and takes half as long
// again for two.
func oneQueue() []*nl.RtAttr {
	return []*nl.RtAttr{
		nl.NewRtAttr(unix.IFLA_NUM_TX_QUEUES, nl.Uint32Attr(1)),
		nl.NewRtAttr(unix.IFLA_NUM_RX_QUEUES, nl.Uint32Attr(1)),
	}
}

// macvlanCreation sends from the namespace of the parent, whose index counts
// there, and names the namespace the link is for.
func (s *session) macvlanCreation(v *view, l netstate.Link, f netstate.Fields) (*view, []nl.NetlinkRequestData, error) {
	maker, err := s.at(l.Macvlan.ParentSide)
	if err != nil {
		return nil, nil, err
	}
	if _, ok := linux.MacvlanMode(l.Macvlan.Mode); !ok {
		return nil, nil, &hint.Error{
			Field: "mode", Value: l.Macvlan.Mode, Problem: "is no mode of macvlan",
			Remedy: "use bridge, private, vepa or passthru",
		}
	}
	parent, err := maker.index(l.Macvlan.Parent)
	if err != nil {
		return nil, nil, err
	}
	payload := []nl.NetlinkRequestData{nl.NewRtAttr(unix.IFLA_LINK, nl.Uint32Attr(uint32(parent))), linkInfo(l, f)}
	if maker != v {
		payload = append(payload, nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(v.ns.FD()))))
	}
	return maker, payload, nil
}

// complete gives a new link what the creating message could not.
func (s *session) complete(v *view, l netstate.Link, f netstate.Fields) error {
	late := f & (netstate.FieldAlias | netstate.FieldAddrGenMode | netstate.FieldPort | netstate.FieldUp)
	if late == 0 {
		return nil
	}
	payload := []nl.NetlinkRequestData{head(0, l, late), nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(string(l.Name)))}
	for _, a := range lateAttrs(l, late) {
		payload = append(payload, a)
	}
	if l.Kind == netstate.KindBridge && f.Has(netstate.FieldMTU) {
		payload = append(payload, nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(l.MTU))))
	}
	if f.Has(netstate.FieldPort) {
		payload = append(payload, portInfo(*l.Port))
	}
	// RTM_NEWLINK without NLM_F_CREATE changes; only it takes a port's settings.
	return s.do(v.conn, "mark link", unix.RTM_NEWLINK, 0, payload...)
}

// addTap makes a TAP and gives it everything before it becomes persistent.
func (s *session) addTap(v *view, l netstate.Link, f netstate.Fields) error {
	if l.Tap == nil {
		return fmt.Errorf("link %s: a TAP needs an owner", l.Name)
	}
	if err := s.step("create TAP"); err != nil {
		return err
	}
	v.changed(l.Name)
	return v.ns.Do(func() error {
		return linux.MakeTap(l.Name, *l.Tap, func() error { return s.setLink(v, l, f) })
	})
}

// setLink changes attributes of a link that is there.
func (s *session) setLink(v *view, l netstate.Link, f netstate.Fields) error {
	index, err := v.index(l.Name)
	if err != nil {
		return err
	}
	if f != netstate.FieldUp { // up or down, all else stays as it was read
		v.changed(l.Name)
	}
	payload := []nl.NetlinkRequestData{head(index, l, f)}
	for _, a := range createAttrs(l, f)[1:] { // without the name
		payload = append(payload, a)
	}
	for _, a := range lateAttrs(l, f) {
		payload = append(payload, a)
	}
	if f.Has(netstate.FieldMaster) {
		master, err := s.master(v, l)
		if err != nil {
			return err
		}
		payload = append(payload, master)
	}
	if f.Has(netstate.FieldBridge) || f.Has(netstate.FieldBCQueueLen) {
		payload = append(payload, linkInfo(l, f))
	}
	return s.do(v.conn, "set link", unix.RTM_NEWLINK, 0, payload...)
}

// master is IFLA_MASTER; index 0 takes the link out of its bridge.
func (s *session) master(v *view, l netstate.Link) (*nl.RtAttr, error) {
	index := 0
	if l.Master != "" {
		var err error
		if index, err = v.index(l.Master); err != nil {
			return nil, err
		}
		v.changed(l.Master)
	}
	return nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(index))), nil
}

// setPort puts a link into a bridge and gives the port its settings: two
// messages, for the kernel takes settings of a port that is one already.
func (s *session) setPort(v *view, l netstate.Link, f netstate.Fields) error {
	index, err := v.index(l.Name)
	if err != nil {
		return err
	}
	v.changed(l.Name)
	if f.Has(netstate.FieldMaster) {
		master, err := s.master(v, l)
		if err != nil {
			return err
		}
		if err := s.do(v.conn, "set master", unix.RTM_NEWLINK, 0, head(index, l, 0), master); err != nil {
			return err
		}
	}
	if !f.Has(netstate.FieldPort) {
		return nil
	}
	return s.do(v.conn, "set port", unix.RTM_NEWLINK, 0, head(index, l, 0), portInfo(*l.Port))
}

// createError explains why a link could not be made.
func createError(l netstate.Link, err error) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP) && l.Bridge != nil && l.Bridge.VLANFiltering != nil:
		return &hint.Error{
			Field: "vlan", Problem: "this kernel's bridges cannot filter VLANs", Err: err,
			Remedy: "use a kernel with CONFIG_BRIDGE_VLAN_FILTERING, or a bridge per VLAN",
		}
	case errors.Is(err, unix.EOPNOTSUPP):
		return linux.KindHint(l.Kind, err)
	case errors.Is(err, unix.EADDRINUSE) && l.Macvlan != nil:
		return &hint.Error{
			Field: "mac", Value: string(l.MAC), Problem: fmt.Sprintf("another link on %s has this address", l.Macvlan.Parent), Err: err,
			Remedy: "leave the MAC out, or choose one that is used only once",
		}
	case errors.Is(err, unix.EBUSY) && l.Macvlan != nil:
		return &hint.Error{
			Field: "master", Value: string(l.Macvlan.Parent), Problem: "is in use in a way that rules out another macvlan link", Err: err,
			Remedy: "a parent in a bridge, or with a passthru link, takes no macvlan links: choose another one",
		}
	case errors.Is(err, unix.EINVAL) && l.Macvlan != nil && l.Macvlan.Mode == "passthru":
		return &hint.Error{
			Field: "master", Value: string(l.Macvlan.Parent), Problem: "mode passthru needs a parent without other macvlan links", Err: err,
			Remedy: "choose another parent or another mode",
		}
	}
	return err
}
