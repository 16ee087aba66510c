package linux

import (
	"bytes"
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// attrTypeMask cuts the flags off an attribute's type (NLA_TYPE_MASK,
// include/uapi/linux/netlink.h).
const attrTypeMask = 0x3fff

func align4(n int) int { return (n + 3) &^ 3 }

// attributes walks netlink attributes (struct nlattr). It stops where the bytes
// make no sense.
func attributes(b []byte) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			length := int(binary.NativeEndian.Uint16(b))
			kind := int(binary.NativeEndian.Uint16(b[2:])) & attrTypeMask
			if length < unix.SizeofNlAttr || length > len(b) {
				return
			}
			if !yield(kind, b[unix.SizeofNlAttr:length]) {
				return
			}
			b = b[min(align4(length), len(b)):]
		}
	}
}

// text is a C string.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// number reads an unsigned integer of the host's byte order; 0 for a length that
// is none.
func number(b []byte) uint64 {
	switch len(b) {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.NativeEndian.Uint16(b))
	case 4:
		return uint64(binary.NativeEndian.Uint32(b))
	case 8:
		return binary.NativeEndian.Uint64(b)
	}
	return 0
}
