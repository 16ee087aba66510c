package kubevirt_test

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weftnet/weft/api/kubevirt"
)

func TestFindCondition(t *testing.T) {
	obj := &unstructured.Unstructured{Object: map[string]any{}}
	want := kubevirt.Condition{Type: kubevirt.Ready, Reason: "Because", Message: "of this"}
	for _, status := range []bool{false, true} {
		want.Status = status
		if err := kubevirt.SetCondition(obj, want, time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
		if got, ok := kubevirt.FindCondition(obj, kubevirt.Ready); !ok || got != want {
			t.Errorf("got %+v, %v, want %+v", got, ok, want)
		}
	}
	if got, ok := kubevirt.FindCondition(obj, "Other"); ok {
		t.Errorf("found %+v", got)
	}
	spoiled := &unstructured.Unstructured{Object: map[string]any{"status": "text"}}
	if got, ok := kubevirt.FindCondition(spoiled, kubevirt.Ready); ok {
		t.Errorf("found %+v in a status that is none", got)
	}
}
