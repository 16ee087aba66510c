// Command deviceplugin offers the kubelet of its node devices nic-0, nic-1, ...
// of a resource, as plugins of SR-IOV cards do: a container gets the ids of its
// devices in $NICS, and what each is stands in a file (Device Information
// Specification 1.1.0).
//
//	deviceplugin RESOURCE COUNT
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const descriptions = "/var/run/k8s.cni.cncf.io/devinfo/dp"

type plugin struct {
	api.UnimplementedDevicePluginServer
	devices []*api.Device
}

// GetDevicePluginOptions wants none of them.
func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

// ListAndWatch says once which devices there are: they stay healthy.
func (p *plugin) ListAndWatch(_ *api.Empty, stream grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	if err := stream.Send(&api.ListAndWatchResponse{Devices: p.devices}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// Allocate tells the containers what they have.
func (p *plugin) Allocate(_ context.Context, request *api.AllocateRequest) (*api.AllocateResponse, error) {
	response := &api.AllocateResponse{}
	for _, container := range request.GetContainerRequests() {
		ids := strings.Join(container.GetDevicesIds(), ",")
		response.ContainerResponses = append(response.ContainerResponses, &api.ContainerAllocateResponse{Envs: map[string]string{"NICS": ids}})
	}
	return response, nil
}

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "deviceplugin:", err)
		os.Exit(1)
	}
}

func run(resource, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(descriptions, 0o755); err != nil {
		return err
	}
	p := &plugin{}
	for i := range n {
		id := fmt.Sprint("nic-", i)
		p.devices = append(p.devices, &api.Device{ID: id, Health: api.Healthy})
		text := fmt.Sprintf(`{"type":"vdpa","version":"1.1.0","vdpa":{"path":"/dev/vhost-vdpa-%d","pci-address":"0000:99:00.%d"}}`, i, i)
		file := strings.ReplaceAll(resource, "/", "-") + "-" + id + "-device.json"
		if err := os.WriteFile(filepath.Join(descriptions, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for {
		if err := p.offer(resource); err != nil {
			return err
		}
	}
}

// offer serves the devices until the kubelet starts anew: it empties the
// directory then.
func (p *plugin) offer(resource string) error {
	const name = "weft-example.sock"
	listener, err := net.Listen("unix", api.DevicePluginPath+name)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	api.RegisterDevicePluginServer(server, p)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	kubelet, err := grpc.NewClient("unix://"+api.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer kubelet.Close()
	request := &api.RegisterRequest{Version: api.Version, Endpoint: name, ResourceName: resource}
	if _, err := api.NewRegistrationClient(kubelet).Register(context.Background(), request, grpc.WaitForReady(true)); err != nil {
		return err
	}
	for {
		if _, err := os.Stat(api.DevicePluginPath + name); err != nil {
			server.Stop()
			return <-served
		}
		time.Sleep(50 * time.Millisecond)
	}
}
