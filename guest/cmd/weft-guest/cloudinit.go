package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/guest/seed"
)

// Primary volume descriptor of ISO 9660 (ECMA-119, section 8.4), offsets in bytes.
const (
	isoDescriptor = 16 * 2048
	isoMagicAt    = 1
	isoLabelAt    = 40
	isoLabelLen   = 32
)

const seedMount = "/run/cidata"

// loadSeed reads the first volume labelled cidata. What is wrong with it is
// printed; the guest boots all the same.
func loadSeed() seed.Seed {
	device := seedDevice()
	if device == "" {
		return seed.Seed{}
	}
	data, err := readSeed(device)
	if err != nil {
		say("cloud-init: %v", err)
	}
	for _, what := range data.Ignored {
		say("cloud-init: %s is not supported by this guest", what)
	}
	say("cloud-init: read %s", device)
	return data
}

// seedDevice finds the block device with the label NoCloud wants.
func seedDevice() string {
	blocks, err := filepath.Glob("/sys/block/*")
	if err != nil {
		return ""
	}
	for _, block := range blocks {
		device := "/dev/" + filepath.Base(block)
		if strings.EqualFold(isoLabel(device), "cidata") {
			return device
		}
	}
	return ""
}

// isoLabel gives the volume label of a device; empty if it holds no ISO 9660.
func isoLabel(device string) string {
	f, err := os.Open(device)
	if err != nil {
		return ""
	}
	defer f.Close() // only read
	descriptor := make([]byte, isoLabelAt+isoLabelLen)
	if _, err := f.ReadAt(descriptor, isoDescriptor); err != nil {
		return ""
	}
	if !bytes.HasPrefix(descriptor[isoMagicAt:], []byte("CD001")) {
		return ""
	}
	return strings.TrimSpace(string(descriptor[isoLabelAt:]))
}

func readSeed(device string) (seed.Seed, error) {
	if err := exec.Command("/bin/sh", "-c", "while read -r m; do insmod /lib/modules/$m; done </lib/modules/iso").Run(); err != nil {
		return seed.Seed{}, fmt.Errorf("load isofs: %w", err)
	}
	if err := os.MkdirAll(seedMount, 0o755); err != nil {
		return seed.Seed{}, err
	}
	if err := unix.Mount(device, seedMount, "iso9660", unix.MS_RDONLY, ""); err != nil {
		return seed.Seed{}, fmt.Errorf("mount %s: %w", device, err)
	}
	var parts [3][]byte
	for i, name := range []string{"meta-data", "user-data", "network-config"} {
		raw, err := os.ReadFile(filepath.Join(seedMount, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return seed.Seed{}, err
		}
		parts[i] = raw
	}
	return seed.Parse(parts[0], parts[1], parts[2])
}

// prepare does what comes before the network.
func prepare(data seed.Seed) {
	setHostname(data.Hostname)
	for _, file := range data.Files {
		if err := writeSeedFile(file); err != nil {
			say("cloud-init: write_files: %v", err)
		}
	}
	for _, command := range data.BootCommands {
		runLogged("bootcmd", command[0], command[1:]...)
	}
}

func writeSeedFile(file seed.File) error {
	mode := uint64(0o644)
	if file.Mode != "" {
		parsed, err := strconv.ParseUint(strings.TrimPrefix(file.Mode, "0o"), 8, 12)
		if err != nil {
			return fmt.Errorf("permissions of %s: %w", file.Path, err)
		}
		mode = parsed
	}
	if err := os.MkdirAll(filepath.Dir(file.Path), 0o755); err != nil {
		return err
	}
	flags := os.O_CREATE | os.O_WRONLY | os.O_TRUNC
	if file.Append {
		flags = os.O_CREATE | os.O_WRONLY | os.O_APPEND
	}
	f, err := os.OpenFile(file.Path, flags, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(file.Content)
	return errors.Join(err, f.Chmod(fs.FileMode(mode)), f.Close())
}

// runSeed does what comes after the network.
func runSeed(data seed.Seed) {
	for _, command := range data.Commands {
		if code := runLogged("runcmd", command[0], command[1:]...); code != 0 {
			say("runcmd %q: exit %d", strings.Join(command, " "), code)
		}
	}
	if data.Script == "" {
		return
	}
	const script = "/run/user-data"
	if err := os.WriteFile(script, []byte(data.Script), 0o700); err != nil {
		say("cloud-init: %v", err)
		return
	}
	say("user-data ended, exit %d", runLogged("user-data", script))
}

// setHostname sets a name that DHCP must not change.
func setHostname(name string) {
	if name == "" {
		return
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		say("set host name %s: %v", name, err)
		return
	}
	for _, file := range []string{"/etc/hostname", "/run/hostname.fixed"} {
		if err := os.WriteFile(file, []byte(name+"\n"), 0o644); err != nil {
			say("%v", err)
		}
	}
}

// hostname gives the present name.
func hostname() string {
	name, err := os.Hostname()
	if err != nil || name == "" || name == "(none)" {
		return "weft-guest"
	}
	return name
}
