package local

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	k8sjson "k8s.io/apimachinery/pkg/util/json"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/store"
)

// maxName is the limit of names in Kubernetes
// (k8s.io/apimachinery/pkg/util/validation.DNS1123SubdomainMaxLength).
const maxName = 253

// kindName is the name of a kind's bucket, KIND.GROUP. Versions share it.
type kindName string

func kindOf(gvk schema.GroupVersionKind) kindName { return kindName(gvk.GroupKind().String()) }

// keyBytes is a key inside a kind's bucket.
func keyBytes(k store.Key) []byte { return []byte(k.Namespace + "/" + k.Name) }

func parseKey(text string) store.Key {
	namespace, name, _ := strings.Cut(text, "/")
	return store.Key{Namespace: namespace, Name: name}
}

func formatRevision(revision uint64) string { return strconv.FormatUint(revision, 10) }

// encode gives the canonical text of obj: keys sorted, so that equal documents
// have equal bytes.
func encode(obj *store.Object) ([]byte, error) {
	data, err := json.Marshal(obj.Object)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", obj.GetKind(), store.KeyOf(obj), err)
	}
	return data, nil
}

func decode(data []byte) (*store.Object, error) {
	obj := &store.Object{}
	// The JSON package of apimachinery keeps whole numbers whole.
	if err := k8sjson.Unmarshal(data, &obj.Object); err != nil {
		return nil, fmt.Errorf("decode object: %w", err)
	}
	return obj, nil
}

// clone copies a caller's object by way of its text: DeepCopy panics on a
// document built in Go with a plain int.
func clone(obj *store.Object) (*store.Object, error) {
	data, err := encode(obj)
	if err != nil {
		return nil, err
	}
	return decode(data)
}

// decodeAs gives the document under the version asked for.
func decodeAs(data []byte, gvk schema.GroupVersionKind) (*store.Object, error) {
	obj, err := decode(data)
	if err != nil {
		return nil, err
	}
	obj.SetGroupVersionKind(gvk)
	return obj, nil
}

// validate checks what the layout and the indexes depend on.
func validate(obj *store.Object) error {
	gvk := obj.GroupVersionKind()
	if gvk.Kind == "" || gvk.Version == "" {
		return &hint.Error{
			Field: "kind", Value: obj.GetAPIVersion() + " " + obj.GetKind(), Problem: "kind or apiVersion is missing or malformed",
			Remedy: "give both, such as 'apiVersion: v1' and 'kind: Pod'",
		}
	}
	if err := validatePart("kind", gvk.Kind); err != nil {
		return err
	}
	if err := validatePart("apiVersion", strings.ReplaceAll(obj.GetAPIVersion(), "/", ".")); err != nil {
		return err
	}
	if err := validatePart("metadata.name", obj.GetName()); err != nil {
		return err
	}
	if namespace := obj.GetNamespace(); namespace != "" {
		if err := validatePart("metadata.namespace", namespace); err != nil {
			return err
		}
	}
	for i, owner := range obj.GetOwnerReferences() {
		if err := validatePart(fmt.Sprintf("metadata.ownerReferences[%d].uid", i), string(owner.UID)); err != nil {
			return err
		}
	}
	return nil
}

// validatePart checks a text that becomes part of a bucket key.
func validatePart(field, value string) error {
	bad := func(problem string) error {
		return &hint.Error{Field: field, Value: value, Problem: problem, Remedy: "use lower-case letters, digits, '-' and '.'"}
	}
	if value == "" {
		return bad("is empty")
	}
	if len(value) > maxName {
		return bad(fmt.Sprintf("has %d bytes, at most %d are allowed", len(value), maxName))
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return bad("has a control character")
	}
	if problems := content.IsPathSegmentName(value); len(problems) > 0 {
		return bad(strings.Join(problems, ", "))
	}
	return nil
}

// checkPrecondition holds pre against the present object.
func checkPrecondition(obj *store.Object, pre store.Precondition) error {
	if pre.UID != "" && pre.UID != obj.GetUID() {
		return fmt.Errorf("%w: it has UID %s, %s was required", store.ErrConflict, obj.GetUID(), pre.UID)
	}
	if pre.Revision != "" && pre.Revision != obj.GetResourceVersion() {
		return fmt.Errorf("%w: it is at revision %s, %s was required", store.ErrConflict, obj.GetResourceVersion(), pre.Revision)
	}
	return nil
}

// initialise makes obj what a create stores: the system's fields are ours, and
// status is written by UpdateStatus only.
func initialise(obj *store.Object, now metav1.Time) {
	delete(obj.Object, "status")
	obj.SetCreationTimestamp(now)
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
	obj.SetSelfLink("")
	obj.SetGeneration(1)
}

// inherit takes over from old what an Update cannot change, and counts the
// generation when more than metadata changed.
func inherit(obj, old *store.Object) error {
	delete(obj.Object, "status")
	if status, ok := old.Object["status"]; ok {
		obj.Object["status"] = status
	}
	obj.SetUID(old.GetUID())
	obj.SetCreationTimestamp(old.GetCreationTimestamp())
	obj.SetDeletionTimestamp(old.GetDeletionTimestamp())
	obj.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
	obj.SetSelfLink("")
	obj.SetGeneration(old.GetGeneration())
	changed, err := desiredDiffers(obj, old)
	if err != nil {
		return err
	}
	if changed {
		obj.SetGeneration(old.GetGeneration() + 1)
	}
	return nil
}

// desiredDiffers compares what a generation counts: everything but type,
// metadata and status.
func desiredDiffers(a, b *store.Object) (bool, error) {
	desired := func(obj *store.Object) ([]byte, error) {
		kept := make(map[string]any, len(obj.Object))
		for name, value := range obj.Object {
			switch name {
			case "apiVersion", "kind", "metadata", "status":
			default:
				kept[name] = value
			}
		}
		return encode(&store.Object{Object: kept})
	}
	left, err := desired(a)
	if err != nil {
		return false, err
	}
	right, err := desired(b)
	if err != nil {
		return false, err
	}
	return string(left) != string(right), nil
}

// checkFinalizers refuses finalizers added to an object that is being deleted:
// whoever waits for the deletion would wait for a newcomer.
func checkFinalizers(obj, old *store.Object) error {
	if old.GetDeletionTimestamp() == nil {
		return nil
	}
	had := map[string]bool{}
	for _, name := range old.GetFinalizers() {
		had[name] = true
	}
	for i, name := range obj.GetFinalizers() {
		if !had[name] {
			return &hint.Error{
				Field: fmt.Sprintf("metadata.finalizers[%d]", i), Value: name,
				Problem: "cannot be added while the object is being deleted", Remedy: "wait until it is gone and create it again",
			}
		}
	}
	return nil
}
