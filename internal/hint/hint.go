// Package hint holds the one error type whose text is written for the person
// who can fix the cause: it names the field, the value found there and the
// remedy. CNI error details, events, the CLI and doctor all print it alike.
//
// It does not decide where an error is logged or which exit code it leads to.
package hint

import (
	"errors"
	"strings"
)

// Error is a problem a user can fix.
type Error struct {
	// Field is the path of the offending field in the user's own document, such
	// as "spec.networks[1].multus.networkName" or "annotation
	// k8s.v1.cni.cncf.io/networks[0].ips[1]". Empty if no field is to blame.
	Field string
	// Value is what was found there, as text. Empty if nothing was found.
	Value string
	// Problem says what is wrong, in lower case, without a full stop.
	Problem string
	// Remedy says what to do about it. Required: without a remedy it is an
	// ordinary error.
	Remedy string
	// Err is the cause, if there is one; errors.Is and errors.As see through.
	Err error
}

// Error gives the whole text on one line: FIELD "VALUE": PROBLEM: CAUSE; REMEDY.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Field)
	if e.Value != "" {
		if e.Field != "" {
			b.WriteByte(' ')
		}
		b.WriteString(`"` + e.Value + `"`)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	b.WriteString(e.Problem)
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	if e.Remedy != "" {
		b.WriteString("; " + e.Remedy)
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// At returns err with prefix put before the field of every hint it consists
// of, so that a parser deep inside a document need not know where it stands. A
// prefix that ends in ": " is no part of the path, such as a file's name.
// Errors that are no hints come back unchanged.
func At(prefix string, err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		parts := joined.Unwrap()
		moved := make([]error, len(parts))
		for i, part := range parts {
			moved[i] = At(prefix, part)
		}
		return errors.Join(moved...)
	}
	h, ok := err.(*Error) //nolint:errorlint // this walks the tree itself: a cause is not to be moved
	if !ok {
		return err
	}
	moved := *h
	switch {
	case moved.Field == "":
		moved.Field = strings.TrimSuffix(prefix, ": ")
	case strings.HasPrefix(moved.Field, "["), strings.HasSuffix(prefix, ": "):
		moved.Field = prefix + moved.Field
	default:
		moved.Field = prefix + "." + moved.Field
	}
	return &moved
}
