package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/instance"
	"github.com/weftnet/weft/internal/status"
	"github.com/weftnet/weft/internal/store"
)

// Client calls the agent of one instance.
type Client struct {
	http http.Client
}

// NewClient gives a client for the agent of in. It does not connect yet.
func NewClient(in instance.Instance) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", in.Socket())
	}
	return &Client{http: http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Info asks the agent who it is; ErrNoAgent if nobody listens.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var info Info
	return info, c.call(ctx, http.MethodGet, "/v1/info", nil, &info)
}

// Apply applies objects in the order given.
func (c *Client) Apply(ctx context.Context, objects []*store.Object) ([]Result, error) {
	var reply ResultsReply
	err := c.call(ctx, http.MethodPost, "/v1/apply", ObjectsRequest{Objects: objects}, &reply)
	return reply.Results, err
}

// Delete deletes objects in the order given; only kind, namespace and name count.
func (c *Client) Delete(ctx context.Context, objects []*store.Object) ([]Result, error) {
	var reply ResultsReply
	err := c.call(ctx, http.MethodPost, "/v1/delete", ObjectsRequest{Objects: objects}, &reply)
	return reply.Results, err
}

// List gives the objects of a kind; empty namespace: all, empty name: every one.
func (c *Client) List(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (ObjectsReply, error) {
	query := url.Values{"namespace": {key.Namespace}, "name": {key.Name}}
	var reply ObjectsReply
	return reply, c.call(ctx, http.MethodGet, "/v1/objects/"+gvk.Kind+"?"+query.Encode(), nil, &reply)
}

// Watch calls fn for every change after revision since until ctx ends or fn
// returns an error.
func (c *Client) Watch(ctx context.Context, gvk schema.GroupVersionKind, namespace, since string, fn func(WatchEvent) error) error {
	query := url.Values{"namespace": {namespace}, "since": {since}}
	body, err := c.open(ctx, http.MethodGet, "/v1/watch/"+gvk.Kind+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	defer body.Close() // read-only stream
	decoder := json.NewDecoder(body)
	for {
		var event WatchEvent
		if err := decoder.Decode(&event); err != nil {
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("watch %s: %w", gvk.Kind, err)
		}
		if err := fn(event); err != nil {
			return err
		}
	}
}

// Journey gives the journeys of an object's NICs.
func (c *Client) Journey(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (status.Journey, error) {
	var journey status.Journey
	return journey, c.call(ctx, http.MethodGet, "/v1/journeys/"+gvk.Kind+"/"+key.Namespace+"/"+key.Name, nil, &journey)
}

// Addresses tells who holds which address.
func (c *Client) Addresses(ctx context.Context) (AddressesReply, error) {
	var reply AddressesReply
	return reply, c.call(ctx, http.MethodGet, "/v1/addresses", nil, &reply)
}

// DomainXML gives the libvirt domain of a VM.
func (c *Client) DomainXML(ctx context.Context, key store.Key) (string, error) {
	body, err := c.open(ctx, http.MethodGet, "/v1/domxml/"+key.Namespace+"/"+key.Name, nil)
	if err != nil {
		return "", err
	}
	defer body.Close() // read-only stream
	text, err := io.ReadAll(body)
	if err != nil {
		return "", fmt.Errorf("read domain XML: %w", err)
	}
	return string(text), nil
}

// Exec runs a program in the guest.
func (c *Client) Exec(ctx context.Context, key store.Key, command []string) (ExecReply, error) {
	var reply ExecReply
	return reply, c.call(ctx, http.MethodPost, "/v1/exec/"+key.Namespace+"/"+key.Name, ExecRequest{Command: command}, &reply)
}

// VMAction starts, stops or restarts a VM.
func (c *Client) VMAction(ctx context.Context, key store.Key, action string) error {
	return c.call(ctx, http.MethodPost, "/v1/vm/"+key.Namespace+"/"+key.Name+"/"+action, nil, nil)
}

// Down takes the instance down; the agent ends after its answer.
func (c *Client) Down(ctx context.Context, request DownRequest) (DownReply, error) {
	var reply DownReply
	return reply, c.call(ctx, http.MethodPost, "/v1/down", request, &reply)
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	body, err := c.open(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer body.Close() // read to its end below
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(body).Decode(out); err != nil {
		return fmt.Errorf("read the agent's answer to %s: %w", path, err)
	}
	return nil
}

func (c *Client) open(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	var body io.Reader
	if in != nil {
		encoded, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode call %s: %w", path, err)
		}
		body = bytes.NewReader(encoded)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return nil, fmt.Errorf("make call %s: %w", path, err)
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return nil, ErrNoAgent
	case err != nil:
		return nil, fmt.Errorf("call the agent: %w", err)
	case resp.StatusCode == http.StatusOK:
		return resp.Body, nil
	}
	defer resp.Body.Close() // nothing more is read
	var reply ErrorReply
	if err := json.NewDecoder(resp.Body).Decode(&reply); err != nil {
		return nil, fmt.Errorf("call %s: the agent answers %s", path, resp.Status)
	}
	if reply.NotFound {
		return nil, fmt.Errorf("%s: %w", reply.Error, store.ErrNotFound)
	}
	return nil, errors.New(reply.Error)
}
