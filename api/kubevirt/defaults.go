package kubevirt

import (
	"strings"

	v1 "kubevirt.io/api/core/v1"
)

// defaultNetwork is the name of the network a VM gets that names none.
const defaultNetwork = "default"

// setDefaults fills in what KubeVirt's webhook fills in, as far as weft looks at it.
func setDefaults(spec *v1.VirtualMachineInstanceSpec) {
	devices := &spec.Domain.Devices
	if auto := devices.AutoattachPodInterface; len(devices.Interfaces) == 0 && len(spec.Networks) == 0 && (auto == nil || *auto) {
		devices.Interfaces = []v1.Interface{{
			Name:                   defaultNetwork,
			InterfaceBindingMethod: v1.InterfaceBindingMethod{Masquerade: &v1.InterfaceMasquerade{}},
		}}
		spec.Networks = []v1.Network{{Name: defaultNetwork, NetworkSource: v1.NetworkSource{Pod: &v1.PodNetwork{}}}}
	}
	// A volume nobody uses becomes a disk.
	used := map[string]bool{}
	for _, disk := range devices.Disks {
		used[disk.Name] = true
	}
	for _, fs := range devices.Filesystems {
		used[fs.Name] = true
	}
	for _, volume := range spec.Volumes {
		if !used[volume.Name] {
			devices.Disks = append(devices.Disks, v1.Disk{Name: volume.Name})
			used[volume.Name] = true
		}
	}
	for i := range devices.Disks {
		defaultDisk(&devices.Disks[i])
	}
}

func defaultDisk(disk *v1.Disk) {
	v1.SetDefaults_DiskDevice(&disk.DiskDevice)
	// sata is KubeVirt's default on amd64, because any guest has a driver for it.
	const bus = v1.DiskBusSATA
	switch {
	case disk.Disk != nil && disk.Disk.Bus == "":
		disk.Disk.Bus = bus
	case disk.CDRom != nil:
		v1.SetDefaults_CDRomTarget(disk.CDRom)
		if disk.CDRom.Bus == "" {
			disk.CDRom.Bus = bus
		}
	case disk.LUN != nil && disk.LUN.Bus == "":
		disk.LUN.Bus = bus
	}
}

// hostname is what a guest is called: spec.hostname, or the name up to its
// first dot, cut to a DNS label.
func hostname(name string, spec *v1.VirtualMachineInstanceSpec) string {
	if spec.Hostname != "" {
		return spec.Hostname
	}
	label, _, _ := strings.Cut(name, ".")
	if len(label) > 63 {
		label = strings.TrimRight(label[:63], "-")
	}
	return label
}
