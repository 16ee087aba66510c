package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/weftnet/weft/internal/hint"
)

// NoCloud is the content of a cloud-init NoCloud medium. Empty UserData and
// NetworkConfig are left out; cloud-init needs meta-data.
type NoCloud struct {
	MetaData      []byte
	UserData      []byte
	NetworkConfig []byte
}

// WriteNoCloud makes the medium as an ISO 9660 image with Rock Ridge and Joliet
// names and the volume id cidata, by which cloud-init finds it. It replaces an
// older one, because what the VM's spec says now counts.
//
// It runs genisoimage or xorriso: the Go libraries write either no long names
// or bring a dozen modules for what these do in 10 ms.
func WriteNoCloud(ctx context.Context, path string, content NoCloud, owner Owner) error {
	dir, err := os.MkdirTemp("", "weft-nocloud-")
	if err != nil {
		return fmt.Errorf("write cloud-init medium: %w", err)
	}
	err = writeNoCloud(ctx, dir, path, content, owner)
	if removeErr := os.RemoveAll(dir); removeErr != nil {
		err = errors.Join(err, fmt.Errorf("write cloud-init medium: %w", removeErr))
	}
	return err
}

func writeNoCloud(ctx context.Context, dir, path string, content NoCloud, owner Owner) error {
	args := []string{"-quiet", "-volid", "cidata", "-joliet", "-rock", "-output"}
	tmp := path + ".new"
	args = append(args, tmp)
	for _, file := range []struct {
		name string
		data []byte
		must bool
	}{{"meta-data", content.MetaData, true}, {"user-data", content.UserData, false}, {"network-config", content.NetworkConfig, false}} {
		if len(file.data) == 0 && !file.must {
			continue
		}
		name := filepath.Join(dir, file.name)
		if err := os.WriteFile(name, file.data, 0o644); err != nil {
			return fmt.Errorf("write cloud-init medium: %w", err)
		}
		args = append(args, name)
	}
	program, first, err := isoTool()
	if err != nil {
		return err
	}
	if _, err := tool(ctx, program, "genisoimage", append(first, args...)...); err != nil {
		return fmt.Errorf("write cloud-init medium: %w", err)
	}
	if err := give(tmp, owner); err != nil {
		return fmt.Errorf("write cloud-init medium: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write cloud-init medium: %w", err)
	}
	return nil
}

// isoTool finds the program that writes ISO images, with its first arguments.
func isoTool() (program string, first []string, err error) {
	for _, candidate := range []struct {
		program string
		first   []string
	}{{"genisoimage", nil}, {"xorriso", []string{"-as", "mkisofs"}}, {"mkisofs", nil}} {
		if _, err := exec.LookPath(candidate.program); err == nil {
			return candidate.program, candidate.first, nil
		}
	}
	return "", nil, &hint.Error{
		Problem: "no program to write a cloud-init medium is installed",
		Remedy:  "install one (Debian: apt-get install genisoimage, or xorriso)",
	}
}
