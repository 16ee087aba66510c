package local

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/storetest"
)

// BenchmarkUpdateStatus writes one status among 10 and 1000 objects; the cost
// must not grow with their number.
func BenchmarkUpdateStatus(b *testing.B) {
	for _, sync := range []bool{false, true} {
		for _, objects := range []int{10, 1000} {
			b.Run(fmt.Sprintf("sync=%v/objects=%d", sync, objects), func(b *testing.B) {
				s := fill(b, objects, Options{NoSync: !sync})
				obj, err := s.Get(b.Context(), storetest.Widget, store.Key{Namespace: "ns", Name: "w0"})
				if err != nil {
					b.Fatal(err)
				}
				n := int64(0)
				for b.Loop() {
					n++
					obj.Object["status"] = map[string]any{"n": n}
					if obj, err = s.UpdateStatus(b.Context(), obj); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkList lists one namespace of 100 objects.
func BenchmarkList(b *testing.B) {
	s := fill(b, 100, Options{NoSync: true})
	for b.Loop() {
		if _, _, err := s.List(b.Context(), storetest.Widget, store.Selector{Namespace: "ns"}); err != nil {
			b.Fatal(err)
		}
	}
}

func fill(b *testing.B, objects int, opt Options) *Store {
	b.Helper()
	s, err := Open(filepath.Join(b.TempDir(), "store.db"), Options{NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	for i := range objects {
		if _, err := s.Create(b.Context(), widget(fmt.Sprint("w", i))); err != nil {
			b.Fatal(err)
		}
	}
	s.db.NoSync = opt.NoSync
	return s
}
