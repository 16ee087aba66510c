package kubeapi

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// Options are what a file does not say.
type Options struct {
	// Agent is how the program calls itself.
	Agent string
	// Proxy finds the proxy on the way to the server, unless the kubeconfig names
	// one. Nil: none.
	Proxy func(*http.Request) (*url.URL, error)
	// Dial opens connections. Nil: as usual.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// As is a user to act for, unless the kubeconfig names one.
	As string
	// Observe is told of each request that was answered, and with code 0 of each
	// that was not. Watches have method WATCH. Nil: nobody is.
	Observe func(method, resource string, code int)
}

// session is how the server is reached and who asks, as the files said it.
type session struct {
	server    *url.URL
	transport *http.Transport
	// header is that of every request; it is shared and never changed.
	header http.Header
	// tokenFile is read again now and then; empty: the token is in header for good.
	tokenFile string
	read      time.Time // when the files were
}

const (
	// tokenLife is for how long a token is used before its file is read again. The
	// kubelet puts a new one there ten minutes and more before the old one ends.
	tokenLife = time.Minute
	// renewPause is how long what the files say is tried before they are read
	// again because it does not work.
	renewPause = time.Second
	// A connection that is silent for so long is asked whether it is alive, and
	// closed without an answer.
	silence, aliveness = 30 * time.Second, 15 * time.Second
	dialTimeout        = 30 * time.Second
	handshakeTimeout   = 10 * time.Second
	idleTimeout        = 90 * time.Second
	idleConnections    = 25 // where there is no HTTP/2, such as behind a proxy
)

// newTransport gives the transport to a server.
func newTransport(opt Options) *http.Transport {
	t := &http.Transport{
		Proxy: opt.Proxy, DialContext: opt.Dial, ForceAttemptHTTP2: true, TLSHandshakeTimeout: handshakeTimeout, IdleConnTimeout: idleTimeout,
		MaxIdleConnsPerHost: idleConnections, HTTP2: &http.HTTP2Config{SendPingTimeout: silence, PingTimeout: aliveness},
	}
	if t.DialContext == nil {
		t.DialContext = (&net.Dialer{Timeout: dialTimeout, KeepAlive: silence}).DialContext
	}
	return t
}

// current gives the session to ask with.
func (c *Client) current() *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.session; s.tokenFile != "" && time.Since(s.read) > tokenLife {
		next := *s
		next.read = time.Now()
		text, err := os.ReadFile(s.tokenFile)
		if token := strings.TrimSpace(string(text)); err == nil && token != "" {
			next.header = s.header.Clone()
			next.header.Set("Authorization", "Bearer "+token)
		} // else the old one is as good as it is; the server says when it is not
		c.session = &next
	}
	return c.session
}

// renew reads the files again after a session did not work. It says whether
// there is another one to try.
func (c *Client) renew(failed *session) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session != failed {
		return true
	}
	if time.Since(failed.read) < renewPause {
		return false
	}
	next, err := c.access()
	if err != nil {
		failed.read = time.Now() // half written, maybe
		return false
	}
	c.session = next
	failed.transport.CloseIdleConnections() // others end with what they carry
	return true
}
