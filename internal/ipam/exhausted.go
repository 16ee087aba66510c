package ipam

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// ExhaustedError is an ErrExhausted that tells who holds the addresses.
type ExhaustedError struct {
	// Owners hold some of them, of whom the store knows no more.
	Owners []Owner
	// By counts the others by what people call those who hold them, such as "Pods of
	// namespace a".
	By map[string]int
	// Silent are nodes that keep some of those ahead of their Pods, and do not answer.
	Silent []Silent
}

// Silent is a node that keeps addresses ahead of its Pods, and does not answer.
type Silent struct {
	Node  string
	Count int
}

// Group is what people call all owners of a kind in a namespace.
func Group(kind, namespace string) string {
	if namespace == "" {
		return kind + "s"
	}
	return kind + "s of namespace " + namespace
}

// Name finds names for owners by a function.
func (e *ExhaustedError) Name(group func(Owner) string) {
	if e.By == nil {
		e.By = map[string]int{}
	}
	for _, owner := range e.Owners {
		e.By[group(owner)]++
	}
	e.Owners = nil
}

// mostNamed is how many of those who hold addresses are named.
const mostNamed = 3

// Error says who holds most addresses.
func (e *ExhaustedError) Error() string {
	if len(e.By) == 0 {
		return ErrExhausted.Error()
	}
	names := slices.SortedFunc(maps.Keys(e.By), func(a, b string) int {
		return cmp.Or(cmp.Compare(e.By[b], e.By[a]), strings.Compare(a, b))
	})
	var parts []string
	rest := len(e.Owners)
	for i, name := range names {
		if i < mostNamed {
			parts = append(parts, fmt.Sprintf("%d by %s", e.By[name], name))
		} else {
			rest += e.By[name]
		}
	}
	if rest > 0 {
		parts = append(parts, fmt.Sprintf("%d by others", rest))
	}
	for _, is := range e.Silent {
		parts = append(parts, fmt.Sprintf("of which node %s, whose agent does not answer, keeps %d ahead of its Pods", is.Node, is.Count))
	}
	return strings.Join(parts, ", ")
}

// Is makes errors.Is(err, ErrExhausted) true.
func (e *ExhaustedError) Is(target error) bool { return target == ErrExhausted }

// add takes over what another one tells.
func (e *ExhaustedError) add(other *ExhaustedError) {
	e.Owners = append(e.Owners, other.Owners...)
	if e.By == nil {
		e.By = map[string]int{}
	}
	for name, count := range other.By {
		e.By[name] += count
	}
	e.Silent = append(e.Silent, other.Silent...)
}

// exhaustedBy tells who holds addresses of a range.
func exhaustedBy(r Range, holders map[netip.Addr]Owner) error {
	e := &ExhaustedError{}
	for addr, owner := range holders {
		if r.Contains(addr) {
			e.Owners = append(e.Owners, owner)
		}
	}
	return e
}
