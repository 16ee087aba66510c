package device

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/linux"
)

// Dir is where device plugins and CNI plugins describe devices to each other
// (Device Information Specification 1.1.0 of the Network Plumbing Working Group,
// section 4):
//
//	DIR/dp/RESOURCE-ID-device.json      by the device plugin
//	DIR/cni/NETWORK-SANDBOX_INTERFACE   a copy for one attachment, which its plugins may change
const Dir = "/var/run/k8s.cni.cncf.io/devinfo"

// Files are the files that describe devices.
type Files struct {
	// Root is where the node's files are; empty: /. Dir is empty or another place.
	Root, Dir string
}

// Of gives the file of one attachment, as plugins see it.
func (f Files) Of(network, sandbox, ifName string) string {
	return filepath.Join(f.dir(), "cni", plain(network+"-"+sandbox+"_"+ifName))
}

// Describe makes room for the file of an attachment, and copies there what the
// device plugin of the resource says of the device. Most say nothing, then there
// is no file; so it is without a resource.
func (f Files) Describe(resource, id, file string) error {
	here := f.here(file)
	if err := os.MkdirAll(filepath.Dir(here), 0o755); err != nil {
		return fmt.Errorf("make directory of device information: %w", err)
	}
	if resource == "" {
		return nil
	}
	text, err := os.ReadFile(f.here(filepath.Join(f.dir(), "dp", plain(resource+"-"+id+"-device.json"))))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read what is said of device %s: %w", id, err)
	}
	if err := os.WriteFile(here, text, 0o644); err != nil { // plugins and Pods of any user read it
		return fmt.Errorf("describe device %s: %w", id, err)
	}
	return nil
}

// Read gives what a file says; nil if there is none.
func (f Files) Read(file string) (*netattach.DeviceInfo, error) {
	text, err := os.ReadFile(f.here(file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read device information: %w", err)
	}
	var info netattach.DeviceInfo
	if err := json.Unmarshal(text, &info); err != nil {
		return nil, fmt.Errorf("read device information %s: %w", file, err)
	}
	return &info, nil
}

// Remove deletes the file of an attachment; that there is none is success.
func (f Files) Remove(file string) error {
	if err := os.Remove(f.here(file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove device information: %w", err)
	}
	return nil
}

// RemoveAll deletes the files of all attachments of a sandbox.
func (f Files) RemoveAll(sandbox string) error {
	files, err := filepath.Glob(filepath.Join(f.here(filepath.Join(f.dir(), "cni")), "*-"+plain(sandbox)+"_*"))
	if err != nil {
		return fmt.Errorf("look for device information of sandbox %s: %w", sandbox, err)
	}
	var errs []error
	for _, file := range files {
		errs = append(errs, os.Remove(file))
	}
	return errors.Join(errs...)
}

func (f Files) dir() string {
	if f.Dir == "" {
		return Dir
	}
	return f.Dir
}

// here gives a file of the node as this process sees it.
func (f Files) here(file string) string { return linux.Under(f.Root, file) }

// plain makes a name one of a file in its directory.
func plain(name string) string { return strings.ReplaceAll(name, "/", "-") }
