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

func TestSandboxes(t *testing.T) {
	root := t.TempDir()
	socket := filepath.Join(root, sockets[0])
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := NewRuntime(root, "").Sandboxes(t.Context()); !errors.Is(err, ErrNone) {
		t.Errorf("without a runtime: %v", err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	runtime.RegisterRuntimeServiceServer(server, containerd{})
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for _, r := range []*Runtime{NewRuntime(root, ""), NewRuntime(root, sockets[0]), NewRuntime("", socket)} {
		got, err := r.Sandboxes(t.Context())
		if ids := slices.Sorted(maps.Keys(got)); err != nil || !slices.Equal(ids, []string{"a", "ended"}) {
			t.Errorf("%+v: %v, %v", r, ids, err)
		}
	}
	_, err = NewRuntime("", "/nowhere.sock").Sandboxes(t.Context())
	if h, ok := errors.AsType[*hint.Error](err); !ok || h.Value != "/nowhere.sock" || !strings.Contains(h.Remedy, "--cri-socket") {
		t.Errorf("wrong socket: %v", err)
	}
}
