package unary

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// serveTLS serves a method that gives back the token and what it is asked.
func serveTLS(t *testing.T) (address string, config *tls.Config) {
	t.Helper()
	server := httptest.NewUnstartedServer(Handler(map[string]Method{
		"/test.Echo/Say": func(_ context.Context, token string, message []byte) ([]byte, error) {
			if token == "" {
				return nil, &Error{Unauthenticated, errors.New("who? 100 % unknown")}
			}
			return append(message, token...), nil
		},
		"/test.Echo/Same": func(_ context.Context, _ string, message []byte) ([]byte, error) { return message, nil },
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	return server.Listener.Addr().String(), &tls.Config{RootCAs: pool, ServerName: "example.com", MinVersion: tls.VersionTLS13}
}

func TestTLS(t *testing.T) {
	address, config := serveTLS(t)
	token := "secret"
	client := NewClient(Service{Address: address, TLS: config, Token: func() (string, error) { return token, nil }})
	defer client.Close()
	if got, err := client.Call(t.Context(), "/test.Echo/Say", []byte("hello ")); err != nil || string(got) != "hello secret" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := client.Call(t.Context(), "/test.Echo/Sing", nil); err == nil || !strings.Contains(err.Error(), "status 12") {
		t.Errorf("got %q, %v", got, err)
	}
	token = ""
	if got, err := client.Call(t.Context(), "/test.Echo/Say", nil); err == nil || !strings.Contains(err.Error(), "status 16: who? 100 % unknown") {
		t.Errorf("got %q, %v", got, err)
	}
	stranger := NewClient(Service{Address: address, TLS: &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "example.com", MinVersion: tls.VersionTLS13}, Token: client.service.Token})
	if got, err := stranger.Call(t.Context(), "/test.Echo/Say", nil); err == nil {
		t.Errorf("a stranger's certificate is trusted: %q", got)
	}
}

// TestGRPCAsks: gRPC's own client understands our server.
func TestGRPCAsks(t *testing.T) {
	address, config := serveTLS(t)
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer := &wrapperspb.StringValue{}
	if err := conn.Invoke(t.Context(), "/test.Echo/Same", wrapperspb.String("hello"), answer); err != nil || answer.GetValue() != "hello" {
		t.Errorf("got %q, %v", answer.GetValue(), err)
	}
	err = conn.Invoke(metadata.NewOutgoingContext(t.Context(), nil), "/test.Echo/Say", wrapperspb.String("hello"), answer)
	if got := status.Convert(err); got.Code() != codes.Unauthenticated || got.Message() != "who? 100 % unknown" {
		t.Errorf("got %v", got)
	}
	if err := conn.Invoke(t.Context(), "/test.Echo/Sing", wrapperspb.String("hello"), answer); status.Code(err) != codes.Unimplemented {
		t.Errorf("got %v", err)
	}
}
