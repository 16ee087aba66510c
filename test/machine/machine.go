// Package machine gives tests a Linux machine of its own, made of network
// namespaces (examples/lab.sh), with weft on it as a user would have it: the
// built programs, called by their command line.
package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Machine is one machine with an instance of weft.
type Machine struct {
	// Name is the lab's; its namespaces are Name-node, Name-out and Name-lan.
	Name string
	// Root is the instance's directory.
	Root string

	t testing.TB

	// boots counts Reboots; bootID is the file with the present boot's id, empty
	// before the first.
	boots  int
	bootID string
}

// New makes a machine and removes it at the end of the test, which fails if
// weft leaves anything behind.
func New(t testing.TB) *Machine {
	t.Helper()
	if testing.Short() && os.Getenv("CI") == "" {
		t.Skip("-short: a machine with weft on it takes a while")
	}
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("not root")
		}
		t.Skip("not root: cannot make network namespaces")
	}
	root, err := os.MkdirTemp("/tmp", "weft-test-")
	if err != nil {
		t.Fatal(err)
	}
	// QEMU runs as another user and has to reach kernel and disks in it.
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	m := &Machine{Name: "wt" + filepath.Base(root)[len("weft-test-"):], Root: root, t: t}
	m.Name = m.Name[:min(len(m.Name), 12)]
	programs(t)
	m.must(exec.Command(filepath.Join(Tree(), "examples/lab.sh"), "up", m.Name))
	t.Cleanup(m.end)
	return m
}

// In is the same machine in a subtest.
func (m *Machine) In(t testing.TB) *Machine {
	in := *m
	in.t = t
	return &in
}

func (m *Machine) end() {
	if m.t.Failed() {
		m.logs()
	}
	if _, err := m.Weft("down", "--all", "--purge"); err != nil {
		m.t.Errorf("weft down --all --purge: %v", err)
	}
	for _, left := range m.Leftovers() {
		m.t.Errorf("left behind: %s", left)
	}
	if err := exec.Command(filepath.Join(Tree(), "examples/lab.sh"), "down", m.Name).Run(); err != nil {
		m.t.Errorf("remove lab: %v", err)
	}
	if err := os.RemoveAll(m.Root); err != nil {
		m.t.Errorf("remove root: %v", err)
	}
}

func (m *Machine) logs() {
	if text, err := os.ReadFile(filepath.Join(m.Root, "weftd.log")); err == nil {
		const most = 8000
		m.t.Logf("weftd.log:\n%s", text[max(0, len(text)-most):])
	}
	for _, kind := range []string{"pod", "vmi", "vm"} {
		if out, err := m.Weft("get", kind, "-A", "-o", "yaml"); err == nil && kind != "vm" {
			m.t.Logf("%s:\n%s", kind, out)
		}
	}
}

// Leftovers lists what weft would have to have removed after a down: links and
// tables of the node, namespaces, processes.
func (m *Machine) Leftovers() []string {
	var left []string
	for _, line := range m.lines("ip", "-n", m.Name+"-node", "-o", "link") {
		fields := strings.Fields(line)
		if name, _, _ := strings.Cut(fields[1], "@"); !strings.Contains("lo: eth0: eth1: lo eth0 eth1", name) {
			left = append(left, "link "+line)
		}
	}
	for _, line := range m.lines("ip", "netns", "exec", m.Name+"-node", "nft", "list", "tables") {
		left = append(left, "nft "+line)
	}
	for _, name := range m.Namespaces() {
		left = append(left, "namespace "+name)
	}
	for _, line := range m.lines("pgrep", "-af", m.Root) {
		if strings.Contains(line, "weft") || strings.Contains(line, "qemu") {
			left = append(left, "process "+line)
		}
	}
	return left
}

// Namespaces lists the network namespaces the instance has made.
func (m *Machine) Namespaces() []string {
	m.t.Helper()
	entries, err := os.ReadDir("/run/netns")
	if err != nil {
		m.t.Errorf("list namespaces: %v", err)
	}
	var names []string
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), m.Tag()+"_") {
			names = append(names, entry.Name())
		}
	}
	return names
}

// Tag is the instance's, part of all its names.
func (m *Machine) Tag() string {
	out, err := exec.Command("sh", "-c", "printf %s "+m.Root+" | sha256sum").Output()
	if err != nil {
		m.t.Fatal(err)
	}
	return "weft-" + string(out[:6])
}

func (m *Machine) lines(command ...string) []string {
	out, err := exec.Command(command[0], command[1:]...).Output()
	if err != nil && command[0] != "pgrep" { // pgrep: nothing found
		m.t.Errorf("%s: %v", strings.Join(command, " "), err)
	}
	return strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' })
}

// Weft runs weft on the machine and gives all it prints.
func (m *Machine) Weft(args ...string) (string, error) {
	return m.On("node", append([]string{filepath.Join(binDir, "weft"), "--root", m.Root}, args...)...)
}

// MustWeft is Weft that has to succeed.
func (m *Machine) MustWeft(args ...string) string {
	m.t.Helper()
	out, err := m.Weft(args...)
	if err != nil {
		m.t.Fatalf("weft %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// limit bounds one command; a guest under TCG on a loaded machine is slow.
const limit = 6 * time.Minute

// On runs a command in one of the lab's namespaces: node, out or lan. Not by
// `ip netns exec`, whose mount namespace would hide the Pods' namespaces.
func (m *Machine) On(where string, command ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + m.Name + "-" + where}, m.booted(command)...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// Eventually runs a command until it succeeds.
func (m *Machine) Eventually(what string, try func() (string, error)) {
	m.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		out, err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			m.t.Errorf("%s: %v\n%s", what, err, out)
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Ping pings from a Pod ("client") or guest ("vmi/web") until an answer comes.
func (m *Machine) Ping(from, to string) {
	m.t.Helper()
	m.Eventually(from+" reaches "+to, func() (string, error) {
		return m.Weft("exec", from, "--", "ping", "-c", "1", "-W", "2", to)
	})
}

// NoPing says that there is no answer within two tries.
func (m *Machine) NoPing(from, to string) {
	m.t.Helper()
	if out, err := m.Weft("exec", from, "--", "ping", "-c", "2", "-W", "1", to); err == nil {
		m.t.Errorf("%s reaches %s and must not:\n%s", from, to, out)
	}
}

// Get gives an object as its document.
func (m *Machine) Get(kind, name string) map[string]any {
	m.t.Helper()
	var doc map[string]any
	if err := json.Unmarshal([]byte(m.MustWeft("get", kind, name, "-o", "json")), &doc); err != nil {
		m.t.Fatalf("read %s %s: %v", kind, name, err)
	}
	return doc
}

// NIC gives the entry of a VMI's status.interfaces.
func (m *Machine) NIC(vmi, network string) map[string]any {
	m.t.Helper()
	list, _, err := unstructured.NestedSlice(m.Get("vmi", vmi), "status", "interfaces")
	if err != nil {
		m.t.Fatal(err)
	}
	for _, item := range list {
		if nic, ok := item.(map[string]any); ok && nic["name"] == network {
			return nic
		}
	}
	m.t.Fatalf("vmi %s has no interface %s in its status: %v", vmi, network, list)
	return nil
}

// Address gives the first address of a VM's NIC.
func (m *Machine) Address(vmi, network string) string {
	m.t.Helper()
	address, _ := m.NIC(vmi, network)["ipAddress"].(string)
	if address == "" {
		m.t.Fatalf("vmi %s has no address on %s", vmi, network)
	}
	return address
}

// Element is one entry of a Pod's network-status.
type Element struct {
	Name      string   `json:"name"`
	Interface string   `json:"interface"`
	IPs       []string `json:"ips"`
	MAC       string   `json:"mac"`
	Default   bool     `json:"default"`
}

// NetworkStatus gives a Pod's network-status by interface.
func (m *Machine) NetworkStatus(pod string) map[string]Element {
	m.t.Helper()
	text, _, err := unstructured.NestedString(m.Get("pod", pod), "metadata", "annotations", "k8s.v1.cni.cncf.io/network-status")
	if err != nil {
		m.t.Fatal(err)
	}
	var elements []Element
	if err := json.Unmarshal([]byte(text), &elements); err != nil {
		m.t.Fatalf("read network-status of %s: %v\n%s", pod, err, text)
	}
	byInterface := map[string]Element{}
	for _, e := range elements {
		byInterface[e.Interface] = e
	}
	return byInterface
}

// LoadGuest loads the small guest's image; it needs the VM lane.
func (m *Machine) LoadGuest() {
	m.t.Helper()
	if os.Getenv("WEFT_VM") == "" {
		m.t.Skip("set WEFT_VM=1 to boot guests")
	}
	m.MustWeft("image", "load", guest(m.t))
}

// NeedVMs skips a test that boots guests unless the VM lane runs.
func NeedVMs(t testing.TB) {
	t.Helper()
	if os.Getenv("WEFT_VM") == "" {
		t.Skip("set WEFT_VM=1 to boot guests")
	}
}

// Example is the path of a file in examples/.
func Example(name string) string { return filepath.Join(Tree(), "examples", name) }

// File writes a manifest and gives its path.
func (m *Machine) File(content string) string {
	m.t.Helper()
	path := filepath.Join(m.t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		m.t.Fatal(err)
	}
	return path
}

func (m *Machine) must(cmd *exec.Cmd) {
	m.t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

// Tree is the root of the repository.
func Tree() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

var (
	binDir    string
	buildOnce = sync.OnceValue(build)
	guestOnce = sync.OnceValues(buildGuest)
)

// Main is TestMain of a package that uses machines: it removes the programs
// built for them.
func Main(m *testing.M) {
	code := m.Run()
	if binDir != "" {
		_ = os.RemoveAll(binDir) // a leftover in the temporary directory at worst
	}
	os.Exit(code)
}

// build builds the programs once per test process.
func build() error {
	dir, err := os.MkdirTemp("", "weft-test-bin-")
	if err != nil {
		return err
	}
	binDir = dir
	// Tests call the programs as users who are not root, too.
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // programs are for everybody
		return err
	}
	cmd := exec.Command("go", "build", "-o", dir+"/", "./cmd/...")
	cmd.Dir = Tree()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

func programs(t testing.TB) {
	t.Helper()
	if err := buildOnce(); err != nil {
		t.Fatal(err)
	}
}

func buildGuest() (string, error) {
	out, err := exec.Command(filepath.Join(Tree(), "guest/build.sh")).Output()
	if err != nil {
		return "", fmt.Errorf("guest/build.sh: %w", err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1], nil
}

func guest(t testing.TB) string {
	t.Helper()
	archive, err := guestOnce()
	if err != nil {
		t.Fatal(err)
	}
	return archive
}
