package kube

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/test/kubelab"
)

// BenchmarkCreateDelete puts an object's creation and deletion beside the same two
// requests by net/http alone, whose answers nobody reads, by turns. cpu is that of
// this process.
func BenchmarkCreateDelete(b *testing.B) {
	c, s := connect(b)
	ns := namespace(b, s)
	config, err := c.TLS()
	if err != nil {
		b.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DialContext: c.Dial, ForceAttemptHTTP2: true}}
	path := c.Server + "/api/v1/namespaces/" + ns + "/configmaps"
	bare := func(ctx context.Context, method, path, body string) error {
		request, err := http.NewRequestWithContext(ctx, method, path, bytes.NewReader([]byte(body)))
		if err != nil {
			return err
		}
		request.Header.Set("Content-Type", "application/json")
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		_, err = io.Copy(io.Discard, response.Body)
		if err == nil && response.StatusCode >= http.StatusMultipleChoices {
			err = fmt.Errorf("%s", response.Status)
		}
		return err
	}
	ways := []func(ctx context.Context, name string) error{
		func(ctx context.Context, name string) error {
			made, err := s.Create(ctx, &store.Object{Object: map[string]any{
				"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name, "namespace": ns}, "data": map[string]any{"owner": "pod"},
			}})
			if err != nil {
				return err
			}
			return s.Delete(ctx, made.GroupVersionKind(), store.KeyOf(made), store.Precondition{UID: made.GetUID(), Revision: made.GetResourceVersion()})
		},
		func(ctx context.Context, name string) error {
			err := bare(ctx, http.MethodPost, path, fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q},"data":{"owner":"pod"}}`, name))
			if err != nil {
				return err
			}
			return bare(ctx, http.MethodDelete, path+"/"+name, `{"apiVersion":"v1","kind":"DeleteOptions","propagationPolicy":"Background"}`)
		},
	}
	for _, atOnce := range []int{1, 50} {
		b.Run(fmt.Sprint(atOnce), func(b *testing.B) {
			const turns, each = 6, 200
			var wall, cpu [2]time.Duration
			for b.Loop() {
				for turn := range turns {
					which := turn % len(ways)
					began, spent := time.Now(), processor(b)
					inParallel(b, atOnce, each, func(ctx context.Context, i int) error { return ways[which](ctx, fmt.Sprintf("c%d-%d", turn, i)) })
					wall[which] += time.Since(began)
					cpu[which] += processor(b) - spent
				}
			}
			pairs := float64(turns / len(ways) * each * b.N)
			b.ReportMetric(pairs/wall[0].Seconds(), "pairs/s")
			b.ReportMetric(wall[0].Seconds()/wall[1].Seconds(), "wall/bare")
			b.ReportMetric(cpu[0].Seconds()/cpu[1].Seconds(), "cpu/bare")
			b.ReportMetric(float64((cpu[0]-cpu[1]).Microseconds())/pairs, "cpu-us-more")
		})
	}
}

func inParallel(b *testing.B, atOnce, count int, do func(ctx context.Context, i int) error) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), kubelab.Patience)
	defer cancel()
	next := make(chan int)
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for i := range next {
				if err := do(ctx, i); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	wg.Wait()
}

// processor is the time this process has had of the processor.
func processor(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
