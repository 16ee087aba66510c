package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"

	"k8s.io/apimachinery/pkg/runtime/schema"
	kubejson "sigs.k8s.io/json"

	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/store"
)

// mostInAnswer is how many objects one request of a list asks for.
const mostInAnswer = 500

// Each does something with every selected object, and gives the revision a Watch
// resumes from. It is List for those who keep less than the objects: they are read
// one by one from the answer, so that not even two are in memory at once. An
// object may come twice.
func (s *Store) Each(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector, do func(*store.Object)) (string, error) {
	return s.each(ctx, gvk, sel, do, func() {})
}

// each is Each; again is called before it begins anew.
func (s *Store) each(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector, do func(*store.Object), again func()) (string, error) {
	r, err := s.resource(ctx, gvk)
	if err != nil {
		return "", err
	}
	selector, err := labelSelector(sel)
	if err != nil {
		return "", err
	}
	query := url.Values{}
	if selector != "" {
		query.Set("labelSelector", selector)
	}
	revision, err := s.parts(ctx, r, gvk, sel.Namespace, query, do, again)
	if err != nil {
		return "", failed("list", gvk, store.Key{Namespace: sel.Namespace}, err)
	}
	return revision, nil
}

// List reads the selected objects.
func (s *Store) List(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector) ([]*store.Object, string, error) {
	var objs []*store.Object
	revision, err := s.each(ctx, gvk, sel, func(obj *store.Object) { objs = append(objs, obj) }, func() { objs = nil })
	if err != nil {
		return nil, "", err
	}
	return objs, revision, nil
}

// parts reads all objects that a query selects, some with each request. When the
// server no longer has the rest of them it calls again and begins anew.
func (s *Store) parts(
	ctx context.Context, r resource, gvk schema.GroupVersionKind, namespace string, query url.Values, do func(*store.Object), again func(),
) (string, error) {
	query = maps.Clone(query)
	query.Set("limit", strconv.Itoa(s.chunk))
	for {
		next, err := s.listChunk(ctx, r, namespace, query, func(document map[string]any) {
			obj := &store.Object{Object: document}
			if obj.GetKind() == "" { // in lists of Kubernetes' own kinds
				obj.SetGroupVersionKind(gvk)
			}
			do(tidy(obj))
		})
		if isExpired(err) && query.Has("continue") { // slower than etcd's compaction
			query.Del("continue")
			query.Del("limit")
			again()
			continue
		}
		if err != nil {
			return "", err
		}
		if next.Continue == "" {
			return next.Revision, nil
		}
		query.Set("continue", next.Continue)
	}
}

// listMeta is what is read of ListMeta of k8s.io/apimachinery/pkg/apis/meta/v1.
type listMeta struct {
	Revision string `json:"resourceVersion"`
	Continue string `json:"continue"`
}

func (s *Store) listChunk(ctx context.Context, r resource, namespace string, query url.Values, each func(map[string]any)) (listMeta, error) {
	answer, err := s.client.Stream(ctx, kubeapi.Request{Method: http.MethodGet, Path: r.path(store.Key{Namespace: namespace}), Query: query, Resource: r.name})
	if err != nil {
		return listMeta{}, err
	}
	defer answer.Close()
	meta, err := readList(kubejson.NewDecoderCaseSensitivePreserveInts(answer), each)
	if err != nil {
		return meta, fmt.Errorf("%w: read the list: %w", kubeapi.ErrUnanswered, err)
	}
	return meta, nil
}

// readList reads a list whose metadata may stand before or behind its items.
func readList(d kubejson.Decoder, each func(map[string]any)) (meta listMeta, err error) {
	if err := expect(d, '{'); err != nil {
		return meta, err
	}
	for d.More() {
		field, err := d.Token()
		if err != nil {
			return meta, err
		}
		switch field {
		case "metadata":
			err = d.Decode(&meta)
		case "items":
			err = readItems(d, each)
		default:
			var other json.RawMessage
			err = d.Decode(&other)
		}
		if err != nil {
			return meta, err
		}
	}
	return meta, expect(d, '}')
}

func readItems(d kubejson.Decoder, each func(map[string]any)) error {
	if err := expect(d, '['); err != nil {
		if errors.Is(err, errNull) {
			return nil
		}
		return err
	}
	for d.More() {
		var item map[string]any
		if err := d.Decode(&item); err != nil {
			return err
		}
		each(item)
	}
	return expect(d, ']')
}

// errNull: there is a null where a list or an object was expected.
var errNull = errors.New("null")

func expect(d kubejson.Decoder, want json.Delim) error {
	got, err := d.Token()
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	switch {
	case err != nil:
		return err
	case got == nil:
		return errNull
	case got != want:
		return fmt.Errorf("got %v, want %v", got, want)
	}
	return nil
}
