package kube

import (
	"errors"
	"fmt"
	"net/http"
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/store"
)

// refusal gives what the API server says instead of an answer; nil if it does not.
func refusal(err error) *kubeapi.Status {
	status, _ := errors.AsType[*kubeapi.Status](err)
	return status
}

func isNotFound(err error) bool {
	status := refusal(err)
	return status != nil && status.Code == http.StatusNotFound
}

func isExpired(err error) bool {
	status := refusal(err)
	return status != nil && status.Code == http.StatusGone
}

// failed says what a request wanted, in the words of package store.
func failed(verb string, gvk schema.GroupVersionKind, key store.Key, err error) error {
	if key == (store.Key{}) {
		return fmt.Errorf("%s %s: %w", verb, gvk.Kind, explain(err))
	}
	return fmt.Errorf("%s %s %s: %w", verb, gvk.Kind, key, explain(err))
}

// explain turns an answer of the API server into an error of package store or
// into a hint; other errors stay as they are.
func explain(err error) error {
	status := refusal(err)
	if status == nil {
		return err
	}
	switch status.Code {
	case http.StatusNotFound:
		return store.ErrNotFound
	case http.StatusGone:
		return store.ErrExpired
	case http.StatusConflict:
		if status.Reason == "AlreadyExists" {
			return store.ErrExists
		}
		return fmt.Errorf("%w (%w)", store.ErrConflict, err)
	case http.StatusUnauthorized:
		return &hint.Error{
			Problem: "the API server does not know this user", Err: err,
			Remedy: "give a kubeconfig or service account whose token or certificate has not ended",
		}
	case http.StatusForbidden:
		if isTerminating(status) {
			return &hint.Error{
				Field: "metadata.namespace", Problem: "the namespace is being deleted", Err: err,
				Remedy: "wait until it is gone and create it anew, or use another one",
			}
		}
		return &hint.Error{
			Problem: "the API server forbids it", Err: err,
			Remedy: "grant it to this user by a Role and RoleBinding, or use a kubeconfig of another user",
		}
	case http.StatusUnprocessableEntity, http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType:
		return invalid(status)
	}
	return err
}

func isTerminating(status *kubeapi.Status) bool {
	return slices.ContainsFunc(status.Details.Causes, func(c kubeapi.Cause) bool { return c.Reason == "NamespaceTerminating" })
}

// blames says whether the API server finds fault with that field.
func blames(err error, field string) bool {
	status := refusal(err)
	return status != nil && status.Blames(field)
}

// invalid gives a hint for each field the API server found fault with.
func invalid(status *kubeapi.Status) error {
	const remedy = "correct the object; `kubectl explain` shows the fields of its kind"
	if len(status.Details.Causes) == 0 {
		return &hint.Error{Problem: "the API server refuses the object", Err: status, Remedy: remedy}
	}
	var all []error
	for _, cause := range status.Details.Causes {
		problem := cause.Message
		if problem == "" {
			problem = cause.Reason
		}
		all = append(all, &hint.Error{Field: cause.Field, Problem: problem, Remedy: remedy})
	}
	return errors.Join(all...)
}
