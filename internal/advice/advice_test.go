package advice

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/adviser"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/local"
	"github.com/weftnet/weft/internal/unary"
)

var (
	where = store.Key{Namespace: "weft", Name: adviser.ConfigMap}
	spans = []ipam.Span{{First: netip.MustParseAddr("10.0.0.1"), Last: netip.MustParseAddr("10.0.0.9")}}
)

// desk is an adviser who always says the same.
type desk struct {
	*httptest.Server
	certificate string
	asked       atomic.Int32
	silent      atomic.Bool
	broken      atomic.Bool
}

func newDesk(t *testing.T, says string) *desk {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{adviser.ServerName}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
	d.Server = httptest.NewUnstartedServer(unary.Handler(map[string]unary.Method{
		adviser.Method: func(ctx context.Context, token string, _ []byte) ([]byte, error) {
			d.asked.Add(1)
			if token != "secret" {
				return nil, &unary.Error{Code: unary.Unauthenticated, Err: errors.New("who?")}
			}
			if d.silent.Load() {
				<-ctx.Done()
			}
			if d.broken.Load() {
				return []byte("garbage"), nil
			}
			return adviser.AnswerBytes([]netip.Addr{netip.MustParseAddr(says)}), nil
		},
	}))
	d.EnableHTTP2 = true
	d.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13}
	d.StartTLS()
	t.Cleanup(d.Close)
	return d
}

// publish says in the ConfigMap where nodes ask.
func publish(t *testing.T, api store.Store, address, certificate string) {
	t.Helper()
	config := &store.Object{Object: map[string]any{"data": map[string]any{"address": address, "ca.crt": certificate}}}
	config.SetGroupVersionKind(configMapKind)
	config.SetNamespace(where.Namespace)
	config.SetName(where.Name)
	_, err := api.Create(t.Context(), config)
	if errors.Is(err, store.ErrExists) {
		_, err = api.Update(t.Context(), config)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func newClient(t *testing.T) (*Client, store.Store) {
	t.Helper()
	dir := t.TempDir()
	api, err := local.Open(filepath.Join(dir, "objects"), local.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Close() })
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := New(Options{API: api, ConfigMap: where, TokenFile: token, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return c, api
}

func ask(t *testing.T, c *Client) string {
	t.Helper()
	got := c.Candidates(t.Context(), "scope", spans, 1)
	if len(got) == 0 {
		return ""
	}
	return got[0].String()
}

func becomes(t *testing.T, c *Client, want string) {
	t.Helper()
	c.poke() // there may have been no ConfigMap when it looked
	for deadline := time.Now().Add(30 * time.Second); ask(t, c) != want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("advice is not %q", want)
		}
	}
}

// TestLeaderChanges: the adviser is another one, then none, then one again.
func TestLeaderChanges(t *testing.T) {
	c, api := newClient(t)
	if got := ask(t, c); got != "" {
		t.Errorf("advice of nobody: %s", got)
	}
	first, second := newDesk(t, "10.0.0.1"), newDesk(t, "10.0.0.2")
	publish(t, api, first.Listener.Addr().String(), first.certificate)
	becomes(t, c, "10.0.0.1")
	first.CloseClientConnections()
	first.Close()
	publish(t, api, second.Listener.Addr().String(), second.certificate)
	becomes(t, c, "10.0.0.2")
	third := newDesk(t, "10.0.0.3")
	second.Close()
	publish(t, api, third.Listener.Addr().String(), second.certificate) // not its own
	becomes(t, c, "")
	publish(t, api, third.Listener.Addr().String(), third.certificate)
	becomes(t, c, "10.0.0.3")
}

// TestSilent: an adviser that does not answer, or answers garbage, is not waited for
// again and again.
func TestSilent(t *testing.T) {
	for name, fault := range map[string]func(*desk) *atomic.Bool{
		"silent":  func(d *desk) *atomic.Bool { return &d.silent },
		"garbage": func(d *desk) *atomic.Bool { return &d.broken },
	} {
		t.Run(name, func(t *testing.T) {
			c, api := newClient(t)
			d := newDesk(t, "10.0.0.1")
			publish(t, api, d.Listener.Addr().String(), d.certificate)
			becomes(t, c, "10.0.0.1")
			fault(d).Store(true)
			before := d.asked.Load()
			began := time.Now()
			for range 1000 {
				if got := ask(t, c); got != "" {
					t.Fatalf("advice of nobody: %s", got)
				}
			}
			took, asked := time.Since(began), d.asked.Load()-before
			if most := 2 + int32(took/firstQuiet); asked > most {
				t.Errorf("it was asked %d times in %v", asked, took)
			}
			fault(d).Store(false)
			becomes(t, c, "10.0.0.1")
		})
	}
}
