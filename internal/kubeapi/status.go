package kubeapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/weftnet/weft/internal/hint"
)

// Status is a refusal of the API server (kind Status of
// k8s.io/apimachinery/pkg/apis/meta/v1).
type Status struct {
	Code    int    `json:"code"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Details struct {
		Causes []Cause `json:"causes"`
	} `json:"details"`
	// RetryAfter is not zero if the server asks to come again then.
	RetryAfter time.Duration `json:"-"`
}

// Cause is one thing that the API server finds fault with.
type Cause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Field   string `json:"field"`
}

var _ error = (*Status)(nil)

// Error gives what the server says.
func (s *Status) Error() string {
	if s.Message == "" {
		return fmt.Sprintf("the API server answers %d %s", s.Code, s.Reason)
	}
	return s.Message
}

// Blames says whether the server finds fault with that field.
func (s *Status) Blames(field string) bool {
	for _, cause := range s.Details.Causes {
		if cause.Field == field {
			return true
		}
	}
	return false
}

// statusOf reads an answer that is a refusal, and closes it.
func statusOf(response *http.Response) *Status {
	defer response.Body.Close()
	s := &Status{}
	body, err := whole(response)
	if err != nil || json.Unmarshal(body, s) != nil || s.Message == "" {
		s.Message = response.Status // not everybody on the way answers with a Status
	}
	s.Code, s.RetryAfter = response.StatusCode, retryAfter(response)
	return s
}

// meaning tells what an error means to who makes a single request.
func meaning(err error) error {
	status, ok := errors.AsType[*Status](err)
	if !ok {
		return err
	}
	said := errors.New(excerpt(status.Message))
	switch status.Code {
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w", ErrNotFound, said)
	case http.StatusUnauthorized:
		return &hint.Error{Problem: "the API server does not know this user", Err: said, Remedy: "make the kubeconfig anew: its token or certificate has ended"}
	case http.StatusForbidden:
		return &hint.Error{Problem: "the API server forbids it", Err: said, Remedy: "grant it to the kubeconfig's user by a ClusterRole and its binding"}
	case http.StatusConflict:
		if status.Reason == "AlreadyExists" {
			return fmt.Errorf("%w: %w", ErrExists, said)
		} // else of a merge without revision: busy
	case http.StatusUnprocessableEntity:
		if status.Blames("metadata.uid") { // a patch may not change it
			return fmt.Errorf("%w: %w", ErrConflict, said)
		}
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
