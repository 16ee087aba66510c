package device

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// A gRPC call without arguments is one HTTP/2 request, which net/http makes.
// google.golang.org/grpc would add 9 MB to weftd and 5 MB to its memory at rest,
// and we ask two questions.

// maxAnswer in bytes: it has all Pods of the node, with their devices, CPUs and
// memory. Others take as much.
const maxAnswer = 16 << 20

// Status codes of gRPC (its doc/statuscodes.md).
const (
	codeOK                = "0"
	codeResourceExhausted = "8"
)

// errTooOften says that the other side limits how often it is asked.
var errTooOften = errors.New("it is asked too often")

// call calls a method of the gRPC service at a unix socket with an empty message
// (gRPC's doc/PROTOCOL-HTTP2.md).
func call(ctx context.Context, socket, method string) ([]byte, error) {
	transport := &http.Transport{
		Protocols: &http.Protocols{},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	const empty = "\x00\x00\x00\x00\x00" // not compressed, no bytes
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://kubelet"+method, strings.NewReader(empty))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
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
		return fmt.Errorf("%w: %s", errTooOften, text)
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
