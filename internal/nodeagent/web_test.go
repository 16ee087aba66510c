package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/test/kubelab"
)

// ask gives the status code and the body of a page of the agent.
func (l *lab) ask(page string) (code, body string) {
	l.t.Helper()
	out := l.in(l.c.NetNS(), "curl", "-s", "-w", "%{http_code}", "http://"+labWeb+page)
	return out[len(out)-3:], out[:len(out)-3]
}

func (l *lab) is(page, code, text string) {
	l.t.Helper()
	if got, body := l.ask(page); got != code || !strings.Contains(body, text) {
		l.t.Errorf("%s answers %s %q, want %s %q", page, got, body, code, text)
	}
}

// probe asks the agent as the kubelet does.
func (l *lab) probe(page string) error {
	out, err := exec.Command(filepath.Join(l.bin, "weft-node"), "--root", l.dir, "--probe", page).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return err
}

// TestPortIsTaken: somebody else has the agent's port. It says who, works and is
// well, and serves metrics once it may.
func TestPortIsTaken(t *testing.T) {
	l := newLab(t)
	var other net.Listener
	if err := l.call(func() (err error) {
		other, err = net.Listen("tcp", labWeb)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := l.probe("readyz"); err == nil || !strings.Contains(err.Error(), "ask the agent") {
		t.Errorf("without an agent: %v", err)
	}
	l.start()
	l.eventually("the agent is ready", func() error { return l.probe("readyz") })
	if err := l.probe("healthz"); err != nil {
		t.Error(err)
	}
	if err := l.probe("metrics"); err == nil {
		t.Error("metrics are no probe")
	}
	log, err := os.ReadFile(filepath.Join(l.dir, "log"))
	if want := fmt.Sprintf("is taken on this node by %.15s (PID %d)", filepath.Base(os.Args[0]), os.Getpid()); err != nil || !strings.Contains(string(log), want) || !strings.Contains(string(log), "--http-address") {
		t.Errorf("the log does not say that the port %s (%v):\n%s", want, err, log)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	l.in(l.c.NetNS(), "curl", "-sf", "--retry", "60", "--retry-delay", "1", "--retry-connrefused", "http://"+labWeb+"/metrics")
	l.kill()
	l.start() // where its socket lies about
	l.eventually("the agent is ready again", func() error { return l.probe("readyz") })
}

// TestMetricsAndProbes asks a real agent before, while and after it works, and
// while the API server is away.
func TestMetricsAndProbes(t *testing.T) {
	l := newLab(t)
	l.start()
	l.eventually("the agent is ready", func() error {
		if code, body := l.ask("/readyz"); code != "200" {
			return fmt.Errorf("%s: %s", code, body)
		}
		return nil
	})
	l.define()
	p := l.attached(mixed, true)
	p.check()
	lost := l.pod("nowhere")
	lost.sandbox(true)
	if err := lost.add(); err == nil {
		t.Error("a network that is not there was attached")
	}
	_, with := l.ask("/metrics")
	for _, want := range []string{
		`weft_cni_duration_seconds_count{phase="total",plugin="",verb="ADD"} 2`, `weft_cni_duration_seconds_count{phase="queue",plugin="",verb="ADD"} 2`,
		`weft_cni_duration_seconds_count{phase="apply",plugin="bridge",verb="ADD"} `, `weft_cni_duration_seconds_count{phase="resolve",plugin="",verb="ADD"} 2`,
		`weft_cni_duration_seconds_count{phase="exec",plugin="alpha",verb="ADD"} 1`, `weft_cni_duration_seconds_count{phase="compare",plugin="",verb="CHECK"} 1`,
		`weft_cni_failures_total{cause="unknown-network",verb="ADD"} 1`, `weft_attachments{stage="attached"} 3`, `weft_cni_calls{state="working"} 0`, `weft_cni_kept_dels 0`,
		`weft_api_requests_total{code="200",method="WATCH",resource="pods"}`, `weft_build_info{`,
	} {
		if !strings.Contains(with, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	if strings.Contains(with, p.key.Name) || strings.Contains(with, l.ns) || strings.Contains(with, "tuned") {
		t.Error("a label names a Pod or a network")
	}
	if count := strings.Count(with, "\nweft_"); count > 500 {
		t.Errorf("there are %d series", count)
	}
	l.is("/debug/pprof/cmdline", "200", "weft-node")

	if err := l.c.Kill(kubelab.APIServer); err != nil {
		t.Fatal(err)
	}
	l.is("/healthz", "200", "ok") // and ready for what needs no API server
	l.is("/readyz", "200", "ok")
	if err := errors.Join(l.probe("healthz"), l.probe("readyz")); err != nil {
		t.Error(err)
	}
	if err := l.c.WaitAPI(); err != nil {
		t.Fatal(err)
	}
	p.end()
	lost.end()
	if _, after := l.ask("/metrics"); !strings.Contains(after, `weft_attachments{stage="attached"} 0`) || !strings.Contains(after, `phase="exec",plugin="alpha",verb="DEL"`) {
		t.Errorf("after DEL the metrics are\n%s", after)
	}
	if err := os.Remove(l.socket()); err != nil { // nobody reaches the agent any more
		t.Fatal(err)
	}
	l.eventually("it tells that it is not ready", func() error {
		if code, body := l.ask("/readyz"); code != "503" || !strings.Contains(body, "ask as the runtime does") {
			return fmt.Errorf("%s: %s", code, body)
		}
		return nil
	})
	l.is("/healthz", "200", "ok")
	if err := l.probe("readyz"); err == nil || !strings.Contains(err.Error(), "ask as the runtime does") || l.probe("healthz") != nil {
		t.Errorf("probes tell %v and %v", err, l.probe("healthz"))
	}
	l.kill()
	l.nothingLeft()
}

// TestProfilesAreForTheNode: whoever is elsewhere gets none, and nobody without
// the flag.
func TestProfilesAreForTheNode(t *testing.T) {
	mux := http.NewServeMux()
	profiles(mux)
	for from, want := range map[string]int{"127.0.0.1:4": 200, "[::1]:4": 200, "192.0.2.1:4": 403, "[::ffff:192.0.2.1]:4": 403, "": 403} {
		request := httptest.NewRequest(http.MethodGet, "/debug/pprof/cmdline", nil)
		request.RemoteAddr = from
		answer := httptest.NewRecorder()
		mux.ServeHTTP(answer, request)
		if answer.Code != want {
			t.Errorf("from %q: got %d, want %d", from, answer.Code, want)
		}
	}
}

// TestReadyIsAskedSeldom, however often and by however many at once.
func TestReadyIsAskedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		var failure error
		l := lately{ask: func(ctx context.Context) error {
			asked++
			return errors.Join(failure, ctx.Err())
		}}
		gone, leave := context.WithCancel(t.Context())
		leave()
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() {
				if err := l.answer(gone); err != nil {
					t.Errorf("who asks first and leaves has the others get %v", err)
				}
			})
		}
		group.Wait()
		failure = errors.New("ill")
		for _, tt := range []struct {
			after time.Duration
			asked int
			err   error
		}{{goodFor / 2, 1, nil}, {goodFor / 2, 2, failure}, {goodFor - 1, 2, failure}} {
			time.Sleep(tt.after)
			if err := l.answer(t.Context()); asked != tt.asked || !errors.Is(err, tt.err) {
				t.Errorf("after %v more: asked %d times, answer %v, want %d, %v", tt.after, asked, err, tt.asked, tt.err)
			}
		}
	})
}
