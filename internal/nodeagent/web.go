package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"time"
)

// serveWeb serves until the function it gives is called.
func (a *agent) serveWeb(ctx context.Context, opt Options) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		web{opt.Web, a.pages(opt), opt.Log}.run(ctx)
	}()
	return func() {
		cancel()
		<-ended
	}
}

// pages are what the web server has.
func (a *agent) pages(opt Options) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", a.count.Handler(a.log))
	mux.HandleFunc("GET /healthz", page(a.alive))
	ready := lately{ask: func(ctx context.Context) error { return a.ready(ctx, opt.Install) }}
	mux.HandleFunc("GET /readyz", page(ready.answer))
	if opt.Profiles {
		profiles(mux)
	}
	return mux
}

// page says ok, or what is the matter.
func page(ask func(context.Context) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := ask(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n")) // who does not wait for it, does not want it
	}
}

// web answers Prometheus, and whoever asks how we are.
type web struct {
	address string
	handler http.Handler
	log     *slog.Logger
}

// Bounds of the web server.
const (
	webPause    = time.Second      // until an address that is taken is tried again
	webPatience = 10 * time.Second // for a request
	webLongest  = 2 * time.Minute  // for an answer: profiles run for half a minute
)

// run serves until ctx ends. That somebody else has the port is no reason to end:
// the agent before us will give it up.
func (w web) run(ctx context.Context) {
	for told := ""; ; {
		err := w.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		if err.Error() != told {
			told = err.Error()
			w.log.Error("metrics and probes cannot be asked for", "address", w.address, "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(webPause):
		}
	}
}

func (w web) serve(ctx context.Context) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", w.address)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: w.handler, ReadTimeout: webPatience, WriteTimeout: webLongest, ErrorLog: slog.NewLogLogger(w.log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() }) // ends Serve
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return http.ErrServerClosed
}

// profiles are for who sits on the node: they tell what is in memory.
func profiles(mux *http.ServeMux) {
	for path, handler := range map[string]http.HandlerFunc{
		"/debug/pprof/": pprof.Index, "/debug/pprof/cmdline": pprof.Cmdline, "/debug/pprof/profile": pprof.Profile,
		"/debug/pprof/symbol": pprof.Symbol, "/debug/pprof/trace": pprof.Trace,
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			from, err := netip.ParseAddrPort(r.RemoteAddr)
			if err != nil || !from.Addr().Unmap().IsLoopback() {
				http.Error(w, "profiles are given to 127.0.0.1 only", http.StatusForbidden)
				return
			}
			handler(w, r)
		})
	}
}
