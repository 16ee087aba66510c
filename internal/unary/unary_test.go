package unary

import "testing"

// TestNoGRPC: something else listens there.
func TestNoGRPC(t *testing.T) {
	for name, frame := range map[string]string{"short": "\x00\x00", "compressed": "\x01\x00\x00\x00\x00", "cut": "\x00\x00\x00\x00\x09abc"} {
		if got, err := message([]byte(frame)); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}
