package hint

import (
	"errors"
	"io/fs"
	"testing"
)

func TestErrorText(t *testing.T) {
	tests := []struct {
		name string
		err  *Error
		want string
	}{
		{
			"all", &Error{Field: "spec.range", Value: "10.0.0.0/33", Problem: "not a CIDR", Remedy: "write ADDRESS/LENGTH"},
			`spec.range "10.0.0.0/33": not a CIDR; write ADDRESS/LENGTH`,
		},
		{"no field", &Error{Problem: "not root", Remedy: "run as root"}, "not root; run as root"},
		{
			"cause", &Error{Field: "path", Problem: "cannot open", Err: fs.ErrNotExist, Remedy: "create it"},
			"path: cannot open: file does not exist; create it",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.err.Error(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestAt(t *testing.T) {
	plain := errors.New("plain")
	err := At("spec", errors.Join(
		&Error{Field: "name", Problem: "is empty", Remedy: "set it"},
		&Error{Field: "[2]", Problem: "is empty", Remedy: "set it"},
		&Error{Problem: "is empty", Remedy: "set it", Err: fs.ErrExist},
		plain))
	want := "spec.name: is empty; set it\nspec[2]: is empty; set it\nspec: is empty: file already exists; set it\nplain"
	if got := err.Error(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errors.Is(err, fs.ErrExist) || !errors.Is(err, plain) {
		t.Error("At lost a cause")
	}
	file := At("pod.yaml, document 2: ", errors.Join(
		&Error{Field: "kind", Problem: "is missing", Remedy: "set it"},
		&Error{Field: "[0]", Problem: "is missing", Remedy: "set it"},
		&Error{Problem: "is empty", Remedy: "fill it"}))
	want = "pod.yaml, document 2: kind: is missing; set it\npod.yaml, document 2: [0]: is missing; set it\npod.yaml, document 2: is empty; fill it"
	if got := file.Error(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
