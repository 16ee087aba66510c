package unary

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"time"
)

// A connection that is silent is asked whether it is alive, and given up.
const (
	silence   = 15 * time.Second
	aliveness = 5 * time.Second
	idleFor   = 5 * time.Minute
)

// Service is a gRPC service over TLS.
type Service struct {
	Address string // host:port
	TLS     *tls.Config
	// Token gives what the caller proves by who it is, for each call.
	Token func() (string, error)
	// Dial opens connections; nil: as usual.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Client asks a service, on one connection. Several goroutines may use it.
type Client struct {
	service   Service
	transport *http.Transport
}

// NewClient gives a client of a service.
func NewClient(service Service) *Client {
	transport := &http.Transport{
		Protocols: &http.Protocols{}, TLSClientConfig: service.TLS, TLSHandshakeTimeout: aliveness, IdleConnTimeout: idleFor,
		DialContext: service.Dial, HTTP2: &http.HTTP2Config{SendPingTimeout: silence, PingTimeout: aliveness},
	}
	transport.Protocols.SetHTTP2(true)
	return &Client{service, transport}
}

// Call calls a method with a message and gives the answer's.
func (c *Client) Call(ctx context.Context, method string, message []byte) ([]byte, error) {
	token, err := c.service.Token()
	if err != nil {
		return nil, fmt.Errorf("read token: %w", err)
	}
	return call(ctx, c.transport, "https://"+c.service.Address+method, token, message)
}

// Close ends the connection, once its calls have ended.
func (c *Client) Close() { c.transport.CloseIdleConnections() }
