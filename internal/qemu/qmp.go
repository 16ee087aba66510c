package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ErrClosed is returned for commands whose connection is gone: QEMU has ended,
// or the client was closed. Dial again; QEMU keeps its state.
var ErrClosed = errors.New("QMP connection closed")

// maxMessage bounds one message of QEMU: what it says is not trusted with our
// memory. query-pci of a full machine is some 40 KiB.
const maxMessage = 4 << 20

// maxEvents is how many events wait for their reader.
const maxEvents = 256

// CommandError is QEMU's refusal of a command.
type CommandError struct {
	Command string
	Class   string // GenericError, CommandNotFound, DeviceNotFound, ...
	Desc    string
}

func (e *CommandError) Error() string { return fmt.Sprintf("QMP %s: %s", e.Command, e.Desc) }

// Event is what QEMU says unasked.
type Event struct {
	Name string
	Data json.RawMessage
	Time time.Time
}

// message is any of QEMU's messages: greeting, answer or event.
type message struct {
	QMP *struct {
		Version struct {
			QEMU Version `json:"qemu"`
		} `json:"version"`
	} `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID    json.RawMessage `json:"id"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
	Stamp struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// decodeMessage reads one line of QMP. It accepts what it does not know, as the
// protocol asks, but not what is no message at all.
func decodeMessage(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("decode QMP message %.80q: %w", line, err)
	}
	if m.QMP == nil && m.Return == nil && m.Error == nil && m.Event == "" {
		return message{}, fmt.Errorf("decode QMP message %.80q: neither greeting, answer nor event", line)
	}
	return m, nil
}

// readLine reads up to the next newline, at most limit bytes.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > limit:
			return nil, fmt.Errorf("read message: longer than %d bytes", limit)
		case err == nil:
			return line, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// Client is a QMP connection. Its methods may be called concurrently.
type Client struct {
	// Version of the QEMU at the other end.
	Version Version

	conn   net.Conn
	events chan Event
	lost   atomic.Uint64
	done   chan struct{} // closed when the reader has ended

	// writeMu keeps commands whole on the wire.
	writeMu sync.Mutex

	// mu guards the fields below.
	mu      sync.Mutex
	nextID  uint64
	pending map[uint64]chan message
	err     error // why the reader ended
}

// NewClient greets QEMU over conn and takes the connection over: on error it
// is closed. The caller must Close the client.
func NewClient(ctx context.Context, conn net.Conn) (*Client, error) {
	c := &Client{conn: conn, events: make(chan Event, maxEvents), done: make(chan struct{}), pending: map[uint64]chan message{}}
	r := bufio.NewReader(conn)
	// QEMU serves one client per monitor: while another is connected the greeting
	// does not come, so that the deadline is what ends the wait.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) }) // a failure means it is closed
	line, err := readLine(r, maxMessage)
	interrupted := !stop()
	if err != nil {
		_ = conn.Close() // the read error is what matters
		if interrupted {
			return nil, fmt.Errorf("greet QEMU: %w (is another client connected to its monitor?)", context.Cause(ctx))
		}
		return nil, fmt.Errorf("greet QEMU: %w", err)
	}
	if interrupted {
		_ = conn.Close() // given up by the caller
		return nil, fmt.Errorf("greet QEMU: %w", context.Cause(ctx))
	}
	hello, err := decodeMessage(line)
	if err != nil || hello.QMP == nil {
		_ = conn.Close() // it is no QMP monitor
		return nil, errors.Join(errors.New("greet QEMU: no greeting"), err)
	}
	c.Version = hello.QMP.Version.QEMU
	go c.read(r)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close ends the connection and waits for its reader. QEMU goes on.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close QMP connection: %w", err)
	}
	return nil
}

// Done is closed when the connection has ended, whoever ended it.
func (c *Client) Done() <-chan struct{} { return c.done }

// Events are QEMU's events in their order. The channel is closed with the
// connection. Who does not read fast enough loses the oldest (Lost counts
// them): an event says "look again", it is not the only source of a fact.
func (c *Client) Events() <-chan Event { return c.events }

// Lost is how many events were dropped because nobody read them.
func (c *Client) Lost() uint64 { return c.lost.Load() }

// Execute runs a command; args, if not nil, becomes its arguments, the answer
// is decoded into out, if not nil. A *CommandError is QEMU's refusal.
func (c *Client) Execute(ctx context.Context, command string, args, out any) error {
	id, answer, err := c.register()
	if err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	defer c.forget(id)
	if err := c.send(ctx, command, args, id); err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("QMP %s: %w", command, context.Cause(ctx))
	case m, ok := <-answer:
		if !ok {
			return fmt.Errorf("QMP %s: %w", command, c.reason())
		}
		if m.Error != nil {
			return &CommandError{Command: command, Class: m.Error.Class, Desc: m.Error.Desc}
		}
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(m.Return, out); err != nil {
			return fmt.Errorf("QMP %s: decode answer: %w", command, err)
		}
		return nil
	}
}

func (c *Client) send(ctx context.Context, command string, args any, id uint64) error {
	request := struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id}
	line, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	deadline, _ := ctx.Deadline() // zero: none
	if err := c.conn.SetWriteDeadline(deadline); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	if _, err := c.conn.Write(append(line, '\n')); err != nil {
		// Half a command may be out: the stream is of no use any more. The reader
		// ends with it and every waiter learns.
		_ = c.conn.Close()
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

func (c *Client) register() (uint64, chan message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending == nil {
		return 0, nil, c.reasonLocked()
	}
	c.nextID++
	answer := make(chan message, 1) // the reader never waits for a caller
	c.pending[c.nextID] = answer
	return c.nextID, answer, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

func (c *Client) reason() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reasonLocked()
}

func (c *Client) reasonLocked() error {
	if c.err == nil || errors.Is(c.err, io.EOF) || errors.Is(c.err, net.ErrClosed) {
		return ErrClosed
	}
	return fmt.Errorf("%w: %w", ErrClosed, c.err)
}

// read hands out what QEMU says until the connection ends.
func (c *Client) read(r *bufio.Reader) {
	var err error
	for err == nil {
		var line []byte
		if line, err = readLine(r, maxMessage); err != nil {
			break
		}
		var m message
		if m, err = decodeMessage(line); err != nil {
			break
		}
		c.dispatch(m)
	}
	_ = c.conn.Close() // the reason is err
	c.mu.Lock()
	c.err = err
	for _, answer := range c.pending {
		close(answer)
	}
	c.pending = nil
	c.mu.Unlock()
	close(c.events)
	close(c.done)
}

func (c *Client) dispatch(m message) {
	if m.Event != "" {
		c.queue(Event{Name: m.Event, Data: m.Data, Time: time.Unix(m.Stamp.Seconds, m.Stamp.Microseconds*1000)})
		return
	}
	var id uint64
	if json.Unmarshal(m.ID, &id) != nil {
		return // no answer to a command of ours: all of them have a number
	}
	c.mu.Lock()
	answer := c.pending[id]
	delete(c.pending, id) // a second answer with this id finds nobody
	c.mu.Unlock()
	if answer != nil {
		answer <- m
	}
}

// queue gives an event to the reader of Events, dropping the oldest if it is full.
func (c *Client) queue(e Event) {
	for {
		select {
		case c.events <- e:
			return
		default:
		}
		select {
		case <-c.events:
			c.lost.Add(1)
		default: // a reader took one meanwhile
		}
	}
}
