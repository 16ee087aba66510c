package kubelab

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/linux"
)

// Proxy stands between clients and the API server, counts their requests and
// spoils them as it is told. It keeps who asks: a client's certificate or token
// counts behind it, too.
type Proxy struct {
	// URL is its address in the cluster's network.
	URL string

	c *Cluster

	// mu guards the fields below it.
	mu       sync.Mutex
	fault    func(*http.Request) Fault
	requests []Request
	conns    map[net.Conn]bool
}

// Fault is what becomes of a request. The zero value lets it pass.
type Fault struct {
	Delay  time.Duration // before anything else
	Status int           // answered instead of the API server, such as 500
	Away   bool          // the connection breaks, as if nobody were there
}

// Request is one request that came.
type Request struct {
	User   string // empty: by token
	Agent  string // User-Agent
	Method string
	Path   string
	Query  url.Values
}

// Proxy starts a proxy that ends with the test.
func (c *Cluster) Proxy(t testing.TB) *Proxy {
	t.Helper()
	var listener net.Listener
	err := linux.InNS(c.netns, func() error {
		var err error
		listener, err = net.Listen("tcp", controlPlane+":0")
		return err
	})
	if err != nil {
		t.Fatalf("proxy: %v", err)
	}
	p := &Proxy{URL: "https://" + listener.Addr().String(), c: c, conns: map[net.Conn]bool{}}
	config, handler, err := p.handler()
	if err != nil {
		t.Fatalf("proxy: %v", err)
	}
	s := &http.Server{
		Handler: handler, TLSConfig: config, ReadHeaderTimeout: Patience, ConnState: p.follow,
		// No HTTP/2: there a broken connection would be a broken stream only.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	done := make(chan error, 1)
	go func() { done <- s.ServeTLS(listener, "", "") }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("end the proxy: %v", err)
		}
		<-done
	})
	return p
}

// handler passes requests on as the user that made them.
func (p *Proxy) handler() (*tls.Config, http.Handler, error) {
	admin, err := p.c.TLS()
	if err != nil {
		return nil, nil, err
	}
	anonymous := admin.Clone()
	anonymous.Certificates = nil
	pair, err := tls.LoadX509KeyPair(filepath.Join(p.c.Dir, "apiserver.crt"), filepath.Join(p.c.Dir, "apiserver.key"))
	if err != nil {
		return nil, nil, err
	}
	target, err := url.Parse(p.c.Server)
	if err != nil {
		return nil, nil, err
	}
	byCertificate := &http.Transport{TLSClientConfig: admin, DialContext: p.c.Dial, ForceAttemptHTTP2: true}
	byToken := &http.Transport{TLSClientConfig: anonymous, DialContext: p.c.Dial, ForceAttemptHTTP2: true}
	reverse := &httputil.ReverseProxy{
		FlushInterval: -1, // watches
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target); impersonate(r.Out) },
		Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.Header.Get("Impersonate-User") != "" {
				return byCertificate.RoundTrip(r)
			}
			return byToken.RoundTrip(r)
		}),
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: admin.RootCAs, ClientAuth: tls.VerifyClientCertIfGiven,
		MinVersion: tls.VersionTLS12,
	}
	return config, p.spoil(reverse), nil
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// impersonate has the API server see the user of the client's certificate.
func impersonate(r *http.Request) {
	user := certificate(r)
	if user == nil {
		return
	}
	r.Header.Set("Impersonate-User", user.Subject.CommonName)
	for _, group := range append(slices.Clone(user.Subject.Organization), "system:authenticated") {
		r.Header.Add("Impersonate-Group", group)
	}
}

func certificate(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	return r.TLS.PeerCertificates[0]
}

// spoil counts requests and lets those pass that have no fault.
func (p *Proxy) spoil(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		request := Request{Agent: r.UserAgent(), Method: r.Method, Path: r.URL.Path, Query: r.URL.Query()}
		if user := certificate(r); user != nil {
			request.User = user.Subject.CommonName
		}
		p.mu.Lock()
		p.requests = append(p.requests, request)
		choose := p.fault
		p.mu.Unlock()
		var fault Fault
		if choose != nil {
			fault = choose(r)
		}
		timer := time.NewTimer(fault.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			return
		}
		switch {
		case fault.Away:
			panic(http.ErrAbortHandler) // net/http's way to break the connection
		case fault.Status != 0:
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(fault.Status)
			fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"spoilt by the test","reason":%q,"code":%d}`,
				reason(fault.Status), fault.Status)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// reason is what the API server calls a status.
func reason(status int) string {
	switch status {
	case http.StatusConflict:
		return "Conflict"
	case http.StatusInternalServerError:
		return "InternalError"
	}
	return strings.ReplaceAll(http.StatusText(status), " ", "")
}

// Spoil has fault decide about every request from now on; nil lets all pass.
// It is called from several goroutines.
func (p *Proxy) Spoil(fault func(*http.Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = fault
}

// Cut breaks all connections there are, watches among them.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		_ = conn.Close() // it may be gone by now
	}
}

func (p *Proxy) follow(conn net.Conn, state http.ConnState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch state {
	case http.StateNew:
		p.conns[conn] = true
	case http.StateClosed, http.StateHijacked:
		delete(p.conns, conn)
	}
}

// Take gives the requests since the last Take.
func (p *Proxy) Take() []Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := p.requests
	p.requests = nil
	return taken
}

// Kubeconfig gives a file like another one of the cluster, but by way of the
// proxy.
func (p *Proxy) Kubeconfig(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(strings.TrimPrefix(p.URL, "https://"))
	if err != nil {
		return "", err
	}
	through := strings.TrimSuffix(file, ".kubeconfig") + "-" + port + ".kubeconfig"
	return through, os.WriteFile(through, []byte(strings.ReplaceAll(string(data), server, p.URL)), 0o600)
}
