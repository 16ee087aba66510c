package bench

import (
	"context"
	"fmt"
	"github.com/weftnet/weft/test/need"
	"os"
	"slices"
	"testing"
	"text/tabwriter"
	"time"
)

// bars are limits of ratios of medians of the same run.
type bars struct {
	faster    float64 // attach: at least so many times as fast as the reference plugins
	floor     float64 // attach: at most so many times bare netlink
	detachAll float64 // detach of 8: at most so many times detach of one
}

// promised are the figures weft promises; BenchmarkTable says which it meets.
var promised = bars{faster: 8, floor: 2, detachAll: 1.3}

// regressed are far enough off that no busy machine alone gets there three
// times in a row; TestBars fails beyond them.
var regressed = bars{faster: 3, floor: 5, detachAll: 2.5}

var counts = []int{1, 3, 8}

// figures are the medians of one way and number of networks.
type figures struct {
	attach, detach time.Duration
}

// key names figures.
type key struct {
	kind, way string
	n         int
}

// measure runs all ways by turns, so that what else the machine does hits all.
func measure(tb testing.TB, kind string, rounds int) map[key]figures {
	tb.Helper()
	samples := map[key][2][]time.Duration{}
	all := ways(tb, kind)
	for round := range rounds + 1 {
		for _, n := range counts {
			for name, w := range all {
				attach, detach := once(tb, w, n)
				if round == 0 {
					continue // bridges are made, caches filled
				}
				k := key{kind, name, n}
				s := samples[k]
				samples[k] = [2][]time.Duration{append(s[0], attach), append(s[1], detach)}
			}
		}
	}
	out := map[key]figures{}
	for k, s := range samples {
		out[k] = figures{median(s[0]), median(s[1])}
	}
	return out
}

func once(tb testing.TB, w way, n int) (attach, detach time.Duration) {
	tb.Helper()
	start := time.Now()
	if err := w.attach(context.Background(), n); err != nil {
		tb.Fatal(err)
	}
	attach = time.Since(start)
	start = time.Now()
	if err := w.detach(context.Background(), n); err != nil {
		tb.Fatal(err)
	}
	return attach, time.Since(start)
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }

// verdict is one ratio held against one bar.
type verdict struct {
	text string
	met  bool
}

// hold compares the figures of one kind with bars.
func hold(kind string, f map[key]figures, b bars) []verdict {
	var out []verdict
	for _, n := range counts {
		weft := f[key{kind, "weft", n}]
		faster := ratio(f[key{kind, "reference", n}].attach, weft.attach)
		out = append(out, verdict{fmt.Sprintf("%s: attach of %d is %.1fx as fast as the reference plugins, want %.1fx", kind, n, faster, b.faster), faster >= b.faster})
		floor := ratio(weft.attach, f[key{kind, "netlink", n}].attach)
		out = append(out, verdict{fmt.Sprintf("%s: attach of %d takes %.2fx bare netlink, want at most %.1fx", kind, n, floor, b.floor), floor <= b.floor})
	}
	all := ratio(f[key{kind, "weft", 8}].detach, f[key{kind, "weft", 1}].detach)
	return append(out, verdict{fmt.Sprintf("%s: detach of 8 takes %.2fx detach of one, want at most %.1fx", kind, all, b.detachAll), all <= b.detachAll})
}

var kinds = []string{"bridge", "macvlan"}

// TestBars fails when weft has become much slower. It does not hold weft to its
// promises: a machine shared with others disturbs even ratios.
func TestBars(t *testing.T) {
	need.Root(t)
	for _, kind := range kinds {
		var bad []string
		for range 3 {
			bad = nil
			for _, v := range hold(kind, measure(t, kind, 9), regressed) {
				if !v.met {
					bad = append(bad, v.text)
				}
			}
			if len(bad) == 0 {
				break
			}
		}
		for _, text := range bad {
			t.Error(text)
		}
	}
}

// BenchmarkTable prints one table of all figures and ratios.
func BenchmarkTable(b *testing.B) {
	need.Root(b)
	for b.Loop() {
		table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(table, "\nkind\tNICs\tattach: reference\tweft\tnetlink\treference/weft\tweft/netlink\tdetach: reference\tweft\tnetlink\tweft n/1\t")
		var verdicts []verdict
		for _, kind := range kinds {
			f := measure(b, kind, 15)
			for _, n := range counts {
				ref, weft, bare := f[key{kind, "reference", n}], f[key{kind, "weft", n}], f[key{kind, "netlink", n}]
				fmt.Fprintf(table, "%s\t%d\t%s\t%s\t%s\t%.1f\t%.2f\t%s\t%s\t%s\t%.2f\t\n", kind, n,
					ms(ref.attach), ms(weft.attach), ms(bare.attach), ratio(ref.attach, weft.attach), ratio(weft.attach, bare.attach),
					ms(ref.detach), ms(weft.detach), ms(bare.detach), ratio(weft.detach, f[key{kind, "weft", 1}].detach))
			}
			verdicts = append(verdicts, hold(kind, f, promised)...)
		}
		if err := table.Flush(); err != nil {
			b.Fatal(err)
		}
		report(verdicts)
	}
}

// report prints which bars are met.
func report(verdicts []verdict) {
	for _, v := range verdicts {
		word := "met   "
		if !v.met {
			word = "MISSED"
		}
		fmt.Println(word, v.text)
	}
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }

// BenchmarkAttach gives each way's medians as Go benchmarks; time per operation
// is attach and detach together.
func BenchmarkAttach(b *testing.B) {
	need.Root(b)
	for _, kind := range kinds {
		all := ways(b, kind)
		for _, n := range counts {
			for _, name := range []string{"reference", "weft", "netlink"} {
				b.Run(fmt.Sprintf("%s/%d/%s", kind, n, name), func(b *testing.B) {
					var attaching, detaching []time.Duration
					for b.Loop() {
						attach, detach := once(b, all[name], n)
						attaching, detaching = append(attaching, attach), append(detaching, detach)
					}
					b.ReportMetric(median(attaching).Seconds()*1e3, "attach-ms")
					b.ReportMetric(median(detaching).Seconds()*1e3, "detach-ms")
				})
			}
		}
	}
}
