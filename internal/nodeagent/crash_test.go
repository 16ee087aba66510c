package nodeagent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/internal/linux"
)

// mixed is what a Pod has in these tests: the first addresses that are free, or
// one has leaked.
const mixed = "blue,tuned"

var firstAddresses = map[string]string{"eth0": "10.61.0.2", "net1": "10.62.0.2", "net2": "10.63.0.2", "lo": "127.0.0.1"}

func (p *pod) whole() {
	p.t.Helper()
	have := p.addresses()
	have["lo"] = "127.0.0.1"
	if fmt.Sprint(have) != fmt.Sprint(firstAddresses) {
		p.t.Errorf("the Pod has %v, want %v", have, firstAddresses)
	}
	p.check()
	p.agrees("eth0", "net1", "net2")
}

// steps calls body with 1, 2, ... until it says that the agent was not killed.
func (l *lab) steps(body func(env string) (killed bool)) {
	l.t.Helper()
	const least, most = 7, 100
	n := 1
	for ; body(fmt.Sprintf("WEFT_FAILPOINT=%d", n)); n++ {
		if l.t.Failed() {
			l.t.Fatalf("after a kill at step %d", n)
		}
		if n == most {
			l.t.Fatal("the walk has no end")
		}
	}
	if l.t.Logf("killed at each of %d steps", n-1); n <= least {
		l.t.Errorf("only %d steps", n-1)
	}
}

// TestAgentKilledInAdd kills weft-node before each step of an ADD, its start
// included. The runtime either asks for the same again, or gives the sandbox up
// and makes another, as containerd does.
func TestAgentKilledInAdd(t *testing.T) {
	l := runningLab(t)
	l.kill()
	for _, again := range []bool{true, false} {
		t.Run(fmt.Sprintf("same sandbox %v", again), func(t *testing.T) {
			l.t = t
			l.steps(func(env string) bool {
				p := l.pod(mixed)
				p.sandbox(true)
				l.start(env)
				err := p.add()
				if err != nil {
					code(t, err, types.ErrTryAgainLater, "agent")
					l.kill()
					if !again {
						p.end() // which is kept for the agent
						p.sandbox(true)
					}
					l.start()
					if err := p.add(); err != nil {
						t.Fatalf("ADD after %s: %v", env, err)
					}
				}
				p.whole()
				if err == nil { // the kill is to come after this ADD, which is another test
					l.kill()
					l.start()
				}
				p.end()
				l.nothingLeft()
				l.kill()
				return err != nil
			})
		})
	}
}

// TestAgentKilledInDel kills weft-node before each step of a DEL, and then once more
// at the same distance from its next start, when it does the DEL that weft-cni
// kept.
func TestAgentKilledInDel(t *testing.T) {
	l := runningLab(t)
	l.kill()
	l.steps(func(env string) bool {
		p := l.pod(mixed)
		p.sandbox(true)
		l.start()
		if err := p.add(); err != nil {
			t.Fatal(err)
		}
		p.whole()
		l.kill()
		l.start(env)
		p.end()
		kept := l.leftovers() != nil
		l.kill()
		if kept {
			if l.start(env) {
				t.Logf("%s: the next agent was not killed", env)
			}
			l.kill()
			l.start()
			l.nothingLeft()
			l.kill()
		}
		return kept
	})
}

// TestReboot: records are there, and the namespaces and links are not.
func TestReboot(t *testing.T) {
	l := runningLab(t)
	var all []*pod
	for range 3 {
		p := l.attached(mixed, true)
		all = append(all, p)
	}
	l.kill()
	for _, p := range all {
		if err := linux.DeleteNS(p.now.NetNS); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range []string{"primary0", "blue0", "tuned0"} {
		l.in(l.c.NetNS(), "ip", "link", "delete", link)
	}
	l.in(l.c.NetNS(), "sh", "-c", "for t in $(nft list tables | grep -o 'weft.*'); do nft delete table inet $t; done")
	files, err := filepath.Glob(filepath.Join(l.dir, "attachments", "*.json"))
	if err != nil || len(files) != len(all) {
		t.Fatalf("records: %v (%v)", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text = regexp.MustCompile(`"bootID":"[^"]*"`).ReplaceAll(text, []byte(`"bootID":"before"`))
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.start()
	l.nothingLeft()
	p := all[0]
	p.sandbox(true) // the kubelet makes all anew
	if err := p.add(); err != nil {
		t.Fatal(err)
	}
	p.whole()
	all[1].del() // the runtime remembers that one
	p.end()
	l.nothingLeft()
}

// TestEndsWithoutDel: a sandbox that ended while no agent ran, and of whose end
// nobody tells, is taken back at the agent's start.
func TestEndsWithoutDel(t *testing.T) {
	l := runningLab(t)
	lost, lives := l.pod(mixed), l.pod(mixed)
	for _, p := range []*pod{lost, lives} {
		p.sandbox(true)
		if err := p.add(); err != nil {
			t.Fatal(err)
		}
	}
	l.kill()
	if err := linux.DeleteNS(lost.now.NetNS); err != nil {
		t.Fatal(err)
	}
	l.start()
	lives.check()
	next := l.attached(mixed, true)
	next.whole() // with the addresses of the lost one
	next.end()
	lives.end()
	l.nothingLeft()
}

// code wants a CNI error with that code and words.
func code(t *testing.T, err error, want uint, words ...string) {
	t.Helper()
	e, ok := errors.AsType[*types.Error](err)
	if !ok {
		t.Errorf("got %v, want a CNI error", err)
		return
	}
	if e.Code != want {
		t.Errorf("code %d, want %d: %v", e.Code, want, e)
	}
	for _, word := range words {
		if !strings.Contains(e.Error(), word) {
			t.Errorf("error lacks %q: %v", word, e)
		}
	}
	if len(e.Error()) > 600 {
		t.Errorf("%d bytes: %v", len(e.Error()), e)
	}
}
