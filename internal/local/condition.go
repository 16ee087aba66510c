package local

import (
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weftnet/weft/internal/store"
)

// Condition gives status and message of a status condition; empty if absent.
func Condition(obj *store.Object, kind string) (status, message string) {
	c := condition(obj, kind)
	status, _ = c["status"].(string)
	message, _ = c["message"].(string)
	return status, message
}

// ConditionReason gives the reason of a status condition; empty if absent.
func ConditionReason(obj *store.Object, kind string) string {
	reason, _ := condition(obj, kind)["reason"].(string)
	return reason
}

func condition(obj *store.Object, kind string) map[string]any {
	// A status of another shape has no conditions; nobody but us writes it.
	list, _, _ := unstructured.NestedSlice(obj.Object, "status", "conditions")
	for _, item := range list {
		if c, ok := item.(map[string]any); ok && c["type"] == kind {
			return c
		}
	}
	return nil
}
