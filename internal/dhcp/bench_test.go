package dhcp

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/weftnet/weft/internal/frame"
)

// BenchmarkRoundTrip measures DISCOVER to OFFER over a TAP, and beside it, in
// turns, an echo of the same frame that does nothing else, on the same device.
// It reports the medians and their ratio.
func BenchmarkRoundTrip(b *testing.B) {
	// A server answers this many at once before it paces a guest.
	const batch = requestsBurst / 2
	w := newWire(b)
	discover := frame4(request(b, dhcpv4.MessageTypeDiscover))
	var served, echoed []time.Duration
	for b.Loop() {
		served = append(served, w.measureServer(b, discover, batch)...)
		echoed = append(echoed, w.measureEcho(b, discover, batch)...)
	}
	slices.Sort(served)
	slices.Sort(echoed)
	ours, bare := served[len(served)/2], echoed[len(echoed)/2]
	b.ReportMetric(float64(ours.Nanoseconds()), "ns/reply")
	b.ReportMetric(float64(bare.Nanoseconds()), "ns/echo")
	b.ReportMetric(float64(ours)/float64(bare), "reply/echo")
	b.ReportMetric(0, "ns/op") // a turn of the loop means nothing
}

func (w *wire) measureServer(b *testing.B, discover []byte, n int) []time.Duration {
	s, _ := start(b, Config{Netns: w.pod.path, Serve: serveAll(), Log: slog.New(slog.DiscardHandler)})
	waitReady(b, s)
	defer s.Close()
	return w.measure(b, discover, n, isReply4)
}

func (w *wire) measureEcho(b *testing.B, discover []byte, n int) []time.Duration {
	var conn *frame.Conn
	w.pod.do(b, func() (err error) {
		conn, err = frame.Open("tap0", frame.Wants{UDPPorts4: []uint16{serverPort4}})
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, frameSize)
		for {
			n, err := conn.Read(buffer)
			if err != nil || conn.Write(buffer[:n]) != nil {
				return
			}
		}
	}()
	defer func() { conn.Close(); <-done }()
	return w.measure(b, discover, n, func(p frame.Packet) bool { return p.Kind == frame.UDP })
}

func (w *wire) measure(b *testing.B, discover []byte, n int, isAnswer func(frame.Packet) bool) []time.Duration {
	times := make([]time.Duration, 0, n)
	for range n {
		started := time.Now()
		w.guest.send(b, discover)
		if w.guest.receive(b, patience, isAnswer) == nil {
			b.Fatal("no answer")
		}
		times = append(times, time.Since(started))
	}
	return times
}
