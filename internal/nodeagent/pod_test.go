package nodeagent

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/store"
)

// TestStaticPod: its mirror in the API has another UID than the runtime says, and
// is made after its sandbox. It has its networks and tells of them.
func TestStaticPod(t *testing.T) {
	l := runningLab(t)
	const hash = "0123456789abcdef0123456789abcdef"
	p := &pod{lab: l, key: store.Key{Namespace: l.ns, Name: "static-n1"}, uid: hash, annotations: map[string]string{netattach.NetworksAnnotation: "blue", staticPod: hash}}
	p.sandbox(true)
	if err := p.add(); err != nil {
		t.Fatal(err)
	}
	l.make("Pod", "v1", l.ns, p.key.Name, map[string]any{"annotations": p.annotations, "spec": map[string]any{
		"nodeName": "n1", "containers": []any{map[string]any{"name": "c", "image": "none"}}, "tolerations": []any{map[string]any{"operator": "Exists"}},
	}})
	p.agrees("eth0", "net1")
	p.end()
	p.sandbox(false) // a runtime that passes no annotations
	if err := p.add(); err != nil {
		t.Fatal(err)
	}
	p.agrees("eth0", "net1")
	p.end()
	l.nothingLeft()
}

// TestPodIsGone: a Pod the API server does not have, or has another one of, is no
// success with nothing in it; the runtime tries again, and learns what happened.
func TestPodIsGone(t *testing.T) {
	l := runningLab(t)
	p := l.pod("blue")
	p.sandbox(false)
	for _, arg := range []struct {
		place        int
		value, wants string
	}{{2, "nobody", "does not have it"}, {3, "another", "has been replaced by one with UID " + p.uid}} {
		was := p.now.Args[arg.place][1]
		p.now.Args[arg.place][1] = arg.value
		code(t, p.add(), types.ErrTryAgainLater, arg.wants)
		p.now.Args[arg.place][1] = was
	}
	l.nothingLeft()
}

// TestEvents: one for all that a Pod has, with Multus' reason and words, and one
// for a network that does not exist; the same again is none. The thin plugin
// writes the same. A network whose configuration has what nobody reads has one, too.
func TestEvents(t *testing.T) {
	l := runningLab(t)
	l.nad("odd", `{"cniVersion":"1.0.0","type":"bridge","bridge":"odd0","ipam":{"type":"host-local","subnet":"10.64.0.0/24","range_start":"10.64.0.9"}}`)
	for range 2 {
		odd := l.pod("odd")
		odd.sandbox(false) // until the agent has seen it, and the network
		if err := odd.add(); err != nil {
			t.Fatal(err)
		}
		odd.end()
	}
	l.says("odd", "Warning ConfigIgnored ipam.range_start: is no key of ipam type host-local and has no effect")
	for i, long := range []string{"agent", "thins"} {
		if i > 0 {
			l.kill()
			l.thin()
		}
		// Its name is as long as names may be, so that of its event cannot be made of it.
		p, lost := l.pod("blue,blue@x0"), l.podNamed(long+strings.Repeat(".long", 49)+".of", map[string]string{netattach.NetworksAnnotation: "nowhere"})
		p.sandbox(true)
		lost.sandbox(true)
		if err := p.add(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := lost.add(); err == nil {
				t.Fatal("a network that does not exist was attached")
			}
		}
		have := p.addresses()
		l.says(p.key.Name, fmt.Sprintf("Normal AddedInterface Add eth0 [%s/24] from primary, net1 [%s/24] from %s/blue, x0 [%s/24] from %s/blue", have["eth0"], have["net1"], l.ns, have["x0"], l.ns))
		l.says(lost.key.Name, fmt.Sprintf(`Warning NoNetworkFound annotation k8s.v1.cni.cncf.io/networks[0].name "nowhere": there is no NetworkAttachmentDefinition %s/nowhere: no such network; create it, or correct the name`, l.ns))
		p.end()
		l.nothingLeft()
	}
}

// says waits until the events of what has this name say that.
func (l *lab) says(name, want string) {
	l.t.Helper()
	l.eventually("events of "+name, func() error {
		list, _, err := l.api.List(l.t.Context(), eventKind, store.Selector{Namespace: l.ns})
		if err != nil {
			return err
		}
		var said []string
		for _, event := range list {
			if of, _ := event.Object["involvedObject"].(map[string]any); of["name"] == name {
				said = append(said, fmt.Sprint(event.Object["type"], " ", event.Object["reason"], " ", event.Object["message"]))
			}
		}
		if got := strings.Join(said, "\n"); got != want {
			return fmt.Errorf("%q, want %q", got, want)
		}
		return nil
	})
}
