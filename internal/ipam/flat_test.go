package ipam

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/hint"
)

// usualFlatFile is what whereabouts' installer writes.
const usualFlatFile = `{"datastore": "kubernetes", "kubernetes": {"kubeconfig": "/etc/cni/net.d/whereabouts.d/whereabouts.kubeconfig"},
	"reconciler_cron_expression": "30 4 * * *", "log_file": "/tmp/x", "log_level": "debug", "configuration_path": "/etc/cni/net.d/whereabouts.d"}`

func TestFlatFiles(t *testing.T) {
	for _, c := range []struct{ conf, first string }{
		{`{"ipam": {"type": "whereabouts"}}`, "/etc/kubernetes/cni/net.d/whereabouts.d/whereabouts.conf"},
		{`{"ipam": {"type": "whereabouts", "configuration_path": "/x/y.conf"}}`, "/x/y.conf"},
		{`{"ipam": {"type": "host-local", "configuration_path": "/x/y.conf"}}`, ""},
		{`{}`, ""},
		{`{`, ""},
	} {
		got := FlatFiles([]byte(c.conf))
		if c.first == "" && got != nil || c.first != "" && (got[0] != c.first || !slices.Equal(got[len(got)-3:], flatFiles)) {
			t.Errorf("FlatFiles(%s) = %v", c.conf, got)
		}
	}
}

func TestMergeFlat(t *testing.T) {
	for _, c := range []struct{ name, ipam, flat, want string }{
		{"the usual file has no effect", `{"type": "whereabouts", "range": "10.0.0.0/24"}`, usualFlatFile, `{"ipam": {"type": "whereabouts", "range": "10.0.0.0/24"}}`},
		{"fills", `{"type": "whereabouts"}`, `{"range": "10.0.0.0/24", "exclude": ["10.0.0.1"], "gateway": "10.0.0.9"}`, `{"ipam":{"exclude":["10.0.0.1"],"gateway":"10.0.0.9","range":"10.0.0.0/24","type":"whereabouts"}}`},
		{"inline wins", `{"type": "whereabouts", "range": "10.1.0.0/24", "exclude": ["10.1.0.1"]}`, `{"range": "10.0.0.0/24", "exclude": ["10.0.0.1"]}`, `{"ipam": {"type": "whereabouts", "range": "10.1.0.0/24", "exclude": ["10.1.0.1"]}}`},
		{"empty is not given", `{"type": "whereabouts", "Range": "", "ipRanges": [], "routes": null}`, `{"RANGE": "10.0.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}`, `{"ipam":{"ipRanges":[],"range":"10.0.0.0/24","routes":[{"dst": "0.0.0.0/0"}],"type":"whereabouts"}}`},
		{"objects key by key", `{"type": "whereabouts", "range": "10.0.0.0/24", "dns": {"domain": "a"}}`, `{"dns": {"domain": "b", "search": ["c"]}}`, `{"ipam":{"dns":{"domain":"a","search":["c"]},"range":"10.0.0.0/24","type":"whereabouts"}}`},
		{"the overlap check is the network's own", `{"type": "whereabouts", "range": "10.0.0.0/24"}`, `{"enable_overlapping_ranges": false, "type": "static"}`, `{"ipam": {"type": "whereabouts", "range": "10.0.0.0/24"}}`},
		{"keys of others", `{"type": "whereabouts", "range": "10.0.0.0/24"}`, `{"zz": 1}`, `{"ipam": {"type": "whereabouts", "range": "10.0.0.0/24"}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := MergeFlat([]byte(`{"ipam": `+c.ipam+`}`), "/x", []byte(c.flat))
			if err != nil {
				t.Fatal(err)
			}
			squeeze := strings.NewReplacer(" ", "", "\n", "", "\t", "")
			if squeeze.Replace(string(got)) != squeeze.Replace(c.want) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if _, err := Parse(got, ""); err != nil {
				t.Errorf("cannot be read: %v", err)
			}
		})
	}
}

func TestMergeFlatRefuses(t *testing.T) {
	_, err := MergeFlat([]byte(`{"ipam": {"type": "whereabouts"}}`), "/etc/shadow", []byte("root:secret:1"))
	h, ok := errors.AsType[*hint.Error](err)
	if !ok || h.Value != "/etc/shadow" || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}
