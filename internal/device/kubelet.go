// Package device says which devices of this node a Pod holds, as the kubelet
// tells it, and keeps the files that describe devices to plugins and users.
//
// It gives no device to a network (chain does), and touches none.
package device

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/unary"
)

// socketName is where the kubelet's pod-resources API is, below the directory it
// keeps its files in (k8s.io/kubernetes/pkg/kubelet, getPodResourcesDir).
const socketName = "pod-resources/kubelet.sock"

// ErrNotYet says that the kubelet does not answer, or not for that Pod, as while it
// starts: it may a moment later.
var ErrNotYet = errors.New("not yet")

// Bounds of one question.
const (
	patience = 10 * time.Second
	// pause after an answer that we ask too often: the kubelet takes 100 questions
	// a second and ten at once (its pkg/kubelet/apis/podresources, constants).
	pause = 50 * time.Millisecond
)

// Kubelet is that of this node. A question is a connection of its own: they are
// few, and a kubelet that was restarted is found again at once.
type Kubelet struct{ root, socket string }

// NewKubelet makes one from where the node's files are, empty for /, and the
// kubelet's directory there.
func NewKubelet(root, dir string) *Kubelet {
	return &Kubelet{root, filepath.Join(dir, socketName)}
}

// Allocated gives the ids of the devices a Pod holds, by resource of a device plugin
// or by name of its ResourceClaim: those of its
// first container first, and by name among those of one container, since the
// kubelet gives them in no order.
func (k *Kubelet) Allocated(ctx context.Context, namespace, name string) (map[string][]string, error) {
	answer, err := k.ask(ctx, "/v1.PodResourcesLister/List")
	if err != nil {
		return nil, err
	}
	held, known := map[string][]string{}, false
	err = eachPod(answer, func(pod podResources) {
		if pod.namespace != namespace || pod.name != name {
			return
		}
		known = true
		for _, container := range pod.containers {
			for resource, ids := range container {
				slices.Sort(ids)
				for _, id := range ids {
					if !slices.Contains(held[resource], id) {
						held[resource] = append(held[resource], id)
					}
				}
			}
		}
	})
	if err == nil && !known {
		return nil, &hint.Error{
			Field: "kubelet's pod-resources API", Value: k.socket, Problem: "does not know Pod " + namespace + "/" + name, Err: ErrNotYet,
			Remedy: "nothing, if the kubelet has just started; otherwise see its log",
		}
	}
	return held, k.garbled(err)
}

// Offered says whether a device plugin offers devices of the resource on this
// node. Resources without any are mere numbers on the Node, as those by which
// nodes with a certain bridge are marked.
func (k *Kubelet) Offered(ctx context.Context, resource string) (bool, error) {
	answer, err := k.ask(ctx, "/v1.PodResourcesLister/GetAllocatableResources")
	if err != nil {
		return false, err
	}
	devices := map[string][]string{}
	err = unary.Fields(answer, func(number protowire.Number, value []byte) error {
		if number == allocatableDevices {
			return readDevices(value, devices)
		}
		return nil
	})
	return len(devices[resource]) > 0, k.garbled(err)
}

// ask puts one question, again if the kubelet finds there are too many.
func (k *Kubelet) ask(ctx context.Context, method string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var tooOften error
	for {
		answer, err := unary.Call(ctx, linux.Under(k.root, k.socket), method)
		if errors.Is(err, unary.ErrTooOften) {
			tooOften = err
			select {
			case <-ctx.Done():
			case <-time.After(pause):
				continue
			}
		}
		late, ok := errors.AsType[net.Error](err) // a dial's deadline may be noticed before that of ctx
		if over := ctx.Err() != nil || ok && late.Timeout(); err != nil && over && tooOften != nil {
			err = tooOften // says more than that the time is over
		}
		if err != nil {
			return nil, k.problem(fmt.Errorf("%w: %w", ErrNotYet, err))
		}
		return answer, nil
	}
}

func (k *Kubelet) problem(err error) error {
	return &hint.Error{
		Field: "kubelet's pod-resources API", Value: k.socket, Problem: "does not tell which devices the Pod holds", Err: err,
		Remedy: "see that the kubelet of this node runs, and that weft-node's --kubelet-dir is its --root-dir",
	}
}

func (k *Kubelet) garbled(err error) error {
	if err == nil {
		return nil
	}
	return k.problem(err)
}
