package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// ErrAgentSilent says that nobody in the guest answered: no agent is
// installed, none runs yet, or it hangs.
var ErrAgentSilent = errors.New("no answer from the guest agent")

// maxAgentLine bounds one answer of a guest, which is not trusted. The agent
// gives a program's output, up to 16 MiB, base64-coded in one line
// (GUEST_EXEC_MAX_OUTPUT, qga/commands.c).
const maxAgentLine = 24 << 20

// syncByte precedes the answer to guest-sync-delimited; it occurs nowhere else
// in UTF-8.
const syncByte = 0xff

// AgentError is the agent's refusal of a command.
type AgentError struct {
	Command string
	Class   string
	Desc    string
}

func (e *AgentError) Error() string { return fmt.Sprintf("guest agent %s: %s", e.Command, e.Desc) }

// Agent speaks to the guest agent over its channel. Commands run one after the
// other; each is bounded by its context, which should have a deadline, because
// a guest may never answer.
type Agent struct {
	conn net.Conn

	// mu lets one command at a time use the channel and guards the fields below.
	mu sync.Mutex
	r  *bufio.Reader
	// synced is false before the first command and after any that did not get its
	// answer: what comes next may then be an old answer, or garbage.
	synced bool
}

// NewAgent takes over a connection to the agent's channel. It says nothing yet.
func NewAgent(conn net.Conn) *Agent {
	return &Agent{conn: conn, r: bufio.NewReader(conn)}
}

// Close ends the connection.
func (a *Agent) Close() error {
	if err := a.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close agent connection: %w", err)
	}
	return nil
}

// Execute runs a command in the agent; args, if not nil, becomes its
// arguments, the answer is decoded into out, if not nil.
func (a *Agent) Execute(ctx context.Context, command string, args, out any) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("guest agent %s: %w", command, err)
	}
	stop := a.deadlineLocked(ctx)
	defer stop()
	if !a.synced {
		if err := a.syncLocked(); err != nil {
			return fmt.Errorf("guest agent %s: sync: %w", command, silent(ctx, err))
		}
		a.synced = true
	}
	answer, err := a.roundTripLocked(command, args)
	if err != nil {
		a.synced = false
		return fmt.Errorf("guest agent %s: %w", command, silent(ctx, err))
	}
	if answer.Error != nil {
		return &AgentError{Command: command, Class: answer.Error.Class, Desc: answer.Error.Desc}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer.Return, out); err != nil {
		return fmt.Errorf("guest agent %s: decode answer: %w", command, err)
	}
	return nil
}

// Notify sends a command that has no answer, as guest-shutdown.
func (a *Agent) Notify(ctx context.Context, command string, args any) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	stop := a.deadlineLocked(ctx)
	defer stop()
	if !a.synced {
		if err := a.syncLocked(); err != nil {
			return fmt.Errorf("guest agent %s: sync: %w", command, silent(ctx, err))
		}
	}
	a.synced = false // an error may be answered, success not
	if err := a.writeLocked(nil, command, args); err != nil {
		return fmt.Errorf("guest agent %s: %w", command, silent(ctx, err))
	}
	return nil
}

// deadlineLocked makes reads and writes end with ctx; the function it returns
// lifts that again.
func (a *Agent) deadlineLocked(ctx context.Context) (lift func()) {
	set := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(set)
		_ = a.conn.SetDeadline(time.Unix(1, 0)) // a failure means it is closed
	})
	return func() {
		if stop() {
			return
		}
		<-set
		_ = a.conn.SetDeadline(time.Time{}) // as above
	}
}

// silent turns an elapsed deadline into what it means.
func silent(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrAgentSilent, context.Cause(ctx))
	}
	return err
}

// syncLocked brings both sides to the beginning of a message: a 0xff byte makes
// the agent forget a half-sent command, and its answer to a fresh number begins
// with one, so that everything before it, answers to commands nobody waits for
// any more included, can be thrown away (qga/qapi-schema.json, guest-sync-delimited).
func (a *Agent) syncLocked() error {
	id := rand.Int64N(1<<31) + 1
	if err := a.writeLocked([]byte{syncByte}, "guest-sync-delimited", map[string]int64{"id": id}); err != nil {
		return err
	}
	for {
		if err := a.skipToSyncLocked(); err != nil {
			return err
		}
		line, err := readLine(a.r, maxAgentLine)
		if err != nil {
			return err
		}
		// An old sync, or a stray 0xff before a line: the one we want comes later.
		if i := bytes.LastIndexByte(line, syncByte); i >= 0 {
			line = line[i+1:]
		}
		answer, err := decodeAnswer(line)
		if err != nil || answer.Error != nil {
			continue
		}
		var got int64
		if json.Unmarshal(answer.Return, &got) == nil && got == id {
			return nil
		}
	}
}

func (a *Agent) skipToSyncLocked() error {
	for {
		b, err := a.r.ReadByte()
		if err != nil {
			return err
		}
		if b == syncByte {
			return nil
		}
	}
}

func (a *Agent) roundTripLocked(command string, args any) (answer, error) {
	if err := a.writeLocked(nil, command, args); err != nil {
		return answer{}, err
	}
	line, err := readLine(a.r, maxAgentLine)
	if err != nil {
		return answer{}, err
	}
	return decodeAnswer(line)
}

func (a *Agent) writeLocked(prefix []byte, command string, args any) error {
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, args})
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if _, err := a.conn.Write(append(append(prefix, line...), '\n')); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// answer is the agent's: it knows no ids, greeting or events.
type answer struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

func decodeAnswer(line []byte) (answer, error) {
	var m answer
	if err := json.Unmarshal(line, &m); err != nil {
		return answer{}, fmt.Errorf("decode answer %.80q: %w", line, err)
	}
	if m.Return == nil && m.Error == nil {
		return answer{}, fmt.Errorf("decode answer %.80q: neither return nor error", line)
	}
	return m, nil
}
