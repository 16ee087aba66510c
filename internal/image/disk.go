package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/weftnet/weft/internal/hint"
)

// DiskFormat is the format of a disk image, as QEMU calls it.
type DiskFormat string

// Disk formats container disks may have.
const (
	Raw   DiskFormat = "raw"
	QCOW2 DiskFormat = "qcow2"
)

// Disk is a container disk as a file of this machine.
type Disk struct {
	File
	Format DiskFormat
	// VirtualSize is what the guest sees, in bytes.
	VirtualSize int64
}

// diskDir is where container disks hold their one file.
const diskDir = "/disk"

// Disk gives the disk of the container disk ref: the file at path, or with an
// empty path the only file in /disk.
func (s *Store) Disk(ctx context.Context, ref, path string) (Disk, error) {
	opened, err := s.open(ctx, ref)
	if err != nil {
		return Disk{}, err
	}
	defer opened.unlock()
	if path == "" {
		path, err = s.onlyDisk(ctx, opened)
		if err != nil {
			return Disk{}, err
		}
	}
	file, err := s.extract(ctx, opened, path)
	if err != nil {
		return Disk{}, err
	}
	disk, err := InspectDisk(file.Path)
	if err != nil {
		return Disk{}, fmt.Errorf("disk %s of image %s: %w", path, opened.Name, err)
	}
	disk.File = file
	return disk, nil
}

// onlyDisk finds the one file in /disk.
func (s *Store) onlyDisk(ctx context.Context, img openedImage) (string, error) {
	manifest, err := s.manifest(img.hash)
	if err != nil {
		return "", err
	}
	root, err := s.readTree(ctx, manifest.Layers)
	if err != nil {
		return "", fmt.Errorf("read image %s: %w", img.Name, err)
	}
	var names []string
	if dir, err := root.find(diskDir); err == nil {
		names = dir.files()
	}
	switch len(names) {
	case 1:
		return diskDir + "/" + names[0], nil
	case 0:
		return "", &hint.Error{
			Value: img.Name, Problem: "image is no container disk: it has no file in /disk",
			Remedy: "put the disk into /disk of the image, or name the file in containerDisk.path",
		}
	}
	return "", &hint.Error{
		Value: img.Name, Problem: "image has several files in /disk: " + strings.Join(names, ", "),
		Remedy: "name one in containerDisk.path: /disk/" + names[0],
	}
}

// Parts of a qcow2 header (QEMU docs/interop/qcow2.txt): big endian.
const (
	qcow2Magic            = 0x514649fb // "QFI\xfb", at 0
	qcow2VersionAt        = 4          // uint32: 2 or 3
	qcow2BackingAt        = 8          // uint64: offset of the backing file's name, 0: none
	qcow2SizeAt           = 24         // uint64: virtual size in bytes
	qcow2IncompatibleAt   = 72         // uint64 bits, version 3 on
	qcow2ExternalDataFile = 1 << 2
	qcow2HeaderLen        = 80
)

// InspectDisk reads format and virtual size of the disk image at path. It
// refuses one that makes QEMU open other files: an image must not choose files
// of the host.
func InspectDisk(path string) (Disk, error) {
	f, err := os.Open(path)
	if err != nil {
		return Disk{}, fmt.Errorf("open disk: %w", err)
	}
	defer f.Close() // only read
	info, err := f.Stat()
	if err != nil {
		return Disk{}, fmt.Errorf("open disk: %w", err)
	}
	header := make([]byte, qcow2HeaderLen)
	n, err := io.ReadFull(f, header)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return Disk{}, fmt.Errorf("read disk: %w", err)
	}
	disk := Disk{File: File{Path: path}, Format: Raw, VirtualSize: info.Size()}
	if n < 4 || binary.BigEndian.Uint32(header) != qcow2Magic {
		if info.Size() == 0 {
			return Disk{}, &hint.Error{Value: path, Problem: "disk is empty", Remedy: "use an image that holds a raw or qcow2 disk"}
		}
		return disk, nil
	}
	if err := checkQCOW2(header[:n]); err != nil {
		return Disk{}, err
	}
	disk.Format = QCOW2
	disk.VirtualSize = int64(binary.BigEndian.Uint64(header[qcow2SizeAt:]))
	return disk, nil
}

// checkQCOW2 refuses headers that are cut off or lead to other files.
func checkQCOW2(header []byte) error {
	remedy := "flatten the disk: qemu-img convert -O qcow2 OLD NEW"
	const shortest = qcow2IncompatibleAt // version 2
	if len(header) < shortest {
		return &hint.Error{Problem: "qcow2 header is cut off", Remedy: "use a whole disk image"}
	}
	size := binary.BigEndian.Uint64(header[qcow2SizeAt:])
	if size == 0 || size > 1<<62 {
		return &hint.Error{Problem: fmt.Sprintf("qcow2 header claims a size of %d bytes", size), Remedy: "use a whole disk image"}
	}
	if binary.BigEndian.Uint64(header[qcow2BackingAt:]) != 0 {
		return &hint.Error{Problem: "qcow2 disk has a backing file", Remedy: remedy}
	}
	if binary.BigEndian.Uint32(header[qcow2VersionAt:]) < 3 {
		return nil
	}
	if len(header) < qcow2HeaderLen {
		return &hint.Error{Problem: "qcow2 header is cut off", Remedy: "use a whole disk image"}
	}
	if binary.BigEndian.Uint64(header[qcow2IncompatibleAt:])&qcow2ExternalDataFile != 0 {
		return &hint.Error{Problem: "qcow2 disk keeps its data in another file", Remedy: remedy}
	}
	return nil
}
