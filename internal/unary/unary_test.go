package unary

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestNoGRPC: something else listens there.
func TestNoGRPC(t *testing.T) {
	for name, frame := range map[string]string{"short": "\x00\x00", "compressed": "\x01\x00\x00\x00\x00", "cut": "\x00\x00\x00\x00\x09abc"} {
		if got, err := message([]byte(frame)); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestLetsGo: of a service that takes the call and says nothing, no connection
// and nothing that serves it stays.
func TestLetsGo(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "silent.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	let := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			_, err = io.Copy(io.Discard, conn)
			err = errors.Join(err, conn.Close())
		}
		let <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Call(ctx, socket, "/v1.Silent/Ask"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	select {
	case err := <-let:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the connection stays open")
	}
}
