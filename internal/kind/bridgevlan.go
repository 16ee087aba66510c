package kind

import (
	"errors"
	"fmt"
	"slices"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
)

// vlanTrunk is one entry of vlanTrunk: a range, a single id, or both.
type vlanTrunk struct {
	MinID *int `json:"minID"`
	MaxID *int `json:"maxID"`
	ID    *int `json:"id"`
}

// maxVLAN is the last VLAN id (IEEE 802.1Q, table 9-2; 4095 is reserved).
const maxVLAN = 4094

// defaultVLAN is the PVID a VLAN-filtering bridge gives a new port
// (default_pvid, net/bridge/br_vlan.c).
const defaultVLAN = 1

// portVLANs gives the VLANs of the Pod's port. The access VLAN is untagged and
// the PVID; with a trunk alone that is VLAN 1. The default VLAN goes, unless
// preserveDefaultVlan keeps it as an untagged one.
func (b rawBridge) portVLANs() (*netstate.PortVLANs, error) {
	var errs []error
	if b.VLAN < 0 || b.VLAN > maxVLAN {
		errs = append(errs, vlanError("vlan", b.VLAN, 0))
	}
	tagged := map[int]bool{}
	for i, t := range b.VLANTrunk {
		errs = append(errs, t.collect(fmt.Sprintf("vlanTrunk[%d]", i), tagged))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if b.VLAN == 0 && b.VLANTrunk == nil {
		return nil, nil
	}
	vlans := &netstate.PortVLANs{PVID: uint16(b.VLAN)} // 0 to 4094, checked above
	if b.VLAN == 0 {
		vlans.PVID = defaultVLAN
	}
	if b.PreserveDefaultVLAN && vlans.PVID != defaultVLAN {
		vlans.Untagged = []uint16{defaultVLAN}
	}
	for id := range tagged {
		if id != int(vlans.PVID) {
			vlans.Tagged = append(vlans.Tagged, uint16(id)) // as above
		}
	}
	slices.Sort(vlans.Tagged)
	return vlans, nil
}

func (t vlanTrunk) collect(field string, into map[int]bool) error {
	if (t.MinID == nil) != (t.MaxID == nil) {
		return &hint.Error{
			Field: field, Problem: "has only one of minID and maxID", Remedy: "give both, or a single id",
		}
	}
	var errs []error
	check := func(key string, id *int) {
		if id != nil && (*id < 1 || *id > maxVLAN) {
			errs = append(errs, vlanError(field+"."+key, *id, 1))
		}
	}
	check("minID", t.MinID)
	check("maxID", t.MaxID)
	check("id", t.ID)
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	if t.MinID != nil {
		if *t.MaxID < *t.MinID {
			return &hint.Error{
				Field: field + ".maxID", Value: fmt.Sprint(*t.MaxID), Problem: fmt.Sprintf("is less than minID %d", *t.MinID),
				Remedy: "swap the two",
			}
		}
		for id := *t.MinID; id <= *t.MaxID; id++ {
			into[id] = true
		}
	}
	if t.ID != nil {
		into[*t.ID] = true
	}
	return nil
}

func vlanError(field string, id, least int) error {
	return &hint.Error{
		Field: field, Value: fmt.Sprint(id), Problem: "is no VLAN id", Remedy: fmt.Sprintf("use %d to %d", least, maxVLAN),
	}
}

// vlanLink names the link that carries the gateway's address of a VLAN.
func (p *bridgePlan) vlanLink() netstate.IfName {
	return netstate.IfName(fmt.Sprintf("%s.%d", p.conf.name, p.conf.raw.VLAN))
}

// vlanGateway plans a veth pair within the host: one end is a port of the
// bridge in the VLAN, the other, BRIDGE.VLAN, carries the gateway's address.
func (p *bridgePlan) vlanGateway() netstate.IfName {
	r, name := p.req, p.vlanLink()
	seed := []string{"vlan", r.Machine, r.Instance, string(name)}
	port := linkName("vlan", r.Instance, string(name))
	vlans := netstate.PortVLANs{PVID: p.conf.vlans.PVID, Untagged: p.conf.vlans.Untagged}
	common := netstate.Link{Kind: netstate.KindVeth, Presence: netstate.Shared, Alias: r.SharedAlias, Up: true}
	gw, peer := common, common
	gw.Name, gw.MAC = name, madeUpMAC(append(seed, "gateway")...)
	gw.Veth = &netstate.Veth{PeerSide: netstate.Host, PeerName: port}
	peer.Name, peer.MAC = port, madeUpMAC(append(seed, "port")...)
	peer.Master, peer.Port = p.conf.name, &netstate.Port{VLANs: &vlans}
	peer.Veth = &netstate.Veth{PeerSide: netstate.Host, PeerName: name}
	p.host().Links = append(p.host().Links, gw, peer)
	return name
}
