package nodeagent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/linux"
)

// serveWeb serves probes and, where it is asked for, metrics until the function it
// gives is called.
func (a *agent) serveWeb(ctx context.Context, opt Options) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ready := &lately{ask: func(ctx context.Context) error { return a.ready(ctx, opt.Install) }}
	probes := http.NewServeMux()
	a.probes(probes, ready)
	servers := []web{{network: "unix", address: probeSocket(opt.Run), handler: probes, log: opt.Log}}
	if opt.Web != "" {
		servers = append(servers, web{network: "tcp", address: opt.Web, handler: a.pages(opt, ready), log: opt.Log})
	}
	var serving sync.WaitGroup
	for _, server := range servers {
		serving.Go(func() { server.run(ctx) })
	}
	return func() {
		cancel()
		serving.Wait()
	}
}

// pages are what the web server has.
func (a *agent) pages(opt Options, ready *lately) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", a.count.Handler(a.log))
	a.probes(mux, ready)
	if opt.Profiles {
		profiles(mux)
	}
	return mux
}

// probes are the pages of who asks how we are.
func (a *agent) probes(mux *http.ServeMux, ready *lately) {
	mux.HandleFunc("GET /healthz", page(a.alive))
	mux.HandleFunc("GET /readyz", page(ready.answer))
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

// web answers Prometheus, and whoever asks how we are, on one address.
type web struct {
	network, address string
	handler          http.Handler
	log              *slog.Logger
}

// Bounds of the web server.
const (
	webPause    = time.Second      // until an address that is taken is tried again
	webPatience = 10 * time.Second // for a request
	webLongest  = 2 * time.Minute  // for an answer: profiles run for half a minute
)

// run serves until ctx ends. That somebody else has the port is no reason to end:
// the agent before us will give it up, and others may.
func (w web) run(ctx context.Context) {
	for told := ""; ; {
		err := w.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		if err.Error() != told {
			told = err.Error()
			w.log.Error("cannot be asked how the agent is; it works all the same", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(webPause):
		}
	}
}

func (w web) listen(ctx context.Context) (net.Listener, error) {
	var config net.ListenConfig
	if w.network == "unix" {
		if err := os.Remove(w.address); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("remove old probe socket: %w", err)
		}
		if err := os.MkdirAll(filepath.Dir(w.address), 0o755); err != nil {
			return nil, fmt.Errorf("make directory of probe socket: %w", err)
		}
	}
	listener, err := config.Listen(ctx, w.network, w.address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, w.taken()
	}
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if at, ok := listener.(*net.UnixListener); ok {
		at.SetUnlinkOnClose(false) // the next agent may have made its own meanwhile
	}
	return listener, nil
}

// taken tells who has our port.
func (w web) taken() error {
	who := "another process"
	if _, text, err := net.SplitHostPort(w.address); err == nil {
		if port, err := strconv.ParseUint(text, 10, 16); err == nil {
			who = cmp.Or(linux.Listener(uint16(port)), who)
		}
	}
	return &hint.Error{
		Field: "--http-address", Value: w.address, Problem: "is taken on this node by " + who + ", so there are no metrics",
		Remedy: "choose another port (http.port of the chart), or 0 there for none",
	}
}

func (w web) serve(ctx context.Context) error {
	listener, err := w.listen(ctx)
	if err != nil {
		return err
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
