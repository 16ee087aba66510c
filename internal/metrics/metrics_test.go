package metrics

import (
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// scrape gives the lines of one look, without comments.
func scrape(t *testing.T, m *Metrics) []string {
	t.Helper()
	answer := httptest.NewRecorder()
	m.Handler(slog.New(slog.DiscardHandler)).ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	if answer.Code != 200 {
		t.Fatalf("got %d: %s", answer.Code, answer.Body)
	}
	var lines []string
	for line := range strings.Lines(answer.Body.String()) {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func TestMetrics(t *testing.T) {
	facts := Facts{Working: 3, Waiting: 2, Kept: 1, Changed: 4, Attachments: map[string]int{"attached": 7, "failed": 0}, Leases: map[string]int{"held": 5}}
	m := New("v1.2.3", func() Facts { return facts })
	m.Phase("ADD", "", "total", 7*time.Millisecond)
	m.Phase("ADD", "tuning", "exec", 3*time.Second)
	m.Failed("ADD", "plugin-hung")
	m.Requested("PATCH", "pods", 200)
	m.Requested("PATCH", "pods", 0)
	m.Changed()
	m.Repaired(2)
	m.AddressTaken("given", 3*time.Millisecond)
	m.Conflict()
	all := strings.Join(scrape(t, m), "\n") + "\n"
	for _, want := range []string{
		`weft_cni_duration_seconds_bucket{phase="total",plugin="",verb="ADD",le="0.005"} 0`,
		`weft_cni_duration_seconds_bucket{phase="total",plugin="",verb="ADD",le="0.01"} 1`,
		`weft_cni_duration_seconds_count{phase="exec",plugin="tuning",verb="ADD"} 1`,
		`weft_cni_failures_total{cause="plugin-hung",verb="ADD"} 1`,
		`weft_api_requests_total{code="200",method="PATCH",resource="pods"} 1`,
		`weft_api_requests_total{code="0",method="PATCH",resource="pods"} 1`,
		`weft_cni_calls{state="working"} 3`, `weft_cni_calls{state="waiting"} 2`, `weft_cni_kept_dels 1`,
		`weft_attachments{stage="attached"} 7`, `weft_attachments{stage="failed"} 0`, `weft_pods_changed 4`, `weft_address_leases{state="held"} 5`,
		`weft_address_duration_seconds_bucket{result="given",le="0.0025"} 0`, `weft_address_duration_seconds_bucket{result="given",le="0.005"} 1`,
		`weft_network_changes_total 1`, `weft_network_repairs_total 2`, `weft_address_conflicts_total 1`, `version="v1.2.3"} 1`, `process_resident_memory_bytes `, `go_goroutines `,
	} {
		if !strings.Contains(all, want) {
			t.Errorf("there is no %s in\n%s", want, all)
		}
	}
	facts.Kept = 9
	if all = strings.Join(scrape(t, m), "\n"); !strings.Contains(all, "weft_cni_kept_dels 9") {
		t.Error("a second look tells what the first one saw")
	}
}

// TestSeriesAreBounded: whatever plugins people name, the number of series ends.
func TestSeriesAreBounded(t *testing.T) {
	m := New("v", func() Facts { return Facts{} })
	phase := func(n int) {
		for i := range n {
			m.Phase("ADD", fmt.Sprintf("plugin-%d", i), "exec", time.Millisecond)
		}
	}
	phase(maxPlugins + 1)
	before := len(scrape(t, m))
	phase(1000)
	if after := len(scrape(t, m)); after != before {
		t.Errorf("from %d series there came to be %d", before, after)
	}
	if all := strings.Join(scrape(t, m), "\n"); !strings.Contains(all, fmt.Sprintf(`_count{phase="exec",plugin="other",verb="ADD"} %d`, 1000-maxPlugins+1)) {
		t.Errorf("the others are not counted together:\n%s", all)
	}
}
