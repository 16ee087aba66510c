package cri

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/weftnet/weft/internal/hint"
)

// containerd plays a runtime, on the real protocol's real server.
type containerd struct {
	runtime.UnimplementedRuntimeServiceServer
}

func (containerd) ListPodSandbox(_ context.Context, request *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	if request.GetFilter() != nil {
		return nil, errors.New("nothing was to be left out")
	}
	return &runtime.ListPodSandboxResponse{Items: []*runtime.PodSandbox{
		{Id: "a", Metadata: &runtime.PodSandboxMetadata{Name: "pod", Uid: "u"}, Labels: map[string]string{"x": "y"}, CreatedAt: 1 << 60},
		{Id: "ended", State: runtime.PodSandboxState_SANDBOX_NOTREADY},
	}}, nil
}

// serve has a runtime listen.
func serve(t *testing.T, socket string, service runtime.RuntimeServiceServer) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	runtime.RegisterRuntimeServiceServer(server, service)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func knows(t *testing.T, r *Runtime, want ...string) {
	t.Helper()
	got, err := r.Sandboxes(t.Context())
	if ids := slices.Sorted(maps.Keys(got)); err != nil || !slices.Equal(ids, want) {
		t.Errorf("%+v: %v, %v, want %v", r, ids, err, want)
	}
}

func TestSandboxes(t *testing.T) {
	root := t.TempDir()
	if _, err := NewRuntime(root, "").Sandboxes(t.Context()); !errors.Is(err, ErrNone) {
		t.Errorf("without a runtime: %v", err)
	}
	socket := filepath.Join(root, sockets[0])
	serve(t, socket, containerd{})
	for _, r := range []*Runtime{NewRuntime(root, ""), NewRuntime(root, sockets[0]), NewRuntime("", socket)} {
		knows(t, r, "a", "ended")
	}
	_, err := NewRuntime("", "/nowhere.sock").Sandboxes(t.Context())
	if h, ok := errors.AsType[*hint.Error](err); !ok || h.Value != "/nowhere.sock" || !strings.Contains(h.Remedy, "--cri-socket") {
		t.Errorf("wrong socket: %v", err)
	}
}

// crio is another runtime.
type crio struct {
	runtime.UnimplementedRuntimeServiceServer
}

func (crio) ListPodSandbox(context.Context, *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	return &runtime.ListPodSandboxResponse{Items: []*runtime.PodSandbox{{Id: "b"}}}, nil
}

// TestSeveralRuntimes: the one the kubelet uses tells, whatever else is installed.
func TestSeveralRuntimes(t *testing.T) {
	root := t.TempDir()
	serve(t, filepath.Join(root, sockets[0]), runtime.UnimplementedRuntimeServiceServer{}) // Docker's containerd, without the CRI plugin
	left := filepath.Join(root, sockets[1])
	if err := os.MkdirAll(filepath.Dir(left), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(left, nil, 0o600); err != nil { // nobody listens
		t.Fatal(err)
	}
	_, err := NewRuntime(root, "").Sandboxes(t.Context())
	if h, ok := errors.AsType[*hint.Error](err); !ok || !strings.Contains(err.Error(), sockets[0]) || !strings.Contains(err.Error(), sockets[1]) {
		t.Errorf("none of them tells: %v (%v)", err, h)
	}
	serve(t, filepath.Join(root, "/run/crio/crio.sock"), crio{})
	knows(t, NewRuntime(root, ""), "b")
	serve(t, filepath.Join(root, "/run/cri-dockerd.sock"), containerd{})
	knows(t, NewRuntime(root, ""), "a", "b", "ended")
	knows(t, NewRuntime(root, "/run/crio/crio.sock"), "b")
}
