package dhcp

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/weftnet/weft/internal/frame"
	"github.com/weftnet/weft/internal/vmnet"
)

// Ports of DHCPv4, RFC 2131 section 4.1.
const (
	serverPort4 = 67
	clientPort4 = 68
)

// Sizes in bytes, RFC 2131 section 2 and RFC 1542 section 2.1.
const (
	headerLen4 = 236
	minPayload = 300
	// minMaxSize is the IP datagram every client takes; option 57 raises it.
	minMaxSize = 576
	// maxMaxSize is what fits into a frame on every link.
	maxMaxSize = 1500
	ipUDPLen   = 28
)

// magic starts the options, RFC 2131 section 3.
var magic = [4]byte{99, 130, 83, 99}

// broadcastFlag asks for a broadcast answer, RFC 2131 section 2.
const broadcastFlag = 0x8000

var broadcast4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Answer4 is what a DHCPv4 message is met with.
type Answer4 struct {
	// Type of the reply; dhcpv4.MessageTypeNone: silence.
	Type dhcpv4.MessageType
	// Requested is the address the client asked for or holds; zero: none.
	Requested netip.Addr
	// Given is the address the reply assigns; zero: none.
	Given netip.Addr
	// Payload is the reply as the UDP payload; nil: silence.
	Payload []byte
	// Dst and DstMAC are where it goes.
	Dst    netip.AddrPort
	DstMAC frame.MAC
	// Reason says why, if the answer is not the plain yes.
	Reason string
	// Event is what this tells of the lease; "": nothing.
	Event EventKind
	// Dropped are codes of options left out because the client takes no longer
	// message.
	Dropped []uint8
}

// silent is the answer that is none.
func silent(reason string, args ...any) Answer4 {
	return Answer4{Reason: fmt.Sprintf(reason, args...)}
}

// Reply4 answers one message of a client according to lease. It is pure.
//
// The parameter request list (option 55) does not choose options: all that is
// configured is sent, as an administrator's choice for this client (RFC 2131
// section 4.3.1), because clients use much they never list (udhcpc hands every
// option to its script, no client lists private ones). It decides what stays
// if not everything fits into what the client takes (option 57).
func Reply4(lease vmnet.Lease4, req *dhcpv4.DHCPv4) Answer4 {
	client, reason := client4(lease, req)
	if reason != "" {
		return silent("%s", reason)
	}
	requested := requested4(req)
	answer := decide4(lease, req, requested)
	answer.Requested = requested
	if answer.Type == dhcpv4.MessageTypeNone {
		return answer
	}
	return build4(lease, req, answer, client)
}

// client4 gives the client's link-layer address, or why it is not served.
func client4(lease vmnet.Lease4, req *dhcpv4.DHCPv4) (frame.MAC, string) {
	mac, ok := frame.ParseMAC(req.ClientHWAddr)
	relayed := req.GatewayIPAddr != nil && !req.GatewayIPAddr.IsUnspecified()
	switch {
	case req.OpCode != dhcpv4.OpcodeBootRequest:
		return mac, "not a request"
	case req.HWType != 1 || !ok || !mac.Unicast():
		return mac, "client has no Ethernet address"
	case relayed:
		return mac, "relayed by " + req.GatewayIPAddr.String()
	case lease.MAC != "" && mac.String() != string(lease.MAC):
		return mac, fmt.Sprintf("client is %s, the NIC's MAC is %s", mac, lease.MAC)
	case len(req.Options[opt4MessageType]) != 1:
		return mac, "BOOTP is not served"
	}
	return mac, ""
}

// requested4 gives the address the client wants: option 50, else ciaddr.
func requested4(req *dhcpv4.DHCPv4) netip.Addr {
	if addr, ok := netip.AddrFromSlice(req.Options[uint8(dhcpv4.OptionRequestedIPAddress)]); ok && addr.Is4() {
		return addr
	}
	return held4(req)
}

// held4 gives ciaddr, the address the client already uses; zero: none.
func held4(req *dhcpv4.DHCPv4) netip.Addr {
	addr, ok := netip.AddrFromSlice(req.ClientIPAddr.To4())
	if !ok || addr.IsUnspecified() {
		return netip.Addr{}
	}
	return addr
}

// decide4 chooses the type of the reply and the reason.
func decide4(lease vmnet.Lease4, req *dhcpv4.DHCPv4, requested netip.Addr) Answer4 {
	ours := lease.Addr.Addr()
	switch kind := req.MessageType(); kind {
	case dhcpv4.MessageTypeDiscover:
		if req.Options.Has(dhcpv4.GenericOptionCode(opt4RapidCommit)) {
			return Answer4{Type: dhcpv4.MessageTypeAck, Given: ours, Event: Leased, Reason: "rapid commit"}
		}
		return Answer4{Type: dhcpv4.MessageTypeOffer, Given: ours}
	case dhcpv4.MessageTypeRequest:
		return decideRequest4(lease, req, requested)
	case dhcpv4.MessageTypeInform:
		return Answer4{Type: dhcpv4.MessageTypeAck, Reason: "inform"}
	case dhcpv4.MessageTypeDecline:
		return Answer4{Event: Declined, Reason: fmt.Sprintf("client says %s is in use by somebody else", requested)}
	case dhcpv4.MessageTypeRelease:
		return Answer4{Event: Released, Reason: fmt.Sprintf("client gives %s up", requested)}
	default:
		return silent("%s is not for a server", kind)
	}
}

// decideRequest4 tells the states of RFC 2131 section 4.3.2 apart: selecting
// names a server, init-reboot an address by option 50, renewing and rebinding
// one by ciaddr.
func decideRequest4(lease vmnet.Lease4, req *dhcpv4.DHCPv4, requested netip.Addr) Answer4 {
	ours := lease.Addr.Addr()
	ack := Answer4{Type: dhcpv4.MessageTypeAck, Given: ours, Event: Leased}
	if id, ok := netip.AddrFromSlice(req.Options[opt4ServerID]); ok {
		switch {
		case id != lease.ServerID:
			return silent("client chose server %s", id)
		case !requested.IsValid():
			// Against the RFC, but it took our offer and we have but one address.
			return ack
		}
	}
	switch requested {
	case ours:
		return ack
	case netip.Addr{}:
		return Answer4{Type: dhcpv4.MessageTypeNak, Reason: "no address requested"}
	}
	return Answer4{Type: dhcpv4.MessageTypeNak, Reason: fmt.Sprintf("address is %s, not %s", ours, requested)}
}

// build4 encodes the reply (RFC 2131 table 3) and sets where it goes.
func build4(lease vmnet.Lease4, req *dhcpv4.DHCPv4, answer Answer4, client frame.MAC) Answer4 {
	b := header4(lease, req, answer, client)
	options := envelope4(lease, req, answer)
	if answer.Type != dhcpv4.MessageTypeNak {
		config, _ := config4(lease) // what is odd is reported when the lease is set
		room := room4(lease, req) - len(b) - 1
		for _, o := range options {
			room -= o.wireLen()
		}
		config, answer.Dropped = fit(config, req.Options[opt4Parameters], room)
		options = append(options, config...)
	}
	for _, o := range options {
		b = o.append(b)
	}
	b = append(b, opt4End)
	if len(b) < minPayload {
		b = append(b, make([]byte, minPayload-len(b))...)
	}
	answer.Payload = b
	answer.Dst, answer.DstMAC = destination4(req, answer, client)
	return answer
}

// header4 gives the fixed part and the magic cookie.
func header4(lease vmnet.Lease4, req *dhcpv4.DHCPv4, answer Answer4, client frame.MAC) []byte {
	b := make([]byte, headerLen4, 2*minPayload)
	b[0], b[1], b[2] = byte(dhcpv4.OpcodeBootReply), 1, byte(len(client))
	copy(b[4:8], req.TransactionID[:])
	binary.BigEndian.PutUint16(b[10:12], req.Flags)
	copy(b[28:34], client[:])
	if answer.Type == dhcpv4.MessageTypeNak {
		return append(b, magic[:]...)
	}
	if held := held4(req); held.IsValid() && answer.Type == dhcpv4.MessageTypeAck {
		copy(b[12:16], held.AsSlice())
	}
	if answer.Given.IsValid() {
		copy(b[16:20], answer.Given.AsSlice())
	}
	// The next server by address and the file by name are for boot ROMs, which
	// read these fields before options 66 and 67, or instead of them.
	if next, err := netip.ParseAddr(lease.TFTP); err == nil && next.Is4() {
		copy(b[20:24], next.AsSlice())
	}
	if len(lease.TFTP) < 64 { // both fields end with a zero
		copy(b[44:108], lease.TFTP)
	}
	if len(lease.BootFile) < 128 {
		copy(b[108:236], lease.BootFile)
	}
	return append(b, magic[:]...)
}

// envelope4 gives the options that make the reply one, in fixed order before
// all others: 53, 54, then 51, 58, 59 if an address is given, 56 in a NAK, 61
// if the client sent one (RFC 6842), 80 (RFC 4039).
func envelope4(lease vmnet.Lease4, req *dhcpv4.DHCPv4, answer Answer4) []option4 {
	options := []option4{
		{opt4MessageType, []byte{byte(answer.Type)}},
		{opt4ServerID, lease.ServerID.AsSlice()},
	}
	if answer.Given.IsValid() {
		options = append(options, times4(lease.Lifetime)...)
	}
	if answer.Type == dhcpv4.MessageTypeNak {
		options = append(options, option4{opt4Message, []byte(answer.Reason)})
	}
	if id := req.Options[opt4ClientID]; len(id) > 0 && len(id) <= maxOption {
		options = append(options, option4{opt4ClientID, id})
	}
	if answer.Type == dhcpv4.MessageTypeAck && req.MessageType() == dhcpv4.MessageTypeDiscover {
		options = append(options, option4{opt4RapidCommit, nil})
	}
	return options
}

// room4 is how long the UDP payload may be.
func room4(lease vmnet.Lease4, req *dhcpv4.DHCPv4) int {
	limit := minMaxSize
	if size := req.Options[opt4MaxSize]; len(size) == 2 {
		limit = max(limit, int(binary.BigEndian.Uint16(size)))
	}
	most := maxMaxSize
	if lease.MTU >= minMaxSize {
		most = min(most, lease.MTU)
	}
	return min(limit, most) - ipUDPLen
}

// destination4 applies RFC 2131 section 4.1: to the address the client holds;
// a NAK, or if the client asks for it, to everybody; else to the address it is
// about to have, which needs no ARP as we know its MAC.
func destination4(req *dhcpv4.DHCPv4, answer Answer4, client frame.MAC) (netip.AddrPort, frame.MAC) {
	held := held4(req)
	switch {
	case answer.Type == dhcpv4.MessageTypeNak:
	case held.IsValid():
		return netip.AddrPortFrom(held, clientPort4), client
	case req.Flags&broadcastFlag == 0 && answer.Given.IsValid():
		return netip.AddrPortFrom(answer.Given, clientPort4), client
	}
	return netip.AddrPortFrom(broadcast4, clientPort4), frame.Broadcast
}
