// Package cri asks this node's container runtime which Pod sandboxes it has, by
// the Container Runtime Interface.
package cri

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/unary"
)

// sockets are where runtimes listen unless told otherwise: containerd, that of
// k3s and RKE2, of k0s, of MicroK8s, CRI-O, cri-dockerd.
var sockets = []string{
	"/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock", "/run/k0s/containerd.sock", "/var/snap/microk8s/common/run/containerd.sock",
	"/run/crio/crio.sock", "/run/cri-dockerd.sock",
}

// patience bounds one question.
const patience = 10 * time.Second

// ErrNone says that no runtime listens where they do.
var ErrNone = errors.New("no container runtime was found")

// Numbers of the fields we read (k8s.io/cri-api/pkg/apis/runtime/v1, api.proto).
const (
	items     protowire.Number = 1 // ListPodSandboxResponse.items
	sandboxID protowire.Number = 1 // PodSandbox.id
)

// Runtime is that of this node.
type Runtime struct{ root, socket string }

// NewRuntime makes one from where the node's files are, empty for /, and its
// socket there; empty: whichever of the usual are there.
func NewRuntime(root, socket string) *Runtime { return &Runtime{root, socket} }

// Sandboxes gives the ids of all sandboxes the runtime knows, those that ended and
// are not removed yet among them. Of several runtimes that are there the kubelet
// uses one: it gives what any of them knows, and an error if none tells.
func (r *Runtime) Sandboxes(ctx context.Context) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	there := r.there()
	if len(there) == 0 {
		return nil, ErrNone
	}
	var asking sync.WaitGroup
	answers, errs := make([]map[string]bool, len(there)), make([]error, len(there))
	for i, socket := range there {
		asking.Go(func() { answers[i], errs[i] = ask(ctx, r.root, socket) })
	}
	asking.Wait()
	if !slices.Contains(errs, nil) {
		return nil, errors.Join(errs...)
	}
	ids := map[string]bool{}
	for _, some := range answers {
		maps.Copy(ids, some)
	}
	return ids, nil
}

// ask asks one runtime.
func ask(ctx context.Context, root, socket string) (map[string]bool, error) {
	answer, err := unary.Call(ctx, linux.Under(root, socket), "/runtime.v1.RuntimeService/ListPodSandbox")
	if err != nil {
		return nil, problem(socket, err)
	}
	ids := map[string]bool{}
	err = unary.Fields(answer, func(number protowire.Number, item []byte) error {
		if number != items {
			return nil
		}
		return unary.Fields(item, func(number protowire.Number, value []byte) error {
			if number == sandboxID {
				ids[string(value)] = true
			}
			return nil
		})
	})
	if err != nil {
		return nil, problem(socket, err)
	}
	return ids, nil
}

// there are the sockets to ask.
func (r *Runtime) there() []string {
	if r.socket != "" {
		return []string{r.socket}
	}
	return slices.DeleteFunc(slices.Clone(sockets), func(socket string) bool {
		_, err := os.Stat(linux.Under(r.root, socket))
		return err != nil
	})
}

func problem(socket string, err error) error {
	return &hint.Error{
		Field: "container runtime", Value: socket, Problem: "does not tell which sandboxes it has", Err: err,
		Remedy: fmt.Sprintf("see that it runs and has the CRI plugin, or give weft-node its socket with --cri-socket (criSocket of the chart; looked for: %v)", sockets),
	}
}
