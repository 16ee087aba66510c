// Package kubeapi asks a Kubernetes API server over net/http: it finds the server
// and who asks in a kubeconfig or a Pod's service account, keeps the connection
// usable as tokens, certificates and the cluster's CA change, waits when the
// server is busy, and tells what a refusal means.
//
// It follows nothing and knows no kinds; store/kube does, on top of it. It links
// neither client-go nor its types, which take as long to start as a whole CNI
// plugin, and as much memory as the rest of an agent.
package kubeapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// What an answer means; test with errors.Is.
var (
	// ErrNotFound: there is no such object, or no such kind.
	ErrNotFound = errors.New("not found")
	// ErrConflict: the object is not the one that was meant.
	ErrConflict = errors.New("conflict")
	// ErrExists: there is one of that name.
	ErrExists = errors.New("exists already")
	// ErrUnanswered: the server was not reached or could not tell.
	ErrUnanswered = errors.New("no answer")
)

// Client asks one API server. It may be used by several goroutines.
type Client struct {
	// access reads anew how the server is reached and who asks.
	access func() (*session, error)
	opt    Options

	mu      sync.Mutex // guards session
	session *session
}

// Media types of a request's body.
const (
	JSON           = "application/json"
	MergePatch     = "application/merge-patch+json"           // RFC 7386
	StrategicPatch = "application/strategic-merge-patch+json" // Kubernetes', which merges lists
)

// Request is one to the API server.
type Request struct {
	Method string
	Path   string // escaped, such as /api/v1/namespaces/demo/pods/a
	Query  url.Values
	// Type is the media type of Body.
	Type string
	Body []byte
	// Resource is how Options.Observe is told of it.
	Resource string
}

// maxAnswer bounds an answer in bytes: an object of the API server has at most
// 1.5 MiB (etcd's default), a list is read of a few.
const maxAnswer = 16 << 20

// Do gives the whole answer to a request. A refusal is a *Status.
func (c *Client) Do(ctx context.Context, r Request) ([]byte, error) {
	response, err := c.ask(ctx, r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return whole(response)
}

// Stream gives the answer to a request as it comes: of a long list, or of a watch.
// It is to be closed, and ends with ctx. A refusal is a *Status.
func (c *Client) Stream(ctx context.Context, r Request) (io.ReadCloser, error) {
	response, err := c.ask(ctx, r)
	if err != nil {
		return nil, err
	}
	return response.Body, nil
}

func whole(response *http.Response) ([]byte, error) {
	var body []byte
	var err error
	if n := response.ContentLength; n >= 0 && n <= maxAnswer {
		body = make([]byte, n)
		_, err = io.ReadFull(response.Body, body)
	} else {
		body, err = io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	return body, nil
}

// A busy server is asked so often, and waited for at most so long each time.
const (
	busyTries = 10
	busyPause = 30 * time.Second
)

// ask makes a request until it is answered with other than "later". When the
// server knows us no longer, or we the server, it is made once more with what the
// files say now.
func (c *Client) ask(ctx context.Context, r Request) (*http.Response, error) {
	renewed := false
	for try := 1; ; try++ {
		s := c.current()
		response, err := c.roundTrip(ctx, s, r)
		var refused *Status
		if err == nil {
			if response.StatusCode >= http.StatusOK && response.StatusCode < http.StatusMultipleChoices {
				return response, nil
			}
			refused = statusOf(response)
			err = refused
		}
		var untrusted *tls.CertificateVerificationError
		if (refused != nil && refused.Code == http.StatusUnauthorized || errors.As(err, &untrusted)) && !renewed {
			if renewed = true; c.renew(s) {
				continue
			}
		}
		if refused == nil || refused.RetryAfter == 0 || try == busyTries {
			return nil, err
		}
		select {
		case <-time.After(min(refused.RetryAfter, busyPause)):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w: %w", ErrUnanswered, err, ctx.Err())
		}
	}
}

func (c *Client) roundTrip(ctx context.Context, s *session, r Request) (*http.Response, error) {
	at, err := s.at(r)
	if err != nil {
		return nil, err
	}
	request := (&http.Request{Method: r.Method, URL: at, Host: at.Host, Header: s.header, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}).WithContext(ctx)
	if r.Body != nil {
		request.Header = maps.Clone(s.header)
		request.Header["Content-Type"] = []string{r.Type}
		request.Body, request.ContentLength = io.NopCloser(bytes.NewReader(r.Body)), int64(len(r.Body))
		request.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(r.Body)), nil }
	}
	response, err := s.transport.RoundTrip(request)
	code := 0
	if err == nil {
		code = response.StatusCode
	} else {
		err = fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	if c.opt.Observe != nil {
		method := r.Method
		if r.Query.Get("watch") != "" {
			method = "WATCH"
		}
		c.opt.Observe(method, r.Resource, code)
	}
	return response, err
}

// at gives where a request goes.
func (s *session) at(r Request) (*url.URL, error) {
	at := *s.server
	plain := r.Path
	if strings.Contains(plain, "%") {
		var err error
		if plain, err = url.PathUnescape(r.Path); err != nil {
			return nil, fmt.Errorf("path %q: %w", r.Path, err)
		}
		at.RawPath = at.EscapedPath() + r.Path
	}
	at.Path += plain
	if len(r.Query) > 0 {
		at.RawQuery = r.Query.Encode()
	}
	return &at, nil
}

// Get reads one document, such as /api/v1/namespaces/demo/pods/a, into v.
func (c *Client) Get(ctx context.Context, path string, query url.Values, v any) error {
	answer, err := c.Do(ctx, Request{Method: http.MethodGet, Path: path, Query: query})
	if err != nil {
		return fmt.Errorf("get %s: %w", path, meaning(err))
	}
	if err := json.Unmarshal(answer, v); err != nil {
		return fmt.Errorf("get %s: %w: %w", path, ErrUnanswered, err)
	}
	return nil
}

// Patch merges changes (RFC 7386) into an object. Changes that name another UID
// than the object's give ErrConflict.
func (c *Client) Patch(ctx context.Context, path string, changes any) error {
	body, err := json.Marshal(changes)
	if err == nil {
		_, err = c.Do(ctx, Request{Method: http.MethodPatch, Path: path, Type: MergePatch, Body: body})
	}
	if err != nil {
		return fmt.Errorf("patch %s: %w", path, meaning(err))
	}
	return nil
}

// Create makes an object, if there is none of its name.
func (c *Client) Create(ctx context.Context, path string, object any) error {
	body, err := json.Marshal(object)
	if err == nil {
		_, err = c.Do(ctx, Request{Method: http.MethodPost, Path: path, Type: JSON, Body: body})
	}
	if err = meaning(err); err != nil && !errors.Is(err, ErrExists) {
		return fmt.Errorf("create in %s: %w", path, err)
	}
	return nil
}

// retryAfter reads the header of an answer that asks to come again later
// (RFC 9110, 10.2.3; the API server gives seconds).
func retryAfter(response *http.Response) time.Duration {
	if response.StatusCode != http.StatusTooManyRequests && response.StatusCode < http.StatusInternalServerError {
		return 0
	}
	seconds, err := strconv.Atoi(response.Header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return max(time.Duration(seconds)*time.Second, time.Millisecond)
}
