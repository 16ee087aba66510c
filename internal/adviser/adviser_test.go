package adviser

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/ipam"
)

func span(first, last string) ipam.Span {
	return ipam.Span{First: netip.MustParseAddr(first), Last: netip.MustParseAddr(last)}
}

func addrs(texts ...string) (out []netip.Addr) {
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// TestSet holds the runs to a plain set, at the ends of families too.
func TestSet(t *testing.T) {
	for _, from := range []string{"10.0.0.250", "0.0.0.0", "255.255.255.192", "fd00::ffff:ffff:ffff:ffe0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffc0"} {
		random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test's
		var all []netip.Addr
		for a, n := netip.MustParseAddr(from), 0; a.IsValid() && n < 64; a, n = a.Next(), n+1 {
			all = append(all, a)
		}
		var s set
		plain := map[netip.Addr]bool{}
		for range 5000 {
			a := all[random.IntN(len(all))]
			if random.IntN(2) == 0 {
				s.add(a)
				plain[a] = true
			} else {
				s.remove(a)
				delete(plain, a)
			}
			i, j := random.IntN(len(all)), random.IntN(len(all))
			within := ipam.Span{First: all[min(i, j)], Last: all[max(i, j)]}
			var want netip.Addr
			count := uint64(0)
			for _, b := range all {
				if s.contains(b) != plain[b] {
					t.Fatalf("contains %s: %t", b, !plain[b])
				}
				if within.Contains(b) && plain[b] {
					count++
				}
				if within.Contains(b) && !plain[b] && !want.IsValid() {
					want = b
				}
			}
			got, ok := s.lowest(within)
			if ok != want.IsValid() || ok && got != want {
				t.Fatalf("lowest of %s: got %s, %t, want %s", within, got, ok, want)
			}
			if got := s.count(within); got != count {
				t.Fatalf("count of %s: got %d, want %d", within, got, count)
			}
		}
		for i := 1; i < len(s.runs); i++ {
			if s.runs[i-1].Last.Next() == s.runs[i].First {
				t.Errorf("%v and %v are one run", s.runs[i-1], s.runs[i])
			}
		}
	}
}

func TestLowestOfTheCooled(t *testing.T) {
	v, now := New(), time.Unix(1000, 0)
	spans := []ipam.Span{span("10.0.0.1", "10.0.0.3"), span("10.0.0.6", "10.0.0.6")}
	ask := func(count int, want ...string) {
		t.Helper()
		if got := v.Candidates(now, "a", spans, count); !slices.Equal(got, addrs(want...)) {
			t.Fatalf("at %v: got %v, want %v", now.Sub(time.Unix(1000, 0)), got, want)
		}
	}
	v.Hold(now, "a", addrs("10.0.0.1")[0])
	ask(1, "10.0.0.2")
	ask(9, "10.0.0.3", "10.0.0.6") // what was proposed to one is not to another
	ask(1)
	now = now.Add(Pending) // nobody took them
	ask(1, "10.0.0.2")
	v.Hold(now, "a", addrs("10.0.0.2")[0])
	v.Release(now, "a", addrs("10.0.0.1")[0])
	now = now.Add(time.Second)
	ask(1, "10.0.0.3") // .1 cools
	v.Hold(now, "a", addrs("10.0.0.3")[0])
	v.Release(now, "a", addrs("10.0.0.2")[0])
	v.Hold(now, "a", addrs("10.0.0.6")[0])
	ask(1, "10.0.0.1") // nothing else is left: the oldest
	ask(1, "10.0.0.2")
	now = now.Add(Cooldown)
	ask(9, "10.0.0.1", "10.0.0.2")
	v.Release(now, "a", addrs("10.0.0.3")[0])
	v.Hold(now, "a", addrs("10.0.0.3")[0]) // taken again while it cooled
	now = now.Add(time.Hour)
	ask(9, "10.0.0.1", "10.0.0.2")
	if got := v.Candidates(now, "b", spans, 1); !slices.Equal(got, addrs("10.0.0.1")) {
		t.Errorf("another scope: %v", got)
	}
}

func TestQuarantine(t *testing.T) {
	v, now := New(), time.Unix(1000, 0)
	spans := []ipam.Span{span("fd00::1", "fd00::4")}
	v.Hold(now, "", addrs("fd00::3")[0])
	for _, a := range addrs("fd00::1", "fd00::3") {
		v.Quarantine(now, "", a)
	}
	v.Release(now, "", addrs("fd00::9")[0]) // never heard of
	if got := v.Candidates(now, "", spans, 9); !slices.Equal(got, addrs("fd00::2", "fd00::4")) {
		t.Errorf("got %v", got)
	}
	if got, want := v.Usage(now, "", spans), (Usage{Size: 4, Held: 1, Conflicts: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	now = now.Add(Quarantine)
	if got, want := v.Usage(now, "", spans), (Usage{Size: 4, Held: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestKeep: nodes that keep addresses ahead share a quarter of what is free, and who
// finds a range full hears what they keep of it until they gave it back.
func TestKeep(t *testing.T) {
	v, now := New(), time.Unix(1000, 0)
	spans := []ipam.Span{span("10.0.0.1", "10.0.0.100")}
	keep := func(node string, most, kept int, keeps ...string) {
		t.Helper()
		got := v.Keep(now, node, "a", spans, addrs(keeps...))
		if got.Most != most || got.Kept != kept {
			t.Fatalf("%s at %v: got %+v, want %d, %d", node, now.Sub(time.Unix(1000, 0)), got, most, kept)
		}
	}
	keep("n1", 8, 0)
	keep("n2", 8, 0)
	keep("n3", 8, 0)
	keep("n4", 6, 0)
	keep("n4", 6, 0, "10.0.0.1", "10.0.0.2")
	for _, addr := range v.Candidates(now, "a", spans, 90) {
		v.Hold(now, "a", addr)
	}
	keep("n4", 0, 2, "10.0.0.1", "10.0.0.2")
	keep("n1", 0, 3, "10.0.0.3", "10.0.1.1")
	if got := v.Keep(now, "n1", "a", []ipam.Span{span("10.0.0.2", "10.0.0.9")}, nil); got.Kept != 2 {
		t.Errorf("of ranges that overlap: %+v", got)
	}
	keep("n2", 0, 3)
	keep("n4", 0, 3) // it keeps none, but they are held still
	v.Release(now, "a", addrs("10.0.0.2")[0])
	keep("n2", 0, 2)
	now = now.Add(leavingFor)
	keep("n2", 0, 1)
	now = now.Add(Told + time.Second) // n1 says nothing
	keep("n2", 0, 0)
	if v.Heard(now, "n1", "a") || v.Heard(now, "n2", "b") || !v.Heard(now, "n2", "a") {
		t.Error("n2 alone was heard from, of scope a")
	}
	now = now.Add(counting)
	keep("n2", 2, 0) // alone
	if got := v.Keep(now, "n2", "b", spans, nil); got.Most != 8 {
		t.Errorf("another scope: %+v", got)
	}
}

func TestWire(t *testing.T) {
	for _, want := range []Ahead{{}, {Most: 3, Kept: 70000, Back: addrs("10.0.0.1", "fd00::1"), Silent: []Keeps{{"n1", 3}, {"n2", 0}}}} {
		if got, err := ReadAhead(want.Bytes()); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
	for _, q := range []Question{
		{Scope: "a", Count: 1, Keeps: addrs("10.0.0.1", "10.0.0.2")},
		{Count: 1},
		{Scope: "whereabouts:blue", Spans: []ipam.Span{span("10.0.0.1", "10.0.0.9"), span("fd00::", "ffff::")}, Count: 7, Conflicts: addrs("10.0.0.1", "fd00::1")},
	} {
		got, err := ReadQuestion(q.Bytes())
		if err != nil || !reflect.DeepEqual(got, q) {
			t.Errorf("got %+v, %v, want %+v", got, err, q)
		}
	}
	want := addrs("10.0.0.1", "fd00::1")
	if got, err := ReadAnswer(AnswerBytes(want)); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	backwards := Question{Spans: []ipam.Span{span("10.0.0.9", "10.0.0.1")}}
	families := Question{Spans: []ipam.Span{span("10.0.0.9", "fd00::")}}
	many := Question{Spans: make([]ipam.Span, maxSpans+1), Conflicts: nil}
	for i := range many.Spans {
		many.Spans[i] = span("10.0.0.1", "10.0.0.1")
	}
	for _, bad := range [][]byte{backwards.Bytes(), families.Bytes(), many.Bytes(), []byte("\x0a"), []byte("\x22\x03abc"), {0x12, 0x00}} {
		if got, err := ReadQuestion(bad); err == nil {
			t.Errorf("%.20x is read as %.80v", bad, got)
		}
	}
}

func FuzzQuestion(f *testing.F) {
	f.Add(Question{Scope: "s", Spans: []ipam.Span{span("10.0.0.1", "10.0.0.9")}, Count: 3}.Bytes())
	f.Fuzz(func(t *testing.T, message []byte) {
		q, err := ReadQuestion(message)
		if err != nil {
			return
		}
		again, err := ReadQuestion(q.Bytes())
		if err != nil || !reflect.DeepEqual(again, q) {
			t.Errorf("got %+v, %v, want %+v", again, err, q)
		}
		New().Candidates(time.Unix(0, 0), q.Scope, q.Spans, q.Count)
	})
}

func BenchmarkCandidates(b *testing.B) {
	v, now := New(), time.Unix(0, 0)
	spans := []ipam.Span{span("10.0.0.1", "10.255.255.254")}
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a benchmark's
	for _, addr := range v.Candidates(now, "", spans, 100_000) {
		if random.IntN(2) == 0 {
			v.Hold(now, "", addr)
		}
	}
	now = now.Add(time.Hour)
	for b.Loop() {
		now = now.Add(time.Millisecond)
		v.Hold(now, "", v.Candidates(now, "", spans, 1)[0])
	}
}
