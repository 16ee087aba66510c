package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/weftnet/weft/internal/cniwire"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/install"
)

// alive says whether a new process would do better: if a call does not end. An
// API server, a plugin or a primary network that is away is no reason.
func (a *agent) alive(context.Context) error {
	if server := a.server.Load(); server != nil {
		return server.Stuck(time.Now())
	}
	return nil
}

// readyPatience is shorter than what the kubelet gives a probe in our DaemonSet.
const readyPatience = 4 * time.Second

// ready says whether Pods can be attached: the Pods and networks are known, weft
// is what the runtime calls, its calls are answered, and there is a primary
// network. What was known stays known while the API server is away.
func (a *agent) ready(ctx context.Context, installer *install.Installer) error {
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	if a.server.Load() == nil {
		return errors.New("what was left before this start is still being dealt with")
	}
	if !a.cache.Synced() {
		return errors.New("the API server has not told yet what Pods and networks there are")
	}
	config := []byte("{}")
	if installer != nil {
		var err error
		if config, err = install.Config(installer.ConfDir); err != nil {
			return err
		}
	}
	response, err := cniwire.Call(ctx, a.socket, 0, cniwire.Request{Command: "STATUS", Config: config})
	if err != nil {
		return fmt.Errorf("ask as the runtime does: %w", err)
	}
	if response.Error != nil {
		return response.Error
	}
	return nil
}

// goodFor is how long an answer is given again.
const goodFor = time.Second

// lately answers by what was asked a moment ago: whoever reaches our port may ask
// as often as it likes, and plugins may run for each question.
type lately struct {
	ask func(context.Context) error

	// mu guards the last answer and its time, and is held while asking.
	mu  sync.Mutex
	at  time.Time
	err error
}

func (l *lately) answer(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at.IsZero() || time.Since(l.at) >= goodFor {
		l.err = l.ask(context.WithoutCancel(ctx)) // others get it, too
		l.at = time.Now()
	}
	return l.err
}

// probeSocket is where the agent is asked how it is, whoever has which port.
func probeSocket(run string) string { return filepath.Join(run, "probe.sock") }

// probePatience is how long the agent may take to say how it is.
const probePatience = 8 * time.Second

// Probe asks the agent of this node for a page, readyz or healthz. The error says
// what is the matter.
func Probe(ctx context.Context, run, page string) error {
	ctx, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	if page != "readyz" && page != "healthz" {
		return &hint.Error{Field: "--probe", Value: page, Problem: "is nothing the agent can be asked", Remedy: "use readyz or healthz"}
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", probeSocket(run))
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/"+page, nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	defer answer.Body.Close()
	const most = 4 << 10 // of which the kubelet's event shows less
	text, err := io.ReadAll(io.LimitReader(answer.Body, most))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(text)))
	}
	return err
}
