package dhcp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"sync"
	"time"

	"github.com/weftnet/weft/internal/frame"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/ra"
	"github.com/weftnet/weft/internal/vmnet"
)

// ErrNamespaceGone ends a server whose network namespace no longer has its name.
var ErrNamespaceGone = errors.New("network namespace is gone")

// How often a server looks whether its namespace and device are still the same,
// and how it waits for a device that is not there.
const (
	// checkInterval bounds how long our socket keeps a deleted namespace alive if
	// nobody called Close. A deleted device is noticed at once, by its socket.
	checkInterval = 2 * time.Second
	minWait       = 20 * time.Millisecond
	maxWait       = time.Second
)

// EventKind is what a guest did with its address.
type EventKind string

// Events of a server.
const (
	// Leased: the guest was told its address is its own, for the first time or again.
	Leased EventKind = "leased"
	// Declined: the guest says somebody else uses the address.
	Declined EventKind = "declined"
	// Released: the guest gives the address up; it stays reserved for it.
	Released EventKind = "released"
)

// Event is told to the owner of a server.
type Event struct {
	Kind     EventKind
	Protocol Protocol
	Client   netstate.MAC
	Addr     netip.Addr
}

// Config is what a server is made from.
type Config struct {
	// NIC names the NIC in logs: NAMESPACE/VM/NETWORK.
	NIC string
	// Serve is what to serve at first.
	Serve vmnet.Serve
	// Netns is the path of the network namespace the TAP is in.
	Netns string
	// Log takes what is worth telling.
	Log *slog.Logger
	// OnEvent, if set, is called for each event, one after the other, on the
	// server's goroutine: it must not block or call the server.
	OnEvent func(Event)
}

// Server serves one NIC: one socket, two goroutines while it runs.
//
// It may be made and run before its device exists, and takes up service
// whenever a device of that name appears. It remembers nothing that matters: on
// Close nothing is said to the guest, whose lease and default route last until
// an agent is back.
type Server struct {
	config  Config
	history history
	// changed wakes Run after Update; size 1, as one wake covers all updates.
	changed chan struct{}
	ready   chan struct{}
	closing chan struct{}

	mu       sync.Mutex // guards all below
	current  *served
	schedule ra.Schedule
	running  chan struct{} // closed when Run returns; nil before it is called
	closed   bool
}

// New makes a server that does not run yet. The error says what in
// config.Serve cannot be served.
func New(config Config) (*Server, error) {
	current, err := check(config.Serve)
	if err != nil {
		return nil, fmt.Errorf("serve NIC %s: %w", config.NIC, err)
	}
	s := &Server{
		config: config, current: current,
		changed: make(chan struct{}, 1), ready: make(chan struct{}), closing: make(chan struct{}),
	}
	s.config.Log = config.Log.With("nic", config.NIC)
	s.warn(current)
	return s, nil
}

// String names the task.
func (s *Server) String() string { return "guest servers of NIC " + s.config.NIC }

// Ready is closed when the socket stands for the first time.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Transactions gives the latest requests and answers, oldest first.
func (s *Server) Transactions() []Transaction { return s.history.transactions() }

// Stats gives the counters.
func (s *Server) Stats() Stats { return s.history.snapshot() }

// Update changes what is served from the next request on; nothing changes if it
// gives an error. The guest learns a changed router advertisement at once, a
// changed lease when it renews.
func (s *Server) Update(serve vmnet.Serve) error {
	next, err := check(serve)
	if err != nil {
		return fmt.Errorf("serve NIC %s: %w", s.config.NIC, err)
	}
	s.mu.Lock()
	same := reflect.DeepEqual(s.current.Serve, next.Serve)
	if !same {
		s.current = next
		s.schedule.Changed(time.Now())
	}
	s.mu.Unlock()
	if !same {
		s.warn(next)
		s.wake()
	}
	return nil
}

func (s *Server) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *Server) warn(v *served) {
	for _, err := range v.odd {
		s.config.Log.Warn("guest cannot be told a value", "err", err)
	}
}

// Close ends the server: when it returns the socket is closed and Run has
// returned. A server that is closed does not run again.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	running := s.running
	s.mu.Unlock()
	if running != nil {
		<-running
	}
}

// Run serves until ctx ends or Close is called, which are no errors, or until
// the namespace is gone ([ErrNamespaceGone]). It can be called once.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.closed || s.running != nil {
		closed := s.closed
		s.mu.Unlock()
		if closed {
			return nil
		}
		return fmt.Errorf("run %s: it ran before", s)
	}
	running := make(chan struct{})
	s.running = running
	s.mu.Unlock()
	defer close(running)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-s.closing:
			cancel()
		case <-stop:
		}
	}()
	err := s.run(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *Server) run(ctx context.Context) error {
	var home linux.ID
	for {
		conn, err := s.open(ctx, &home)
		if err != nil {
			return err
		}
		if err := s.session(ctx, conn, home); err != nil {
			return err
		}
	}
}

// inHome runs fn in the namespace, which has to be the one it was the first
// time. It is found by its path every time: a handle kept would keep it alive.
func (s *Server) inHome(home *linux.ID, fn func() error) error {
	ns, err := linux.OpenNS(s.config.Netns)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, linux.ErrNotNS) {
		return fmt.Errorf("%w: %w", ErrNamespaceGone, err)
	}
	if err != nil {
		return err
	}
	defer ns.Close() // opened for reading only: nothing to lose
	id, err := ns.ID()
	if err != nil {
		return err
	}
	if *home == (linux.ID{}) {
		*home = id
	}
	if *home != id {
		return fmt.Errorf("%w: %s names another one now", ErrNamespaceGone, s.config.Netns)
	}
	return ns.Do(fn)
}

// open opens the socket, waiting for the device as long as it takes. While it
// waits it holds nothing that keeps the namespace alive.
func (s *Server) open(ctx context.Context, home *linux.ID) (*frame.Conn, error) {
	told := ""
	for wait := minWait; ; wait = min(2*wait, maxWait) {
		v := s.served()
		var conn *frame.Conn
		err := s.inHome(home, func() (err error) {
			conn, err = frame.Open(string(v.TAP), v.wants)
			return err
		})
		switch {
		case err == nil:
			s.opened(v, conn)
			return conn, nil
		case errors.Is(err, ErrNamespaceGone):
			return nil, err
		case errors.Is(err, frame.ErrNoDevice):
		case err.Error() != told:
			told = err.Error()
			s.config.Log.Warn("cannot listen to the guest, trying again", "tap", v.TAP, "err", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-s.changed:
			timer.Stop()
			wait = minWait
		case <-timer.C:
		}
	}
}

func (s *Server) opened(v *served, conn *frame.Conn) {
	s.config.Log.Debug("listening to the guest", "tap", v.TAP, "ifindex", conn.Index())
	s.history.note(func(stats *Stats) { stats.Opened++ })
	s.mu.Lock()
	s.schedule.Changed(time.Now())
	s.mu.Unlock()
	select {
	case <-s.ready:
	default:
		close(s.ready)
	}
}

func (s *Server) served() *served {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// session serves on one socket and closes it. nil: open another one.
func (s *Server) session(ctx context.Context, conn *frame.Conn, home linux.ID) error {
	device := s.served()
	down := make(chan struct{}, 1) // one look at the device covers all
	failed := make(chan error, 1)  // the reader's last word, which nobody need hear
	done := make(chan struct{})
	go func() {
		defer close(done)
		failed <- s.receive(ctx, conn, down)
	}()
	defer func() {
		_ = conn.Close() // nothing is buffered in it
		<-done
	}()
	check := time.NewTicker(checkInterval)
	defer check.Stop()
	advertise := time.NewTimer(0)
	defer advertise.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			s.config.Log.Warn("cannot read from the guest, opening the socket again", "tap", device.TAP, "err", err)
			return nil
		case <-s.changed:
			v := s.served()
			if err := s.follow(conn, device, v); err != nil {
				s.config.Log.Debug("opening the socket again", "tap", v.TAP, "err", err)
				return nil
			}
			device = v
			advertise.Reset(0)
			continue
		case <-advertise.C:
			advertise.Reset(s.advertise(conn))
			continue
		case <-down:
		case <-check.C:
		}
		switch err := s.look(conn, device, home); {
		case errors.Is(err, ErrNamespaceGone):
			return err
		case errors.Is(err, frame.ErrNoDevice):
			s.config.Log.Debug("device was deleted or made anew", "tap", device.TAP)
			return nil
		case err != nil:
			s.config.Log.Debug("cannot look after the device", "tap", device.TAP, "err", err)
		}
	}
}

// follow makes the socket serve now after before. An error: it takes another one.
func (s *Server) follow(conn *frame.Conn, before, now *served) error {
	s.sayFarewell(conn, before, now)
	if before.TAP != now.TAP {
		return fmt.Errorf("device is %s now, was %s", now.TAP, before.TAP)
	}
	if reflect.DeepEqual(before.wants, now.wants) {
		return nil
	}
	return conn.SetWants(now.wants)
}

// look gives ErrNoDevice unless the socket's device still has the name.
func (s *Server) look(conn *frame.Conn, device *served, home linux.ID) error {
	return s.inHome(&home, func() error {
		index, err := frame.Index(string(device.TAP))
		if err == nil && index != conn.Index() {
			return frame.ErrNoDevice
		}
		return err
	})
}

// sayFarewell takes the default route back if we are router no more (RFC 4861
// section 6.2.5). Not on Close: the router then is still there, only the agent
// that speaks for it is not.
func (s *Server) sayFarewell(conn *frame.Conn, before, now *served) {
	if before.advertisement == nil || now.advertisement != nil || before.RA.RouterLifetime == 0 {
		return
	}
	s.send(conn, s.advertisementFrame(before, before.farewell, ra.AllNodes, frame.MulticastMAC(ra.AllNodes)))
}

// advertise sends a multicast advertisement if one is due, and gives how long
// to wait for the next.
func (s *Server) advertise(conn *frame.Conn) time.Duration {
	const idle = time.Hour // no router advertisements on this NIC; Update wakes us
	now := time.Now()
	s.mu.Lock()
	v := s.current
	due := v.advertisement != nil && !s.schedule.Next.After(now)
	if due {
		s.schedule.Sent(now, rand.Float64())
	}
	next := s.schedule.Next
	s.mu.Unlock()
	if due {
		s.history.count(Exchange{Protocol: RA, Answer: string(ra.Multicast)})
		s.send(conn, s.advertisementFrame(v, v.advertisement, ra.AllNodes, frame.MulticastMAC(ra.AllNodes)))
	}
	if v.advertisement == nil {
		return idle
	}
	return max(next.Sub(now), 0)
}
