package storetest

import (
	"errors"
	"time"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/store"
)

func createGetDelete(f *fixture) {
	made := f.create(f.widget("a"))
	if got, want := text(f.get("a").Object), text(made.Object); got != want {
		f.Errorf("Get after Create:\ngot  %s\nwant %s", got, want)
	}
	f.delete("a")
	_, err := f.s.Get(f.ctx, Widget, f.key("a"))
	f.wantError(err, store.ErrNotFound)

	again := f.create(f.widget("a"))
	if again.GetUID() == made.GetUID() {
		f.Error("an object created anew has the UID of its predecessor")
	}
}

func createSetsSystemFields(f *fixture) {
	obj := f.widget("a")
	obj.SetUID("given")
	obj.SetGeneration(7)
	obj.Object["status"] = map[string]any{"ready": true}
	before := time.Now().Add(-2 * time.Second) // stored to the second
	made := f.create(obj)
	if uid := made.GetUID(); uid == "" || uid == "given" {
		f.Errorf("UID: got %q, want one of the store's", uid)
	}
	if got := made.GetGeneration(); got != 1 {
		f.Errorf("generation: got %d, want 1", got)
	}
	if at := made.GetCreationTimestamp().Time; at.Before(before) || at.After(time.Now().Add(2*time.Second)) {
		f.Errorf("creationTimestamp: got %v, want now", at)
	}
	if made.GetResourceVersion() == "" {
		f.Error("no resourceVersion")
	}
	if _, ok := made.Object["status"]; ok {
		f.Error("Create kept status, which only UpdateStatus writes")
	}
	if obj.GetResourceVersion() != "" || obj.GetUID() != "given" {
		f.Error("Create changed its argument")
	}
}

func createRefusals(f *fixture) {
	f.create(f.widget("a"))
	_, err := f.s.Create(f.ctx, f.widget("a"))
	f.wantError(err, store.ErrExists)

	withRevision := f.widget("b")
	withRevision.SetResourceVersion("5")
	noKind := f.widget("b")
	delete(noKind.Object, "kind")
	for name, obj := range map[string]*store.Object{
		"metadata.resourceVersion": withRevision, "kind": noKind,
		"metadata.name": f.widget(""), "name with slash": f.widget("a/b"), "name ..": f.widget(".."), "name with NUL": f.widget("a\x00b"),
	} {
		_, err := f.s.Create(f.ctx, obj)
		var h *hint.Error
		if !errors.As(err, &h) || h.Remedy == "" {
			f.Errorf("%s: got error %v, want a hint", name, err)
		}
	}
	if objs, _ := f.list(f.sel()); len(objs) != 1 {
		f.Errorf("refused creates left something: %d objects, want 1", len(objs))
	}
}

func unknownFieldsSurvive(f *fixture) {
	obj := f.widget("a")
	obj.Object["spec"] = map[string]any{
		"big": int64(1) << 60, "ratio": 0.5, "list": []any{int64(1), "two", nil, map[string]any{"x": true}}, "empty": map[string]any{},
		"text": "<&> \u2028 ü",
	}
	want := text(obj.Object["spec"])
	f.create(obj)
	if got := text(f.get("a").Object["spec"]); got != want {
		f.Errorf("spec: got %s, want %s", got, want)
	}
}

func listSelects(f *fixture) {
	other := &fixture{T: f.T, s: f.s, ctx: f.ctx, ns: f.namespace()}
	for _, name := range []string{"c", "a", "b"} {
		obj := f.widget(name)
		obj.SetLabels(map[string]string{"app": name, "all": "yes"})
		f.create(obj)
	}
	// a name that is a prefix of the namespace of others must not mix them up
	other.create(other.widget("a"))
	names := func(sel store.Selector) string {
		objs, revision := f.list(sel)
		if revision == "" {
			f.Error("List gave no revision")
		}
		var got string
		for _, obj := range objs {
			got += obj.GetName()
		}
		return got
	}
	for _, c := range []struct {
		labels map[string]string
		want   string
	}{
		{nil, "abc"},
		{map[string]string{"app": "b"}, "b"},
		{map[string]string{"all": "yes", "app": "c"}, "c"},
		{map[string]string{"all": "no"}, ""},
		{map[string]string{"none": ""}, ""},
	} {
		if got := names(store.Selector{Namespace: f.ns, Labels: c.labels}); got != c.want {
			f.Errorf("labels %v: got %q, want %q", c.labels, got, c.want)
		}
	}
	panels, _, err := f.s.List(f.ctx, Panel, store.Selector{})
	if err != nil || len(panels) != 0 {
		f.Errorf("List of another kind: got %d objects, error %v", len(panels), err)
	}
	all, _ := f.list(store.Selector{})
	seen := map[store.Key]bool{}
	for _, obj := range all {
		seen[store.KeyOf(obj)] = true
	}
	if !seen[f.key("a")] || !seen[other.key("a")] {
		f.Error("List without a namespace does not show all of them")
	}
}

func updateKeeps(f *fixture) {
	made := f.create(f.widget("a"))
	made.Object["status"] = map[string]any{"ready": true}
	made = f.updateStatus(made)

	given := f.widget("a")
	given.Object["spec"] = map[string]any{"size": int64(2)}
	given.Object["status"] = map[string]any{"ready": false}
	given.SetLabels(map[string]string{"new": "label"})
	given.SetCreationTimestamp(made.GetCreationTimestamp())
	got := f.update(given)
	if size, _, _ := nestedInt(got, "spec", "size"); size != 2 {
		f.Errorf("spec.size: got %d, want 2", size)
	}
	if got, want := text(got.Object["status"]), `{"ready":true}`; got != want {
		f.Errorf("status: got %s, want %s", got, want)
	}
	if got.GetUID() != made.GetUID() || !got.GetCreationTimestamp().Time.Equal(made.GetCreationTimestamp().Time) {
		f.Error("Update changed the UID or the creation time")
	}
	if got.GetLabels()["new"] != "label" {
		f.Error("Update lost the new label")
	}
	if got.GetResourceVersion() == made.GetResourceVersion() {
		f.Error("Update gave no new revision")
	}
	if stored := text(f.get("a").Object); stored != text(got.Object) {
		f.Errorf("Get differs from what Update gave:\n%s\n%s", stored, text(got.Object))
	}
}

func updateStatusOnly(f *fixture) {
	made := f.create(f.widget("a"))
	given := f.get("a")
	given.Object["spec"] = map[string]any{"size": int64(9)}
	given.SetLabels(map[string]string{"x": "y"})
	given.Object["status"] = map[string]any{"ready": true}
	got := f.updateStatus(given)
	if size, _, _ := nestedInt(got, "spec", "size"); size != 1 {
		f.Errorf("UpdateStatus changed spec.size to %d", size)
	}
	if len(got.GetLabels()) != 0 || got.GetGeneration() != made.GetGeneration() {
		f.Error("UpdateStatus changed metadata")
	}
	if got, want := text(got.Object["status"]), `{"ready":true}`; got != want {
		f.Errorf("status: got %s, want %s", got, want)
	}
	delete(got.Object, "status")
	if cleared := f.updateStatus(got); cleared.Object["status"] != nil {
		f.Errorf("status without status: got %s, want none", text(cleared.Object["status"]))
	}
}

func generationCountsSpec(f *fixture) {
	obj := f.create(f.widget("a"))
	obj.SetAnnotations(map[string]string{"a": "b"})
	obj = f.update(obj)
	if got := obj.GetGeneration(); got != 1 {
		f.Errorf("after a metadata change: got generation %d, want 1", got)
	}
	obj.Object["spec"] = map[string]any{"size": int64(3)}
	obj = f.update(obj)
	if got := obj.GetGeneration(); got != 2 {
		f.Errorf("after a spec change: got generation %d, want 2", got)
	}
}

func noOp(f *fixture) {
	obj := f.create(f.widget("a"))
	obj.Object["status"] = map[string]any{"n": int64(1)}
	obj = f.updateStatus(obj)
	_, revision := f.list(f.sel())
	events := f.watch(f.sel(), revision)

	same := f.update(obj)
	if same.GetResourceVersion() != obj.GetResourceVersion() {
		f.Error("an Update without a change gave a new revision")
	}
	same = f.updateStatus(obj)
	if same.GetResourceVersion() != obj.GetResourceVersion() {
		f.Error("an UpdateStatus without a change gave a new revision")
	}
	bare := f.widget("a") // as applied again from a file: no system fields
	if got := f.update(bare); got.GetResourceVersion() != obj.GetResourceVersion() {
		f.Error("an Update from the same file gave a new revision")
	}
	f.create(f.widget("b"))
	f.wantEvents(events, "put b")
}

func conflicts(f *fixture) {
	first := f.create(f.widget("a"))
	changed := f.get("a")
	changed.Object["spec"] = map[string]any{"size": int64(2)}
	f.update(changed)

	first.Object["spec"] = map[string]any{"size": int64(3)}
	_, err := f.s.Update(f.ctx, first)
	f.wantError(err, store.ErrConflict)
	first.Object["status"] = map[string]any{"x": "y"}
	_, err = f.s.UpdateStatus(f.ctx, first)
	f.wantError(err, store.ErrConflict)

	otherUID := f.widget("a")
	otherUID.SetUID("00000000-0000-0000-0000-000000000000")
	_, err = f.s.Update(f.ctx, otherUID)
	f.wantError(err, store.ErrConflict)
	if size, _, _ := nestedInt(f.get("a"), "spec", "size"); size != 2 {
		f.Errorf("a refused update was written: spec.size %d", size)
	}
}

func notFound(f *fixture) {
	_, err := f.s.Get(f.ctx, Widget, f.key("a"))
	f.wantError(err, store.ErrNotFound)
	_, err = f.s.Update(f.ctx, f.widget("a"))
	f.wantError(err, store.ErrNotFound)
	_, err = f.s.UpdateStatus(f.ctx, f.widget("a"))
	f.wantError(err, store.ErrNotFound)
	f.wantError(f.s.Delete(f.ctx, Widget, f.key("a"), store.Precondition{}), store.ErrNotFound)
}

func deletePreconditions(f *fixture) {
	made := f.create(f.widget("a"))
	f.wantError(f.s.Delete(f.ctx, Widget, f.key("a"), store.Precondition{UID: "other"}), store.ErrConflict)
	changed := f.get("a")
	changed.SetLabels(map[string]string{"x": "y"})
	f.update(changed)
	f.wantError(f.s.Delete(f.ctx, Widget, f.key("a"), store.Precondition{Revision: made.GetResourceVersion()}), store.ErrConflict)
	now := f.get("a")
	if err := f.s.Delete(f.ctx, Widget, f.key("a"), store.Precondition{UID: now.GetUID(), Revision: now.GetResourceVersion()}); err != nil {
		f.Errorf("Delete with true preconditions: %v", err)
	}
}

func resultsAreCopies(f *fixture) {
	given := f.widget("a")
	made := f.create(given)
	want := text(made.Object)
	spoil := func(obj *store.Object) {
		obj.SetName("spoilt")
		if spec, ok := obj.Object["spec"].(map[string]any); ok {
			spec["size"] = int64(99)
		}
	}
	_, revision := f.list(f.sel())
	events := f.watch(f.sel(), revision)
	spoil(given)
	spoil(made)
	spoil(f.get("a"))
	objs, _ := f.list(f.sel())
	spoil(objs[0])
	if got := text(f.get("a").Object); got != want {
		f.Errorf("a caller's change reached the store:\ngot  %s\nwant %s", got, want)
	}
	labelled := f.get("a")
	labelled.SetLabels(map[string]string{"x": "y"})
	updated := f.update(labelled)
	_, e := f.next(events)
	spoil(e.Object)
	if got := text(f.get("a").Object); got != text(updated.Object) {
		f.Error("a change to an event's object reached the store")
	}
}
