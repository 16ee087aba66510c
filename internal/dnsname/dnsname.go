// Package dnsname checks DNS names meant for a guest and encodes them for
// DHCPv4, DHCPv6 and router advertisements.
//
// Names reach us from resolv.conf, VM specs and network configurations and are
// now and then odd: upper case, an address, too long. A name that cannot be
// told to a guest is left out and reported, it never stops a lease. Nothing is
// resolved here.
package dnsname

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/weftnet/weft/internal/hint"
)

// Limits of a domain name, RFC 1035 section 2.3.4, in bytes.
const (
	maxLabel = 63
	maxName  = 253 // as text without the final dot; 255 on the wire
)

// Clean gives name in lower case without a final dot, or says why no guest can
// use it. The error names no field; see [hint.At].
func Clean(name string) (string, error) {
	text := strings.ToLower(strings.TrimSuffix(strings.TrimSpace(name), "."))
	refuse := func(problem string) (string, error) {
		return "", &hint.Error{
			Value: name, Problem: problem,
			Remedy: "write a domain name such as example.org",
		}
	}
	if text == "" {
		return refuse("is empty")
	}
	if len(text) > maxName {
		return refuse(fmt.Sprintf("has %d bytes, a domain name has at most %d", len(text), maxName))
	}
	if _, err := netip.ParseAddr(text); err == nil {
		return refuse("is an address, not a domain name")
	}
	for label := range strings.SplitSeq(text, ".") {
		if label == "" {
			return refuse("has an empty label")
		}
		if len(label) > maxLabel {
			return refuse(fmt.Sprintf("has a label of %d bytes, at most %d are allowed", len(label), maxLabel))
		}
		if i := strings.IndexFunc(label, odd); i >= 0 {
			return refuse(fmt.Sprintf("has the character %q, allowed are letters, digits, '-' and '_'", []rune(label[i:])[0]))
		}
	}
	return text, nil
}

// odd reports whether r cannot stand in a label. '_' is no host name character
// (RFC 952) but common in search domains and harmless to every client.
func odd(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-', r == '_':
		return false
	}
	return true
}

// CleanAll cleans every name, drops those that cannot be used and later copies
// of one name, and returns one error per dropped odd name, with field "[i]".
func CleanAll(names []string) ([]string, []error) {
	var errs []error
	kept := make([]string, 0, len(names))
	seen := make(map[string]bool, len(names))
	for i, name := range names {
		text, err := Clean(name)
		if err != nil {
			errs = append(errs, hint.At(fmt.Sprintf("[%d]", i), err))
			continue
		}
		if !seen[text] {
			seen[text] = true
			kept = append(kept, text)
		}
	}
	return kept, errs
}

// Append appends the wire form of a clean name (RFC 1035 section 3.1, without
// compression: every client reads that, and not all expand pointers) to b.
func Append(b []byte, name string) []byte {
	for label := range strings.SplitSeq(name, ".") {
		b = append(b, byte(len(label)))
		b = append(b, label...)
	}
	return append(b, 0)
}
