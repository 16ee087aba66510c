package kubevirt

import (
	"encoding/json"
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	v1 "kubevirt.io/api/core/v1"

	"github.com/weftnet/weft/internal/hint"
)

// RunStrategy says when a VirtualMachine's instance shall run.
type RunStrategy string

// Run strategies, as spec.runStrategy has them.
const (
	Always         RunStrategy = "Always"
	Halted         RunStrategy = "Halted"
	Manual         RunStrategy = "Manual"
	RerunOnFailure RunStrategy = "RerunOnFailure"
	Once           RunStrategy = "Once"
)

// Machine is one VirtualMachine.
type Machine struct {
	Namespace, Name, UID string
	RunStrategy          RunStrategy
	// Instance is what the template describes, checked; its UID is empty.
	Instance *Instance
	// vmi is the document of that instance.
	vmi *unstructured.Unstructured
}

// vmNameLabel is what KubeVirt puts on an instance to find it by its VM.
const vmNameLabel = "vm.kubevirt.io/name"

// FromVM reads a VirtualMachine and the instance its template describes.
// Problems of the template have paths below spec.template.spec.
func FromVM(obj *unstructured.Unstructured) (*Machine, []Warning, error) {
	vm, warnings, err := decodeKnown[v1.VirtualMachine](obj)
	if err != nil {
		return nil, nil, err
	}
	strategy, strategyErr := runStrategy(&vm.Spec)
	if err := errors.Join(strategyErr, elsewhereVM(&vm.Spec)); err != nil {
		return nil, nil, err
	}
	m := &Machine{Namespace: vm.Namespace, Name: vm.Name, UID: string(vm.UID), RunStrategy: strategy}
	if m.Namespace == "" {
		m.Namespace = metav1.NamespaceDefault
	}
	document, err := templateVMI(vm)
	if err != nil {
		return nil, nil, err
	}
	m.vmi = document
	meta := vm.Spec.Template.ObjectMeta
	meta.Name, meta.Namespace = vm.Name, m.Namespace
	inst, more, err := read(&meta, &vm.Spec.Template.Spec, "spec.template.spec")
	if err != nil {
		return nil, nil, err
	}
	inst.Owner = &Owner{Name: m.Name, UID: m.UID}
	m.Instance = inst
	return m, append(warnings, more...), nil
}

func runStrategy(spec *v1.VirtualMachineSpec) (RunStrategy, error) {
	switch {
	case spec.Running != nil && spec.RunStrategy != nil:
		return "", &hint.Error{
			Field: "spec.running", Problem: "Running and RunStrategy are mutually exclusive. Note that Running is deprecated, please use RunStrategy instead",
			Remedy: "keep spec.runStrategy",
		}
	case spec.Running != nil && *spec.Running:
		return Always, nil
	case spec.Running != nil:
		return Halted, nil
	case spec.RunStrategy == nil:
		return "", &hint.Error{Field: "spec.runStrategy", Problem: "One of Running or RunStrategy must be specified", Remedy: "set runStrategy: Always"}
	}
	switch s := RunStrategy(*spec.RunStrategy); s {
	case Always, Halted, Manual, RerunOnFailure, Once:
		return s, nil
	default:
		return "", &hint.Error{
			Field: "spec.runStrategy", Value: string(s), Problem: "Invalid RunStrategy (" + string(s) + ")",
			Remedy: "use Always, Halted, Manual, RerunOnFailure or Once",
		}
	}
}

// elsewhereVM refuses what would change the template and is not there to do it.
func elsewhereVM(spec *v1.VirtualMachineSpec) error {
	switch {
	case spec.Template == nil:
		return &hint.Error{Field: "spec.template", Problem: "missing virtual machine template.", Remedy: "describe the instance in spec.template.spec"}
	case spec.Instancetype != nil:
		return &hint.Error{Field: "spec.instancetype", Value: spec.Instancetype.Name, Problem: "instance types are not supported on one machine", Remedy: "write cpu and memory into the template"}
	case spec.Preference != nil:
		return &hint.Error{Field: "spec.preference", Value: spec.Preference.Name, Problem: "preferences are not supported on one machine", Remedy: "write the devices' models into the template"}
	case len(spec.DataVolumeTemplates) > 0:
		return &hint.Error{Field: "spec.dataVolumeTemplates", Problem: "data volumes are not supported on one machine", Remedy: "use containerDisk, hostDisk or emptyDisk"}
	}
	return nil
}

// templateVMI is the document of the instance vm describes, without defaults:
// those are filled in where it is read.
func templateVMI(vm *v1.VirtualMachine) (*unstructured.Unstructured, error) {
	template := vm.Spec.Template
	text, err := json.Marshal(&template.Spec)
	if err != nil {
		return nil, fmt.Errorf("write template as JSON: %w", err)
	}
	var spec map[string]any
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, fmt.Errorf("read template: %w", err)
	}
	obj := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	obj.SetGroupVersionKind(InstanceKind)
	obj.SetName(vm.Name)
	obj.SetNamespace(vm.Namespace)
	if vm.Namespace == "" {
		obj.SetNamespace(metav1.NamespaceDefault)
	}
	labels := map[string]string{}
	for key, value := range template.ObjectMeta.Labels {
		labels[key] = value
	}
	labels[vmNameLabel] = vm.Name
	obj.SetLabels(labels)
	if len(template.ObjectMeta.Annotations) > 0 {
		obj.SetAnnotations(template.ObjectMeta.Annotations)
	}
	yes := true
	obj.SetOwnerReferences([]metav1.OwnerReference{{
		APIVersion: MachineKind.GroupVersion().String(), Kind: MachineKind.Kind, Name: vm.Name, UID: vm.UID,
		Controller: &yes, BlockOwnerDeletion: &yes,
	}})
	return obj, nil
}

// VMI gives the document of the machine's instance, to be created.
func (m *Machine) VMI() *unstructured.Unstructured { return m.vmi.DeepCopy() }
