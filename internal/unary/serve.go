package unary

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// maxQuestion bounds what is asked, in bytes.
const maxQuestion = 1 << 20

// Code is a status of gRPC (its doc/statuscodes.md).
type Code int

// Codes that services answer with.
const (
	InvalidArgument  Code = 3
	PermissionDenied Code = 7
	Unimplemented    Code = 12
	Internal         Code = 13
	Unavailable      Code = 14
	Unauthenticated  Code = 16
)

// Error is an answer that is none.
type Error struct {
	Code Code
	Err  error
}

// Error gives the text.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap gives what it was made of.
func (e *Error) Unwrap() error { return e.Err }

// Method answers a message of a caller who showed a token.
type Method func(ctx context.Context, token string, message []byte) ([]byte, error)

// Handler serves methods, by their names /package.Service/Method, to clients of
// gRPC who send one message and take one. It needs a server of HTTP/2.
func Handler(methods map[string]Method) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
		answer, err := serve(methods, r)
		if err == nil {
			frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(answer))) //nolint:gosec // answers are small
			_, _ = w.Write(append(frame, answer...))                               // who does not wait for it, does not want it
			w.Header().Set("Grpc-Status", codeOK)
			return
		}
		w.WriteHeader(http.StatusOK)
		code := Internal
		if is, ok := errors.AsType[*Error](err); ok {
			code = is.Code
		}
		w.Header().Set("Grpc-Status", fmt.Sprint(int(code)))
		w.Header().Set("Grpc-Message", url.PathEscape(err.Error()))
	})
}

func serve(methods map[string]Method, r *http.Request) ([]byte, error) {
	method := methods[r.URL.Path]
	if method == nil || r.Method != http.MethodPost || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		return nil, &Error{Unimplemented, fmt.Errorf("there is no method %s", r.URL.Path)}
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxQuestion))
	if err != nil {
		return nil, &Error{InvalidArgument, fmt.Errorf("read question: %w", err)}
	}
	question, err := message(body)
	if err != nil {
		return nil, &Error{InvalidArgument, err}
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return method(r.Context(), token, question)
}
