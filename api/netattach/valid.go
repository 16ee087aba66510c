package netattach

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/weftnet/weft/internal/hint"
)

// Lengths in bytes.
const (
	maxIfName    = 15  // IFNAMSIZ-1, include/uapi/linux/if.h
	maxNamespace = 63  // RFC 1123 label
	maxName      = 253 // RFC 1123 subdomain, as Kubernetes takes it
)

// ValidInterface checks that a link can have this name, by the kernel's rules
// (dev_valid_name in net/core/dev.c) and ours: no control characters. "lo" is
// taken in every namespace.
func ValidInterface(field, name string) error { return validInterface(field, name) }

func validInterface(field, name string) error {
	bad := func(problem, remedy string) error {
		return &hint.Error{Field: field, Value: shown(name), Problem: problem, Remedy: remedy}
	}
	switch {
	case name == "":
		return bad("is an empty interface name", "write a name or leave it out")
	case len(name) > maxIfName:
		return bad("is longer than the 15 bytes a link name may have", "choose a shorter name")
	case name == "." || name == "..":
		return bad("is no name a link can have", "choose another name")
	case name == "lo":
		return bad("is the loopback link, which every Pod has", "choose another name")
	case !utf8.ValidString(name) || strings.ContainsFunc(name, badInName):
		return bad("has a character no link name may have", "leave out white space, '/', ':' and control characters")
	}
	return nil
}

func badInName(r rune) bool {
	return r == '/' || r == ':' || unicode.IsSpace(r) || unicode.IsControl(r)
}

func validNamespace(field, name string) error {
	if len(name) > maxNamespace || !label(name) {
		return &hint.Error{Field: field, Value: shown(name), Problem: "is no namespace name", Remedy: "use lower-case letters, digits and '-', at most 63, a letter or digit at both ends"}
	}
	return nil
}

func validName(field, name string) error {
	if name == "" {
		return &hint.Error{Field: field, Problem: "is missing", Remedy: "name a NetworkAttachmentDefinition"}
	}
	ok := len(name) <= maxName
	for part := range strings.SplitSeq(name, ".") {
		ok = ok && label(part)
	}
	if !ok {
		return &hint.Error{Field: field, Value: shown(name), Problem: "is no object name", Remedy: "use lower-case letters, digits, '-' and '.', a letter or digit at both ends"}
	}
	return nil
}

// label says whether s matches [a-z0-9]([-a-z0-9]*[a-z0-9])?.
func label(s string) bool {
	if s == "" || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}
