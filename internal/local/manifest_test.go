package local

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/store"
)

func TestReadManifest(t *testing.T) {
	tests := []struct {
		name, text string
		objects    []string // KIND NAMESPACE/NAME
		errs       []string // beginnings of lines
	}{
		{"nothing", "", nil, nil},
		{"comments only", "# a\n---\n# b\n---\n", nil, nil},
		{"two documents", "{apiVersion: v1, kind: Pod, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: prod}}", []string{"Pod team/a", "Pod prod/b"}, nil},
		{"JSON", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}`, []string{"Pod team/a"}, nil},
		{"Windows line ends", "apiVersion: v1\r\nkind: Pod\r\nmetadata:\r\n  name: a\r\n---\r\napiVersion: v1\r\nkind: Pod\r\nmetadata: {name: b}\r\n", []string{"Pod team/a", "Pod team/b"}, nil},
		{"a namespace has none", "{apiVersion: v1, kind: Namespace, metadata: {name: prod, namespace: team}}", []string{"Namespace prod"}, nil},
		{"a list", "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod, metadata: {name: a}}, {apiVersion: v1, kind: Secret, metadata: {name: b}}]}", []string{"Pod team/a"}, []string{`f, document 1: items[1].kind "Secret": weft does not take this kind`}},
		{"an empty list", "{apiVersion: v1, kind: List, items: []}", nil, nil},
		{"a list of no objects", "{apiVersion: v1, kind: List, items: [1]}", nil, []string{"f, document 1: items: not a list of objects"}},
		{"good between bad", "{\n---\n{apiVersion: v1, kind: Pod, metadata: {name: a}}\n---\ntext", []string{"Pod team/a"}, []string{"f, document 1: not YAML or JSON: ", "f, document 3: the document is not an object; "}},
		{"key twice", "apiVersion: v1\nkind: Pod\nkind: Pod\nmetadata: {name: a}", nil, []string{"f, document 1: not YAML or JSON: "}},
		{"no kind", "metadata: {name: a}", nil, []string{"f, document 1: kind: weft does not take this kind"}},
		{"kind of another type", "{apiVersion: v1, kind: [Pod], metadata: {name: a}}", nil, []string{"f, document 1: kind: "}},
		{"no version", "{kind: Pod, metadata: {name: a}}", nil, []string{"f, document 1: apiVersion: is missing; write v1"}},
		{"another version", "{apiVersion: v2, kind: Pod, metadata: {name: a}}", nil, []string{`f, document 1: apiVersion "v2": Pod has another apiVersion; write v1`}},
		{"weft's own kind", "{apiVersion: weft.network/v1alpha1, kind: NICIdentity, metadata: {name: a}}", nil, []string{`f, document 1: kind "NICIdentity": weft writes this kind itself`}},
		{"no name", "{apiVersion: v1, kind: Pod, metadata: {generateName: a-}}", nil, []string{"f, document 1: metadata.name: is missing; give the Pod a name (generateName is not supported)"}},
		{"no metadata", "{apiVersion: v1, kind: Pod}", nil, []string{"f, document 1: metadata.name: is missing"}},
		{"bad name and namespace", "{apiVersion: v1, kind: Pod, metadata: {name: A, namespace: b.c}}", nil, []string{`f, document 1: metadata.name "A": `, `f, document 1: metadata.namespace "b.c": must not contain dots`}},
		{"spec of another type", "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: text}", nil, []string{`f, document 1: spec "text": not an object; write it as a mapping`}},
		{"texts that YAML takes for something else", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: 7\n  labels: {a: y, b: n}\n  annotations:\n    k8s.v1.cni.cncf.io/networks: [{name: lab}]\n    other:\n", nil, []string{
			`f, document 1: metadata.name "7": is not text; put it in quotes`,
			`f, document 1: metadata.labels[a] "true": is not text`, `f, document 1: metadata.labels[b] "false": is not text`,
			`f, document 1: metadata.annotations[k8s.v1.cni.cncf.io/networks] "[{"name":"lab"}]": is not text; put it in quotes`,
			`f, document 1: metadata.annotations[other] "null": is not text`,
		}},
		{"annotations as a list", "{apiVersion: v1, kind: Pod, metadata: {name: a, annotations: [x]}}", nil, []string{`f, document 1: metadata.annotations "[x]": not an object; write it as a mapping`}},
		{"too large", "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {x: " + strings.Repeat("y", maxDocument) + "}}", nil, []string{"f, document 1: the document has "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			found, err := ReadManifest("f", strings.NewReader(tt.text), "team")
			var objects []string
			for _, obj := range found {
				objects = append(objects, obj.GetKind()+" "+store.KeyOf(obj).String())
			}
			if diff := cmp.Diff(tt.objects, objects); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
			var lines []string
			if err != nil {
				lines = strings.Split(err.Error(), "\n")
			}
			if len(lines) < len(tt.errs) || len(tt.errs) == 0 && err != nil {
				t.Fatalf("errors are %q, want %q", lines, tt.errs)
			}
			for i, want := range tt.errs {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("error %q, want %q", lines[i], want)
				}
			}
		})
	}
}

// TestManifestIsAWish: what only a store or a controller may write is dropped.
func TestManifestIsAWish(t *testing.T) {
	found, err := ReadManifest("f", strings.NewReader(`apiVersion: v1
kind: Pod
metadata:
  name: a
  labels: {tier: front}
  annotations: {k: v}
  uid: "1"
  resourceVersion: "7"
  generation: 3
  creationTimestamp: "2026-01-01T00:00:00Z"
  deletionTimestamp: "2026-01-01T00:00:00Z"
  finalizers: [f]
  ownerReferences: [{apiVersion: v1, kind: Pod, name: b, uid: "2"}]
  managedFields: [{manager: m}]
status: {phase: Running}
`), "team")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": "a", "namespace": "team", "labels": map[string]any{"tier": "front"}, "annotations": map[string]any{"k": "v"}},
	}
	if diff := cmp.Diff(want, found[0].Object); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestSortForApply(t *testing.T) {
	found, err := ReadManifest("f", strings.NewReader(`{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, metadata: {name: i}}
---
{apiVersion: v1, kind: Pod, metadata: {name: z}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a}}
---
{apiVersion: k8s.cni.cncf.io/v1, kind: NetworkAttachmentDefinition, metadata: {name: net}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: s}}
`), "team")
	if err != nil {
		t.Fatal(err)
	}
	SortForApply(found)
	var names []string
	for _, obj := range found {
		names = append(names, obj.GetName())
	}
	if diff := cmp.Diff([]string{"s", "net", "z", "a", "i"}, names); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzReadManifest: no text makes reading panic, every object that comes back
// can be applied as it is, and each refusal is told with a remedy.
func FuzzReadManifest(f *testing.F) {
	for _, text := range []string{
		"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n{}",
		`{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}]}`,
		"apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\nmetadata: {name: a}\nspec: {config: '{\"type\":\"bridge\"}'}\n",
		"apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata: {name: a, annotations: 7}\nspec: []\n",
		"metadata: {labels: {a: 1}}\nkind: Pod\napiVersion: v1", "&a [*a]", "a: &x 1\nb: *x\n", "---\n---\n", "{items: [[]], kind: PodList, apiVersion: v1}",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		found, err := ReadManifest("f", strings.NewReader(text), "team")
		SortForApply(found)
		for _, obj := range found {
			if _, _, known := kindOf(obj.GroupVersionKind()); !known || obj.GetName() == "" {
				t.Errorf("not an object to apply: %v", obj.Object)
			}
			if _, err := asJSON(obj); err != nil {
				t.Error(err)
			}
			_, _ = validate(obj) // may refuse it, must not panic
		}
		if h, ok := errors.AsType[*hint.Error](err); ok && h.Remedy == "" {
			t.Errorf("no remedy: %v", err)
		}
	})
}

// TestExamples: what we give people to start from is read and taken as it is.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no examples", err)
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		found, err := ReadManifest(file, f, "default")
		if err != nil {
			t.Error(err)
		}
		for _, obj := range found {
			if warnings, err := validate(obj); err != nil || len(warnings) > 0 {
				t.Errorf("%s, %s: %v %v", file, obj.GetName(), err, warnings)
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}
