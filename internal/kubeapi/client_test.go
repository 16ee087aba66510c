package kubeapi

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/hint"
)

// patience bounds what a test waits for.
const patience = 30 * time.Second

// opened gives a client whose kubeconfig names ca.crt and token beside it.
func opened(t *testing.T, address string, ca []byte, opt Options) (client *Client, dir string) {
	t.Helper()
	dir = t.TempDir()
	write(t, filepath.Join(dir, "ca.crt"), ca)
	write(t, filepath.Join(dir, "token"), []byte("first\n"))
	path := filepath.Join(dir, "kubeconfig")
	write(t, path, fmt.Appendf(nil, file, address, "certificate-authority: ca.crt", "tokenFile: token"))
	client, err := Open(path, opt)
	if err != nil {
		t.Fatal(err)
	}
	return client, dir
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// until asks until the answer is good.
func until(t *testing.T, client *Client) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		_, err := client.Do(t.Context(), Request{Method: http.MethodGet, Path: "/version"})
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still: %v", err)
		}
	}
}

// certified serves with a certificate of its own, at an address or anywhere.
func certified(t *testing.T, address string, handler http.HandlerFunc) (s *httptest.Server, ca []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	s = httptest.NewUnstartedServer(handler)
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{raw}, PrivateKey: private}}}
	if address != "" {
		if err := s.Listener.Close(); err != nil {
			t.Fatal(err)
		}
		if s.Listener, err = net.Listen("tcp", address); err != nil {
			t.Fatal(err)
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw})
}

// TestTokenChanges: a token that the server no longer takes is read anew.
func TestTokenChanges(t *testing.T) {
	var want atomic.Value
	want.Store("Bearer first")
	s, ca := certified(t, "", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != want.Load() {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	client, dir := opened(t, s.URL, ca, Options{})
	until(t, client)
	want.Store("Bearer second")
	_, err := client.Do(t.Context(), Request{Method: http.MethodGet, Path: "/"})
	if status, ok := errors.AsType[*Status](err); !ok || status.Code != http.StatusUnauthorized {
		t.Fatalf("the old token gives %v, want 401", err)
	}
	write(t, filepath.Join(dir, "token"), []byte("second"))
	until(t, client)
}

// TestTokenIsReadAgain: a token that goes on to work for a while is replaced
// before it ends, and one that cannot be read stays.
func TestTokenIsReadAgain(t *testing.T) {
	var got atomic.Value
	s, ca := certified(t, "", func(_ http.ResponseWriter, r *http.Request) { got.Store(r.Header.Get("Authorization")) })
	client, dir := opened(t, s.URL, ca, Options{})
	ask := func(file, want string) {
		t.Helper()
		if file != "" {
			write(t, filepath.Join(dir, "token"), []byte(file))
		} else if err := os.Remove(filepath.Join(dir, "token")); err != nil {
			t.Fatal(err)
		}
		client.session.read = client.session.read.Add(-2 * tokenLife)
		until(t, client)
		if got.Load() != want {
			t.Errorf("the server sees %v, want %s", got.Load(), want)
		}
	}
	ask("second", "Bearer second")
	ask("", "Bearer second")
	ask("third", "Bearer third")
}

// TestAuthorityChanges: a cluster whose CA is replaced is known again by the file.
func TestAuthorityChanges(t *testing.T) {
	good := func(http.ResponseWriter, *http.Request) {}
	s, ca := certified(t, "", good)
	client, dir := opened(t, s.URL, ca, Options{})
	until(t, client)
	address := s.Listener.Addr().String()
	s.CloseClientConnections()
	s.Close()
	_, ca = certified(t, address, good)
	for deadline := time.Now().Add(patience); ; { // the old connections are found dead first
		_, err := client.Do(t.Context(), Request{Method: http.MethodGet, Path: "/"})
		if !errors.Is(err, ErrUnanswered) {
			t.Fatalf("a server of another CA gives %v, want no answer", err)
		}
		if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a server of another CA gives %v, want a certificate error", err)
		}
	}
	write(t, filepath.Join(dir, "ca.crt"), ca)
	until(t, client)
}

// TestBusy: a server that says when to come again is asked then, with the same
// body; one that does not is not.
func TestBusy(t *testing.T) {
	var asked atomic.Int64
	var after atomic.Value
	after.Store("0")
	s, ca := certified(t, "", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if string(body) != "body" || r.Header.Get("Content-Type") != JSON {
			t.Errorf("got %q as %s", body, r.Header.Get("Content-Type"))
		}
		if asked.Add(1)%3 != 0 {
			w.Header().Set("Retry-After", after.Load().(string))
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		_, _ = w.Write([]byte("done"))
	})
	observed := map[int]int{}
	client, _ := opened(t, s.URL, ca, Options{Observe: func(_, _ string, code int) { observed[code]++ }})
	post := Request{Method: http.MethodPost, Path: "/", Type: JSON, Body: []byte("body")}
	answer, err := client.Do(t.Context(), post)
	if err != nil || string(answer) != "done" || asked.Load() != 3 || observed[429] != 2 || observed[200] != 1 {
		t.Errorf("got %q, %v after %d requests, told of %v; want the third's answer", answer, err, asked.Load(), observed)
	}
	after.Store("")
	if _, err = client.Do(t.Context(), post); err == nil || asked.Load() != 4 {
		t.Errorf("without a time to come again: got %v after %d requests more, want an error after one", err, asked.Load()-3)
	}
	after.Store("3600")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err = client.Do(ctx, post); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > patience/2 {
		t.Errorf("got %v after %v, want the end of the context", err, time.Since(began))
	}
}

// TestStream: what the server sends is there at once, and the stream ends with its
// context.
func TestStream(t *testing.T) {
	s, ca := certified(t, "", func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("the client speaks %s, want HTTP/2", r.Proto)
		}
		_, _ = w.Write([]byte("one\n"))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	client, _ := opened(t, s.URL, ca, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := client.Stream(ctx, Request{Method: http.MethodGet, Path: "/"})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	buf := make([]byte, 4)
	if _, err := io.ReadFull(stream, buf); err != nil || string(buf) != "one\n" {
		t.Fatalf("got %q, %v", buf, err)
	}
	cancel()
	if _, err := stream.Read(buf); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that of the context", err)
	}
}

// TestDeadConnection: a way on which nothing comes back any more, and nobody says
// so, ends what waits on it.
func TestDeadConnection(t *testing.T) {
	s, ca := certified(t, "", func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	way := &severed{}
	client, _ := opened(t, s.URL, ca, Options{Dial: way.dial})
	if config := client.session.transport.HTTP2; config.SendPingTimeout != silence || config.PingTimeout != aliveness {
		t.Errorf("a silent connection is asked after %v and %v", config.SendPingTimeout, config.PingTimeout)
	}
	client.session.transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: 50 * time.Millisecond, PingTimeout: 50 * time.Millisecond}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := client.Stream(ctx, Request{Method: http.MethodGet, Path: "/"})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	way.cut()
	if _, err := stream.Read(make([]byte, 1)); err == nil || ctx.Err() != nil {
		t.Errorf("got %v, want the end of the connection", err)
	}
}

// severed are connections that can be cut without either end being told.
type severed struct {
	mu    sync.Mutex
	conns []*deaf
}

func (s *severed) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	one := &deaf{Conn: conn}
	s.conns = append(s.conns, one)
	return one, nil
}

func (s *severed) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.conns {
		conn.cut.Store(true)
	}
}

// deaf loses what is written to it.
type deaf struct {
	net.Conn
	cut atomic.Bool
}

func (d *deaf) Write(data []byte) (int, error) {
	if d.cut.Load() {
		return len(data), nil
	}
	return d.Conn.Write(data)
}

// TestRequests: where requests go, and as whom.
func TestRequests(t *testing.T) {
	s, ca := certified(t, "", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.URL.EscapedPath(), "?", r.URL.RawQuery, " ", r.UserAgent(), " ", r.Header.Get("Impersonate-User"))
	})
	for _, tt := range []struct{ base, path, want string }{
		{"", "/api/v1/pods", "/api/v1/pods?limit=1 me nobody"},
		{"/k8s/clusters/a/", "/api/v1/pods", "/k8s/clusters/a/api/v1/pods?limit=1 me nobody"},
		{"/k8s", "/api/v1/namespaces/a%2Fb/pods", "/k8s/api/v1/namespaces/a%2Fb/pods?limit=1 me nobody"},
	} {
		client, _ := opened(t, s.URL+tt.base, ca, Options{Agent: "me", As: "nobody"})
		got, err := client.Do(t.Context(), Request{Method: http.MethodGet, Path: tt.path, Query: map[string][]string{"limit": {"1"}}})
		if err != nil || string(got) != tt.want {
			t.Errorf("%s and %s: got %s, %v, want %s", tt.base, tt.path, got, err, tt.want)
		}
	}
}

func TestNoPod(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	_, err := InCluster(Options{})
	if h, ok := errors.AsType[*hint.Error](err); !ok || !strings.Contains(h.Error(), "this is no Pod; name a kubeconfig file") {
		t.Errorf("got %v, want a hint", err)
	}
}
