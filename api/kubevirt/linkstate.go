package kubevirt

import (
	"reflect"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weftnet/weft/internal/vmnet"
)

// interfacesPath is where an instance lists its interfaces.
var interfacesPath = []string{"spec", "domain", "devices", "interfaces"}

// CopyLinkStates gives the interfaces of the instance to the states (up, down)
// that those of the same name have in from, and says whether that changed one.
// Those that are absent on either side stay as they are: that is not a matter
// of a cable. Both documents were read before (FromVMI).
func CopyLinkStates(to, from *unstructured.Unstructured) (bool, error) {
	states := map[string]string{}
	for _, iface := range interfacesOf(from) {
		name, _ := iface["name"].(string)
		states[name] = linkState(iface)
	}
	list := interfacesOf(to)
	changed := false
	out := make([]any, 0, len(list))
	for _, iface := range list {
		name, _ := iface["name"].(string)
		wanted, known := states[name]
		have := linkState(iface)
		if known && wanted != have && wanted != string(vmnet.Absent) && have != string(vmnet.Absent) {
			iface["state"] = wanted
			changed = true
		}
		out = append(out, iface)
	}
	if !changed {
		return false, nil
	}
	return true, unstructured.SetNestedSlice(to.Object, out, interfacesPath...)
}

// OnlyLinkStatesDiffer says whether the specs of two instances are the same
// but for the cables of their interfaces.
func OnlyLinkStatesDiffer(a, b *unstructured.Unstructured) bool {
	plain := func(obj *unstructured.Unstructured) any {
		plain := obj.DeepCopy()
		list := interfacesOf(plain)
		out := make([]any, 0, len(list))
		for _, iface := range list {
			if linkState(iface) != string(vmnet.Absent) {
				delete(iface, "state")
			}
			out = append(out, iface)
		}
		if len(out) > 0 && unstructured.SetNestedSlice(plain.Object, out, interfacesPath...) != nil {
			return nil // spec is no document: nothing equals it
		}
		return plain.Object["spec"]
	}
	left, right := plain(a), plain(b)
	return left != nil && reflect.DeepEqual(left, right)
}

func interfacesOf(obj *unstructured.Unstructured) []map[string]any {
	list, _, _ := unstructured.NestedSlice(obj.Object, interfacesPath...) // one without is refused elsewhere
	var interfaces []map[string]any
	for _, item := range list {
		if iface, ok := item.(map[string]any); ok {
			interfaces = append(interfaces, iface)
		}
	}
	return interfaces
}

func linkState(iface map[string]any) string {
	state, _ := iface["state"].(string)
	if state == "" {
		return string(vmnet.Up)
	}
	return state
}
