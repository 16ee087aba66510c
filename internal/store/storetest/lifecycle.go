package storetest

import (
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/store"
)

func nestedInt(obj *store.Object, fields ...string) (int64, bool, error) {
	return unstructured.NestedInt64(obj.Object, fields...)
}

func finalizers(f *fixture) {
	obj := f.widget("a")
	obj.SetFinalizers([]string{"weft.network/one", "weft.network/two"})
	made := f.create(obj)
	_, revision := f.list(f.sel())
	events := f.watch(f.sel(), revision)

	f.delete("a")
	dying := f.get("a")
	if dying.GetDeletionTimestamp() == nil {
		f.Fatal("Delete of an object with finalizers set no deletionTimestamp")
	}
	if dying.GetGeneration() <= made.GetGeneration() {
		f.Error("the generation did not grow with the deletion")
	}
	f.delete("a")
	if again := f.get("a"); again.GetResourceVersion() != dying.GetResourceVersion() {
		f.Error("a second Delete changed the object")
	}

	more := f.get("a")
	more.SetFinalizers(append(more.GetFinalizers(), "weft.network/late"))
	_, err := f.s.Update(f.ctx, more)
	var h *hint.Error
	if !errors.As(err, &h) {
		f.Errorf("a finalizer added during the deletion: got error %v, want a hint", err)
	}

	dying.SetFinalizers([]string{"weft.network/two"})
	dying.SetDeletionTimestamp(nil) // cannot be taken back
	dying = f.update(dying)
	if dying.GetDeletionTimestamp() == nil {
		f.Fatal("Update took the deletion back")
	}
	f.wantEvents(events, "put a", "put a")
	dying.SetFinalizers(nil)
	f.update(dying)
	f.gone("a")
	last := f.wantEvents(events, "deleted a")
	if last.Object.GetResourceVersion() == dying.GetResourceVersion() {
		f.Error("the deletion has no revision of its own: a watch could not resume behind it")
	}
}

func ownersCascade(f *fixture) {
	top := f.create(f.widget("top"))
	mid := f.create(f.owned("mid", top))
	for i := range 5 {
		f.create(f.owned(fmt.Sprintf("leaf-%d", i), mid))
	}
	f.create(f.widget("other"))
	f.delete("top")
	f.gone("mid")
	for i := range 5 {
		f.gone(fmt.Sprintf("leaf-%d", i))
	}
	f.get("other")
}

func lastOwnerCounts(f *fixture) {
	one, two := f.create(f.widget("one")), f.create(f.widget("two"))
	f.create(f.owned("both", one, two))
	f.create(f.owned("single", one))
	f.delete("one")
	f.gone("single")
	f.get("both")
	f.delete("two")
	f.gone("both")
}

func ownerNeverThere(f *fixture) {
	owner := f.create(f.widget("owner"))
	f.delete("owner")
	f.create(f.owned("late", owner))
	f.gone("late")

	// Same name, but not the same object.
	owner2 := f.create(f.widget("owner"))
	f.create(f.owned("stale", owner))
	f.create(f.owned("fine", owner2))
	f.gone("stale")

	// Right UID, but by another name, or of another namespace.
	misnamed := f.owned("misnamed", owner2)
	refs := misnamed.GetOwnerReferences()
	refs[0].Name = "somebody"
	misnamed.SetOwnerReferences(refs)
	f.create(misnamed)
	f.gone("misnamed")
	other := &fixture{T: f.T, s: f.s, ctx: f.ctx, ns: f.namespace()}
	other.create(other.owned("abroad", owner2))
	other.gone("abroad")
	f.get("fine")
}

func ownedWithFinalizer(f *fixture) {
	owner := f.create(f.widget("owner"))
	child := f.owned("child", owner)
	child.SetFinalizers([]string{"weft.network/wait"})
	f.create(child)
	f.delete("owner")
	dying := f.until("child", func(obj *store.Object) bool { return obj.GetDeletionTimestamp() != nil })
	dying.SetFinalizers(nil)
	f.update(dying)
	f.gone("child")
}
