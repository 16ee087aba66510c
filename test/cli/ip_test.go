package cli_test

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/test/machine"
)

var errHeld = errors.New("some is held")

// TestAddresses: who holds which address on one machine, why, and how full ranges
// are, all as text.
func TestAddresses(t *testing.T) {
	t.Parallel()
	m := machine.New(t)
	_, stderr, code := m.Run("", "ip", "--kubeconfig=", "ls")
	if code != 1 || !strings.Contains(stderr, "start it with weft up; or name a cluster by --kubeconfig or KUBECONFIG") {
		t.Errorf("without an agent: exit code %d, %s", code, stderr)
	}
	m.MustWeft("up", "-f", "testdata/addresses.yaml")
	m.MustWeft("up", "-f", "testdata/addresses-web.yaml")
	m.MustWeft("delete", "pod", "claims")
	var told strings.Builder
	for _, args := range []string{
		"ls --network lan", "ls --network other/lan", "ls --pool 10.91.0.0/16 -o wide", "ls --node n1", "pools", "pools -o wide",
		"show 10.91.0.5", "show 10.91.0.2 -o yaml", "show 10.91.0.3",
		"why 10.91.0.2", "why 10.91.0.5", "why 10.91.0.3", "why 10.91.0.0", "why 10.91.0.1", "why 10.91.0.4", "why 10.91.0.7", "why fd91::", "why fd91::ffff", "why 192.0.2.1",
		"free 10.91.0.2", "free 10.91.0.5", "free 10.91.0.5 --network apart", "free 10.91.0.2 --force", "free 10.91.0.3",
		"why 10.0.0", "ls --pool 10.0.0.0", "ls -o xml",
	} {
		stdout, stderr, code := m.Run("", append([]string{"ip", "--kubeconfig="}, strings.Fields(args)...)...)
		told.WriteString("$ weft ip " + args + "\n" + stdout + stderr)
		if code != 0 {
			told.WriteString("exit code 1\n")
		}
	}
	text := told.String()
	// Those of the default network are of the instance.
	text = regexp.MustCompile(`(?m)^.*(10\.243|fd77:).*\n`).ReplaceAllString(text, "")
	for _, replace := range [][2]string{
		{`[0-9a-f]{64}`, "SANDBOX"}, {`[0-9a-f]{8}-[0-9a-f-]{27}`, "UID"}, {`20\d\d-\d\d-\d\dT[0-9:]{8}(Z|[+-]\d\d:\d\d)`, "TIME"}, {`\(\d+[smh]\)`, "(AGE)"}, {`(?m) +\d+[smh]( |$)`, " AGE$1"}, {` +\n`, "\n"},
	} {
		text = regexp.MustCompile(replace[0]).ReplaceAllString(text, replace[1])
	}
	text = regexp.MustCompile(`(\S) {2,}`).ReplaceAllString(text, "$1  ")
	if *update {
		if err := os.WriteFile("testdata/addresses.txt", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/addresses.txt")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("(-want +got), rewrite with -update:\n%s", diff)
	}
	m.MustWeft("delete", "pod", "web")
	m.MustWeft("delete", "ipamclaim", "kept")
	m.Eventually("nothing is held", func() (string, error) {
		out, err := m.Weft("ip", "--kubeconfig=", "ls")
		if err == nil && out != "no address is held\n" {
			err = errHeld
		}
		return out, err
	})
}
