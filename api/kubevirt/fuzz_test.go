package kubevirt_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/weftnet/weft/api/kubevirt"
)

// FuzzRead: no document makes reading panic, and what is read can be planned
// and launched.
func FuzzRead(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		raw, err := yaml.YAMLToJSON(text)
		if err != nil {
			return
		}
		var object map[string]any
		if json.Unmarshal(raw, &object) != nil {
			return
		}
		obj := &unstructured.Unstructured{Object: object}
		if inst, _, err := kubevirt.FromVMI(obj.DeepCopy()); err == nil {
			use(t, inst)
		}
		if m, _, err := kubevirt.FromVM(obj); err == nil {
			use(t, m.Instance)
			if _, _, err := kubevirt.FromVMI(m.VMI()); err != nil {
				t.Errorf("the VM is right and its instance is not: %v", err)
			}
		}
	})
}

func use(t *testing.T, inst *kubevirt.Instance) {
	inst.VMNet()
	if _, err := kubevirt.LauncherPod(inst, kubevirt.Launcher{Suffix: "x"}); err != nil {
		t.Error(err)
	}
	if inst.CPU.VCPUs() < 1 || inst.MemoryBytes < 1 || len(inst.Interfaces) != len(inst.Networks) {
		t.Errorf("not runnable: %+v", inst)
	}
}
