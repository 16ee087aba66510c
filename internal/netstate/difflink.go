package netstate

import (
	"slices"
	"strings"
)

// links finds what happens to the links of one side.
func (d *differ) links(side Side) {
	have, want := d.have.At(side), d.want.At(side)
	for i, h := range have.Links {
		_, w := want.lookup(h.Name)
		if h.Presence != Owned || w != nil && sameMake(h, *w) {
			continue
		}
		d.remade[end{side, h.Name}] = true
		if d.peerGoes(side, h) {
			continue // the other end takes this one along
		}
		d.add(side, DelLink, i, "ip link del", string(h.Name))
	}
	for _, i := range creationOrder(want.Links) {
		w := want.Links[i]
		h := d.kept(side, w.Name)
		switch {
		case h != nil:
			d.change(side, i, *h)
		case w.Presence != Existing:
			d.create(side, i)
		default:
			// Nobody but its maker can make it: the run will say that it is missing.
			d.ops = append(d.ops, Op{Side: side, Verb: SetLink, Index: i, Text: "ip link set " + w.String() + ", which is not there"})
		}
	}
}

// peerGoes says whether the other end of a veth pair is already being deleted.
func (d *differ) peerGoes(side Side, h Link) bool {
	return h.Veth != nil && slices.ContainsFunc(d.ops, func(o Op) bool {
		if o.Verb != DelLink || o.Side != h.Veth.PeerSide {
			return false
		}
		peer := d.have.At(o.Side).Links[o.Index]
		return peer.Name == h.Veth.PeerName && peer.Veth != nil &&
			*peer.Veth == Veth{PeerSide: side, PeerName: h.Name}
	})
}

// sameMake says whether the link can be changed into the wanted one; if not, it
// must be made anew.
func sameMake(h, w Link) bool {
	if w.Presence == Existing {
		return true
	}
	if w.Kind != "" && h.Kind != w.Kind {
		return false
	}
	if w.Veth != nil && (h.Veth == nil || *h.Veth != *w.Veth) {
		return false
	}
	if w.Tap != nil && (h.Tap == nil || *h.Tap != *w.Tap) {
		return false
	}
	if m := w.Macvlan; m != nil {
		// The mode is not changed in place: the kernel refuses to or from passthru.
		return h.Macvlan != nil && h.Macvlan.Mode == m.Mode &&
			h.Macvlan.ParentSide == m.ParentSide && h.Macvlan.Parent == m.Parent
	}
	return true
}

// creationOrder puts what others stand on first.
func creationOrder(links []Link) []int {
	rank := map[Kind]int{KindBridge: 0, KindVeth: 1, KindTap: 2, KindMacvlan: 3}
	order := make([]int, len(links))
	for i := range links {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return rank[links[a].Kind] - rank[links[b].Kind] })
	return order
}

// create makes a link, and says what is still to be done to it.
func (d *differ) create(side Side, index int) {
	w := d.want.At(side).Links[index]
	now := setFields(w, false)
	if d.upLater(side, w) {
		now &^= FieldUp
	}
	if w.Kind == KindTap {
		now &^= FieldPort
	}
	if !d.carries(side, w) {
		// The other end's operation makes it, and sets all the kernel takes for a peer.
		now &^= FieldMaster | FieldPort
	} else {
		d.ops = append(d.ops, Op{Side: side, Verb: AddLink, Index: index, Fields: now, Text: "ip link add " + w.only(now).made(w)})
	}
	d.set(side, index, setFields(w, false)&^now)
}

// carries says whether w's operation is the one that makes the link: of a veth
// pair that is the host's end, or the one whose name comes first.
func (d *differ) carries(side Side, w Link) bool {
	if w.Veth == nil {
		return true
	}
	_, peer := d.want.At(w.Veth.PeerSide).lookup(w.Veth.PeerName)
	if peer == nil || peer.Presence == Existing {
		return true
	}
	if side != w.Veth.PeerSide {
		return side == Host
	}
	return w.Name < peer.Name
}

// PeerFields gives what an AddLink of one end of a veth pair gives the other
// end w, which is on side.
func PeerFields(want *Plan, side Side, w Link) Fields {
	d := differ{want: *want}
	now := setFields(w, false) &^ (FieldMaster | FieldPort)
	if d.upLater(side, w) {
		now &^= FieldUp
	}
	return now
}

// upLater says whether something must be set before the link may come up.
func (d *differ) upLater(side Side, w Link) bool {
	return w.NoIPv6LinkLocal || slices.ContainsFunc(d.want.At(side).Sysctls, func(c Sysctl) bool {
		link, ok := SysctlLink(c.Path)
		return ok && link == w.Name
	})
}

// change finds what is different on a link that stays.
func (d *differ) change(side Side, index int, h Link) {
	w := d.want.At(side).Links[index]
	strangers := w.Presence == Shared && h.Presence == Existing
	f := changed(h, w)
	if w.Master != "" && d.remade[end{side, w.Master}] {
		f |= FieldMaster | setFields(w, false)&FieldPort
	}
	if w.Presence == Shared {
		// Those who share it may want different ones: the first one's stay, and a
		// bridge's MTU follows its ports.
		f &^= FieldMAC | FieldMTU | FieldTxQueueLen
	}
	if strangers {
		f &= FieldPromisc | FieldAllMulticast | FieldUp
	}
	d.set(side, index, f)
}

// set appends the operations that set the given fields.
func (d *differ) set(side Side, index int, f Fields) {
	w := d.want.At(side).Links[index]
	attrs := f &^ (FieldMaster | FieldPort | FieldUp)
	if f.Has(FieldUp) && !w.Up {
		attrs |= FieldUp // taking it down comes with the attributes
		f &^= FieldUp
	}
	if attrs != 0 {
		d.field(side, SetLink, index, attrs, "ip link set")
	}
	if port := f & (FieldMaster | FieldPort); port != 0 {
		d.field(side, SetPort, index, port, "bridge link set")
	}
	if f.Has(FieldUp) {
		d.field(side, SetUp, index, FieldUp, "ip link set")
	}
}

func (d *differ) field(side Side, verb Verb, index int, f Fields, text string) {
	w := d.want.At(side).Links[index]
	text += " " + w.only(f).String()
	if f.Has(FieldMaster) && w.Master == "" {
		text += " nomaster"
	}
	if f.Has(FieldUp) && !w.Up {
		text += " down"
	}
	d.ops = append(d.ops, Op{Side: side, Verb: verb, Index: index, Fields: f, Text: text})
}

// setFields gives the attributes a link asks for. all includes those whose zero
// value is a wish too, on a link that is ours to the last bit.
func setFields(w Link, all bool) Fields {
	var f Fields
	set := func(field Fields, wish bool) {
		if wish {
			f |= field
		}
	}
	set(FieldMAC, w.MAC != "")
	set(FieldMTU, w.MTU != 0)
	set(FieldTxQueueLen, w.TxQueueLen != 0)
	set(FieldPromisc, w.Promisc != nil)
	set(FieldAllMulticast, w.AllMulticast != nil)
	set(FieldMaster, w.Master != "" || all)
	set(FieldPort, w.Port != nil && *w.Port != Port{})
	set(FieldAddrGenMode, w.NoIPv6LinkLocal)
	set(FieldGroup, w.Presence != Existing && w.Group != 0)
	set(FieldAlias, w.Presence != Existing && w.Alias != "")
	set(FieldBridge, w.Bridge != nil && *w.Bridge != Bridge{})
	set(FieldBCQueueLen, w.Macvlan != nil && w.Macvlan.BCQueueLen != 0)
	set(FieldUp, w.Up || all)
	return f
}

// changed gives the attributes that w asks for and h has not.
func changed(h, w Link) Fields {
	f := setFields(w, w.Presence == Owned)
	keep := func(field Fields, same bool) {
		if same {
			f &^= field
		}
	}
	keep(FieldMAC, h.MAC == w.MAC)
	keep(FieldMTU, h.MTU == w.MTU)
	keep(FieldTxQueueLen, h.TxQueueLen == w.TxQueueLen)
	keep(FieldPromisc, same(h.Promisc, w.Promisc))
	keep(FieldAllMulticast, same(h.AllMulticast, w.AllMulticast))
	keep(FieldMaster, h.Master == w.Master)
	keep(FieldPort, h.Master == w.Master && samePort(h.Port, w.Port))
	keep(FieldAddrGenMode, h.NoIPv6LinkLocal == w.NoIPv6LinkLocal)
	keep(FieldGroup, h.Group == w.Group)
	keep(FieldAlias, h.Alias == w.Alias)
	keep(FieldBridge, sameBridge(h.Bridge, w.Bridge))
	keep(FieldBCQueueLen, h.Macvlan != nil && w.Macvlan != nil && h.Macvlan.BCQueueLen == w.Macvlan.BCQueueLen)
	keep(FieldUp, h.Up == w.Up)
	return f
}

// same says whether have meets a wish; no wish is always met.
func same(have, want *bool) bool {
	return want == nil || have != nil && *have == *want
}

func samePort(h, w *Port) bool {
	if w == nil {
		return true
	}
	if h == nil {
		h = &Port{}
	}
	return same(h.Hairpin, w.Hairpin) && same(h.Isolated, w.Isolated) && same(h.Learning, w.Learning)
}

func sameBridge(h, w *Bridge) bool {
	if w == nil {
		return true
	}
	if h == nil {
		h = &Bridge{}
	}
	return same(h.VLANFiltering, w.VLANFiltering) && same(h.STP, w.STP) &&
		same(h.MulticastSnooping, w.MulticastSnooping) && (w.AgeingTime == 0 || h.AgeingTime == w.AgeingTime)
}

// only gives the link with nothing but its name and the given attributes.
func (l Link) only(f Fields) Link {
	o := Link{Name: l.Name}
	pick(f, FieldMAC, &o.MAC, l.MAC)
	pick(f, FieldMTU, &o.MTU, l.MTU)
	pick(f, FieldTxQueueLen, &o.TxQueueLen, l.TxQueueLen)
	pick(f, FieldPromisc, &o.Promisc, l.Promisc)
	pick(f, FieldAllMulticast, &o.AllMulticast, l.AllMulticast)
	pick(f, FieldMaster, &o.Master, l.Master)
	pick(f, FieldPort, &o.Port, l.Port)
	pick(f, FieldAddrGenMode, &o.NoIPv6LinkLocal, l.NoIPv6LinkLocal)
	pick(f, FieldGroup, &o.Group, l.Group)
	pick(f, FieldAlias, &o.Alias, l.Alias)
	pick(f, FieldBridge, &o.Bridge, l.Bridge)
	pick(f, FieldUp, &o.Up, l.Up)
	if f.Has(FieldBCQueueLen) {
		o.Macvlan = l.Macvlan
	}
	return o
}

func pick[T any](f, field Fields, to *T, from T) {
	if f.Has(field) {
		*to = from
	}
}

// made gives the text of the creation of w with the attributes in l.
func (l Link) made(w Link) string {
	l.Kind, l.Veth, l.Macvlan, l.Tap = w.Kind, w.Veth, w.Macvlan, w.Tap
	return strings.TrimSpace(l.String())
}
