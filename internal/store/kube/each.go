package kube

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/store"
)

// eachChunk is how many objects one request of Each asks for.
const eachChunk = 500

// Each does something with every selected object, and gives the revision a Watch
// resumes from. It is List for those who keep less than the objects: they are not
// all in memory at once. An object may come twice.
func (s *Store) Each(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector, do func(*store.Object)) (string, error) {
	opt := metav1.ListOptions{Limit: eachChunk}
	r, err := s.resource(ctx, gvk)
	if err != nil {
		return "", err
	}
	if opt.LabelSelector, err = labelSelector(sel); err != nil {
		return "", err
	}
	for {
		list, err := s.at(r, sel.Namespace).List(ctx, opt)
		if isExpired(err) && opt.Continue != "" { // slower than etcd's compaction
			opt.Continue, opt.Limit = "", 0
			continue
		}
		if err != nil {
			return "", failed("list", gvk, store.Key{Namespace: sel.Namespace}, err)
		}
		for i := range list.Items {
			do(tidy(&list.Items[i]))
		}
		if opt.Continue = list.GetContinue(); opt.Continue == "" {
			return list.GetResourceVersion(), nil
		}
	}
}
