package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// webPatience is for a request, and for its answer.
const webPatience = 10 * time.Second

// web answers Prometheus, and whoever asks how we are.
type web struct {
	address string
	handler http.Handler
	log     *slog.Logger
}

// Run serves until ctx ends.
func (w web) Run(ctx context.Context) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", w.address)
	if err != nil {
		return fmt.Errorf("listen for metrics and probes: %w", err)
	}
	server := &http.Server{Handler: w.handler, ReadTimeout: webPatience, WriteTimeout: webPatience, ErrorLog: slog.NewLogLogger(w.log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() }) // ends Serve
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics and probes: %w", err)
	}
	return nil
}

// pages are what the web server has. A copy that waits is as healthy and ready as
// the one that leads; an API server that is away is no reason to start anew.
func (c *controller) pages() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", c.count.Handler(c.Log))
	mux.HandleFunc("GET /healthz", ok)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if s := c.state.Load(); s != nil && (!s.book.Synced() || !s.pods.Synced()) {
			http.Error(w, "what is held in the cluster is not known yet", http.StatusServiceUnavailable)
			return
		}
		ok(w, r)
	})
	return mux
}

func ok(w http.ResponseWriter, _ *http.Request) {
	_, _ = w.Write([]byte("ok\n")) // who does not wait for it, does not want it
}
