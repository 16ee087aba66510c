// Package kubeapi asks a Kubernetes API server what a CNI plugin that is started
// for each call needs: an object, one patch, and an event. It reads the file that says
// where the server is.
//
// It is no client for agents or controllers, who have store/kube: it follows
// nothing, knows no kinds, and links neither client-go nor its types, which take
// as long to start as the whole plugin.
package kubeapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/weftnet/weft/internal/hint"
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
	server *url.URL
	token  string
	http   *http.Client
}

// maxAnswer bounds an answer in bytes: an object of the API server has at most
// 1.5 MiB (etcd's default), a list is read of a few.
const maxAnswer = 16 << 20

// Get reads one document, such as /api/v1/namespaces/demo/pods/a, into v.
func (c *Client) Get(ctx context.Context, path string, query url.Values, v any) error {
	answer, err := c.do(ctx, http.MethodGet, path, query, "", nil)
	if err != nil {
		return fmt.Errorf("get %s: %w", path, err)
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
		_, err = c.do(ctx, http.MethodPatch, path, nil, "application/merge-patch+json", body)
	}
	if err != nil {
		return fmt.Errorf("patch %s: %w", path, err)
	}
	return nil
}

// Create makes an object, if there is none of its name.
func (c *Client) Create(ctx context.Context, path string, object any) error {
	body, err := json.Marshal(object)
	if err == nil {
		_, err = c.do(ctx, http.MethodPost, path, nil, "application/json", body)
	}
	if err != nil && !errors.Is(err, ErrExists) {
		return fmt.Errorf("create in %s: %w", path, err)
	}
	return nil
}

func (c *Client) do(ctx context.Context, method, path string, query url.Values, contentType string, body []byte) ([]byte, error) {
	at := c.server.JoinPath(path)
	at.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, method, at.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", "weft-cni-thin")
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	if c.token != "" {
		request.Header.Set("Authorization", "Bearer "+c.token)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	if response.StatusCode < http.StatusOK || response.StatusCode >= http.StatusMultipleChoices {
		return nil, refused(response, answer)
	}
	return answer, nil
}

// refused tells what the server says instead of an answer (kind Status of
// k8s.io/apimachinery/pkg/apis/meta/v1).
func refused(response *http.Response, answer []byte) error {
	status := struct {
		Message string `json:"message"`
		Reason  string `json:"reason"`
		Details struct {
			Causes []struct {
				Field string `json:"field"`
			} `json:"causes"`
		} `json:"details"`
	}{Message: response.Status}
	_ = json.Unmarshal(answer, &status) // not everybody on the way answers with one
	said := errors.New(excerpt(status.Message))
	switch response.StatusCode {
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w", ErrNotFound, said)
	case http.StatusUnauthorized:
		return &hint.Error{Problem: "the API server does not know this user", Err: said, Remedy: "make the kubeconfig anew: its token or certificate has ended"}
	case http.StatusForbidden:
		return &hint.Error{Problem: "the API server forbids it", Err: said, Remedy: "grant it to the kubeconfig's user by a ClusterRole and its binding"}
	case http.StatusUnprocessableEntity:
		for _, cause := range status.Details.Causes {
			if cause.Field == "metadata.uid" { // a patch may not change it
				return fmt.Errorf("%w: %w", ErrConflict, said)
			}
		}
	case http.StatusConflict:
		if status.Reason == "AlreadyExists" {
			return fmt.Errorf("%w: %w", ErrExists, said)
		}
		return fmt.Errorf("%w: %w", ErrUnanswered, said) // of a merge without revision: busy
	}
	return fmt.Errorf("%w: %w", ErrUnanswered, said)
}

func excerpt(text string) string {
	const most = 200
	if len(text) > most {
		text = text[:most] + "..."
	}
	return text
}
