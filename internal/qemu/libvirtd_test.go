package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirtxml"
)

// TestDomainXMLLibvirtd gives the XML to libvirt's real QEMU driver: it keeps
// every address, and would start the devices that Args starts, where Args has them.
func TestDomainXMLLibvirtd(t *testing.T) {
	if os.Getenv("WEFT_VM") == "" {
		t.Skip("set WEFT_VM=1 to run libvirtd")
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("not root")
		}
		t.Skip("needs root: a mount namespace")
	}
	needTool(t, "libvirtd", "libvirt-daemon-driver-qemu")
	m := tcgFull()
	text, err := DomainXML(m, "")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "domain.xml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("unshare", "-m", "--propagation", "private", "bash", "testdata/libvirtd.sh", dir).CombinedOutput(); err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		t.Fatalf("%v: %s\n%s", err, out, log)
	}
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}

	// What libvirt says about the machine when asked again.
	var domain libvirtxml.Domain
	if err := domain.Unmarshal(read("dump.xml")); err != nil {
		t.Fatal(err)
	}
	for i, nic := range domain.Devices.Interfaces {
		place := placeNIC(m.NICs[i])
		if diff := cmp.Diff(domainAddress(place.number, place.addr, false), nic.Address); diff != "" {
			t.Errorf("NIC %s (-ours +libvirt's):\n%s", m.NICs[i].Network, diff)
		}
	}

	// What libvirt would start. It leaves the NICs' addresses out of this view.
	theirs := map[string]int{}
	for _, object := range regexp.MustCompile(`-device '?(\{[^']*\})'?`).FindAllStringSubmatch(read("argv"), -1) {
		var d struct{ Driver, Bus, Addr string }
		if err := json.Unmarshal([]byte(object[1]), &d); err != nil {
			t.Fatalf("%s: %v", object[1], err)
		}
		theirs[place(t, d.Driver, d.Bus, d.Addr)]++
	}
	ours := map[string]int{}
	args := Args(m)
	for i, arg := range args {
		if arg != "-device" {
			continue
		}
		options := map[string]string{}
		driver, rest, _ := strings.Cut(args[i+1], ",")
		for option := range strings.SplitSeq(rest, ",") {
			key, value, _ := strings.Cut(option, "=")
			options[key] = value
		}
		ours[place(t, driver, options["bus"], options["addr"])]++
	}
	if diff := cmp.Diff(ours, theirs); diff != "" {
		t.Errorf("devices (-ours +libvirt's):\n%s", diff)
	}
}

// place is a device and where it is, in one notation for both: 0x10.0x1 is 10.1.
func place(t *testing.T, driver, bus, addr string) string {
	t.Helper()
	if strings.Contains(driver, "net") || strings.HasPrefix(driver, "e1000") {
		return driver
	}
	if addr == "" {
		return driver + " " + bus
	}
	slot, function, found := strings.Cut(addr, ".")
	if !found {
		function = "0"
	}
	hex := func(text string) uint64 {
		n, err := strconv.ParseUint(strings.TrimPrefix(text, "0x"), 16, 8)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return fmt.Sprintf("%s %s %x.%x", driver, bus, hex(slot), hex(function))
}
