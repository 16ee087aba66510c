package nodeagent

import (
	"context"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"
)

// TestThrift: what a burst leaves goes back to the machine once it is over.
func TestThrift(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- thrift{func() uint64 { return 1 }}.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	const burst = 64 << 20
	func() {
		block := make([]byte, burst)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		runtime.KeepAlive(block)
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/released:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(sample)
		if sample[0].Value.Uint64() >= burst && sample[1].Value.Uint64() < burst {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d MiB are released", sample[0].Value.Uint64()>>20)
		}
	}
}
