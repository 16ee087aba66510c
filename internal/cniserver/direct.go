package cniserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/cniwire"
	"github.com/weftnet/weft/internal/dataplane"
	"github.com/weftnet/weft/internal/device"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kubeapi"
	"github.com/weftnet/weft/internal/record"
)

// Direct is what a process needs that does calls itself, without an agent.
type Direct struct {
	// Instance is the tag in our marks; State and Run are directories, of which
	// State survives a reboot; Machine is the seed of made-up MACs.
	Instance, State, Run, Machine string
	// BinDirs are searched for foreign plugins; optional.
	BinDirs []string
	// Cluster: this is a cluster's node, see chain.Options. With an API it is one.
	Cluster bool
	// API is asked what Pods want and which networks there are, and told what Pods
	// have; optional: the networks of the configuration are attached.
	API *kubeapi.Client
	Log *slog.Logger
}

// ownPatience is how long a call waits for another that is being done.
const ownPatience = 30 * time.Second

// kubeletDir is where kubelets keep their files unless told otherwise.
const kubeletDir = "/var/lib/kubelet"

// Call does one call on the records and the kernel, then lets go of both. Calls
// at the same time wait for each other.
func (d Direct) Call(ctx context.Context, request cniwire.Request) cniwire.Response {
	if request.Command == "STATUS" { // is not about what is attached
		return New(Config{BinDirs: d.BinDirs, Log: d.Log}).answer(ctx, request)
	}
	if d.API == nil {
		return d.call(ctx, request, Config{Pods: noPods{d.Log}}, chain.Options{Networks: noNetworks{}, Cluster: d.Cluster})
	}
	api := newCluster(d.API, d.Log)
	if request.Command == "ADD" {
		if err := api.ask(ctx, request); err != nil {
			return cniwire.Response{Error: failure(err)}
		}
	}
	node, _ := os.Hostname() // kubelets call the node so unless told otherwise
	var box *record.Sandbox
	var events []Event
	attached := func(made *record.Sandbox) {
		if box = made; box.Pod.Name != "" {
			events = append(events, Added(box, node))
		}
	}
	refused := func(pod record.Pod, cause error) {
		if event, ours := Refused(pod, node, cause); ours {
			events = append(events, event)
		}
	}
	response := d.call(ctx, request, Config{Pods: api, Attached: attached, Refused: refused}, chain.Options{
		Networks: api, Claims: api, Cluster: true, Devices: device.NewKubelet("", kubeletDir),
	})
	// The API is told once the records are free for others.
	var telling sync.WaitGroup
	if box != nil && response.Error == nil {
		telling.Go(func() { api.writeStatus(ctx, box) })
	}
	for _, event := range events {
		telling.Go(func() { api.tell(ctx, event) })
	}
	telling.Wait()
	return response
}

// call does one call while it owns the records.
func (d Direct) call(ctx context.Context, request cniwire.Request, server Config, options chain.Options) cniwire.Response {
	engine, closeAll, err := d.open(ctx, options)
	if err != nil {
		return cniwire.Response{Error: failure(err)}
	}
	defer func() {
		if err := closeAll(); err != nil {
			d.Log.Warn("let go of records and kernel", "err", err)
		}
	}()
	server.Engine, server.Log = engine, d.Log
	// There is no start at which an agent would sweep: GC does, and a DEL of what has
	// no record, as after one that was killed when it had just removed that.
	if _, err := engine.Get(request.ContainerID); request.Command == "GC" || request.Command == "DEL" && errors.Is(err, record.ErrNotFound) {
		if err := engine.Restore(ctx); err != nil {
			d.Log.Warn("restore attachments", "err", err)
		}
	}
	return New(server).answer(ctx, request)
}

// open completes the options by what is the same for every call.
func (d Direct) open(ctx context.Context, options chain.Options) (engine *chain.Engine, closeAll func() error, err error) {
	records, err := record.Open(filepath.Join(d.State, "attachments"), filepath.Join(d.Run, "attachments"))
	if err != nil {
		return nil, nil, err
	}
	owning, cancel := context.WithTimeout(ctx, ownPatience)
	defer cancel()
	release, err := records.Own(owning)
	if errors.Is(err, record.ErrOwned) {
		err = fmt.Errorf("%w: %w", ErrTryAgain, err)
	}
	if err != nil {
		return nil, nil, err
	}
	plane, err := dataplane.New(dataplane.Config{Instance: d.Instance})
	if err != nil {
		return nil, nil, errors.Join(err, release())
	}
	closeAll = func() error { return errors.Join(plane.Close(), release()) }
	options.Instance, options.Machine, options.BinDirs, options.Log = d.Instance, d.Machine, d.BinDirs, d.Log
	memory := ipam.NewMemory()
	options.Records, options.Dataplane, options.Host, options.Addresses, options.Leases = records, plane, plane.Host(), memory, d.leases(memory)
	engine, err = chain.New(ctx, options)
	if err != nil {
		return nil, nil, errors.Join(err, closeAll())
	}
	return engine, closeAll, nil
}

// noNetworks is the lookup of a process that asks no API.
type noNetworks struct{}

var _ chain.Networks = noNetworks{}

// Definition refuses: it does not know which ones there are.
func (noNetworks) Definition(_ context.Context, namespace, name string) (*netattach.NetworkAttachmentDefinition, error) {
	return nil, &hint.Error{
		Field: "network", Value: namespace + "/" + name, Problem: "cannot be looked up: weft's agent is away", Err: ErrTryAgain,
		Remedy: "see that weft-node runs on this machine",
	}
}

// Namespaces gives none.
func (noNetworks) Namespaces(context.Context, string) ([]string, error) { return nil, nil }

// noPods is what such a process knows of Pods.
type noPods struct{ log *slog.Logger }

// Annotations gives none: the networks of the configuration are attached.
func (p noPods) Annotations(_ context.Context, namespace, name, _ string) (map[string]string, error) {
	p.log.Warn("the runtime did not pass the Pod's annotations; it gets the networks of the configuration alone", "pod", namespace+"/"+name)
	return nil, nil
}
