package kubevirt_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/test/golden"
)

func parse(t *testing.T, text []byte) *unstructured.Unstructured {
	t.Helper()
	obj := &unstructured.Unstructured{}
	raw, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &obj.Object); err != nil {
		t.Fatal(err)
	}
	return obj
}

// TestGolden holds, for every document in testdata, the whole instance, what
// the planner is given, the launcher Pod, warnings and errors.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no documents: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := render(t, parse(t, text))
			golden.Check(t, filepath.Base(strings.TrimSuffix(file, ".yaml")+".golden"), got)
		})
	}
}

func render(t *testing.T, obj *unstructured.Unstructured) string {
	t.Helper()
	var b strings.Builder
	section := func(title string, value any) {
		text, err := yaml.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString("--- " + title + "\n" + string(text))
	}
	var inst *kubevirt.Instance
	var warnings []kubevirt.Warning
	var err error
	if obj.GetKind() == "VirtualMachine" {
		var m *kubevirt.Machine
		m, warnings, err = kubevirt.FromVM(obj)
		if err == nil {
			section("machine", map[string]any{"runStrategy": m.RunStrategy, "name": m.Name, "namespace": m.Namespace, "uid": m.UID})
			section("vmi", m.VMI().Object)
			inst = m.Instance
		}
	} else {
		inst, warnings, err = kubevirt.FromVMI(obj)
	}
	for _, w := range warnings {
		b.WriteString("warning " + w.String() + "\n")
	}
	if err != nil {
		b.WriteString("error " + strings.ReplaceAll(err.Error(), "\n", "\nerror ") + "\n")
		return b.String()
	}
	section("instance", inst)
	section("vmnet", inst.VMNet())
	pod, err := kubevirt.LauncherPod(inst, kubevirt.Launcher{Suffix: "abcde", Image: "weft", MACs: map[string]string{"n4": "0a:00:00:00:00:04", "second": "0a:00:00:00:00:05", "n3": "0a:bb:bb:bb:bb:bb"}})
	if err != nil {
		t.Fatal(err)
	}
	section("launcher", pod.Object)
	return b.String()
}
