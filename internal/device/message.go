package device

import (
	"strings"

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
	containerClaims    protowire.Number = 5 // ContainerResources.dynamic_resources
	claimName          protowire.Number = 2 // DynamicResource
	claimParts         protowire.Number = 4 // DynamicResource.claim_resources
	partDevices        protowire.Number = 1 // ClaimResource.cdi_devices
	cdiName            protowire.Number = 1 // CDIDevice
)

// podResources is a PodResources; of each container the devices by resource,
// which come in a part for each NUMA node, and by the name of a ResourceClaim.
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
		switch number {
		case containerDevices:
			return readDevices(value, devices)
		case containerClaims:
			return readClaim(value, devices)
		}
		return nil
	})
}

// readClaim adds the devices of a DynamicResource to those of its claim. Their ids
// are what stands behind the = of their names, VENDOR/CLASS=DEVICE (Container
// Device Interface specification).
func readClaim(message []byte, devices map[string][]string) error {
	var claim string
	var ids []string
	err := unary.Fields(message, func(number protowire.Number, value []byte) error {
		switch number {
		case claimName:
			claim = string(value)
		case claimParts:
			return eachField(value, partDevices, func(device []byte) error {
				return eachField(device, cdiName, func(name []byte) error {
					if _, id, ok := strings.Cut(string(name), "="); ok && id != "" {
						ids = append(ids, id)
					}
					return nil
				})
			})
		}
		return nil
	})
	if err == nil && len(ids) > 0 {
		devices[claim] = append(devices[claim], ids...)
	}
	return err
}

// eachField reads the fields of one number.
func eachField(message []byte, which protowire.Number, do func([]byte) error) error {
	return unary.Fields(message, func(number protowire.Number, value []byte) error {
		if number != which {
			return nil
		}
		return do(value)
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
