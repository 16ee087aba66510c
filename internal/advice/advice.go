// Package advice asks the cluster's adviser which addresses are free, for one node.
// Who asks goes on alone if there is no answer soon: an adviser that is away, slow
// or wrong costs a node time and tries, and never much.
package advice

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/adviser"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/unary"
)

const (
	// Patience is how long an answer is waited for.
	Patience = 100 * time.Millisecond
	// After a failure nobody is asked for a while: doubled from the first to the last.
	firstQuiet = 250 * time.Millisecond
	lastQuiet  = 30 * time.Second
	// findEvery is how often the adviser is looked for while there is none, and
	// findPatience how long one look takes.
	findEvery, findPatience = 10 * time.Second, 10 * time.Second
	// tokenLife is how long a token is used before its file is read again. The kubelet
	// puts a new one there long before the old one ends.
	tokenLife = time.Minute
)

var configMapKind = schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}

// reader is the part of store.Store that is asked.
type reader interface {
	Get(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (*store.Object, error)
}

// Options say where the adviser is found.
type Options struct {
	API reader
	// ConfigMap has the adviser's address and certificate.
	ConfigMap store.Key
	// TokenFile has the token that proves which node this is.
	TokenFile string
	// Dial opens connections; nil: as usual.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Log  *slog.Logger
}

// Client asks the adviser. Several goroutines may use it, while Run runs.
type Client struct {
	Options
	token tokenFile
	wake  chan struct{} // one: the adviser is to be looked for

	// mu guards what follows.
	mu     sync.Mutex
	client *unary.Client // nil: no adviser is known
	quiet  time.Duration // since the last failure; zero: there was none
	until  time.Time     // nobody is asked
}

// New makes a client that knows no adviser yet.
func New(options Options) *Client {
	return &Client{Options: options, token: tokenFile{path: options.TokenFile}, wake: make(chan struct{}, 1)}
}

// String names the task.
func (*Client) String() string { return "search for the adviser" }

// Candidates gives up to count addresses of spans that the adviser believes to be
// free, the best first. None: there is no advice, for whatever reason.
func (c *Client) Candidates(ctx context.Context, scope string, spans []ipam.Span, count int) []netip.Addr {
	client := c.known()
	if client == nil {
		return nil
	}
	answer, err := question(ctx, client, adviser.Method, adviser.Question{Scope: scope, Spans: spans, Count: count})
	var addrs []netip.Addr
	if err == nil {
		addrs, err = adviser.ReadAnswer(answer)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		if c.quiet > 0 {
			c.Log.Info("the adviser answers again")
		}
		c.quiet = 0
	case ctx.Err() == nil && c.client == client: // else somebody noticed before
		if c.quiet == 0 {
			c.Log.Warn("the adviser does not answer; addresses are chosen here", "err", err)
		}
		c.quiet = min(max(2*c.quiet, firstQuiet), lastQuiet)
		c.until = time.Now().Add(c.quiet)
		c.client = nil // it may be another one now
		client.Close()
		c.poke()
	}
	return addrs
}

// Keep tells the adviser which addresses of spans this node keeps ahead, and learns
// how many it may. false: nobody says so, such as an adviser of an older version.
func (c *Client) Keep(ctx context.Context, scope string, spans []ipam.Span, keeps []netip.Addr) (adviser.Ahead, bool) {
	client := c.known()
	if client == nil {
		return adviser.Ahead{}, false
	}
	answer, err := question(ctx, client, adviser.KeepMethod, adviser.Question{Scope: scope, Spans: spans, Keeps: keeps})
	if err != nil {
		return adviser.Ahead{}, false
	}
	ahead, err := adviser.ReadAhead(answer)
	return ahead, err == nil
}

// known gives the adviser's client; nil: nobody is asked now.
func (c *Client) known() *unary.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Now().Before(c.until) {
		return nil
	}
	return c.client
}

// question asks one.
func question(ctx context.Context, client *unary.Client, method string, q adviser.Question) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	return client.Call(ctx, method, q.Bytes())
}

func (c *Client) poke() {
	select {
	case c.wake <- struct{}{}:
	default: // it is looked for
	}
}

// Run finds the adviser, and finds it again, until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	look := time.NewTicker(findEvery)
	defer look.Stop()
	c.poke()
	for told := ""; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		case <-look.C:
		}
		c.mu.Lock()
		known := c.client != nil
		c.mu.Unlock()
		if known {
			continue
		}
		client, err := c.find(ctx)
		if err != nil {
			if ctx.Err() == nil && err.Error() != told && !errors.Is(err, store.ErrNotFound) { // clusters need have none
				told = err.Error()
				c.Log.Warn("the adviser is not found; addresses are chosen here", "err", err)
			}
			continue
		}
		if told != found {
			told = found
			c.Log.Info(found)
		}
		c.mu.Lock()
		c.client = client
		c.mu.Unlock()
	}
}

// found is told once, and again after it was not so.
const found = "addresses are chosen with the cluster's adviser"

// find reads where the adviser is.
func (c *Client) find(ctx context.Context) (*unary.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, findPatience)
	defer cancel()
	config, err := c.API.Get(ctx, configMapKind, c.ConfigMap)
	if err != nil {
		return nil, fmt.Errorf("read ConfigMap %s: %w", c.ConfigMap, err)
	}
	data, _ := config.Object["data"].(map[string]any)
	address, _ := data["address"].(string)
	authority, _ := data["ca.crt"].(string)
	trusted := x509.NewCertPool()
	if address == "" || !trusted.AppendCertsFromPEM([]byte(authority)) {
		return nil, &hint.Error{
			Field: "ConfigMap " + c.ConfigMap.String(), Problem: "has no address or no certificate", Remedy: "delete it: weft-controller makes it anew",
		}
	}
	return unary.NewClient(unary.Service{
		Address: address, Token: c.token.read, Dial: c.Dial,
		TLS: &tls.Config{RootCAs: trusted, ServerName: adviser.ServerName, MinVersion: tls.VersionTLS13},
	}), nil
}

// tokenFile is a token that somebody renews.
type tokenFile struct {
	path string

	// mu guards what follows.
	mu     sync.Mutex
	token  string
	readAt time.Time
}

func (f *tokenFile) read() (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.token != "" && time.Since(f.readAt) < tokenLife {
		return f.token, nil
	}
	text, err := os.ReadFile(f.path)
	if err != nil {
		return "", err
	}
	f.token, f.readAt = strings.TrimSpace(string(text)), time.Now()
	return f.token, nil
}
