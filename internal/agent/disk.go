package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/image"
	"github.com/weftnet/weft/internal/qemu"
)

// diskDir is where a machine's own disks are, inside its directory.
const diskDir = "disks"

// prepareDisks makes the files an instance boots from. Those that are there
// are kept, so it can be repeated after a crash and over a restart.
func (n *Node) prepareDisks(ctx context.Context, inst *kubevirt.Instance, dir string, machine *qemu.Machine) error {
	if boot := inst.Firmware.KernelBoot; boot != nil {
		if err := n.kernelBoot(ctx, boot, machine); err != nil {
			return err
		}
	}
	disks := filepath.Join(dir, diskDir)
	if err := os.MkdirAll(disks, 0o755); err != nil {
		return fmt.Errorf("make disk directory: %w", err)
	}
	var errs []error
	for i, disk := range inst.Disks {
		made, err := n.disk(ctx, inst, disk, disks)
		if err != nil {
			errs = append(errs, hint.At(fmt.Sprintf("spec.volumes[%d] (%s)", i, disk.Name), err))
			continue
		}
		machine.Disks = append(machine.Disks, made)
	}
	return errors.Join(errs...)
}

func (n *Node) kernelBoot(ctx context.Context, boot *kubevirt.KernelBoot, machine *qemu.Machine) error {
	if err := n.haveImage(ctx, boot.Image, boot.PullPolicy); err != nil {
		return hint.At("spec.domain.firmware.kernelBoot.container.image", err)
	}
	kernel, err := n.cfg.Images.Extract(ctx, boot.Image, boot.KernelPath)
	if err != nil {
		return hint.At("spec.domain.firmware.kernelBoot.container.kernelPath", err)
	}
	machine.Kernel, machine.Cmdline = kernel.Path, boot.Args
	if boot.InitrdPath == "" {
		return nil
	}
	initrd, err := n.cfg.Images.Extract(ctx, boot.Image, boot.InitrdPath)
	if err != nil {
		return hint.At("spec.domain.firmware.kernelBoot.container.initrdPath", err)
	}
	machine.Initrd = initrd.Path
	return nil
}

// haveImage sees to it that an image is in the store. Images of localhost have
// no registry to ask.
func (n *Node) haveImage(ctx context.Context, ref, policy string) error {
	if policy != "Always" || strings.HasPrefix(ref, "localhost/") {
		_, err := n.cfg.Images.Resolve(ref)
		if err == nil || policy == "Never" || strings.HasPrefix(ref, "localhost/") || !errors.Is(err, image.ErrNotFound) {
			return err
		}
	}
	_, err := n.cfg.Images.Pull(ctx, ref)
	return err
}

func (n *Node) disk(ctx context.Context, inst *kubevirt.Instance, disk kubevirt.Disk, dir string) (qemu.Disk, error) {
	made := qemu.Disk{
		Name: disk.Name, Bus: qemu.Bus(disk.Bus), ReadOnly: disk.ReadOnly, CDROM: disk.Device == "cdrom",
		BootOrder: disk.BootOrder, Serial: disk.Serial, Path: filepath.Join(dir, disk.Name+".qcow2"), Format: qemu.QCOW2,
	}
	owner := qemu.Owner{UID: LauncherUID, GID: LauncherUID}
	switch volume := disk.Volume; {
	case volume.ContainerDisk != nil:
		return n.containerDisk(ctx, *volume.ContainerDisk, made, owner)
	case volume.EmptyDisk != nil:
		return made, qemu.CreateDisk(ctx, made.Path, volume.EmptyDisk.CapacityBytes, owner)
	case volume.HostDisk != nil:
		return hostDisk(ctx, *volume.HostDisk, made, owner)
	case volume.CloudInit != nil:
		made.Path, made.Format, made.ReadOnly = filepath.Join(dir, disk.Name+".iso"), qemu.Raw, true
		meta, err := json.Marshal(map[string]string{"instance-id": inst.Name + "." + inst.Namespace, "local-hostname": inst.Hostname})
		if err != nil {
			return made, fmt.Errorf("write cloud-init meta-data: %w", err)
		}
		return made, qemu.WriteNoCloud(ctx, made.Path, qemu.NoCloud{
			UserData: volume.CloudInit.UserData, NetworkConfig: volume.CloudInit.NetworkData, MetaData: meta,
		}, owner)
	default:
		return made, &hint.Error{Problem: "has no source weft can use", Remedy: "use containerDisk, hostDisk, emptyDisk or cloudInitNoCloud"}
	}
}

func (n *Node) containerDisk(ctx context.Context, source kubevirt.ContainerDisk, made qemu.Disk, owner qemu.Owner) (qemu.Disk, error) {
	if err := n.haveImage(ctx, source.Image, source.PullPolicy); err != nil {
		return made, hint.At("containerDisk.image", err)
	}
	base, err := n.cfg.Images.Disk(ctx, source.Image, source.Path)
	if err != nil {
		return made, hint.At("containerDisk", err)
	}
	if made.CDROM || made.ReadOnly {
		made.Path, made.Format = base.Path, qemu.Format(base.Format)
		return made, nil
	}
	return made, qemu.CreateOverlay(ctx, made.Path, base.Path, owner)
}

func hostDisk(ctx context.Context, source kubevirt.HostDisk, made qemu.Disk, owner qemu.Owner) (qemu.Disk, error) {
	if source.Create {
		if err := qemu.CreateRawDisk(source.Path, source.CapacityBytes, owner); err != nil {
			return made, hint.At("hostDisk.path", err)
		}
	}
	if _, err := os.Stat(source.Path); errors.Is(err, os.ErrNotExist) {
		return made, &hint.Error{
			Field: "hostDisk.path", Value: source.Path, Problem: "does not exist on this machine",
			Remedy: "put the disk image there, or write type: DiskOrCreate and a capacity",
		}
	}
	info, err := qemu.InspectImage(ctx, source.Path)
	if err != nil {
		return made, hint.At("hostDisk.path", err)
	}
	made.Path, made.Format = source.Path, info.Format
	return made, nil
}
