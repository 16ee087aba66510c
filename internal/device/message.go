package device

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weftnet/weft/internal/unary"
)

// Numbers of the fields we read (k8s.io/kubelet/pkg/apis/podresources/v1,
// api.proto).
const (
	listPods           protowire.Number = 1 // ListPodResourcesResponse.pod_resources
	podName            protowire.Number = 1 // PodResources
	podNamespace       protowire.Number = 2
	podContainers      protowire.Number = 3
	containerDevices   protowire.Number = 2 // ContainerResources.devices
	deviceResource     protowire.Number = 1 // ContainerDevices
	deviceIDs          protowire.Number = 2
	allocatableDevices protowire.Number = 1 // AllocatableResourcesResponse.devices
)

// podResources is a PodResources; of each container the devices by resource,
// which come in a part for each NUMA node.
type podResources struct {
	name, namespace string
	containers      []map[string][]string
}

// eachPod reads a ListPodResourcesResponse.
func eachPod(answer []byte, do func(podResources)) error {
	return unary.Fields(answer, func(number protowire.Number, value []byte) error {
		if number != listPods {
			return nil
		}
		pod, err := readPod(value)
		if err == nil {
			do(pod)
		}
		return err
	})
}

func readPod(message []byte) (pod podResources, err error) {
	err = unary.Fields(message, func(number protowire.Number, value []byte) error {
		switch number {
		case podName:
			pod.name = string(value)
		case podNamespace:
			pod.namespace = string(value)
		case podContainers:
			devices := map[string][]string{}
			pod.containers = append(pod.containers, devices)
			return readContainer(value, devices)
		}
		return nil
	})
	return pod, err
}

func readContainer(message []byte, devices map[string][]string) error {
	return unary.Fields(message, func(number protowire.Number, value []byte) error {
		if number == containerDevices {
			return readDevices(value, devices)
		}
		return nil
	})
}

// readDevices adds the ids of a ContainerDevices to those of its resource.
func readDevices(message []byte, devices map[string][]string) error {
	var resource string
	var ids []string
	err := unary.Fields(message, func(number protowire.Number, value []byte) error {
		switch number {
		case deviceResource:
			resource = string(value)
		case deviceIDs:
			ids = append(ids, string(value))
		}
		return nil
	})
	if err == nil {
		devices[resource] = append(devices[resource], ids...)
	}
	return err
}
