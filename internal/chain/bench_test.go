package chain

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkAdd measures the attaching of a Pod to bridge networks alone.
func BenchmarkAdd(b *testing.B) {
	for _, networks := range []int{1, 3, 8} {
		b.Run(fmt.Sprint(networks), func(b *testing.B) {
			w := newWorld(b)
			w.defaults = ""
			w.restart()
			names := make([]string, networks)
			for i := range networks {
				names[i] = fmt.Sprintf("n%d", i)
				w.nads.add("demo/"+names[i], fmt.Sprintf(`{"cniVersion":"1.0.0","type":"bridge","bridge":"n%d","ipam":{"type":"host-local","subnet":"10.%d.0.0/16"}}`, i, 100+i))
			}
			w.add("holder", strings.Join(names, ",")) // keeps the bridges
			w.namespace("a")
			req := w.request("a", strings.Join(names, ","))
			for b.Loop() {
				if _, err := w.engine.Add(b.Context(), req); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := w.engine.Del(b.Context(), "a"); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkDel measures the detaching alone.
func BenchmarkDel(b *testing.B) {
	for _, networks := range []int{1, 8} {
		b.Run(fmt.Sprint(networks), func(b *testing.B) {
			w := newWorld(b)
			w.defaults = ""
			w.restart()
			names := make([]string, networks)
			for i := range networks {
				names[i] = fmt.Sprintf("n%d", i)
				w.nads.add("demo/"+names[i], fmt.Sprintf(`{"cniVersion":"1.0.0","type":"bridge","bridge":"n%d"}`, i))
			}
			w.add("holder", strings.Join(names, ","))
			w.namespace("a")
			req := w.request("a", strings.Join(names, ","))
			for b.Loop() {
				b.StopTimer()
				if _, err := w.engine.Add(b.Context(), req); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if err := w.engine.Del(b.Context(), "a"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
