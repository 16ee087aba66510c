package kube

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/store"
)

func isNotFound(err error) bool { return apierrors.IsNotFound(err) }

func isExpired(err error) bool { return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) }

// cut splits RESOURCE/SUBRESOURCE.
func cut(name string) (string, string, bool) { return strings.Cut(name, "/") }

// failed says what a request wanted, in the words of package store.
func failed(verb string, gvk schema.GroupVersionKind, key store.Key, err error) error {
	return fmt.Errorf("%s %s %s: %w", verb, gvk.Kind, key, explain(err))
}

// explain turns an answer of the API server into an error of package store or
// into a hint; other errors stay as they are.
func explain(err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return store.ErrNotFound
	case apierrors.IsAlreadyExists(err):
		return store.ErrExists
	case apierrors.IsConflict(err):
		return fmt.Errorf("%w (%w)", store.ErrConflict, err)
	case isExpired(err):
		return store.ErrExpired
	case apierrors.IsForbidden(err) && !isTerminating(err):
		return &hint.Error{
			Problem: "the API server forbids it", Err: err,
			Remedy: "grant it to this user by a Role and RoleBinding, or use a kubeconfig of another user",
		}
	case isTerminating(err):
		return &hint.Error{
			Field: "metadata.namespace", Problem: "the namespace is being deleted", Err: err,
			Remedy: "wait until it is gone and create it anew, or use another one",
		}
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsRequestEntityTooLargeError(err), apierrors.IsMethodNotSupported(err):
		return invalid(err)
	}
	return err
}

func isTerminating(err error) bool { return apierrors.HasStatusCause(err, "NamespaceTerminating") }

// blames says whether the API server finds fault with that field.
func blames(err error, field string) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		return false
	}
	return slices.ContainsFunc(status.Status().Details.Causes, func(c metav1.StatusCause) bool { return c.Field == field })
}

// invalid gives a hint for each field the API server found fault with.
func invalid(err error) error {
	const remedy = "correct the object; `kubectl explain` shows the fields of its kind"
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil || len(status.Status().Details.Causes) == 0 {
		return &hint.Error{Problem: "the API server refuses the object", Err: err, Remedy: remedy}
	}
	var all []error
	for _, cause := range status.Status().Details.Causes {
		all = append(all, &hint.Error{Field: cause.Field, Problem: problem(cause), Remedy: remedy})
	}
	return errors.Join(all...)
}

func problem(cause metav1.StatusCause) string {
	if cause.Message == "" {
		return string(cause.Type)
	}
	return cause.Message
}
