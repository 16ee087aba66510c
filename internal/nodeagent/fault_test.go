package nodeagent

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/test/kubelab"
)

// apiFault is what may be wrong with the API server.
type apiFault struct {
	name  string
	fault kubelab.Fault
	// An ADD that needs an answer ends with code and words; 0: it waits and succeeds.
	code  uint
	words []string
}

// apiFaults are those; what may be wrong with input, disk and plugins is in
// cniserver's table.
var apiFaults = []apiFault{
	{"slow by 2 s", kubelab.Fault{Delay: 2 * time.Second}, 0, nil},
	{"away", kubelab.Fault{Away: true}, types.ErrTryAgainLater, []string{"API server", "did not answer", "can be reached from this node"}},
	{"409", kubelab.Fault{Status: http.StatusConflict}, types.ErrTryAgainLater, []string{"API server", "tries again"}},
	{"403", kubelab.Fault{Status: http.StatusForbidden}, types.ErrInvalidNetworkConfig, []string{"forbids", "grant it"}},
	{"500", kubelab.Fault{Status: http.StatusInternalServerError}, types.ErrTryAgainLater, []string{"API server", "did not answer", "tries again"}},
}

// everything has the fault from now on, watches that are there included.
func (l *lab) everything(fault kubelab.Fault) {
	l.proxy.Spoil(func(*http.Request) kubelab.Fault { return fault })
	l.proxy.Cut()
}

func (l *lab) nothing() { l.proxy.Spoil(nil) }

// writes of network-status have the fault from now on.
func (l *lab) writes(fault kubelab.Fault) {
	l.proxy.Spoil(func(r *http.Request) kubelab.Fault {
		if r.Method == http.MethodPatch {
			return fault
		}
		return kubelab.Fault{}
	})
}

// eachFault tries a test with each of apiFaults, which it puts up itself. Nothing
// is left behind.
func (l *lab) eachFault(test func(tt apiFault)) {
	outer := l.t
	defer func() { l.t = outer }()
	for _, tt := range apiFaults {
		outer.Run(tt.name, func(t *testing.T) {
			l.t = t
			defer l.nothing()
			test(tt)
			l.nothingLeft()
		})
	}
}

// asks is an ADD that needs the API server, which has the fault: it says whether
// it failed, as it should, with nothing left.
func (p *pod) asks(tt apiFault) (failed bool) {
	p.t.Helper()
	err := p.add()
	if tt.code == 0 {
		if err != nil {
			p.t.Errorf("ADD: %v", err)
		}
		return false
	}
	code(p.t, err, tt.code, tt.words...)
	if err := p.leftovers(); err != nil {
		p.t.Error(err)
	}
	return true
}

// TestAPIFaultsAtADD: nothing is known of the Pod, and the API server is asked.
func TestAPIFaultsAtADD(t *testing.T) {
	l := runningLab(t)
	l.eachFault(func(tt apiFault) {
		l.everything(tt.fault)
		p := l.pod("blue")
		p.sandbox(false)
		if p.asks(tt) {
			l.nothing()
			if err := p.add(); err != nil {
				l.t.Fatalf("ADD when the API server is well again: %v", err)
			}
		}
		p.agrees("eth0", "net1")
		p.end()
	})
}

// TestAPIFaultsWhileRunning: a Pod whose annotations the runtime passes and whose
// networks are known starts and ends whatever the API server does; what is to be
// written is written later.
func TestAPIFaultsWhileRunning(t *testing.T) {
	l := runningLab(t)
	first := l.pod("blue") // has the agent know the network
	first.sandbox(true)
	if err := first.add(); err != nil {
		t.Fatal(err)
	}
	first.agrees("eth0", "net1")
	first.end()
	l.nothingLeft()
	l.eachFault(func(tt apiFault) {
		p, gone := l.pod("blue"), l.pod("blue")
		for _, one := range []*pod{p, gone} {
			one.sandbox(true)
		}
		l.everything(tt.fault)
		for _, one := range []*pod{p, gone} {
			if err := one.add(); err != nil {
				l.t.Fatalf("ADD: %v", err)
			}
		}
		gone.end()
		p.check()
		l.nothing()
		p.agrees("eth0", "net1")
		p.hotplug()
		p.end()
	})
}

// hotplug proves that the agent follows Pods and networks.
func (p *pod) hotplug() {
	p.t.Helper()
	p.nad("later-"+p.key.Name, `{"cniVersion":"1.0.0","type":"bridge","bridge":"later0","ipam":{"type":"host-local","subnet":"10.64.0.0/24"}}`)
	p.annotate(netattach.NetworksAnnotation, "blue,later-"+p.key.Name)
	p.eventually("a new network", func() error {
		tells, err := p.status()
		if err == nil && tells["net2"] == "" {
			err = store.ErrNotFound
		}
		return err
	})
	p.agrees("eth0", "net1", "net2")
}

// TestAPIFaultsAtStatus: only what writes network-status fails.
func TestAPIFaultsAtStatus(t *testing.T) {
	l := runningLab(t)
	l.eachFault(func(tt apiFault) {
		l.proxy.Take()
		l.writes(tt.fault)
		p := l.attached("blue", true)
		l.eventually("a PATCH", func() error {
			for _, r := range l.proxy.Take() {
				if r.Method == http.MethodPatch && strings.HasSuffix(r.Path, p.key.Name) {
					return nil
				}
			}
			return store.ErrNotFound
		})
		l.nothing()
		p.agrees("eth0", "net1")
		p.end()
	})
}

// TestStartsWithoutAPI: an agent that starts while the API server is away answers
// for Pods that need nothing of it, and follows it when it is there.
func TestStartsWithoutAPI(t *testing.T) {
	l := runningLab(t)
	p := l.attached("blue", true)
	l.kill()
	l.everything(kubelab.Fault{Away: true})
	defer l.nothing()
	l.start()
	p.check()
	plain, asks := l.pod(""), l.pod("blue")
	plain.sandbox(true)
	asks.sandbox(true)
	if err := plain.add(); err != nil {
		t.Errorf("ADD of a Pod without networks: %v", err)
	}
	code(t, asks.add(), types.ErrTryAgainLater, "did not answer", "can be reached from this node")
	l.nothing()
	if err := asks.add(); err != nil {
		t.Errorf("ADD when the API server is back: %v", err)
	}
	p.agrees("eth0", "net1")
	p.hotplug()
	for _, one := range []*pod{p, plain, asks} {
		one.end()
	}
	l.nothingLeft()
}

// ill puts a plugin "shy" beside the others that works as long as the file it gives
// is not there.
func (l *lab) ill() (path string) {
	l.t.Helper()
	path = filepath.Join(l.dir, "ill")
	script := "#!/bin/sh\nif [ -e " + path + " ]; then cat >/dev/null; exit 1; fi\nexec " + l.bin + "/alpha\n"
	if err := os.WriteFile(filepath.Join(l.bin, "shy"), []byte(script), 0o700); err != nil {
		l.t.Fatal(err)
	}
	return path
}

// shy makes a network with that plugin.
func (l *lab) shy() {
	l.t.Helper()
	l.nad("shy", `{"cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"shy0","ipam":{"type":"host-local","subnet":"10.65.0.0/24"}},{"type":"shy","dir":"`+l.dir+`/rec"}]}`)
}

// TestEndingIsNotTold: while a sandbox is taken back, its Pod's status stays as it
// is, and no event tells of what is left.
func TestEndingIsNotTold(t *testing.T) {
	l := newLab(t)
	ill := l.ill()
	l.start()
	l.shy()
	p, other := l.pod("shy"), l.pod("")
	for _, one := range []*pod{p, other} {
		one.sandbox(true)
		if err := one.add(); err != nil {
			t.Fatal(err)
		}
	}
	p.agrees("eth0", "net1")
	other.agrees("eth0")
	have := p.addresses()
	told := fmt.Sprintf("Normal AddedInterface Add eth0 [%s/24] from primary, net1 [%s/24] from %s/shy", have["eth0"], have["net1"], l.ns)
	l.says(p.key.Name, told)
	if err := os.WriteFile(ill, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.call(func() error { return p.runtime.DelNetworkList(t.Context(), p.list(), p.now) }); err == nil {
		t.Fatal("DEL went well, though a plugin's failed")
	}
	p.annotate("changed", "yes")
	other.annotate(netattach.NetworksAnnotation, "shy-not") // tried, and told of, after that
	l.eventually("the other Pod has been looked at", func() error {
		text, err := os.ReadFile(filepath.Join(l.dir, "log"))
		if err == nil && !strings.Contains(string(text), "shy-not") {
			err = errors.New("not yet")
		}
		return err
	})
	tells, err := p.status()
	if err != nil || len(tells) != 2 {
		t.Errorf("network-status tells %v (%v), want two networks as before", tells, err)
	}
	l.says(p.key.Name, told)
	if err := os.Remove(ill); err != nil {
		t.Fatal(err)
	}
	other.annotate(netattach.NetworksAnnotation, "")
	p.end()
	other.end()
	l.nothingLeft()
}

// TestHotplugThatResists: a network that can neither be attached nor rolled back
// is tried again until it is there, and leaves one attachment and no more.
func TestHotplugThatResists(t *testing.T) {
	l := newLab(t)
	ill := l.ill()
	l.start()
	l.shy()
	p := l.attached("", true)
	if err := os.WriteFile(ill, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.annotate(netattach.NetworksAnnotation, "shy")
	tries := func() int {
		text, err := os.ReadFile(filepath.Join(l.dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(text), "CNI DEL of plugin")
	}
	l.eventually("several tries", func() error {
		if n := tries(); n < 3 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	if _, body := l.ask("/metrics"); !strings.Contains(body, `weft_attachments{stage="failed"} 1`) {
		t.Errorf("not one attachment has failed:\n%s", body)
	}
	if err := os.Remove(ill); err != nil {
		t.Fatal(err)
	}
	l.eventually("the network is there", func() error {
		tells, err := p.status()
		if err == nil && len(tells) != 2 {
			err = fmt.Errorf("network-status tells %v", tells)
		}
		return err
	})
	p.agrees("eth0", "net1")
	p.check()
	p.end()
	l.nothingLeft()
}
