package frame

import (
	"fmt"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Wants says which frames of the guest a Conn receives.
type Wants struct {
	// UDPPorts4 and UDPPorts6 are destination ports over IPv4 and IPv6.
	UDPPorts4, UDPPorts6 []uint16
	// ICMPv6Types are message types.
	ICMPv6Types []uint8
	// ARPTarget is the address for which ARP requests are received; zero: none.
	ARPTarget netip.Addr
}

// The snap length of an accepting filter: every frame is taken whole.
const snapLen = 0x40000

// insn is an instruction that may jump to a label when its test fails.
type insn struct {
	bpf.Instruction
	// label names this place; instructions before it can jump here.
	label string
	// unless is where to go on when a jumpUnless fails; when, when it holds.
	unless, when string
}

// filter gives the classic BPF program for w. It runs on every frame the guest
// sends, inside the kernel and before the frame is copied, so it asks for the
// protocol first and ends bulk traffic after a few instructions.
//
// Offsets count from the Ethernet header. Frames with a VLAN tag are refused:
// the kernel takes the tag off before it shows us the frame, and the guest's
// VLAN interfaces are not the NIC we serve.
func (w Wants) filter() ([]bpf.RawInstruction, error) {
	p := []insn{
		{Instruction: bpf.LoadExtension{Num: bpf.ExtVLANTagPresent}},
		{Instruction: bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0}, when: "drop"},
		// A socket is bound before it can be told to ignore what leaves.
		{Instruction: bpf.LoadExtension{Num: bpf.ExtType}},
		{Instruction: bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING}, when: "drop"},
		// Both families hold the protocol and the UDP port behind it; ARP is rare.
		{Instruction: bpf.LoadAbsolute{Off: 12, Size: 2}},
		{Instruction: bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIPv4}, unless: "not4"},
		{Instruction: bpf.LoadAbsolute{Off: 23, Size: 1}},
		{Instruction: bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoUDP}, unless: "drop"},
		// Fragments: a later one has no ports, and a first one no whole message.
		{Instruction: bpf.LoadAbsolute{Off: 20, Size: 2}},
		{Instruction: bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff}, when: "drop"},
		{Instruction: bpf.LoadMemShift{Off: 14}},
		{Instruction: bpf.LoadIndirect{Off: 16, Size: 2}},
	}
	p = append(p, oneOf(w.UDPPorts4)...)
	p = append(p,
		insn{label: "not4", Instruction: bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherIPv6}, unless: "not6"},
		insn{Instruction: bpf.LoadAbsolute{Off: 20, Size: 1}},
		insn{Instruction: bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoUDP}, unless: "icmp"},
		insn{Instruction: bpf.LoadAbsolute{Off: 56, Size: 2}},
	)
	p = append(p, oneOf(w.UDPPorts6)...)
	p = append(p,
		insn{label: "icmp", Instruction: bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoICMPv6}, unless: "drop"},
		insn{Instruction: bpf.LoadAbsolute{Off: 54, Size: 1}},
	)
	p = append(p, oneOf(w.ICMPv6Types)...)
	p = append(p, insn{label: "not6", Instruction: bpf.JumpIf{Cond: bpf.JumpEqual, Val: etherARP}, unless: "drop"})
	if w.ARPTarget.Is4() {
		target := w.ARPTarget.As4()
		p = append(p,
			insn{Instruction: bpf.LoadAbsolute{Off: 20, Size: 2}},
			insn{Instruction: bpf.JumpIf{Cond: bpf.JumpEqual, Val: arpRequest}, unless: "drop"},
			insn{Instruction: bpf.LoadAbsolute{Off: 38, Size: 4}},
			insn{Instruction: bpf.JumpIf{Cond: bpf.JumpEqual, Val: be32(target)}, when: "take"},
		)
	}
	p = append(p,
		insn{label: "drop", Instruction: bpf.RetConstant{Val: 0}},
		insn{label: "take", Instruction: bpf.RetConstant{Val: snapLen}},
	)
	return assemble(p)
}

func be32(b [4]byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// oneOf takes the frame if the loaded value is one of values, else drops it.
func oneOf[T uint8 | uint16](values []T) []insn {
	p := make([]insn, 0, len(values)+1)
	for _, v := range values {
		p = append(p, insn{Instruction: bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(v)}, when: "take"})
	}
	return append(p, insn{Instruction: bpf.RetConstant{Val: 0}})
}

// assemble resolves labels to distances.
func assemble(p []insn) ([]bpf.RawInstruction, error) {
	at := make(map[string]int, 5) // the labels above
	for i, in := range p {
		if in.label != "" {
			at[in.label] = i
		}
	}
	plain := make([]bpf.Instruction, len(p))
	for i, in := range p {
		jump, ok := in.Instruction.(bpf.JumpIf)
		if !ok {
			plain[i] = in.Instruction
			continue
		}
		for label, skip := range map[string]*uint8{in.when: &jump.SkipTrue, in.unless: &jump.SkipFalse} {
			if label == "" {
				continue
			}
			distance := at[label] - i - 1
			if distance < 0 || distance > 255 {
				return nil, fmt.Errorf("assemble frame filter: %q is %d instructions away, a jump reaches 255", label, distance)
			}
			*skip = uint8(distance)
		}
		plain[i] = jump
	}
	raw, err := bpf.Assemble(plain)
	if err != nil {
		return nil, fmt.Errorf("assemble frame filter: %w", err)
	}
	return raw, nil
}
