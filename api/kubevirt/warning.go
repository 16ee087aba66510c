package kubevirt

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	v1 "kubevirt.io/api/core/v1"
)

// decodeKnown decodes obj and leaves out what is no field of KubeVirt's, most
// often a typing error: a cluster drops such fields without a word, here each is
// a warning. Letter case counts, as in a cluster and other than in encoding/json.
func decodeKnown[T any](obj *unstructured.Unstructured) (*T, []Warning, error) {
	typed := new(T)
	if err := decode(obj, typed); err != nil {
		return nil, nil, err
	}
	text, err := json.Marshal(typed)
	if err != nil {
		return nil, nil, fmt.Errorf("write object as JSON: %w", err)
	}
	var kept map[string]any
	if err := json.Unmarshal(text, &kept); err != nil {
		return nil, nil, fmt.Errorf("read object back: %w", err)
	}
	known := obj.DeepCopy()
	var warnings []Warning
	prune(known.Object["spec"], kept["spec"], "spec", &warnings)
	if len(warnings) == 0 {
		return typed, nil, nil
	}
	slices.SortFunc(warnings, func(a, b Warning) int { return strings.Compare(a.Field, b.Field) })
	typed = new(T)
	return typed, warnings, decode(known, typed)
}

// prune takes out of doc what is not in kept, the same document written back
// from its types.
func prune(doc, kept any, path string, warnings *[]Warning) {
	switch doc := doc.(type) {
	case map[string]any:
		keptMap, _ := kept.(map[string]any)
		for key, value := range doc {
			at := path + "." + key
			if keptValue, ok := keptMap[key]; ok {
				prune(value, keptValue, at, warnings)
			} else if !empty(value) {
				*warnings = append(*warnings, Warning{Field: at, Problem: "is not a field of KubeVirt's API and is ignored; check its spelling"})
				delete(doc, key)
			}
		}
	case []any:
		keptList, _ := kept.([]any)
		for i, value := range doc {
			if i < len(keptList) {
				prune(value, keptList[i], fmt.Sprintf("%s[%d]", path, i), warnings)
			}
		}
	}
}

// empty values are left out when the typed object is written back.
func empty(value any) bool {
	switch v := value.(type) {
	case nil:
		return true
	case map[string]any:
		for _, inner := range v {
			if !empty(inner) {
				return false
			}
		}
		return true
	case []any:
		return len(v) == 0
	default:
		return reflect.ValueOf(v).IsZero()
	}
}

// ignored says which known fields of spec have no effect on one machine.
func ignored(spec *v1.VirtualMachineInstanceSpec, path string) []Warning {
	d := &spec.Domain
	dev := &d.Devices
	table := []struct {
		field string
		set   bool
	}{
		{"affinity", spec.Affinity != nil},
		{"tolerations", len(spec.Tolerations) > 0},
		{"nodeSelector", len(spec.NodeSelector) > 0},
		{"topologySpreadConstraints", len(spec.TopologySpreadConstraints) > 0},
		{"livenessProbe", spec.LivenessProbe != nil},
		{"readinessProbe", spec.ReadinessProbe != nil},
		{"accessCredentials", len(spec.AccessCredentials) > 0},
		{"startStrategy", spec.StartStrategy != nil},
		{"utilityVolumes", len(spec.UtilityVolumes) > 0},
		{"domain.launchSecurity", d.LaunchSecurity != nil},
		{"domain.clock", d.Clock != nil},
		{"domain.chassis", d.Chassis != nil},
		{"domain.memory.hugepages", d.Memory != nil && d.Memory.Hugepages != nil},
		{"domain.cpu.dedicatedCpuPlacement", d.CPU != nil && d.CPU.DedicatedCPUPlacement},
		{"domain.cpu.numa", d.CPU != nil && d.CPU.NUMA != nil},
		{"domain.cpu.features", d.CPU != nil && len(d.CPU.Features) > 0},
		{"domain.devices.gpus", len(dev.GPUs) > 0},
		{"domain.devices.hostDevices", len(dev.HostDevices) > 0},
		{"domain.devices.filesystems", len(dev.Filesystems) > 0},
		{"domain.devices.watchdog", dev.Watchdog != nil},
		{"domain.devices.tpm", dev.TPM != nil},
		{"domain.devices.sound", dev.Sound != nil},
		{"domain.devices.clientPassthrough", dev.ClientPassthrough != nil},
		{"domain.devices.autoattachVSOCK", dev.AutoattachVSOCK != nil && *dev.AutoattachVSOCK},
	}
	var warnings []Warning
	for _, row := range table {
		if row.set {
			warnings = append(warnings, Warning{Field: path + "." + row.field, Problem: "has no effect: weft does not do this on one machine"})
		}
	}
	return warnings
}
