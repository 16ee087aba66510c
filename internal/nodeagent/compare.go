package nodeagent

import (
	"slices"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// compare says what has to be attached and detached so that a Pod has what its
// annotation wants. Elements that name an interface are matched by it; the
// others by network, the first with the first. What is not attached, since it
// could not be taken back or off, is to go and matches none.
func compare(wanted []netattach.Selection, have []*record.Attachment) (attach []netattach.Selection, detach []netstate.IfName) {
	left := slices.DeleteFunc(slices.Clone(have), func(a *record.Attachment) bool {
		return a.Default || a.Selection == nil // not the annotation's
	})
	left = slices.DeleteFunc(left, func(a *record.Attachment) bool {
		if a.Stage != record.Attached {
			detach = append(detach, a.Interface)
		}
		return a.Stage != record.Attached
	})
	take := func(fits func(*record.Attachment) bool) bool {
		i := slices.IndexFunc(left, fits)
		if i >= 0 {
			left = slices.Delete(left, i, i+1)
		}
		return i >= 0
	}
	matched := make([]bool, len(wanted))
	for i, w := range wanted {
		matched[i] = w.Interface != "" && take(func(a *record.Attachment) bool {
			return string(a.Interface) == w.Interface && a.Network == w.FullName()
		})
	}
	for i, w := range wanted {
		if w.Interface == "" {
			matched[i] = take(func(a *record.Attachment) bool { return a.Selection.Interface == "" && a.Network == w.FullName() })
		}
		if !matched[i] {
			attach = append(attach, w)
		}
	}
	for _, a := range left {
		detach = append(detach, a.Interface)
	}
	return attach, detach
}
