package adviser

import (
	"fmt"
	"math"
	"net/netip"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
)

// Nodes ask by gRPC:
//
//	package weft.v1alpha1;
//	service Adviser {
//	  rpc Candidates(Question) returns (Answer);
//	  rpc Keep(Question) returns (Ahead);
//	}
//	message Question {
//	  string scope = 1;               // where the address is held once
//	  repeated Span spans = 2;        // what is wanted, in this order
//	  uint32 count = 3;               // at most so many; absent: 1
//	  repeated bytes conflicts = 4;   // addresses found in use by a stranger
//	  repeated bytes keeps = 5;       // addresses the node keeps ahead
//	}
//	message Span { bytes first = 1; bytes last = 2; }  // 4 or 16 bytes, inclusive
//	message Answer { repeated bytes addresses = 1; }   // believed free, best first
//	message Ahead { uint32 most = 1; uint32 kept = 2; repeated bytes back = 3; repeated Keeps silent = 4; }
//	message Keeps { string node = 1; uint32 count = 2; }

// Method and KeepMethod are their names.
const (
	Method     = "/weft.v1alpha1.Adviser/Candidates"
	KeepMethod = "/weft.v1alpha1.Adviser/Keep"
)

// ConfigMap is the name of the one in weft's namespace where the adviser's address
// and certificate stand.
const ConfigMap = "weft-adviser"

// Audience is whom the token is for that a node asks with, and ServerName whom the
// certificate of an adviser names.
const (
	Audience   = "weft-adviser"
	ServerName = "adviser.weft.network"
)

// Bounds of a question.
const (
	maxSpans = 4096
	maxCount = 64
)

// Question is what a node asks.
type Question struct {
	Scope     string
	Spans     []ipam.Span
	Count     int
	Conflicts []netip.Addr
	Keeps     []netip.Addr
}

// Bytes gives the message.
func (q Question) Bytes() []byte {
	out := protowire.AppendTag(nil, 1, protowire.BytesType)
	out = protowire.AppendString(out, q.Scope)
	for _, span := range q.Spans {
		one := appendAddr(appendAddr(nil, 1, span.First), 2, span.Last)
		out = protowire.AppendTag(out, 2, protowire.BytesType)
		out = protowire.AppendBytes(out, one)
	}
	out = protowire.AppendTag(out, 3, protowire.VarintType)
	out = protowire.AppendVarint(out, uint64(max(q.Count, 0)))
	for _, addr := range q.Conflicts {
		out = appendAddr(out, 4, addr)
	}
	for _, addr := range q.Keeps {
		out = appendAddr(out, 5, addr)
	}
	return out
}

// AnswerBytes gives the message of an answer.
func AnswerBytes(addrs []netip.Addr) []byte {
	var out []byte
	for _, addr := range addrs {
		out = appendAddr(out, 1, addr)
	}
	return out
}

// Bytes gives the message.
func (a Ahead) Bytes() []byte {
	var out []byte
	for number, value := range map[protowire.Number]int{1: a.Most, 2: a.Kept} {
		out = protowire.AppendVarint(protowire.AppendTag(out, number, protowire.VarintType), uint64(max(value, 0)))
	}
	for _, addr := range a.Back {
		out = appendAddr(out, 3, addr)
	}
	for _, is := range a.Silent {
		one := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), is.Node)
		one = protowire.AppendVarint(protowire.AppendTag(one, 2, protowire.VarintType), uint64(max(is.Count, 0)))
		out = protowire.AppendBytes(protowire.AppendTag(out, 4, protowire.BytesType), one)
	}
	return out
}

// ReadAhead reads the message.
func ReadAhead(message []byte) (a Ahead, err error) {
	err = fields(message, func(number protowire.Number, value []byte, integer uint64) error {
		switch number {
		case 1:
			a.Most = int(min(integer, mostAhead)) //nolint:gosec // it is small
		case 2:
			a.Kept = int(min(integer, math.MaxInt32)) //nolint:gosec // it is small
		case 3:
			addr, err := readAddr("back", value)
			a.Back = append(a.Back, addr)
			return err
		case 4:
			is, err := readKeeps(value)
			a.Silent = append(a.Silent, is)
			return err
		}
		return nil
	})
	return a, err
}

func readKeeps(message []byte) (is Keeps, err error) {
	err = fields(message, func(number protowire.Number, value []byte, integer uint64) error {
		switch number {
		case 1:
			is.Node = string(value)
		case 2:
			is.Count = int(min(integer, math.MaxInt32)) //nolint:gosec // it is small
		}
		return nil
	})
	return is, err
}

func appendAddr(out []byte, number protowire.Number, addr netip.Addr) []byte {
	return protowire.AppendBytes(protowire.AppendTag(out, number, protowire.BytesType), addr.AsSlice())
}

// ReadAnswer reads the message of an answer.
func ReadAnswer(message []byte) (addrs []netip.Addr, err error) {
	err = fields(message, func(number protowire.Number, value []byte, _ uint64) error {
		if number != 1 {
			return nil
		}
		addr, err := readAddr("addresses", value)
		addrs = append(addrs, addr)
		return err
	})
	return addrs, err
}

// ReadQuestion reads and checks a question.
func ReadQuestion(message []byte) (q Question, err error) {
	err = fields(message, func(number protowire.Number, value []byte, integer uint64) (err error) {
		switch number {
		case 1:
			q.Scope = string(value)
		case 2:
			span, err := readSpan(value)
			if err != nil {
				return err
			}
			if q.Spans = append(q.Spans, span); len(q.Spans) > maxSpans {
				return &hint.Error{Field: "spans", Problem: fmt.Sprintf("are more than %d", maxSpans), Remedy: "exclude fewer addresses"}
			}
		case 3:
			q.Count = int(min(integer, maxCount)) //nolint:gosec // it is small
		case 4:
			q.Conflicts, err = addAddr(q.Conflicts, "conflicts", value)
		case 5:
			q.Keeps, err = addAddr(q.Keeps, "keeps", value)
		}
		return err
	})
	q.Count = max(q.Count, 1)
	return q, err
}

func addAddr(list []netip.Addr, field string, value []byte) ([]netip.Addr, error) {
	addr, err := readAddr(field, value)
	if err != nil {
		return list, err
	}
	if list = append(list, addr); len(list) > maxCount {
		return list, &hint.Error{Field: field, Problem: fmt.Sprintf("are more than %d", maxCount), Remedy: "tell of fewer at once"}
	}
	return list, nil
}

func readSpan(message []byte) (span ipam.Span, err error) {
	err = fields(message, func(number protowire.Number, value []byte, _ uint64) (err error) {
		switch number {
		case 1:
			span.First, err = readAddr("spans.first", value)
		case 2:
			span.Last, err = readAddr("spans.last", value)
		}
		return err
	})
	if err == nil && (!span.First.IsValid() || !span.Contains(span.Last) || !span.Contains(span.First)) {
		err = &hint.Error{Field: "spans", Value: span.String(), Problem: "has no addresses", Remedy: "give the first and the last one, of one family"}
	}
	return span, err
}

func readAddr(field string, value []byte) (netip.Addr, error) {
	addr, ok := netip.AddrFromSlice(value)
	if !ok {
		return addr, &hint.Error{Field: field, Value: fmt.Sprintf("%x", value), Problem: "is no address", Remedy: "give 4 or 16 bytes"}
	}
	return addr, nil
}

// fields goes through a message's fields that have bytes or an integer.
func fields(message []byte, do func(number protowire.Number, value []byte, integer uint64) error) error {
	for len(message) > 0 {
		number, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return garbledError(size)
		}
		message = message[size:]
		var value []byte
		var integer uint64
		switch kind {
		case protowire.BytesType:
			value, size = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			integer, size = protowire.ConsumeVarint(message)
		default:
			size = protowire.ConsumeFieldValue(number, kind, message)
		}
		if size < 0 {
			return garbledError(size)
		}
		message = message[size:]
		if err := do(number, value, integer); err != nil {
			return err
		}
	}
	return nil
}

func garbledError(size int) error {
	return fmt.Errorf("garbled message: %w", protowire.ParseError(size))
}
