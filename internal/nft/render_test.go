package nft_test

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/nft"
)

func sample() []nft.Table {
	return []nft.Table{
		{Family: nft.Inet, Name: "weft-vm", Chains: []nft.Chain{
			{Name: "to_guest", Rules: []nft.Rule{"meta nfproto ipv4 counter dnat ip to 10.0.2.2"}},
			{Name: "prerouting", Type: "nat", Hook: "prerouting", Priority: -100, Rules: []nft.Rule{`iifname "eth0" counter jump to_guest`}},
			{Name: "output", Type: "nat", Hook: "output", Priority: -100, Rules: []nft.Rule{"ip daddr 127.0.0.1 tcp dport { 80, 8000-8010 } counter dnat ip to 10.0.2.2"}},
		}},
		{Family: nft.Bridge, Name: "weft-vm", Chains: []nft.Chain{
			{Name: "forward", Type: "filter", Hook: "forward", Priority: -200, Policy: "drop", Rules: []nft.Rule{`iifname "tap0" udp dport 67 drop`}},
		}},
	}
}

func TestTableText(t *testing.T) {
	want := `table bridge weft-vm {
	chain forward {
		type filter hook forward priority -200; policy drop;
		iifname "tap0" udp dport 67 drop
	}
}
`
	if diff := cmp.Diff(want, sample()[1].String()); diff != "" {
		t.Error(diff)
	}
}

func TestScriptText(t *testing.T) {
	table := nft.Table{Family: nft.IP, Name: "a", Chains: []nft.Chain{{Name: "c"}}}
	want := `add table ip6 gone
delete table ip6 gone
add table ip a
delete table ip a
table ip a {
	comment "` + table.Comment() + `"
	chain c {
	}
}
`
	if diff := cmp.Diff(want, nft.Script([]nft.Table{table}, nft.ID{Family: nft.IP6, Name: "gone"})); diff != "" {
		t.Error(diff)
	}
	if got := nft.Script(nil); got != "" {
		t.Errorf("empty script is %q", got)
	}
}

func TestAdditionText(t *testing.T) {
	table := nft.Table{Family: nft.IP, Name: "a", Chains: []nft.Chain{{Name: "c"}}}
	want := `create table ip a {
	comment "` + table.Comment() + `"
}
table ip a {
	comment "` + table.Comment() + `"
	chain c {
	}
}
`
	if diff := cmp.Diff(want, nft.Addition([]nft.Table{table})); diff != "" {
		t.Error(diff)
	}
}

// TestAdditionInKernel: the same tables as by Script, and nothing at all if one
// of them is there already.
func TestAdditionInKernel(t *testing.T) {
	enterNetNS(t)
	tables := sample()
	for i := range tables {
		tables[i].Alias = "weft:main:" + strings.Repeat("f", 64)
	}
	mustNFT(t, nft.Script(tables), "-f", "-")
	want := mustNFT(t, "", "list", "ruleset")
	mustNFT(t, "", "flush", "ruleset")
	mustNFT(t, nft.Addition(tables), "-f", "-")
	if diff := cmp.Diff(want, mustNFT(t, "", "list", "ruleset")); diff != "" {
		t.Errorf("added tables differ from replaced ones: %s", diff)
	}

	mustNFT(t, "", "flush", "ruleset")
	mustNFT(t, "add table bridge weft-vm\n", "-f", "-")
	before := mustNFT(t, "", "list", "ruleset")
	if out, err := runNFT(nft.Addition(tables), "-f", "-"); err == nil || !strings.Contains(out, "File exists") {
		t.Errorf("got %v and %q, want that one exists", err, out)
	}
	if diff := cmp.Diff(before, mustNFT(t, "", "list", "ruleset")); diff != "" {
		t.Errorf("the refused transaction changed: %s", diff)
	}
}

func TestHash(t *testing.T) {
	a, b := sample()[0], sample()[0]
	if a.Hash() != b.Hash() {
		t.Error("equal tables differ in hash")
	}
	b.Chains[2].Rules = append(b.Chains[2].Rules, "counter")
	if a.Hash() == b.Hash() {
		t.Error("different tables have one hash")
	}
}

func TestComment(t *testing.T) {
	table := sample()[0]
	table.Alias = "weft:main:" + strings.Repeat("f", 64)
	if got := len(table.Comment()); got > 128 {
		t.Errorf("comment is %d bytes long, nft takes 128", got)
	}
	alias, hash, ok := nft.ParseComment(table.Comment())
	if !ok || alias != table.Alias || !strings.HasPrefix(table.Hash(), hash) {
		t.Errorf("got %q, %q, %v from %q", alias, hash, ok, table.Comment())
	}
	unmarked := sample()[0]
	if unmarked.Hash() != table.Hash() {
		t.Error("the mark is part of the hash")
	}
	for _, foreign := range []string{"", "weft:main:x", "a b", "weft:main:x " + strings.Repeat("g", 32), "weft:main:x " + table.Hash()} {
		if _, _, ok := nft.ParseComment(foreign); ok {
			t.Errorf("%q passes as ours", foreign)
		}
	}
}

// TestScriptInKernel applies scripts with the real nft and reads back what the
// kernel holds.
func TestScriptInKernel(t *testing.T) {
	enterNetNS(t)
	tables := sample()
	for i := range tables {
		tables[i].Alias = "weft:main:" + strings.Repeat("f", 64)
	}
	script := nft.Script(tables)
	mustNFT(t, script, "-c", "-f", "-")
	if got := mustNFT(t, "", "list", "ruleset"); got != "" {
		t.Fatalf("check left rules behind:\n%s", got)
	}

	mustNFT(t, script, "-f", "-")
	first := mustNFT(t, "", "list", "ruleset")
	for _, want := range []string{tables[0].Comment(), tables[1].Comment(), "dnat ip to 10.0.2.2", "policy drop", `iifname "tap0" udp dport 67 drop`} {
		if !strings.Contains(first, want) {
			t.Errorf("ruleset lacks %q:\n%s", want, first)
		}
	}

	// A second time, after a stranger's rule got in: exactly as the first.
	mustNFT(t, `add rule inet weft-vm output counter comment "stray"`+"\n", "-f", "-")
	mustNFT(t, script, "-f", "-")
	if diff := cmp.Diff(first, mustNFT(t, "", "list", "ruleset")); diff != "" {
		t.Errorf("second apply differs: %s", diff)
	}

	// A broken transaction changes nothing at all.
	broken := sample()
	broken[1].Chains[0].Rules = append(broken[1].Chains[0].Rules, `iifname "x" jump nowhere`)
	broken[0].Chains = broken[0].Chains[:1]
	if out, err := runNFT(nft.Script(broken), "-f", "-"); err == nil {
		t.Fatalf("nft took a broken script: %s", out)
	}
	if diff := cmp.Diff(first, mustNFT(t, "", "list", "ruleset")); diff != "" {
		t.Errorf("failed transaction changed: %s", diff)
	}

	mustNFT(t, nft.Script(nil, tables[0].ID(), tables[1].ID(), nft.ID{Family: nft.IP, Name: "never-there"}), "-f", "-")
	if got := mustNFT(t, "", "list", "ruleset"); got != "" {
		t.Errorf("tables left behind:\n%s", got)
	}
}

// enterNetNS moves the test's thread into a namespace of its own. The thread is
// never unlocked, so the runtime ends it, and the namespace, with the test.
func enterNetNS(t *testing.T) {
	t.Helper()
	skip := t.Skipf
	if os.Getenv("CI") != "" {
		skip = t.Fatalf
	}
	if os.Geteuid() != 0 {
		skip("needs root to make a network namespace")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		skip("needs nft: %v", err)
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v", err)
	}
}

func mustNFT(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := runNFT(stdin, args...)
	if err != nil {
		t.Fatalf("nft %s: %v\n%s\ninput:\n%s", strings.Join(args, " "), err, out, stdin)
	}
	return out
}

func runNFT(stdin string, args ...string) (string, error) {
	cmd := exec.Command("nft", args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
