package vmlab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// NIC is one network card of a machine.
type NIC struct {
	// TAP is the device in the machine's namespace.
	TAP string
	MAC string
	// Device is QEMU's name and properties; empty: virtio-net-pci.
	Device string
}

// Config is a machine to start.
type Config struct {
	// NetNS is the name of the network namespace QEMU runs in (ip netns).
	NetNS string
	// Guest is what is booted; without a kernel the firmware looks for a disk
	// or, if NICs have an option ROM, the network.
	Guest Guest
	// KernelArgs are added to the usual ones.
	KernelArgs []string
	NICs       []NIC
	// Ports is the number of PCIe root ports, rp0 on, for devices plugged later.
	Ports int
	// Args are added to QEMU's.
	Args []string
}

// Machine is a running machine. It is killed when its test ends.
type Machine struct {
	Console *Console

	dir  string
	done chan struct{} // closed when QEMU has ended
}

// Start boots a machine.
func Start(t testing.TB, config Config) *Machine {
	t.Helper()
	// Sockets: the path must stay below 108 bytes (unix(7)), so not t.TempDir.
	dir, err := os.MkdirTemp("", "vmlab-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) }) // nothing else to be done about it
	m := &Machine{dir: dir, done: make(chan struct{})}
	log := filepath.Join(dir, "console")
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m.Console = OpenConsole(log)
	stderr, err := os.Create(filepath.Join(dir, "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ip", append([]string{"netns", "exec", config.NetNS}, m.args(config)...)...)
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(m.done)
		_ = cmd.Wait() // how it ended is in stderr
		stderr.Close() // a log
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails if it has ended
		<-m.done
		if t.Failed() {
			t.Logf("console of the guest:\n%s\nQEMU:\n%s", m.Console.Text(t), m.stderr())
		}
	})
	m.Console.ended = m.done
	return m
}

// args is the whole command line.
func (m *Machine) args(config Config) []string {
	// The default CPU: under TCG the fuller ones boot slower.
	args := []string{
		"qemu-system-x86_64", "-machine", "q35,accel=tcg", "-m", "256", "-nodefaults", "-no-user-config", "-display", "none",
		"-serial", "file:" + m.Console.path,
		"-qmp", "unix:" + m.path("qmp") + ",server=on,wait=off",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,path=" + m.path("agent") + ",server=on,wait=off",
		"-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
		"-device", "virtio-rng-pci",
	}
	if config.Guest.Kernel != "" {
		args = append(args, "-kernel", config.Guest.Kernel, "-initrd", config.Guest.Initrd, "-append", KernelArgs(config.KernelArgs...))
	}
	for i := range config.Ports {
		args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=rp%d,chassis=%d,slot=%d", i, i+1, i+1))
	}
	for i, nic := range config.NICs {
		device := nic.Device
		if device == "" {
			device = "virtio-net-pci,romfile="
		}
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net%d,ifname=%s,script=no,downscript=no", i, nic.TAP),
			"-device", fmt.Sprintf("%s,id=nic%d,netdev=net%d,mac=%s", device, i, i, nic.MAC))
	}
	return append(args, config.Args...)
}

func (m *Machine) path(name string) string { return filepath.Join(m.dir, name) }

func (m *Machine) stderr() string {
	raw, err := os.ReadFile(m.path("stderr"))
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

// Ended is closed when the machine is off.
func (m *Machine) Ended() <-chan struct{} { return m.done }

// PowerDown presses the power button and waits until the machine is off.
func (m *Machine) PowerDown(t testing.TB) time.Duration {
	t.Helper()
	begin := time.Now()
	m.QMP(t, "system_powerdown", nil)
	select {
	case <-m.done:
	case <-time.After(Patience):
		t.Fatalf("the guest is not off %s after the power button", Patience)
	}
	return time.Since(begin)
}
