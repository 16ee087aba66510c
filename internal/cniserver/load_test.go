package cniserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/cniwire"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
)

// away is an API server that does not answer.
type away struct{ asked chan struct{} }

func (a away) Annotations(ctx context.Context, _, _, _ string) (map[string]string, error) {
	a.asked <- struct{}{}
	<-ctx.Done()
	return nil, fmt.Errorf("%w: %w", ErrTryAgain, ctx.Err())
}

// TestLoad: calls that wait for an API server that is away are counted, and are
// no reason to call the server stuck; one that does not end is.
func TestLoad(t *testing.T) {
	pods := away{make(chan struct{}, maxCalls)}
	failed := make(chan string, maxCalls+3)
	s := New(Config{Pods: pods, Log: slog.New(slog.DiscardHandler), Failed: func(verb string, cause error) { failed <- verb + " " + Cause(cause) }})
	ctx, giveUp := context.WithCancel(t.Context())
	request := cniwire.Request{
		Command: "ADD", ContainerID: "a", NetNS: "/none", IfName: "eth0", Args: "K8S_POD_NAMESPACE=n;K8S_POD_NAME=p",
		Config: []byte(`{"cniVersion":"1.0.0","name":"weft","type":"weft-cni"}`),
	}
	var callers []net.Conn
	for range maxCalls + 3 {
		ours, theirs := net.Pipe()
		callers = append(callers, ours)
		go s.serve(ctx, theirs)
		if err := cniwire.Write(ours, request); err != nil {
			t.Fatal(err)
		}
	}
	for range maxCalls {
		<-pods.asked
	}
	want := Load{Working: maxCalls, Waiting: 3}
	for deadline := time.Now().Add(time.Minute); s.Load() != want && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if got := s.Load(); got != want {
		t.Errorf("load is %+v, want %+v", got, want)
	}
	ours, theirs := net.Pipe()
	go s.serve(ctx, theirs)
	status := request
	status.Command = "STATUS"
	var ready cniwire.Response
	if err := errors.Join(ours.SetDeadline(time.Now().Add(time.Minute)), cniwire.Write(ours, status), cniwire.Read(ours, &ready)); err != nil || ready.Error != nil {
		t.Errorf("STATUS among calls that wait: %+v (%v)", ready, err)
	}
	if err := s.Stuck(time.Now().Add(callLimit)); err != nil {
		t.Errorf("calls that wait make it stuck: %v", err)
	}
	if err := s.Stuck(time.Now().Add(stuckAfter + time.Second)); err == nil || !strings.Contains(err.Error(), "a CNI ADD") {
		t.Errorf("a call that does not end: %v", err)
	}
	giveUp()
	for _, caller := range callers {
		var response cniwire.Response
		if err := cniwire.Read(caller, &response); err != nil || response.Error == nil {
			t.Errorf("response %+v (%v)", response, err)
		}
	}
	if got := s.Load(); got != (Load{}) {
		t.Errorf("afterwards load is %+v", got)
	}
	for range callers {
		if got := <-failed; got != "ADD not-ready" {
			t.Errorf("told %q", got)
		}
	}
}

func TestCause(t *testing.T) {
	hinted := func(err error) error { return fmt.Errorf("add: %w", &hint.Error{Problem: "p", Err: err}) }
	for want, err := range map[string]error{
		"unknown-network": hinted(chain.ErrUnknownNetwork), "plugin-hung": hinted(&chain.PluginError{Kind: chain.ErrPluginHung, Err: context.DeadlineExceeded}),
		"plugin-missing": hinted(&chain.PluginError{Kind: chain.ErrNoPlugin}), "plugin-failed": hinted(&chain.PluginError{Kind: chain.ErrPluginGarbage, Own: &types.Error{}}),
		"address": hinted(ipam.ErrExhausted), "disk": hinted(syscall.ENOSPC), "changed": hinted(chain.ErrChanged), "not-ready": hinted(ErrTryAgain),
		"timeout": context.DeadlineExceeded, "configuration": hinted(nil), "internal": errors.New("x"),
	} {
		if got := Cause(err); got != want {
			t.Errorf("%v: got %s, want %s", err, got, want)
		}
	}
	if got := knownVerb("anything\n{}"); got != "unknown" {
		t.Errorf("verb %q", got)
	}
}
