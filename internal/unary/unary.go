// Package unary asks gRPC services questions of one message that have answers of
// one message: those of this node at unix sockets, others over TLS. It serves such
// questions too.
//
// Such a call is one HTTP/2 request, which net/http makes. google.golang.org/grpc
// would add 9 MB to weft-node and 5 MB to its memory at rest, and we ask four
// questions.
package unary

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"google.golang.org/protobuf/encoding/protowire"
)

// maxAnswer in bytes: the kubelet's has all Pods of the node, with their devices,
// CPUs and memory. Others take as much.
const maxAnswer = 16 << 20

// Status codes of gRPC (its doc/statuscodes.md).
const (
	codeOK                = "0"
	codeResourceExhausted = "8"
)

// ErrTooOften says that the other side limits how often it is asked.
var ErrTooOften = errors.New("it is asked too often")

// Call calls a method, /package.Service/Method, with an empty message and gives
// the answer's (gRPC's doc/PROTOCOL-HTTP2.md).
func Call(ctx context.Context, socket, method string) ([]byte, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close() // and with it all that serves it, also if there is no answer
	transport := &http.Transport{
		Protocols:   &http.Protocols{},
		DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	return call(ctx, transport, "http://unix"+method, "", nil)
}

// call makes the request of a call. token may be empty.
func call(ctx context.Context, transport *http.Transport, url, token string, question []byte) ([]byte, error) {
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(question))) //nolint:gosec // questions are small
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(append(frame, question...)))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("TE", "trailers")
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if len(body) > maxAnswer {
		return nil, fmt.Errorf("its answer has more than %d bytes", maxAnswer)
	}
	if err := statusOf(response); err != nil {
		return nil, err
	}
	return message(body)
}

// statusOf reads what the call came to: from the trailer, or from the header of
// an answer that has no body.
func statusOf(response *http.Response) error {
	said := response.Trailer
	if said.Get("Grpc-Status") == "" {
		said = response.Header
	}
	text, err := url.PathUnescape(said.Get("Grpc-Message"))
	if err != nil {
		text = said.Get("Grpc-Message")
	}
	switch code := said.Get("Grpc-Status"); code {
	case codeOK:
		return nil
	case codeResourceExhausted:
		return fmt.Errorf("%w: %s", ErrTooOften, text)
	case "":
		return fmt.Errorf("it answers %s and does not speak gRPC", response.Status)
	default:
		return fmt.Errorf("it answers with gRPC status %s: %s", code, text)
	}
}

// message takes the one message of an answer out of its frame.
func message(body []byte) ([]byte, error) {
	if len(body) < 5 || body[0] != 0 {
		return nil, errors.New("its answer is no uncompressed gRPC message")
	}
	if size := binary.BigEndian.Uint32(body[1:5]); int64(size) != int64(len(body)-5) {
		return nil, fmt.Errorf("its answer has %d bytes and announces %d", len(body)-5, size)
	}
	return body[5:], nil
}

// Fields goes through a message's fields that have bytes: strings and messages.
func Fields(message []byte, do func(protowire.Number, []byte) error) error {
	for len(message) > 0 {
		number, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return garbledError(size)
		}
		message = message[size:]
		if kind != protowire.BytesType {
			if size = protowire.ConsumeFieldValue(number, kind, message); size < 0 {
				return garbledError(size)
			}
			message = message[size:]
			continue
		}
		value, size := protowire.ConsumeBytes(message)
		if size < 0 {
			return garbledError(size)
		}
		if err := do(number, value); err != nil {
			return err
		}
		message = message[size:]
	}
	return nil
}

func garbledError(size int) error {
	return fmt.Errorf("its answer is no message of that API: %w", protowire.ParseError(size))
}
