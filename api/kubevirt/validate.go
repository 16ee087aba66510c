package kubevirt

import (
	"errors"
	"fmt"
	"regexp"

	"k8s.io/apimachinery/pkg/util/validation"
	v1 "kubevirt.io/api/core/v1"

	"github.com/weftnet/weft/internal/hint"
)

// maxVCPUs bounds the topology: what q35 in QEMU takes without an IOMMU.
const maxVCPUs = 255

// validator collects every problem of one spec.
type validator struct {
	spec *v1.VirtualMachineInstanceSpec
	path string // of the spec, such as "spec"
	errs []error
}

// validate checks spec as KubeVirt's admission does, with its texts, and beyond
// it what would only fail later: doubled boot orders and MACs, device indexes,
// volumes one machine cannot give.
func validate(spec *v1.VirtualMachineInstanceSpec, path string) error {
	v := &validator{spec: spec, path: path}
	v.compute()
	v.volumes()
	v.disks()
	v.networks()
	v.interfaces()
	v.bootOrders()
	v.macs()
	v.acpiIndexes()
	return errors.Join(v.errs...)
}

func (v *validator) add(field, value, problem, remedy string) {
	if field != "" {
		field = "." + field
	}
	v.errs = append(v.errs, &hint.Error{Field: v.path + field, Value: value, Problem: problem, Remedy: remedy})
}

// sub is the full path of a field below the spec, for texts that quote it.
func (v *validator) sub(format string, args ...any) string {
	return v.path + "." + fmt.Sprintf(format, args...)
}

func (v *validator) compute() {
	if cpu := v.spec.Domain.CPU; cpu != nil {
		// uint64: three uint32 may overflow anything smaller.
		n := uint64(max(1, cpu.Sockets)) * uint64(max(1, cpu.Cores))
		if n > maxVCPUs || n*uint64(max(1, cpu.Threads)) > maxVCPUs {
			v.add("domain.cpu", fmt.Sprintf("%d x %d x %d", cpu.Sockets, cpu.Cores, cpu.Threads),
				fmt.Sprintf("sockets x cores x threads is more than %d", maxVCPUs), "ask for fewer vCPUs")
		}
	}
	for _, list := range []struct {
		field  string
		amount int64
		given  bool
	}{{"domain.memory.guest", memoryBytes(v.spec), v.memoryGiven()}} {
		switch {
		case !list.given:
			v.add("domain.memory.guest", "",
				"no memory requested, at least one of 'spec.domain.memory.guest', 'spec.domain.memory.hugepages.size' or 'spec.domain.resources.requests.memory' must be set",
				"set domain.memory.guest, such as 512Mi")
		case list.amount < 1<<20:
			v.add("domain.memory.guest", fmt.Sprint(list.amount), "is less than one MiB", "set domain.memory.guest, such as 512Mi")
		}
	}
	if h := v.spec.Hostname; h != "" && len(validation.IsDNS1123Label(h)) > 0 {
		v.add("hostname", h, "does not conform to the kubernetes DNS_LABEL rules", "use lower-case letters, digits and '-', at most 63")
	}
	if s := v.spec.Subdomain; s != "" && len(validation.IsDNS1123Subdomain(s)) > 0 {
		v.add("subdomain", s, "does not conform to the kubernetes DNS_SUBDOMAIN rules", "use lower-case letters, digits, '-' and '.'")
	}
	v.kernelBoot()
}

func (v *validator) memoryGiven() bool {
	d := &v.spec.Domain
	_, requested := d.Resources.Requests["memory"]
	_, limited := d.Resources.Limits["memory"]
	return requested || limited || d.Memory != nil && d.Memory.Guest != nil
}

func (v *validator) kernelBoot() {
	f := v.spec.Domain.Firmware
	if f == nil || f.KernelBoot == nil {
		return
	}
	const field = "domain.firmware.kernelBoot"
	k := f.KernelBoot
	switch {
	case k.Container == nil && k.KernelArgs == "":
	case k.Container == nil:
		v.add(field, "", "kernel arguments cannot be provided without an external kernel", "give container.image and container.kernelPath")
	case k.Container.Image == "":
		v.add(field+".container.image", "", "image must be provided in order to use kernel boot", "name the image that holds the kernel")
	case k.Container.KernelPath == "":
		v.add(field+".container", "", "kernelPath must be provided in order to use kernel boot", "name the kernel's file inside the image, such as /boot/vmlinuz")
	}
}

func (v *validator) volumes() {
	seen := map[string]int{}
	for i := range v.spec.Volumes {
		volume := &v.spec.Volumes[i]
		field := fmt.Sprintf("volumes[%d]", i)
		if first, ok := seen[volume.Name]; ok {
			v.add(field+".name", volume.Name, fmt.Sprintf("%s and %s must not have the same Name.", v.sub("volumes[%d]", first), v.sub("volumes[%d]", i)), "give every volume a name of its own")
		} else {
			seen[volume.Name] = i
		}
		v.volumeSource(field, &volume.VolumeSource)
	}
}

// elsewhere names the volume source a single machine has no way to give.
func elsewhere(s *v1.VolumeSource) string {
	for _, row := range []struct {
		set  bool
		name string
	}{
		{s.PersistentVolumeClaim != nil, "persistentVolumeClaim"},
		{s.DataVolume != nil, "dataVolume"},
		{s.Ephemeral != nil, "ephemeral"},
		{s.CloudInitConfigDrive != nil, "cloudInitConfigDrive"},
		{s.Sysprep != nil, "sysprep"},
		{s.ConfigMap != nil, "configMap"},
		{s.Secret != nil, "secret"},
		{s.DownwardAPI != nil, "downwardAPI"},
		{s.ServiceAccount != nil, "serviceAccount"},
		{s.DownwardMetrics != nil, "downwardMetrics"},
		{s.MemoryDump != nil, "memoryDump"},
		{s.ContainerPath != nil, "containerPath"},
	} {
		if row.set {
			return row.name
		}
	}
	return ""
}

func (v *validator) volumeSource(field string, s *v1.VolumeSource) {
	if name := elsewhere(s); name != "" {
		remedy := "use containerDisk, hostDisk or emptyDisk"
		if name == "cloudInitConfigDrive" {
			remedy = "use cloudInitNoCloud"
		}
		v.add(field+"."+name, "", "is not supported on one machine", remedy)
		return
	}
	given := 0
	for _, set := range []bool{s.ContainerDisk != nil, s.HostDisk != nil, s.EmptyDisk != nil, s.CloudInitNoCloud != nil} {
		if set {
			given++
		}
	}
	if given != 1 {
		v.add(field, "", v.sub("%s must have exactly one source type set", field), "give one of containerDisk, hostDisk, emptyDisk, cloudInitNoCloud")
		return
	}
	switch {
	case s.ContainerDisk != nil && s.ContainerDisk.Image == "":
		v.add(field+".containerDisk.image", "", "is empty", "name the image that holds the disk")
	case s.HostDisk != nil:
		v.hostDisk(field+".hostDisk", s.HostDisk)
	case s.EmptyDisk != nil:
		if n, err := bytesOf(s.EmptyDisk.Capacity); err != nil || n == 0 {
			v.add(field+".emptyDisk.capacity", s.EmptyDisk.Capacity.String(), "must be greater than 0", "give a size such as 1Gi")
		}
	case s.CloudInitNoCloud != nil:
		v.noCloud(field+".cloudInitNoCloud", s.CloudInitNoCloud)
	}
}

func (v *validator) hostDisk(field string, d *v1.HostDisk) {
	if d.Path == "" {
		v.add(field+".path", "", "is required for hostDisk volume", "name the image file on this machine")
	}
	switch d.Type {
	case v1.HostDiskExists:
		if !d.Capacity.IsZero() {
			v.add(field+".capacity", d.Capacity.String(), "is allowed only with type 'DiskOrCreate'", "take capacity out, or set type: DiskOrCreate")
		}
	case v1.HostDiskExistsOrCreate:
		if n, err := bytesOf(d.Capacity); err != nil || n == 0 {
			v.add(field+".capacity", d.Capacity.String(), "must be greater than 0 with type 'DiskOrCreate'", "give a size such as 1Gi")
		}
	default:
		v.add(field+".type", string(d.Type), "has invalid value, allowed are 'DiskOrCreate' or 'Disk'", "use Disk for a file that is there, DiskOrCreate otherwise")
	}
}

func (v *validator) noCloud(field string, s *v1.CloudInitNoCloudSource) {
	if s.UserDataSecretRef != nil || s.NetworkDataSecretRef != nil {
		v.add(field, "", "data from a Secret is not supported on one machine", "write it inline as userData or networkData")
	}
	if s.UserData != "" && s.UserDataBase64 != "" {
		v.add(field, "", "must have exactly one userdata source set", "keep userData or userDataBase64")
	}
	if s.NetworkData != "" && s.NetworkDataBase64 != "" {
		v.add(field, "", "must have only one networkdata source set", "keep networkData or networkDataBase64")
	}
}

func (v *validator) disks() {
	volumes := map[string]bool{}
	for _, volume := range v.spec.Volumes {
		volumes[volume.Name] = true
	}
	seen := map[string]int{}
	for i, disk := range v.spec.Domain.Devices.Disks {
		field := fmt.Sprintf("domain.devices.disks[%d]", i)
		if first, ok := seen[disk.Name]; ok {
			v.add(field+".name", disk.Name, fmt.Sprintf("%s and %s must not have the same Name.", v.sub("domain.devices.disks[%d]", first), v.sub("%s", field)), "give every disk a name of its own")
		}
		seen[disk.Name] = i
		if !volumes[disk.Name] {
			v.add(field+".name", disk.Name, fmt.Sprintf("%s.Name '%s' not found.", v.sub("%s", field), disk.Name), "add a volume of this name to volumes")
		}
		targets := 0
		for _, set := range []bool{disk.Disk != nil, disk.CDRom != nil, disk.LUN != nil} {
			if set {
				targets++
			}
		}
		if targets > 1 {
			v.add(field, disk.Name, v.sub("%s must have exactly one target type", field), "keep one of disk and cdrom")
		}
		v.diskBus(field, &disk)
	}
}

func (v *validator) diskBus(field string, disk *v1.Disk) {
	switch {
	case disk.Disk != nil:
		switch disk.Disk.Bus {
		case v1.DiskBusVirtio, v1.DiskBusSATA, v1.DiskBusSCSI:
		default:
			v.add(field+".disk.bus", string(disk.Disk.Bus), "is set with an unrecognized bus", "use virtio, sata or scsi")
		}
	case disk.CDRom != nil:
		switch disk.CDRom.Bus {
		case v1.DiskBusSATA, v1.DiskBusSCSI:
		default:
			v.add(field+".cdrom.bus", string(disk.CDRom.Bus), "Bus type is invalid for CD-ROM device", "use sata or scsi")
		}
	}
	if serial := disk.Serial; serial != "" && (len(serial) > 256 || !serialText.MatchString(serial)) {
		v.add(field+".serial", serial, "must be made up of the following characters [A-Za-z0-9_.+-], if specified", "use those, at most 256")
	}
}

var serialText = regexp.MustCompile(`^[A-Za-z0-9_.+-]+$`)

// bootOrders: every device that has one needs a value of its own.
func (v *validator) bootOrders() {
	taken := map[uint]string{}
	check := func(field string, order *uint) {
		if order == nil {
			return
		}
		text := fmt.Sprint(*order)
		if *order == 0 {
			v.add(field+".bootOrder", text, v.sub("%s must have a boot order > 0, if supplied", field), "count from 1")
			return
		}
		if other, ok := taken[*order]; ok {
			v.add(field+".bootOrder", text, fmt.Sprintf("Boot order for %s already set for a different device.", v.sub("%s", field)),
				"take a number that "+other+" does not have")
			return
		}
		taken[*order] = v.sub("%s", field)
	}
	for i, disk := range v.spec.Domain.Devices.Disks {
		check(fmt.Sprintf("domain.devices.disks[%d]", i), disk.BootOrder)
	}
	for i, iface := range v.spec.Domain.Devices.Interfaces {
		check(fmt.Sprintf("domain.devices.interfaces[%d]", i), iface.BootOrder)
	}
}
