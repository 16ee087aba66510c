package qemu

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"

	"github.com/weftnet/weft/test/golden"
)

// tcgFull is full without what this machine may lack.
func tcgFull() Machine {
	m := full()
	m.Accel = TCG
	return m
}

func domainTexts(t *testing.T) map[string]string {
	t.Helper()
	transitional := tcgFull()
	transitional.Transitional = true
	transitional.CPU.Model = "Nehalem"
	many := small()
	for i := range 28 {
		many.Disks = append(many.Disks, Disk{Name: "d" + driveLetters(i), Path: "/d/" + driveLetters(i)})
	}
	many.Default()
	texts := map[string]string{}
	for name, m := range map[string]Machine{"small": small(), "full": full(), "tcg": tcgFull(), "transitional": transitional, "many": many} {
		text, err := DomainXML(m, "")
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = text
	}
	return texts
}

func TestDomainXML(t *testing.T) {
	texts := domainTexts(t)
	golden.Check(t, "small.xml", texts["small"])
	golden.Check(t, "full.xml", texts["full"])
	for name, text := range texts {
		var domain libvirtxml.Domain
		if err := domain.Unmarshal(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDriveLetters(t *testing.T) {
	for index, want := range map[int]string{0: "a", 25: "z", 26: "aa", 27: "ab", 51: "az", 52: "ba", 701: "zz", 702: "aaa"} {
		if got := driveLetters(index); got != want {
			t.Errorf("%d: %s, want %s", index, got, want)
		}
	}
}

// needTool skips where a program is not installed; in CI that is a failure.
func needTool(t *testing.T, program, debianPackage string) {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("needs %s: apt-get install %s", program, debianPackage)
	}
	t.Skipf("needs %s: apt-get install %s", program, debianPackage)
}

// TestDomainXMLSchema has libvirt's own schema judge the XML.
func TestDomainXMLSchema(t *testing.T) {
	needTool(t, "virt-xml-validate", "libvirt-clients")
	needTool(t, "xmllint", "libxml2-utils")
	for name, text := range domainTexts(t) {
		path := filepath.Join(t.TempDir(), name+".xml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("virt-xml-validate", path, "domain").CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s\n%s", name, err, out, text)
		}
	}
}

// TestDomainXMLDefine has libvirt's test driver take the XML.
func TestDomainXMLDefine(t *testing.T) {
	needTool(t, "virsh", "libvirt-clients")
	for name, text := range domainTexts(t) {
		// The test driver knows only its own virtual hardware.
		text = strings.Replace(strings.Replace(text, `<domain type="qemu">`, `<domain type="test">`, 1), `<domain type="kvm">`, `<domain type="test">`, 1)
		path := filepath.Join(t.TempDir(), name+".xml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("virsh", "-q", "-c", "test:///default", "define", "--validate", path).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}
