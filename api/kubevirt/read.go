package kubevirt

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	v1 "kubevirt.io/api/core/v1"

	"github.com/weftnet/weft/internal/hint"
)

// Kinds of objects this package reads and writes.
var (
	InstanceKind = schema.GroupVersionKind{Group: "kubevirt.io", Version: "v1", Kind: "VirtualMachineInstance"}
	MachineKind  = schema.GroupVersionKind{Group: "kubevirt.io", Version: "v1", Kind: "VirtualMachine"}
)

// Warning is something in a document that is not done as written, without the
// document being wrong.
type Warning struct {
	Field   string
	Problem string
}

// String gives FIELD: PROBLEM.
func (w Warning) String() string { return w.Field + ": " + w.Problem }

// FromVMI reads a VirtualMachineInstance: defaults filled in, checked as
// KubeVirt's admission does. Every problem is a *hint.Error with the field's
// path; several come joined.
func FromVMI(obj *unstructured.Unstructured) (*Instance, []Warning, error) {
	vmi, warnings, err := decodeKnown[v1.VirtualMachineInstance](obj)
	if err != nil {
		return nil, nil, err
	}
	inst, more, err := read(&vmi.ObjectMeta, &vmi.Spec, "spec")
	return inst, append(warnings, more...), err
}

// read is the common part: spec is that of a VMI, standing at path.
func read(meta *metav1.ObjectMeta, spec *v1.VirtualMachineInstanceSpec, path string) (*Instance, []Warning, error) {
	setDefaults(spec)
	if err := validate(spec, path); err != nil {
		return nil, nil, err
	}
	c := converter{spec: spec, path: path}
	inst := c.instance(meta)
	if len(c.errs) > 0 {
		return nil, nil, errors.Join(c.errs...)
	}
	return inst, append(c.warnings, ignored(spec, path)...), nil
}

// decode goes through JSON text, because the types have unmarshalers of their own.
func decode(obj *unstructured.Unstructured, into any) error {
	text, err := json.Marshal(obj.Object)
	if err != nil {
		return fmt.Errorf("write object as JSON: %w", err)
	}
	err = json.Unmarshal(text, into)
	if err == nil {
		return nil
	}
	h := &hint.Error{
		Problem: strings.TrimPrefix(err.Error(), "json: "),
		Remedy:  "compare with kubevirt.io/v1's " + obj.GetKind(),
	}
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		h.Field, h.Value = fieldPath(wrongType.Field, obj.GetKind()), wrongType.Value
		h.Problem = "is not " + article(wrongType.Type.String())
	}
	return h
}

// fieldPath makes of the path encoding/json reports the path in the document.
// Embedded Go structs are in the one and not in the other, and below a type with
// an unmarshaler of its own (a VMI's spec, dhcpOptions, pod) paths begin anew.
// List indexes are not known.
func fieldPath(reported, kind string) string {
	var parts []string
	for part := range strings.SplitSeq(reported, ".") {
		if part != "" && (part[0] < 'A' || part[0] > 'Z') {
			parts = append(parts, part)
		}
	}
	if len(parts) == 0 {
		return reported
	}
	base := "spec."
	if kind == MachineKind.Kind {
		base = "spec.template.spec."
	}
	switch parts[0] {
	case "apiVersion", "kind", "metadata", "spec", "status":
		base = ""
	case "bootFileName", "tftpServerName", "ntpServers", "privateOptions":
		base += "domain.devices.interfaces.dhcpOptions."
	case "vmNetworkCIDR", "vmIPv6NetworkCIDR":
		base += "networks.pod."
	}
	return base + strings.Join(parts, ".")
}

func article(goType string) string {
	switch {
	case strings.HasPrefix(goType, "int"), strings.HasPrefix(goType, "uint"):
		return "a number that fits"
	case goType == "bool":
		return "true or false"
	case goType == "string":
		return "a text"
	case strings.HasPrefix(goType, "[]"):
		return "a list"
	default:
		return "an object of the right shape"
	}
}
