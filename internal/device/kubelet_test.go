package device

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/weftnet/weft/internal/hint"
)

// lister plays the kubelet, on the real protocol's real server.
type lister struct {
	podresources.UnimplementedPodResourcesListerServer
	pods    []*podresources.PodResources
	devices []*podresources.ContainerDevices
	// refusals is how many calls are refused before one is answered, with code.
	refusals atomic.Int32
	code     codes.Code
}

func (l *lister) refuse() error {
	if l.refusals.Add(-1) < 0 {
		return nil
	}
	return status.Error(l.code, "rejected: 100 % of it")
}

func (l *lister) List(context.Context, *podresources.ListPodResourcesRequest) (*podresources.ListPodResourcesResponse, error) {
	return &podresources.ListPodResourcesResponse{PodResources: l.pods}, l.refuse()
}

func (l *lister) GetAllocatableResources(context.Context, *podresources.AllocatableResourcesRequest) (*podresources.AllocatableResourcesResponse, error) {
	return &podresources.AllocatableResourcesResponse{Devices: l.devices, CpuIds: []int64{0, 1, 300}}, l.refuse()
}

func serve(t *testing.T, l *lister) *Kubelet {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, socketName)
	if err := os.Mkdir(filepath.Dir(socket), 0o700); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	podresources.RegisterPodResourcesListerServer(server, l)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return NewKubelet("", dir)
}

func part(resource string, ids ...string) *podresources.ContainerDevices {
	return &podresources.ContainerDevices{ResourceName: resource, DeviceIds: ids, Topology: &podresources.TopologyInfo{Nodes: []*podresources.NUMANode{{ID: 1}}}}
}

func pod(namespace, name string, containers ...[]*podresources.ContainerDevices) *podresources.PodResources {
	p := &podresources.PodResources{Namespace: namespace, Name: name}
	for i, devices := range containers {
		p.Containers = append(p.Containers, &podresources.ContainerResources{
			Name: fmt.Sprint("c", i), Devices: devices, CpuIds: []int64{3, 4}, Memory: []*podresources.ContainerMemory{{MemoryType: "memory", Size: 1 << 40}},
			// A device of a claim that nobody can name to a container.
			DynamicResources: []*podresources.DynamicResource{{ClaimName: "c", ClaimResources: []*podresources.ClaimResource{{DriverName: "example.com", DeviceName: "claimed"}}}},
		})
	}
	return p
}

// many is an answer of many frames and megabytes.
func many() []*podresources.PodResources {
	var pods []*podresources.PodResources
	for i := range 250 {
		pods = append(pods, pod("other", fmt.Sprint("pod-", i), []*podresources.ContainerDevices{part("example.com/big", strings.Repeat("x", 20_000))}))
	}
	return pods
}

func TestAllocated(t *testing.T) {
	type devices = []*podresources.ContainerDevices
	k := serve(t, &lister{pods: append(many(),
		pod("demo", "router",
			devices{part("example.com/nic", "0000:03:02.3", "0000:03:02.1"), part("example.com/gpu", "g0"), part("example.com/nic", "0000:03:02.2")},
			devices{part("example.com/nic", "0000:03:01.0", "0000:03:02.1")},
			nil,
		),
		pod("other", "router", devices{part("example.com/nic", "theirs")}),
		pod("demo", "plain"),
	)})
	for _, tt := range []struct {
		namespace, name string
		want            map[string][]string
	}{
		// Container by container, by name within one; a device once.
		{"demo", "router", map[string][]string{"example.com/nic": {"0000:03:02.1", "0000:03:02.2", "0000:03:02.3", "0000:03:01.0"}, "example.com/gpu": {"g0"}}},
		{"other", "router", map[string][]string{"example.com/nic": {"theirs"}}},
		{"demo", "plain", map[string][]string{}},
	} {
		got, err := k.Allocated(t.Context(), tt.namespace, tt.name)
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("%s/%s (-want +got): %v\n%s", tt.namespace, tt.name, err, diff)
		}
	}
	// A kubelet that has just started: no devices would be a wrong answer.
	got, err := k.Allocated(t.Context(), "demo", "unknown")
	if !errors.Is(err, ErrNotYet) || !strings.Contains(err.Error(), "does not know Pod demo/unknown") {
		t.Errorf("a Pod the kubelet does not know has %v, %v", got, err)
	}
}

// TestAllocatedByClaims: devices of claims (resource.k8s.io) are found by the
// claim's name, as the kubelet tells of them.
func TestAllocatedByClaims(t *testing.T) {
	claim := func(name string, cdi ...string) *podresources.DynamicResource {
		c := &podresources.DynamicResource{ClaimName: name, ClaimNamespace: "demo"}
		for _, device := range cdi {
			c.ClaimResources = append(c.ClaimResources, &podresources.ClaimResource{
				DriverName: "sriov.example.com", PoolName: "n1", DeviceName: "dev", CdiDevices: []*podresources.CDIDevice{{Name: device}},
			})
		}
		return c
	}
	p := pod("demo", "router", []*podresources.ContainerDevices{part("example.com/nic", "0000:03:02.1")}, nil)
	p.Containers[0].DynamicResources = []*podresources.DynamicResource{claim("fast", "sriov.example.com/vf=0000:04:01.2", "sriov.example.com/vf=0000:04:01.1"), claim("other", "no-cdi-name")}
	p.Containers[1].DynamicResources = []*podresources.DynamicResource{claim("fast", "sriov.example.com/vf=0000:04:01.1", "sriov.example.com/vf=0000:04:01.0")}
	got, err := serve(t, &lister{pods: []*podresources.PodResources{p}}).Allocated(t.Context(), "demo", "router")
	want := map[string][]string{"example.com/nic": {"0000:03:02.1"}, "fast": {"0000:04:01.1", "0000:04:01.2", "0000:04:01.0"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("(-want +got): %v\n%s", err, diff)
	}
}

func TestOffered(t *testing.T) {
	k := serve(t, &lister{devices: []*podresources.ContainerDevices{part("example.com/nic", "a", "b"), part("example.com/gone")}})
	for resource, want := range map[string]bool{"example.com/nic": true, "example.com/gone": false, "bridge.network.kubevirt.io/br1": false} {
		if got, err := k.Offered(t.Context(), resource); got != want || err != nil {
			t.Errorf("%s: %v, %v, want %v", resource, got, err, want)
		}
	}
}

// TestTooOften: the kubelet limits how often it is asked, and a burst of Pods
// waits for its turn.
func TestTooOften(t *testing.T) {
	l := &lister{code: codes.ResourceExhausted, pods: []*podresources.PodResources{pod("demo", "a", []*podresources.ContainerDevices{part("r", "d")})}}
	l.refusals.Store(3)
	got, err := serve(t, l).Allocated(t.Context(), "demo", "a")
	if diff := cmp.Diff(map[string][]string{"r": {"d"}}, got); diff != "" || err != nil {
		t.Errorf("(-want +got): %v\n%s", err, diff)
	}
}

// TestAway: each way in which there is no answer says so, names the socket and
// what to do.
func TestAway(t *testing.T) {
	refusing := &lister{code: codes.Unimplemented}
	refusing.refusals.Store(1 << 30)
	busy := &lister{code: codes.ResourceExhausted}
	busy.refusals.Store(1 << 30)
	silent := t.TempDir()
	if err := os.Mkdir(filepath.Join(silent, filepath.Dir(socketName)), 0o700); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", filepath.Join(silent, socketName)) // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, tt := range []struct {
		name string
		k    *Kubelet
		want string
	}{
		{"no socket", NewKubelet("", t.TempDir()), "no such file"},
		{"refuses", serve(t, refusing), "gRPC status 12: rejected: 100 % of it"},
		{"asked too often all the time", serve(t, busy), "asked too often"},
		{"hangs", NewKubelet("", silent), "deadline exceeded"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := tt.k.Allocated(ctx, "demo", "a")
			h, ok := errors.AsType[*hint.Error](err)
			if !ok || !errors.Is(err, ErrNotYet) || h.Value != tt.k.socket || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 560 {
				t.Errorf("got %v", err)
			}
		})
	}
}

func FuzzMessage(f *testing.F) {
	for _, p := range []*podresources.PodResources{pod("demo", "a", []*podresources.ContainerDevices{part("r", "d")}), pod("", "")} {
		text, err := proto.Marshal(&podresources.ListPodResourcesResponse{PodResources: []*podresources.PodResources{p, p}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte{0x0a, 0xff})
	f.Fuzz(func(t *testing.T, text []byte) {
		var want podresources.ListPodResourcesResponse
		wantErr := proto.Unmarshal(text, &want)
		var got []string
		err := eachPod(text, func(p podResources) { got = append(got, p.namespace+"/"+p.name) })
		if wantErr != nil {
			return // the real one is stricter
		}
		if err != nil {
			t.Fatalf("%v, and the real one reads it", err)
		}
		var names []string
		for _, p := range want.GetPodResources() {
			names = append(names, p.GetNamespace()+"/"+p.GetName())
		}
		if diff := cmp.Diff(names, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}
