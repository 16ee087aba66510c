package cluster

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// memory gives what a copy has in memory, in kB, when it has little to do.
func (l *lab) memory(c *copyOf) float64 {
	l.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	found := regexp.MustCompile(`VmRSS:\s*(\d+) kB`).FindSubmatch(text)
	if err != nil || found == nil {
		l.t.Fatalf("%v, %s", err, text)
	}
	size, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		l.t.Fatal(err)
	}
	return size
}

// fill makes leases of addresses from 10.9.0.0 on.
func (l *lab) fill(count int) {
	l.t.Helper()
	var group errgroup.Group
	group.SetLimit(32)
	for i := range count {
		group.Go(func() error {
			addr := fmt.Sprintf("10.9.%d.%d", i/256, i%256)
			answer, code, err := l.try(l.t.Context(), "POST", leasesPath, fmt.Sprintf(`{"apiVersion":"weft.network/v1alpha1","kind":"AddressLease","metadata":{"name":%q,
				"labels":{"weft.network/node":"n1","weft.network/pool":"10.9.0.0-16","weft.network/owner-uid":"6f1d0a8e-0000-4000-8000-%012d"}},
				"spec":{"ip":%q,"scope":"whereabouts:","pool":"10.9.0.0/16","network":"demo/lan","interface":"net1","sandbox":"%064d","node":"n1",
				"owner":{"kind":"Pod","namespace":"demo","name":"web-%d","uid":"6f1d0a8e-0000-4000-8000-%012d"}}}`, addr, i, addr, i, i, i), "")
			if err == nil && code != 201 {
				err = fmt.Errorf("%d: %s", code, answer)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		l.t.Fatal(err)
	}
}

// BenchmarkAdvice asks the real program, with 10,000 leases on a real API. It tells
// what those cost in memory too.
func BenchmarkAdvice(b *testing.B) {
	l := newLab(b)
	c := l.controller("a", 10981, "--collect-after=1h")
	l.leads(c)
	client := l.agent()
	l.advises(client, "10.9.0.1")
	empty := l.memory(c)
	const leases = 10_000
	began := time.Now()
	l.fill(leases)
	b.Logf("%d creates in %v", leases, time.Since(began).Round(time.Millisecond))
	l.eventually("all are known", func() error {
		got := client.Candidates(b.Context(), "whereabouts:", wide, 1)
		if len(got) != 1 || !strings.HasPrefix(got[0].String(), "10.9.39.") {
			return fmt.Errorf("advice: %v", got)
		}
		return nil
	})
	full := l.memory(c)
	for _, callers := range []int{1, 32} {
		b.Run(fmt.Sprint(callers, "callers"), func(b *testing.B) {
			var mu sync.Mutex // guards took
			var took []time.Duration
			var group errgroup.Group
			for range callers {
				group.Go(func() error {
					for range b.N/callers + 1 {
						began := time.Now()
						if len(client.Candidates(b.Context(), "whereabouts:", wide, 1)) != 1 {
							return errors.New("no advice")
						}
						mu.Lock()
						took = append(took, time.Since(began))
						mu.Unlock()
					}
					return nil
				})
			}
			if err := group.Wait(); err != nil {
				b.Fatal(err)
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
	b.Logf("memory: %.1f MB, with %d leases %.1f MB", empty/1024, leases, full/1024)
}
