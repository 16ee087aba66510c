package dnsname

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/hint"
)

func TestClean(t *testing.T) {
	tests := []struct{ in, want string }{
		{"example.org", "example.org"},
		{"Example.ORG.", "example.org"},
		{"DHCP", "dhcp"},
		{"_tcp.a-b.svc.cluster.local", "_tcp.a-b.svc.cluster.local"},
		{strings.Repeat("a", 63) + ".x", strings.Repeat("a", 63) + ".x"},
		{"", ""},
		{".", ""},
		{"192.0.2.7", ""},
		{"2001:db8::1", ""},
		{"a..b", ""},
		{"a b", ""},
		{"bücher.example", ""},
		{"a\x00b", ""},
		{strings.Repeat("a", 64) + ".x", ""},
		{strings.Repeat("a.", 127) + "b", ""},
	}
	for _, tt := range tests {
		got, err := Clean(tt.in)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("Clean(%q): got %q, %v, want %q", tt.in, got, err, tt.want)
		}
		if h, ok := errors.AsType[*hint.Error](err); err != nil && (!ok || h.Remedy == "") {
			t.Errorf("Clean(%q): error %v has no remedy", tt.in, err)
		}
	}
}

func TestCleanAll(t *testing.T) {
	got, errs := CleanAll([]string{"B.example", "10.0.0.1", "a.example.", "b.example"})
	if diff := cmp.Diff([]string{"b.example", "a.example"}, got); diff != "" {
		t.Error(diff)
	}
	if len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), `[1] "10.0.0.1": is an address`) {
		t.Errorf("got errors %v", errs)
	}
}

func TestAppend(t *testing.T) {
	got := Append(nil, "ab.example")
	if want := "\x02ab\x07example\x00"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzClean(f *testing.F) {
	for _, seed := range []string{"example.org", "..", "\xff", "1.2.3.4", strings.Repeat("a", 300)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		text, err := Clean(name)
		if err != nil {
			return
		}
		again, err := Clean(text)
		if err != nil || again != text {
			t.Errorf("Clean is not idempotent: %q, then %q, %v", text, again, err)
		}
		if wire := Append(nil, text); len(wire) > 255 {
			t.Errorf("%d bytes on the wire", len(wire))
		}
	})
}
