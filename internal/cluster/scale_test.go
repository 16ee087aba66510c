package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/store/kube"
)

// What a large cluster has: each Pod has as many addresses as the largest there are.
const (
	scaleNodes = 1000
	scaleNICs  = 16
)

const scalePatience = 10 * time.Minute

// scaleLeases says how many leases are made; 0: the benchmark was not asked for.
func scaleLeases(t testing.TB) int {
	t.Helper()
	text := os.Getenv("WEFT_SCALE")
	if text == "" {
		return 0
	}
	count, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("WEFT_SCALE: %v", err)
	}
	return count
}

// at gives the address of a number.
func at(number int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(9 + number>>16), byte(number >> 8), byte(number)})
}

// populate makes Pods on all nodes, with leases of their addresses.
func (l *lab) populate(leases int) {
	l.t.Helper()
	var group errgroup.Group
	group.SetLimit(48)
	for pod := range leases / scaleNICs {
		group.Go(func() error {
			node := fmt.Sprint("node-", pod%scaleNodes)
			answer, code, err := l.try(l.t.Context(), http.MethodPost, podsPath, fmt.Sprintf(
				`{"metadata":{"name":"p%d"},"spec":{"nodeName":%q,"containers":[{"name":"c","image":"x"}]}}`, pod, node), "")
			if err != nil || code != http.StatusCreated {
				return fmt.Errorf("Pod %d: %d, %w: %s", pod, code, err, answer)
			}
			var made struct{ Metadata struct{ UID string } }
			if err := json.Unmarshal(answer, &made); err != nil {
				return err
			}
			for nic := range scaleNICs {
				addr := at(pod*scaleNICs + nic + 1)
				answer, code, err := l.try(l.t.Context(), http.MethodPost, leasesPath, fmt.Sprintf(`{"apiVersion":"weft.network/v1alpha1","kind":"AddressLease","metadata":{"name":%q,
					"labels":{"weft.network/node":%q,"weft.network/pool":"10.0.0.0-8","weft.network/owner-uid":%q}},
					"spec":{"ip":%q,"scope":"whereabouts:","pool":"10.0.0.0/8","network":"default/lan","interface":"net%d","sandbox":"%064d","node":%q,
					"owner":{"kind":"Pod","namespace":"default","name":"p%d","uid":%q}}}`, addr, node, made.Metadata.UID, addr, nic+1, pod, node, pod, made.Metadata.UID), "")
				if err != nil || code != http.StatusCreated {
					return fmt.Errorf("lease of %s: %d, %w: %s", addr, code, err, answer)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		l.t.Fatal(err)
	}
}

// known waits until a copy knows so many leases.
func (l *lab) known(c *copyOf, port, leases int) time.Duration {
	l.t.Helper()
	began := time.Now()
	want := regexp.MustCompile(fmt.Sprintf(`(?m)^weft_leases\{readable="true"\} %s$`, regexp.QuoteMeta(strconv.FormatFloat(float64(leases), 'g', -1, 64))))
	client := &http.Client{Transport: &http.Transport{DialContext: l.Dial}}
	defer client.CloseIdleConnections()
	for deadline := began.Add(scalePatience); ; time.Sleep(100 * time.Millisecond) {
		answer, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
		var text []byte
		if err == nil {
			text, err = io.ReadAll(answer.Body)
			err = errors.Join(err, answer.Body.Close())
		}
		if err == nil && want.Match(text) {
			break
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%s does not know %d leases: %v, %s", c.name, leases, err, regexp.MustCompile(`(?m)^weft_leases.*$`).Find(text))
		}
	}
	return time.Since(began)
}

// watched is what the API server sent in watches of leases: how many events, and
// their bytes.
func (l *lab) watched() (events, size float64) {
	l.t.Helper()
	answer, code, err := l.try(l.t.Context(), http.MethodGet, "/metrics", "", "")
	if err != nil || code != http.StatusOK {
		l.t.Fatal(code, err)
	}
	value := func(name string) (sum float64) {
		for _, found := range regexp.MustCompile(`(?m)^`+name+`\{[^}]*(?:AddressLease|addressleases)[^}]*\} (\S+)$`).FindAllSubmatch(answer, -1) {
			is, err := strconv.ParseFloat(string(found[1]), 64)
			if err != nil {
				l.t.Fatal(err)
			}
			sum += is
		}
		return sum
	}
	return value("apiserver_watch_events_sizes_count"), value("apiserver_watch_events_sizes_sum")
}

// servers says what the API server and etcd have in memory, in MB.
func (l *lab) servers() string {
	l.t.Helper()
	var out []string
	for _, program := range []string{"kube-apiserver", "etcd"} {
		ids, err := exec.Command("pgrep", "-f", program+".*"+l.Dir).Output()
		if err != nil {
			l.t.Fatalf("%s: %v", program, err)
		}
		for _, id := range strings.Fields(string(ids)) { // others have the same words
			text, err := os.ReadFile("/proc/" + id + "/status")
			found := regexp.MustCompile(`(?s)^Name:\s*` + program + `\n.*VmRSS:\s*(\d+) kB`).FindSubmatch(text)
			if err == nil && found != nil {
				size, _ := strconv.ParseFloat(string(found[1]), 64)
				out = append(out, fmt.Sprintf("%s %.0f MB", program, size/1024))
			}
		}
	}
	return strings.Join(out, ", ")
}

// BenchmarkScale has the real program follow as many leases as WEFT_SCALE says, of a
// thousand nodes, which all begin anew then. docs/scale.md has what it printed.
func BenchmarkScale(b *testing.B) {
	leases := scaleLeases(b) / scaleNICs * scaleNICs
	if leases == 0 {
		b.Skip("takes minutes: say WEFT_SCALE=100000")
	}
	l := newLab(b)
	const port = 10981
	c := l.controller("a", port, "--collect-after=1h", "--compare-every=1h")
	l.leads(c)
	empty, before := l.memory(c), l.servers()
	for b.Loop() {
		began := time.Now()
		l.populate(leases)
		took := time.Since(began)
		b.Logf("%d leases and %d Pods of %d nodes made in %v; the controller knows all %v after", leases, leases/scaleNICs, scaleNodes, took.Round(time.Second),
			l.known(c, port+100, leases).Round(time.Millisecond))
		events, size := l.watched()
		b.Logf("the watch brought %.0f events of %.0f bytes: %.2f MB/s at that rate", events, size/max(events, 1), size/took.Seconds()/1e6)
		full := l.memory(c)
		b.Logf("controller: %.1f MB, with all leases %.1f MB: %.0f bytes for each; %s before, %s after", empty/1024, full/1024, (full-empty)*1024/float64(leases), before, l.servers())
		l.signal(c, syscall.SIGKILL)
		next := l.controller("b", port+1, "--collect-after=1h", "--compare-every=1h")
		began = time.Now()
		l.known(next, port+101, leases)
		b.Logf("another one has begun, leads and knows all %v after the first was killed; it has %.1f MB", time.Since(began).Round(100*time.Millisecond), l.memory(next)/1024)
		l.nodes(b, min(scaleNodes, leases/scaleNICs))
	}
}

// nodes has so many nodes begin anew, some at a time: each finds its leases again.
func (l *lab) nodes(b *testing.B, count int) {
	b.Helper()
	client, err := kubeapi.Open(l.Kubeconfig(), kubeapi.Options{Agent: "weft-node", Dial: l.Dial})
	if err != nil {
		b.Fatal(err)
	}
	took := make([]time.Duration, count)
	var again atomic.Int64
	var group errgroup.Group
	group.SetLimit(4)
	began := time.Now()
	for i := range count {
		group.Go(func() error {
			held, err := lease.New(lease.Options{API: kube.New(client), Node: fmt.Sprint("node-", i), Dir: b.TempDir(), Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				return err
			}
			start := time.Now()
			for err = held.Sync(context.Background()); err != nil && time.Since(start) < scalePatience; err = held.Sync(context.Background()) {
				again.Add(1) // as the agent does
			}
			took[i] = time.Since(start)
			if count := held.States()["held"]; err == nil && count == 0 {
				err = fmt.Errorf("node %d holds nothing", i)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	slices.Sort(took)
	b.Logf("%d nodes have found their leases again in %v, 4 at a time; one takes %v at the median, %v at most; %d lists were made again", count, time.Since(began).Round(time.Millisecond),
		took[count/2].Round(time.Millisecond), took[count-1].Round(time.Millisecond), again.Load())
}
