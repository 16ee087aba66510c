package cniserver

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/internal/linux"
)

// TestStrays: what a Pod's sandbox has is taken back if the runtime has not known
// it for a while, and told so each time, and nothing else is.
func TestStrays(t *testing.T) {
	n := newNode(t)
	list := n.list("1.1.0", delegate)
	alive, stray, podman := n.pod("alive", nil), n.pod("stray", nil), n.pod("podman", nil)
	podman.Args = nil
	for _, p := range []*libcni.RuntimeConf{alive, stray, podman} {
		if _, err := n.runtime.AddNetworkList(t.Context(), list, p); err != nil {
			t.Fatal(err)
		}
	}
	var live map[string]bool
	var failure error
	const after = time.Minute
	s := New(Config{
		Engine: n.engine, CollectAfter: after, Log: slog.New(slog.NewTextHandler(n.log, nil)),
		Live: func(context.Context) (map[string]bool, error) { return live, failure },
	})
	// look collects as if the sandboxes now missing had been so for that long.
	look := func(missing time.Duration, want ...string) {
		t.Helper()
		for id := range s.missing {
			s.missing[id] = time.Now().Add(-missing)
		}
		if err := s.collect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if ids, err := n.records.IDs(); err != nil || !slices.Equal(ids, want) {
			t.Errorf("records: %v (%v), want %v", ids, err, want)
		}
	}
	all := []string{"alive", "podman", "stray"}
	live = map[string]bool{"others": true} // of another runtime
	look(0, all...)
	look(2*after, all...)
	live = map[string]bool{"alive": true}
	look(2*after, all...) // the first look
	look(after/2, all...)
	failure = errors.New("away")
	look(2*after, all...) // nobody knows what was meanwhile
	failure = nil
	look(2*after, all...)
	live["stray"] = true // it was being set up
	look(2*after, all...)
	delete(live, "stray")
	look(2*after, all...)
	look(2*after, "alive", "podman")
	for _, p := range []*libcni.RuntimeConf{alive, podman} {
		if err := n.runtime.DelNetworkList(t.Context(), list, p); err != nil {
			t.Fatal(err)
		}
	}
	n.nothingLeft()
}

// TestCollects: a sandbox that ended without a DEL is taken back by the next GC.
func TestCollects(t *testing.T) {
	n := newNode(t)
	list, pod := n.list("1.1.0", delegate), n.pod("lost", map[string]string{"k8s.v1.cni.cncf.io/networks": "red"})
	alive := n.pod("alive", nil)
	for _, p := range []*libcni.RuntimeConf{pod, alive} {
		if _, err := n.runtime.AddNetworkList(t.Context(), list, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := linux.DeleteNS(pod.NetNS); err != nil {
		t.Fatal(err)
	}
	if err := n.runtime.GCNetworkList(t.Context(), list, &libcni.GCArgs{ValidAttachments: []types.GCAttachment{{ContainerID: "alive", IfName: "eth0"}}}); err != nil {
		t.Fatal(err)
	}
	if ids, err := n.records.IDs(); err != nil || !slices.Equal(ids, []string{"alive"}) {
		t.Errorf("records after GC: %v (%v)", ids, err)
	}
	if err := n.runtime.DelNetworkList(t.Context(), list, alive); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
}
