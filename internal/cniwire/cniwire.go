// Package cniwire is what the CNI binary and the agent say to each other: one
// request and one response over a unix socket, each a JSON document behind its
// length (4 bytes, big endian).
//
// It imports the standard library alone, because the CNI binary is started for
// every call of the runtime.
package cniwire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// MaxSize bounds a document in bytes: far above what a runtime sends, far below
// what would hurt.
const MaxSize = 4 << 20

// Request is one call as the runtime made it (CNI specification 1.1, section 2).
type Request struct {
	// Command is ADD, DEL, CHECK, STATUS or GC.
	Command     string `json:"command"`
	ContainerID string `json:"containerID,omitempty"`
	// NetNS is the path of the sandbox's network namespace, as the runtime sees it.
	NetNS  string `json:"netns,omitempty"`
	IfName string `json:"ifName,omitempty"`
	// Args and Path are CNI_ARGS and CNI_PATH as they came.
	Args string `json:"args,omitempty"`
	Path string `json:"path,omitempty"`
	// Config is what came on standard input.
	Config json.RawMessage `json:"config"`
}

// Response answers a Request.
type Response struct {
	// Result of ADD in the version of the request's config; nothing otherwise.
	Result json.RawMessage `json:"result,omitempty"`
	// Error is nil after success.
	Error *Error `json:"error,omitempty"`
}

// Error is an error as CNI has it (section 5, "Error").
type Error struct {
	Code    uint   `json:"code"`
	Msg     string `json:"msg"`
	Details string `json:"details,omitempty"`
}

// Error gives message and details.
func (e *Error) Error() string {
	if e.Details == "" {
		return e.Msg
	}
	return e.Msg + "; " + e.Details
}

// Write sends one document.
func Write(w io.Writer, document any) error {
	body, err := json.Marshal(document)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(body) > MaxSize {
		return fmt.Errorf("encode message: %d bytes, at most %d fit", len(body), MaxSize)
	}
	// One write: a reader never sees a length without its document.
	if _, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// Read receives one document.
func Read(r io.Reader, document any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("receive message: %w", err)
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > MaxSize {
		return fmt.Errorf("receive message: %d bytes are announced, at most %d are taken", size, MaxSize)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return fmt.Errorf("receive message: %w", err)
	}
	if err := json.Unmarshal(body, document); err != nil {
		return fmt.Errorf("decode message: %w", err)
	}
	return nil
}

// ErrAway says that nobody listens on the agent's socket.
var ErrAway = errors.New("the agent does not answer")

// dialPause is the time between two tries to reach the agent.
const dialPause = 50 * time.Millisecond

// Call sends a request to the agent's socket and gives its answer. While nobody
// listens it tries again for as long as wait; then the error is ErrAway. An
// agent that goes away with the request unanswered is io.ErrUnexpectedEOF or
// another error: whether it did what was asked is not known.
func Call(ctx context.Context, socket string, wait time.Duration, request Request) (Response, error) {
	conn, err := dial(ctx, socket, wait)
	if err != nil {
		return Response{}, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return Response{}, fmt.Errorf("set deadline: %w", err)
		}
	}
	if err := Write(conn, request); err != nil {
		return Response{}, err
	}
	var response Response
	if err := Read(conn, &response); err != nil {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("the agent ended before it answered: %w", io.ErrUnexpectedEOF)
		}
		return Response{}, err
	}
	return response, nil
}

func dial(ctx context.Context, socket string, wait time.Duration) (net.Conn, error) {
	var dialer net.Dialer
	deadline := time.Now().Add(wait)
	for {
		conn, err := dialer.DialContext(ctx, "unix", socket)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil || time.Now().Add(dialPause).After(deadline) {
			return nil, fmt.Errorf("%w on %s: %w", ErrAway, socket, err)
		}
		time.Sleep(dialPause)
	}
}
