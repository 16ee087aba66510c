package kubevirt

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

func TestLinkStates(t *testing.T) {
	read := func(text string) *unstructured.Unstructured {
		t.Helper()
		obj := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte("spec: {domain: {memory: {guest: 1Gi}, devices: {interfaces: ["+text+"]}}}"), &obj.Object); err != nil {
			t.Fatal(err)
		}
		return obj
	}
	for _, test := range []struct {
		name, to, from, want string
		changed, only        bool
	}{
		{"same", "{name: a}", "{name: a, state: up}", "{name: a}", false, true},
		{"down", "{name: a}, {name: b}", "{name: a, state: down}, {name: b}", "{name: a, state: down}, {name: b}", true, true},
		{"up by leaving out", "{name: a, state: down}", "{name: a}", "{name: a, state: up}", true, true},
		{"by name", "{name: b}, {name: a}", "{name: a, state: down}, {name: b}", "{name: b}, {name: a, state: down}", true, false},
		{"absent is not copied", "{name: a}", "{name: a, state: absent}", "{name: a}", false, false},
		{"absent stays", "{name: a, state: absent}", "{name: a, state: down}", "{name: a, state: absent}", false, false},
		{"other change", "{name: a}", "{name: a, state: down, model: e1000e}", "{name: a, state: down}", true, false},
		{"new NIC", "{name: a}", "{name: a}, {name: b, state: down}", "{name: a}", false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			to, from := read(test.to), read(test.from)
			if got := OnlyLinkStatesDiffer(to, from); got != test.only {
				t.Errorf("only link states differ: %v, want %v", got, test.only)
			}
			if diff := cmp.Diff(read(test.from), from); diff != "" {
				t.Errorf("the comparison changed its argument:\n%s", diff)
			}
			changed, err := CopyLinkStates(to, from)
			if err != nil || changed != test.changed {
				t.Errorf("changed %v, %v; want %v", changed, err, test.changed)
			}
			if diff := cmp.Diff(to, read(test.want)); diff != "" {
				t.Errorf("-got +want:\n%s", diff)
			}
		})
	}
}
