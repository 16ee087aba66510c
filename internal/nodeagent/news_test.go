package nodeagent

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/test/kubelab"
)

// TestNews: what happens to a Pod's link is looked at when it happens, and nobody
// else's is.
func TestNews(t *testing.T) {
	l := newLooker(t)
	l.create("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition", l.ns, "blue", map[string]any{"spec": map[string]any{"config": blueConfig}})
	l.pod("a", "blue", nil)
	l.pod("b", "blue", nil)
	host, err := linux.OpenNS(filepath.Join(l.dir, "host"))
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	looks := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- news{"looktest", host, l.attachedPods, func(key store.Key) { looks <- key.Name }, l.log}.Run(ctx)
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	// It does not listen from its first moment, and the kernel tells late of links that
	// came up before it did.
	deadline := time.Now().Add(kubelab.Patience)
	for only := []string(nil); !slices.Equal(only, []string{"a"}); {
		if time.Now().After(deadline) {
			t.Fatalf("links of a change, and it looks at %v", only)
		}
		l.in("a", "ip", "link", "set", "eth0", "mtu", "1499")
		l.in("a", "ip", "link", "set", "eth0", "mtu", "1500")
		l.in("a", "ip", "link", "set", "eth0", "down")
		l.in("a", "ip", "link", "set", "eth0", "up")
		only = untilQuiet(looks)
	}
	for _, tt := range []struct {
		where   string
		command []string
		want    []string
		others  bool // may be looked at, too
	}{
		{"a", []string{"ip", "link", "set", "eth0", "down"}, []string{"a"}, false},
		{"a", []string{"ip", "link", "del", "eth0"}, []string{"a"}, false},
		{"host", []string{"sh", "-ec", "ip link add stranger type veth peer name other; ip link set blue0 mtu 1400; ip link del stranger; ip link set $(ip -br link show master blue0 | grep -o '^weft[0-9a-f]*') mtu 1400"}, []string{"b"}, true},
		{"host", []string{"ip", "link", "set", "blue0", "down"}, []string{"a", "b"}, true},
		{"host", []string{"ip", "link", "del", "blue0"}, []string{"b"}, true},
	} {
		l.in(tt.where, tt.command...)
		missing := slices.Clone(tt.want)
		for deadline := time.After(kubelab.Patience); len(missing) > 0; {
			select {
			case name := <-looks:
				if !tt.others && !slices.Contains(tt.want, name) {
					t.Errorf("%s: %v: it looks at %s, want %v", tt.where, tt.command, name, tt.want)
				}
				missing = slices.DeleteFunc(missing, func(other string) bool { return other == name })
			case <-deadline:
				t.Fatalf("%s: %v: it does not look at %v", tt.where, tt.command, missing)
			}
		}
	}
}

// untilQuiet gives the Pods that are looked at, once none is any more.
func untilQuiet(looks <-chan string) (names []string) {
	for {
		select {
		case name := <-looks:
			names = append(names, name)
		case <-time.After(4 * newsPause):
			slices.Sort(names)
			return slices.Compact(names)
		}
	}
}
