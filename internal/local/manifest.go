package local

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/store"
)

// maxDocument bounds one YAML document, the limit etcd sets for an object.
const maxDocument = 1536 * 1024

// ReadManifest reads every document of a YAML or JSON stream. name is the
// file's, for errors. Documents that are wrong are reported together; those
// that are right come back all the same.
func ReadManifest(name string, r io.Reader, defaultNamespace string) ([]*store.Object, error) {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(r))
	var objects []*store.Object
	var errs []error
	for i := 1; ; i++ {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects, errors.Join(errs...)
		}
		if err != nil {
			return objects, errors.Join(append(errs, fmt.Errorf("read %s: %w", name, err))...)
		}
		found, err := readDocument(doc, defaultNamespace)
		if err != nil {
			errs = append(errs, hint.At(fmt.Sprintf("%s, document %d: ", name, i), err))
		}
		objects = append(objects, found...)
	}
}

func readDocument(doc []byte, defaultNamespace string) ([]*store.Object, error) {
	if len(doc) > maxDocument {
		return nil, &hint.Error{Problem: fmt.Sprintf("the document has %d bytes, more than an object may have", len(doc)), Remedy: "split it; large data belongs into a disk or image"}
	}
	var content any
	if err := yaml.UnmarshalStrict(doc, &content); err != nil { // strict: no key twice
		return nil, &hint.Error{Problem: "not YAML or JSON", Err: err, Remedy: "mend the syntax at that line"}
	}
	if content == nil { // only comments
		return nil, nil
	}
	fields, ok := content.(map[string]any)
	if !ok {
		return nil, &hint.Error{Problem: "the document is not an object", Remedy: "start it with apiVersion, kind and metadata"}
	}
	obj := &store.Object{Object: fields}
	if obj.IsList() {
		return readList(obj, defaultNamespace)
	}
	if err := checkObject(obj, defaultNamespace); err != nil {
		return nil, err
	}
	return []*store.Object{obj}, nil
}

func readList(list *store.Object, defaultNamespace string) ([]*store.Object, error) {
	var objects []*store.Object
	var errs []error
	i := -1
	err := list.EachListItem(func(item runtime.Object) error {
		i++
		obj, ok := item.(*unstructured.Unstructured)
		if !ok {
			return nil
		}
		if err := checkObject(obj, defaultNamespace); err != nil {
			errs = append(errs, hint.At(fmt.Sprintf("items[%d]", i), err))
			return nil
		}
		objects = append(objects, obj)
		return nil
	})
	if err != nil {
		errs = append(errs, &hint.Error{Field: "items", Problem: "not a list of objects", Err: err, Remedy: "give each item apiVersion, kind and metadata"})
	}
	return objects, errors.Join(errs...)
}

// checkObject holds obj against what every object needs and gives it its
// namespace.
func checkObject(obj *store.Object, defaultNamespace string) error {
	var errs []error
	for _, path := range [][]string{{"metadata"}, {"spec"}} {
		v, found, _ := unstructured.NestedFieldNoCopy(obj.Object, path...)
		if _, isMap := v.(map[string]any); found && v != nil && !isMap {
			errs = append(errs, &hint.Error{Field: path[0], Value: fmt.Sprint(v), Problem: "not an object", Remedy: "write it as a mapping"})
		}
	}
	errs = append(errs, checkTexts(obj)...)
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	info, _, ok := kindOf(obj.GroupVersionKind())
	if !ok || !info.ByUser {
		return unknownKind(obj.GroupVersionKind())
	}
	name := obj.GetName()
	if name == "" {
		errs = append(errs, &hint.Error{Field: "metadata.name", Problem: "is missing", Remedy: "give the " + info.GVK.Kind + " a name (generateName is not supported)"})
	} else if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		errs = append(errs, &hint.Error{Field: "metadata.name", Value: name, Problem: problems[0], Remedy: "choose a name of that form"})
	}
	switch {
	case !info.Namespaced:
		obj.SetNamespace("")
	case obj.GetNamespace() == "":
		obj.SetNamespace(defaultNamespace)
	default:
		if problems := validation.IsDNS1123Label(obj.GetNamespace()); len(problems) > 0 {
			errs = append(errs, &hint.Error{Field: "metadata.namespace", Value: obj.GetNamespace(), Problem: problems[0], Remedy: "choose a name of that form"})
		}
	}
	for _, key := range []string{"uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "ownerReferences", "managedFields", "finalizers"} {
		unstructured.RemoveNestedField(obj.Object, "metadata", key)
	}
	unstructured.RemoveNestedField(obj.Object, "status")
	return errors.Join(errs...)
}

// checkTexts refuses what YAML took for something else than text: a list as an
// annotation, a label y. Such fields would count as not given at all.
func checkTexts(obj *store.Object) []error {
	metadata, _ := obj.Object["metadata"].(map[string]any)
	var errs []error
	refuse := func(field string, value any) {
		text, err := json.Marshal(value)
		if err != nil {
			text = nil // shown without
		}
		errs = append(errs, &hint.Error{Field: "metadata." + field, Value: string(text), Problem: "is not text", Remedy: "put it in quotes"})
	}
	for _, field := range []string{"name", "namespace", "generateName"} {
		if value, given := metadata[field]; given && value != nil {
			if _, isText := value.(string); !isText {
				refuse(field, value)
			}
		}
	}
	for _, field := range []string{"labels", "annotations"} {
		entries, isMap := metadata[field].(map[string]any)
		if metadata[field] != nil && !isMap {
			errs = append(errs, &hint.Error{Field: "metadata." + field, Value: fmt.Sprint(metadata[field]), Problem: "not an object", Remedy: "write it as a mapping"})
		}
		for _, key := range slices.Sorted(maps.Keys(entries)) {
			if _, isText := entries[key].(string); !isText {
				refuse(field+"["+key+"]", entries[key])
			}
		}
	}
	return errs
}

func unknownKind(gvk schema.GroupVersionKind) error {
	names := make([]string, 0, len(Kinds))
	for _, k := range Kinds {
		if k.ByUser {
			names = append(names, k.GVK.GroupVersion().String()+" "+k.GVK.Kind)
		}
		switch {
		case k.GVK.Kind != gvk.Kind || gvk.Kind == "":
		case !k.ByUser:
			return &hint.Error{Field: "kind", Value: gvk.Kind, Problem: "weft writes this kind itself", Remedy: "leave the document out; weft get " + k.Names[0] + " shows what there is"}
		case gvk.GroupVersion().Empty():
			return &hint.Error{Field: "apiVersion", Problem: "is missing", Remedy: "write " + k.GVK.GroupVersion().String()}
		default:
			return &hint.Error{Field: "apiVersion", Value: gvk.GroupVersion().String(), Problem: gvk.Kind + " has another apiVersion", Remedy: "write " + k.GVK.GroupVersion().String()}
		}
	}
	return &hint.Error{
		Field: "kind", Value: gvk.Kind, Problem: "weft does not take this kind on one machine",
		Remedy: "use one of " + strings.Join(names, ", ") + ", or leave the document out",
	}
}

// SortForApply puts objects into the order they are applied in, keeping the
// order of the file within a kind.
func SortForApply(objects []*store.Object) {
	slices.SortStableFunc(objects, func(a, b *store.Object) int {
		_, ai, _ := kindOf(a.GroupVersionKind())
		_, bi, _ := kindOf(b.GroupVersionKind())
		return ai - bi
	})
}

// asJSON gives the document in one stable form, to compare two of them.
func asJSON(obj *store.Object) ([]byte, error) {
	text, err := obj.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", obj.GetKind(), store.KeyOf(obj), err)
	}
	return bytes.TrimSpace(text), nil
}
