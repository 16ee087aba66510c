// Package cli_test tries the command line as people use it: the built programs on a
// machine of their own (test/machine), with good input and bad.
package cli_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/test/machine"
)

var update = flag.Bool("update", false, "write the expected errors anew")

func TestMain(m *testing.M) { machine.Main(m) }

// TestBadInput brings up the files of testdata/bad, each in a namespace of its
// own. A file begins with what weft has to say to it, one "# weft: ..." per
// error. Beside that, for each of them:
//
//   - the exit code is not 0;
//   - what is called good comes up, and a Pod that does not has no namespace,
//     link or record, so no address: NAME.after.yaml, if there is one, comes up
//     and needs what they would have had;
//   - nothing is left once the namespace is deleted.
//
// NAME.before.yaml comes up first: what the case collides with.
func TestBadInput(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no cases", err)
	}
	t.Parallel()
	bin := plugins(t) // first: they have to outlast the machine
	m := machine.New(t)
	m.StartAgent("--cni-bin-dirs", bin+":/usr/lib/cni")
	before := standing(t, m)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		if strings.Contains(name, ".") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			if name == "kernel-feature" {
				needMissing(t, m)
			}
			badCase(t, m, name, file)
			m.MustWeft("delete", "namespace", name)
			if diff := cmp.Diff(before, standing(t, m)); diff != "" {
				t.Errorf("left behind (-before +after):\n%s", diff)
			}
		})
	}
}

func badCase(t *testing.T, m *machine.Machine, name, file string) {
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	accompany(t, m, name, file, ".before.yaml")
	stdout, stderr, code := m.Run("", "up", "--timeout", "1m", "-n", name, "-f", file)
	if code != 1 {
		t.Errorf("exit code %d, want 1\n%s%s", code, stdout, stderr)
	}
	got := complaints(m, stderr)
	heading, want, rest := expected(string(content))
	if *update {
		want = got
		text := heading + strings.Join(got, "")
		if err := os.WriteFile(file, []byte(text+rest), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("weft says something else (-want +got):\n%s", diff)
	}
	if strings.Contains(stderr, "not ready after") {
		t.Errorf("weft waits where it could know:\n%s", stderr)
	}
	checkPods(t, m, name)
	accompany(t, m, name, file, ".after.yaml")
}

// needMissing skips a test of what weft says when kernel features are missing,
// on a machine that has one of them.
func needMissing(t *testing.T, m *machine.Machine) {
	t.Helper()
	for _, link := range []string{"type ipvlan", "type vlan id 7", "type bridge vlan_filtering 1"} {
		lower := []string{"link", "eth1"}
		if strings.Contains(link, "bridge") {
			lower = nil
		}
		args := slices.Concat([]string{"ip", "link", "add", "probe0"}, lower, strings.Fields(link))
		if _, err := m.On("node", args...); err != nil {
			continue
		}
		if out, err := m.On("node", "ip", "link", "del", "probe0"); err != nil {
			t.Fatalf("remove probe: %v\n%s", err, out)
		}
		if os.Getenv("CI") != "" {
			t.Fatalf("this kernel has links of %s: choose a feature for this case that it lacks", link)
		}
		t.Skipf("this kernel has links of %s: what is said without them cannot be seen here", link)
	}
}

// accompany brings up the file beside the case, if there is one.
func accompany(t *testing.T, m *machine.Machine, name, file, suffix string) {
	t.Helper()
	beside := strings.TrimSuffix(file, ".yaml") + suffix
	if _, err := os.Stat(beside); err != nil {
		return
	}
	if stdout, stderr, code := m.Run("", "up", "--timeout", "1m", "-n", name, "-f", beside); code != 0 {
		t.Errorf("%s: exit code %d\n%s%s", beside, code, stdout, stderr)
	}
}

// checkPods: what is called good is there, and only what is ready has anything.
func checkPods(t *testing.T, m *machine.Machine, name string) {
	t.Helper()
	ready := 0
	for line := range strings.Lines(m.MustWeft("get", "pod", "-n", name)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) > 3 && fields[3] == "ready":
			ready++
		case len(fields) > 1 && strings.HasPrefix(fields[1], "good"):
			t.Errorf("a good Pod is not ready: %s", line)
		}
	}
	if ready == 0 {
		t.Error("no Pod is ready, and the case has a good one")
	}
	// The agent goes on trying what has failed, so this is true between two tries.
	m.Eventually("what failed has nothing", func() (string, error) {
		namespaces := files(t, "/run/netns", m.Tag()+"_"+name+"_")
		recorded := records(t, m)
		if len(namespaces) != ready || len(recorded) != ready {
			return "", fmt.Errorf("%d Pods are ready, namespaces are %v, records %v", ready, namespaces, recorded)
		}
		return "", nil
	})
}

// expected takes a case apart: its heading, the errors to come, the objects.
func expected(content string) (heading string, want []string, rest string) {
	heading, rest, _ = strings.Cut(content, "\n")
	for strings.HasPrefix(rest, "# weft: ") {
		line, after, _ := strings.Cut(rest, "\n")
		want, rest = append(want, line+"\n"), after
	}
	return heading + "\n", want, rest
}

// differs matches what is another on every machine or in every run: MACs, link
// groups, the CNI plugins that are installed.
var differs = regexp.MustCompile(`address [0-9a-f]{2}(:[0-9a-f]{2}){5} group \d+|no such file in .*`)

// complaints gives the errors among what weft printed, as comments.
func complaints(m *machine.Machine, stderr string) []string {
	var lines []string
	for line := range strings.Lines(stderr) {
		if strings.HasPrefix(line, "weft: ") {
			line = differs.ReplaceAllString(line, "(...)")
			lines = append(lines, "# "+strings.NewReplacer(m.Root, "ROOT", m.Tag(), "TAG").Replace(line))
		}
	}
	slices.Sort(lines)
	return lines
}

// standing lists what weft has made on the machine.
func standing(t *testing.T, m *machine.Machine) []string {
	return slices.Concat(m.Leftovers(), records(t, m))
}

// records lists the files of what is attached.
func records(t *testing.T, m *machine.Machine) []string {
	t.Helper()
	all := slices.Concat(files(t, filepath.Join(m.Root, "attachments"), ""), files(t, filepath.Join(m.Root, "run", "attachments"), ""))
	return slices.DeleteFunc(all, func(name string) bool { return filepath.Ext(name) != ".json" })
}

// files lists the regular files of a directory, a namespace being one.
func files(t *testing.T, dir, prefix string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), prefix) && !entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names
}

// plugins makes a directory of CNI plugins that do what plugins do when they
// are bad.
func plugins(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, body := range map[string]string{
		"crash":   "kill -SEGV $$",
		"garbage": "echo '<html>moved</html>'",
		"refuse":  `echo '{"cniVersion":"1.0.0","code":7,"msg":"no uplink","details":"plug it in"}'; exit 1`,
		"lie":     `echo '{"cniVersion":"1.0.0","interfaces":[{"name":"'$CNI_IFNAME'","sandbox":"'$CNI_NETNS'"}],"ips":[{"address":"10.6.0.2/24","interface":0}]}'`,
		"hang":    `while [ -e "$0.hangs" ]; do sleep 0.1; done; exit 1`,
	} {
		// It takes part in ADD only: what DEL finds is nothing.
		text := fmt.Sprintf("#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n%s\n", body)
		if err := os.WriteFile(filepath.Join(dir, "weft-test-"+name), []byte(text), 0o700); err != nil { //nolint:gosec // it is a program
			t.Fatal(err)
		}
	}
	return dir
}

// TestPlugins: one that never answers holds up nothing but its own Pod, is
// killed in the end, and what was made for it goes.
func TestPlugins(t *testing.T) {
	t.Parallel()
	bin := plugins(t) // first: they have to outlast the machine
	m := machine.New(t)
	hangs := filepath.Join(bin, "weft-test-hang.hangs")
	if err := os.WriteFile(hangs, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m.StartAgent("--cni-bin-dirs", bin+":/usr/lib/cni")
	const networks = `apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: lab}
spec: {config: '{"type": "bridge", "bridge": "br-lab", "ipam": {"type": "host-local", "subnet": "10.9.0.0/30"}}'}
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: hang}
spec: {config: '{"cniVersion": "1.0.0", "type": "weft-test-hang"}'}
---
`
	stdout, stderr, code := m.Run(networks+pod("hung", "lab,hang")+"---\n"+pod("good", ""), "up", "--timeout", "3s", "-f", "-")
	if want := "weft: pod default/hung not ready after 3s: its networks are being attached\n"; code != 1 || !strings.Contains(stderr, want) {
		t.Errorf("exit code %d, want 1 and %q\n%s%s", code, want, stdout, stderr)
	}
	if out := m.MustWeft("get", "pod", "good"); !strings.Contains(out, " ready ") {
		t.Errorf("the good Pod had to wait:\n%s", out)
	}
	// One that lies about a link gets away with it: it may have given a device
	// that is none. But that is told.
	const lie = `apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: lie}
spec: {config: '{"cniVersion": "1.0.0", "type": "weft-test-lie"}'}
---
`
	stdout, stderr, code = m.Run(lie+pod("dupe", "lie"), "up", "-f", "-")
	if want := "! pod dupe, net1: its plugin says that it is there, but the Pod has no link net1; "; code != 0 || !strings.Contains(stdout, want) {
		t.Errorf("exit code %d, want 0 and %q\n%s%s", code, want, stdout, stderr)
	}
	_, stderr, code = m.Run("", "up", "--timeout", "3m")
	want := `weft: pod default/hung failed: network default/hang: CNI ADD of plugin "weft-test-hang": did not answer: killed after 1m0s; `
	if code != 1 || !strings.Contains(stderr, want) {
		t.Errorf("exit code %d, want 1 and %q\n%s", code, want, stderr)
	}
	if err := os.Remove(hangs); err != nil { // the next try is under way
		t.Fatal(err)
	}
	m.MustWeft("delete", "pod", "hung")
	// The subnet has one address to give: it is free again.
	if _, stderr, code := m.Run(pod("heir", "lab"), "up", "-f", "-"); code != 0 {
		t.Errorf("the address is not free: %s", stderr)
	}
}

// TestPluginGone: down says that a plugin is missing which has something to take
// back, and leaves that behind when it is told to.
func TestPluginGone(t *testing.T) {
	t.Parallel()
	bin := plugins(t) // first: it has to outlast the machine
	m := machine.New(t)
	m.StartAgent("--cni-bin-dirs", bin+":/usr/lib/cni")
	const lie = `apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: lie}
spec: {config: '{"cniVersion": "1.0.0", "type": "weft-test-lie"}'}
---
`
	if _, stderr, code := m.Run(lie+pod("a", "lie"), "up", "-f", "-"); code != 0 {
		t.Fatal(stderr)
	}
	if err := os.Remove(filepath.Join(bin, "weft-test-lie")); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := m.Run("", "down")
	for _, want := range []string{"weft: what plugins did could not be taken back: Pod default/a is not gone: ", `"weft-test-lie"`, "or weft down --force to leave behind what they did\n"} {
		if code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("exit code %d, want 1 and %q\n%s", code, want, stderr)
		}
	}
	if stdout, stderr, code := m.Run("", "down", "--force"); code != 0 {
		t.Errorf("exit code %d, want 0\n%s%s", code, stdout, stderr)
	}
}

// TestNoMaster: a macvlan network without a master stands on the link of the
// default route. A machine without one has to be told.
func TestNoMaster(t *testing.T) {
	t.Parallel()
	m := machine.New(t)
	for _, family := range []string{"-4", "-6"} {
		if out, err := m.On("node", "ip", family, "route", "del", "default"); err != nil {
			t.Fatalf("remove default route: %v\n%s", err, out)
		}
	}
	const network = `apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: lan}
spec: {config: '{"type": "macvlan", "ipam": {"type": "static", "addresses": [{"address": "172.16.1.9/24"}]}}'}
---
`
	_, stderr, code := m.Run(network+pod("bad", "lan")+"---\n"+pod("good", ""), "up", "-f", "-")
	if want := "weft: pod default/bad failed: network default/lan: spec.config.master: "; code != 1 || !strings.Contains(stderr, want) {
		t.Errorf("exit code %d, want 1 and %q\n%s", code, want, stderr)
	}
	if out, err := m.On("node", "ip", "route", "add", "default", "via", "198.51.100.1"); err != nil {
		t.Fatalf("add default route: %v\n%s", err, out)
	}
	if _, stderr, code := m.Run("", "up"); code != 0 {
		t.Errorf("with a default route: exit code %d\n%s", code, stderr)
	}
}

// TestUnknownField: KubeVirt drops fields it does not know in silence, and CNI
// plugins keys. Here each is a warning, and the object is taken.
func TestUnknownField(t *testing.T) {
	t.Parallel()
	m := machine.New(t)
	const vm = `apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata: {name: idle}
spec:
  runStrategy: Halted
  template:
    spec:
      domain: {memory: {guest: 64Mi}, devices: {interfaces: [{name: default, masquerade: {}, modell: virtio}]}}
      networks: [{name: default, pod: {}}]
      nodeSelector: {disk: fast}
---
apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: odd}
spec: {config: '{"cniVersion":"1.0.0","type":"bridge","bridge":"odd0","vlam":5,"ipam":{"type":"host-local","subnet":"10.64.0.0/24","range_start":"10.64.0.9"}}'}
`
	_, stderr, code := m.Run(vm, "up", "-f", "-")
	var warnings []string
	for line := range strings.Lines(stderr) {
		if strings.HasPrefix(line, "warning: ") {
			warnings = append(warnings, strings.TrimSpace(line))
		}
	}
	slices.Sort(warnings)
	want := []string{
		"warning: networkattachmentdefinition default/odd: spec.config ipam.range_start: is no key of ipam type host-local and has no effect",
		"warning: networkattachmentdefinition default/odd: spec.config vlam: is no key of this plugin type and has no effect",
		"warning: virtualmachine default/idle: spec.template.spec.domain.devices.interfaces[0].modell: is not a field of KubeVirt's API and is ignored; check its spelling",
		"warning: virtualmachine default/idle: spec.template.spec.nodeSelector: has no effect: weft does not do this on one machine",
	}
	if diff := cmp.Diff(want, warnings); diff != "" || code != 0 {
		t.Errorf("exit code %d (-want +got):\n%s%s", code, diff, stderr)
	}
}
