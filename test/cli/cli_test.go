package cli_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/weftnet/weft/test/machine"
)

const pods = "testdata/pods.yaml"

// TestCommands goes through what one does with Pods, on one machine.
func TestCommands(t *testing.T) {
	t.Parallel()
	m := machine.New(t)
	if _, stderr, code := m.Run("", "get", "pod"); code != 1 || !strings.Contains(stderr, "no agent answers here; start it with weft up") {
		t.Errorf("get without an agent: exit code %d, %s", code, stderr)
	}
	if out := m.MustWeft("version"); !strings.Contains(out, "agent: none runs") {
		t.Errorf("version without an agent:\n%s", out)
	}
	if out := m.MustWeft("down"); !strings.HasPrefix(out, "nothing to take down: ") {
		t.Errorf("down of nothing: %s", out)
	}
	m.MustWeft("up", "-f", pods)
	if out := m.MustWeft("version"); !regexp.MustCompile(`(?m)^agent \S+, process \d+, instance ` + m.Tag() + `, accelerator (kvm|tcg)$`).MatchString(out) {
		t.Errorf("version:\n%s", out)
	}
	t.Run("get", func(t *testing.T) { get(t, m) })
	t.Run("describe", func(t *testing.T) { describe(t, m) })
	t.Run("vmi", func(t *testing.T) { instance(t, m) })
	t.Run("watch", func(t *testing.T) { watch(t, m) })
	t.Run("apply and delete", func(t *testing.T) { applyDelete(t, m) })
	t.Run("exec", func(t *testing.T) { execute(t, m) })
	t.Run("mistakes", func(t *testing.T) { mistakes(t, m) })
	t.Run("up twice", func(t *testing.T) { upTwice(t, m) })
	t.Run("side by side", func(t *testing.T) { sideBySide(t, m) })
	t.Run("down", func(t *testing.T) { down(t, m) })
}

// rows gives a table's lines taken apart, the heading first.
func rows(out string) [][]string {
	var rows [][]string
	for line := range strings.Lines(out) {
		rows = append(rows, regexp.MustCompile(` {2,}`).Split(strings.TrimRight(line, "\n"), -1))
	}
	return rows
}

func get(t *testing.T, m *machine.Machine) {
	for _, tt := range []struct {
		args string
		want [][]string // addresses of the default network as EM
	}{
		{"get pod", [][]string{{"NAMESPACE", "NAME", "PHASE", "NETWORK", "NICS"}, {"default", "a", "Pending", "ready", "eth0=EM net1=10.9.0.2 net2=172.16.1.9"}, {"default", "b", "Pending", "ready", "eth0=EM"}}},
		{"get pods -n prod -o wide", [][]string{{"NAMESPACE", "NAME", "PHASE", "NETWORK", "NICS"}, {"prod", "b", "Pending", "ready", "eth0=EM net1=10.9.0.77"}}},
		{"get po b -A", nil},
		{"get po -A -o table", [][]string{{"NAMESPACE", "NAME", "PHASE", "NETWORK", "NICS"}, {"default", "a", "Pending", "ready", "eth0=EM net1=10.9.0.2 net2=172.16.1.9"}, {"default", "b", "Pending", "ready", "eth0=EM"}, {"prod", "b", "Pending", "ready", "eth0=EM net1=10.9.0.77"}}},
		{"get net-attach-def", [][]string{{"NAMESPACE", "NAME", "TYPE"}, {"default", "chain", "macvlan,tuning"}, {"default", "lab", "bridge"}}},
		{"get NetworkAttachmentDefinition lab -o wide", [][]string{{"NAMESPACE", "NAME", "TYPE"}, {"default", "lab", "bridge"}}},
		{"get ns", [][]string{{"NAME"}, {"default"}, {"prod"}}},
		{"get vmi", [][]string{{"no virtualmachineinstance"}}},
		{"get vm -A -o wide", [][]string{{"no virtualmachine"}}},
	} {
		stdout, stderr, code := m.Run("", strings.Fields(tt.args)...)
		if tt.want == nil {
			if code != 1 || !strings.Contains(stderr, "-A: does not go with a name") {
				t.Errorf("weft %s: exit code %d, %s", tt.args, code, stderr)
			}
			continue
		}
		stdout = regexp.MustCompile(`eth0=10\.243\.\S+,fd77:\S+`).ReplaceAllString(stdout, "eth0=EM")
		if diff := cmp.Diff(tt.want, rows(stdout)); diff != "" || code != 0 {
			t.Errorf("weft %s: exit code %d (-want +got):\n%s", tt.args, code, diff)
		}
	}
	for _, kind := range []string{"pod", "nad", "vmi"} {
		documents(t, m, kind)
	}
	// One object is a document, not a list, with its true status.
	pod := m.Get("pod", "a")
	if pod["kind"] != "Pod" || pod["status"] == nil {
		t.Errorf("get pod a -o json: %v", pod)
	}
}

// documents: JSON and YAML say the same, with and without a name.
func documents(t *testing.T, m *machine.Machine, kind string) {
	t.Helper()
	var fromJSON, fromYAML struct {
		Kind  string           `json:"kind"`
		Items []map[string]any `json:"items"`
	}
	if err := json.Unmarshal([]byte(m.MustWeft("get", kind, "-A", "-o", "json")), &fromJSON); err != nil {
		t.Errorf("get %s -o json: %v", kind, err)
	}
	if err := yaml.Unmarshal([]byte(m.MustWeft("get", kind, "-A", "-o", "yaml")), &fromYAML); err != nil {
		t.Errorf("get %s -o yaml: %v", kind, err)
	}
	if diff := cmp.Diff(fromJSON, fromYAML); diff != "" || fromJSON.Kind != "List" {
		t.Errorf("%s: kind %s; JSON and YAML differ (-json +yaml):\n%s", kind, fromJSON.Kind, diff)
	}
}

func describe(t *testing.T, m *machine.Machine) {
	out := m.MustWeft("describe", "pod", "a")
	for _, want := range []string{
		`Pod default/a   phase Pending`,
		`  netns  /run/netns/` + m.Tag() + `_default_a`,
		`(?m)^NIC net1   attached$`,
		`\[x\] requested  default/lab as net1`,
		`\[x\] attached   net1, mac [0-9a-f:]{17}, mtu 1500, 10.9.0.2/24, via 10.9.0.1, host link weft[0-9a-f]+`,
		`\[x\] attached   net2, mac [0-9a-f:]{17}, mtu 1500, 172.16.1.9/24`,
		`its containers are not run, use weft exec`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("describe lacks %q:\n%s", want, out)
		}
	}
	// One that failed shows what it asks for, and why it has nothing.
	if _, stderr, code := m.Run(pod("lost", "nowhere"), "up", "-f", "-"); code != 1 {
		t.Errorf("up of a Pod with an unknown network: exit code %d, %s", code, stderr)
	}
	out = m.MustWeft("describe", "po", "lost")
	for _, want := range []string{`note   annotation k8s.v1.cni.cncf.io/networks\[0\].name "nowhere": there is no`, `NIC net1   requested`, `\[ \] attached`} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("describe lacks %q:\n%s", want, out)
		}
	}
	m.MustWeft("delete", "pod", "lost")
}

// instance shows one whose machine cannot be started: wired, and why it is no more.
func instance(t *testing.T, m *machine.Machine) {
	const vmi = `apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: still}
spec:
  domain:
    memory: {guest: 64Mi}
    firmware: {kernelBoot: {container: {image: localhost/none:1, kernelPath: /boot/vmlinuz}}}
    devices: {interfaces: [{name: default, masquerade: {}}, {name: lab, bridge: {}, macAddress: "02:00:00:00:00:0c"}]}
  networks: [{name: default, pod: {}}, {name: lab, multus: {networkName: lab}}]
`
	if stdout, stderr, code := m.Run(vmi, "up", "-f", "-"); code != 1 || !strings.Contains(stdout, "vmi/still") {
		t.Errorf("up: exit code %d\n%s%s", code, stdout, stderr)
	}
	const heading = "NAMESPACE NAME PHASE READY IP NICS"
	for args, want := range map[string]string{
		"get vmi":                  heading + "\ndefault still Scheduling False - -\n",
		"get vmi still -o wide":    heading + " INFO SOURCE\ndefault still Scheduling False - - -\n",
		"get vmis -A":              heading + "\ndefault still Scheduling False - -\n",
		"get vmi -n prod -o table": "no virtualmachineinstance\n",
	} {
		out := regexp.MustCompile(` +`).ReplaceAllString(m.MustWeft(strings.Fields(args)...), " ")
		if out != want {
			t.Errorf("weft %s:\n%swant\n%s", args, out, want)
		}
	}
	if diff := cmp.Diff("VirtualMachineInstance", m.Get("vmi", "still")["kind"]); diff != "" {
		t.Error(diff)
	}
	documents(t, m, "vmi")
	out := m.MustWeft("describe", "vmi", "still")
	for _, want := range []string{
		`VirtualMachineInstance default/still   phase Scheduling`,
		`  Pod    virt-launcher-still-[0-9a-f]{5}`,
		`note   spec.domain.firmware.kernelBoot.container.image "localhost/none:1": image is not in the local store`,
		`\[x\] requested  default/lab, bridge binding as pod[0-9a-f]{11}`,
		`\[x\] attached   pod[0-9a-f]{11}, mac 02:00:00:00:00:0c, `,
		`\[ \] plugged`, `\[ \] seen`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("describe lacks %q:\n%s", want, out)
		}
	}
	if out := m.MustWeft("get", "nicidentity"); strings.Count(out, "still") != 4 || !strings.Contains(out, "02:00:00:00:00:0c") {
		t.Errorf("identities:\n%s", out)
	}
	m.MustWeft("delete", "vmi", "still")
	if out := m.MustWeft("get", "nicidentity"); out != "no nicidentity\n" {
		t.Errorf("identities of a deleted instance:\n%s", out)
	}
}

// pod is a Pod's document.
func pod(name, networks string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + ", annotations: {k8s.v1.cni.cncf.io/networks: '" + networks + "'}}\n"
}

func watch(t *testing.T, m *machine.Machine) {
	lines, stop := m.Start("weft", "get", "pod", "-n", "prod", "-w")
	named, stopNamed := m.Start("weft", "get", "pod", "b", "-n", "prod", "-w", "-o", "json")
	await(t, lines, "b ")
	await(t, named, `"name": "b"`)
	if _, stderr, code := m.Run(pod("seen", "default/lab"), "up", "-n", "prod", "-f", "-"); code != 0 {
		t.Fatalf("up: exit code %d, %s", code, stderr)
	}
	await(t, lines, "prod       seen  Pending  ready")
	m.MustWeft("delete", "pod", "seen", "-n", "prod")
	await(t, lines, "pod prod/seen deleted")
	for what, stop := range map[string]func() error{"watch": stop, "watch of one": stopNamed} {
		if err := stop(); err != nil {
			t.Errorf("%s ends with %v", what, err)
		}
	}
	for line := range named {
		if strings.Contains(line, "seen") {
			t.Errorf("the watch of one shows another: %s", line)
		}
	}
}

// await reads lines until one holds want.
func await(t *testing.T, lines <-chan string, want string) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case line, open := <-lines:
			if !open {
				t.Fatalf("ended without %q", want)
			}
			if strings.Contains(line, want) {
				return
			}
		case <-deadline:
			t.Fatalf("no line has %q", want)
		}
	}
}

func applyDelete(t *testing.T, m *machine.Machine) {
	two := pod("one", "lab") + "---\n" + pod("two", "lab")
	steps := []struct {
		stdin, args, want string
	}{
		{two, "apply -f -", "pod default/one created\npod default/two created\n"},
		{two, "apply -f -", "pod default/one unchanged\npod default/two unchanged\n"},
		{strings.Replace(two, "{name: two", "{name: two, labels: {x: z}", 1), "apply -f -", "pod default/one unchanged\npod default/two configured\n"},
		{two, "delete -f -", "pod default/two deleted\npod default/one deleted\n"},
		{two, "delete -f -", "pod default/two absent\npod default/one absent\n"},
		{pod("one", ""), "apply -n fresh -f -", "pod fresh/one created\n"},
		{"", "delete pod one nothing -n fresh", "pod fresh/nothing absent\npod fresh/one deleted\n"},
		{"", "delete ns fresh", "namespace fresh deleted\n"},
	}
	for _, step := range steps {
		stdout, stderr, code := m.Run(step.stdin, strings.Fields(step.args)...)
		if stdout != step.want || code != 0 {
			t.Errorf("weft %s: exit code %d, %q, want %q\n%s", step.args, code, stdout, step.want, stderr)
		}
	}
	// A directory of files, and a file of each form.
	dir := t.TempDir()
	for name, content := range map[string]string{
		"a.yaml": pod("one", ""), "b.yml": pod("two", ""), "c.json": `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"three"}}`, "d.txt": "no manifest",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out := m.MustWeft("apply", "-f", dir); strings.Count(out, "created") != 3 {
		t.Errorf("apply of a directory:\n%s", out)
	}
	if out := m.MustWeft("delete", "-f", dir); strings.Count(out, "deleted") != 3 {
		t.Errorf("delete of a directory:\n%s", out)
	}
	for _, name := range []string{"one", "two", "three"} {
		if names := files(t, "/run/netns", m.Tag()+"_default_"+name); len(names) != 0 {
			t.Errorf("deleted, and still there: %v", names)
		}
	}
}

func execute(t *testing.T, m *machine.Machine) {
	if out := m.MustWeft("exec", "b", "-n", "prod", "--", "ip", "-o", "addr", "show", "net1"); !strings.Contains(out, "10.9.0.77/24") {
		t.Errorf("exec shows no address of net1:\n%s", out)
	}
	stdout, stderr, code := m.Run("typed", "exec", "pod/a", "--", "sh", "-c", "cat; echo oops >&2; exit 7")
	if stdout != "typed" || stderr != "oops\n" || code != 7 {
		t.Errorf("exec: %q, %q, exit code %d", stdout, stderr, code)
	}
}

// mistakes at the command line: each is told with what to do.
func mistakes(t *testing.T, m *machine.Machine) {
	for args, want := range map[string]string{
		"get gadget":                `kind "gadget": weft does not know this kind; use one of `,
		"get pod nobody":            `pod "default/nobody": does not exist; weft get pod -A shows all there are`,
		"get pod a -n prod":         `pod "prod/a": does not exist; it exists in namespace default: add -n default`,
		"get ns nowhere":            `namespace "nowhere": does not exist; weft get namespace`,
		"get pod -o xml":            `-o "xml": is no output form; use table, wide, json or yaml`,
		"describe nad lab":          `kind "nad": has no NICs to describe; use weft get nad lab -o yaml`,
		"describe pod nobody":       `nobody`,
		"describe vm nobody":        `nobody`,
		"exec nobody -- true":       `pod "default/nobody": has no network namespace; weft get pod -A shows what there is`,
		"exec a -- no-such-program": `COMMAND "no-such-program": is no program of this machine`,
		"exec vmi/nobody -- true":   `nobody`,
		"console nobody":            `vmi "nobody": no machine of that name runs`,
		"logs nobody":               `weft get vmi -A shows what VMs there are`,
		"vm domxml nobody":          `nobody`,
		"vm start nobody":           `vm "default/nobody": there is no VirtualMachine of that name`,
		"vm fly nobody":             `fly`,
		"apply -f /no/such.yaml":    `-f "/no/such.yaml": cannot be read: no such file or directory; give the path of a YAML file`,
		"apply":                     `filename`,
		"delete":                    `nothing to delete; give -f FILE, or a kind and names`,
		"delete pod":                `NAME: is missing; name the pod to delete`,
		"delete gadget x":           `kind "gadget": weft does not know this kind`,
		"down --purge":              `--purge: goes with --all only; write weft down --all --purge`,
		"image rm localhost/none":   `localhost/none`,
		"image load /no/such.tar":   `/no/such.tar`,
		"frobnicate":                `unknown command "frobnicate"`,
		"ge pod":                    `get`,
		"get --frob":                `unknown flag: --frob`,
	} {
		stdout, stderr, code := m.Run("", strings.Fields(args)...)
		if code != 1 || !strings.Contains(stderr, want) || !strings.HasPrefix(stderr, "weft: ") || stdout != "" {
			t.Errorf("weft %s: exit code %d, want 1 and %q:\n%s%s", args, code, want, stdout, stderr)
		}
	}
	// A root that cannot be one.
	if _, stderr, code := m.Run("", "get", "pod", "--root", "/"+strings.Repeat("x", 120)); code != 1 || !strings.Contains(stderr, "too long for a unix socket") {
		t.Errorf("long root: exit code %d, %s", code, stderr)
	}
	if out := m.MustWeft("completion", "bash"); !strings.Contains(out, "__start_weft") {
		t.Errorf("completion prints no script:\n%.200s", out)
	}
	// As anybody but root.
	for _, args := range []string{"up -f " + pods, "get pod", "exec a -- true", "down --all", "image ls", "delete pod a"} {
		command := append([]string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", m.Program("weft"), "--root", m.Root}, strings.Fields(args)...)
		out, err := m.On("node", command...)
		if err == nil || !strings.Contains(out, `weft: uid "65534": weft makes links and namespaces, which only root may; run it as root (sudo weft ...)`) {
			t.Errorf("weft %s, not as root: %v\n%s", args, err, out)
		}
	}
}

// picture is all that the kernel and the store hold.
func picture(t *testing.T, m *machine.Machine) []string {
	t.Helper()
	on := func(command ...string) []string {
		out, err := m.On("node", command...)
		if err != nil {
			t.Fatalf("%v: %v\n%s", command, err, out)
		}
		lines := slices.Collect(strings.Lines(volatile.ReplaceAllString(out, "$1")))
		// iproute2 stumbles over namespaces of others that go meanwhile.
		lines = slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, "Error: Peer netns") })
		return append(command, lines...)
	}
	all := slices.Concat(on("ip", "-d", "link"), on("ip", "addr"), on("ip", "route", "show", "table", "all"),
		on("ip", "-6", "route"), on("ip", "rule"), on("nft", "list", "ruleset"))
	for _, name := range files(t, "/run/netns", m.Tag()+"_") {
		path := "--net=/run/netns/" + name
		all = slices.Concat(all, on("nsenter", path, "ip", "-d", "link"), on("nsenter", path, "ip", "addr"),
			on("nsenter", path, "ip", "route"), on("nsenter", path, "ip", "-6", "route"), on("nsenter", path, "nft", "list", "ruleset"))
	}
	for _, kind := range []string{"namespace", "nad", "pod", "nicidentity"} {
		stdout, stderr, code := m.Run("", "get", kind, "-A", "-o", "json")
		if code != 0 {
			t.Fatalf("get %s: %s", kind, stderr)
		}
		all = append(all, kind, stdout) // with uid and resourceVersion
	}
	return all
}

// volatile is what changes by itself: remaining lifetimes and timers.
var volatile = regexp.MustCompile(`( (?:\w+_timer|valid_lft|preferred_lft|expires)) +\S+`)

func upTwice(t *testing.T, m *machine.Machine) {
	before := picture(t, m)
	out := m.MustWeft("up", "-f", pods)
	if strings.Contains(out, "created") || strings.Contains(out, "configured") {
		t.Errorf("a second up changes something:\n%s", out)
	}
	m.MustWeft("up")
	if diff := cmp.Diff(before, picture(t, m)); diff != "" {
		t.Errorf("a second up changes something (-before +after):\n%s", diff)
	}
}

// sideBySide: another instance with Pods of the same names is another world.
func sideBySide(t *testing.T, m *machine.Machine) {
	dir, err := os.MkdirTemp("/tmp", "weft-side-")
	if err != nil {
		t.Fatal(err)
	}
	root := []string{"--root", dir}
	t.Cleanup(func() {
		// Nothing to do, unless the test ended half-way.
		if out, err := m.Weft(append(root, "down", "--all", "--purge")...); err != nil {
			t.Errorf("down of the other instance: %v\n%s", err, out)
		}
		_ = os.RemoveAll(dir) // down --purge has emptied it
	})
	weft := func(args ...string) string {
		t.Helper()
		stdout, stderr, code := m.Run("", slices.Concat(root, args)...)
		if code != 0 {
			t.Fatalf("weft %v: exit code %d\n%s%s", args, code, stdout, stderr)
		}
		return stdout
	}
	mine := m.NetworkStatus("b")["eth0"]
	before := m.MustWeft("get", "pod", "-A", "-o", "json")
	content, err := os.ReadFile(pods)
	if err != nil {
		t.Fatal(err)
	}
	// Bridges are named by the user, so the other one names another.
	theirs := strings.NewReplacer("br-lab", "br-side", "10.9.0.", "10.99.0.", "172.16.1.9", "172.16.1.10").Replace(string(content))
	path := filepath.Join(t.TempDir(), "pods.yaml")
	if err := os.WriteFile(path, []byte(theirs), 0o600); err != nil {
		t.Fatal(err)
	}
	weft("up", "-f", path)
	if out := weft("exec", "b", "--", "ip", "-o", "addr", "show", "eth0"); strings.Contains(out, mine.IPs[0]+"/") {
		t.Errorf("both instances gave %s to their Pod b", mine.IPs[0])
	}
	m.Ping("b", "203.0.113.1")
	weft("exec", "b", "--", "ping", "-c", "1", "-W", "5", "203.0.113.1")
	weft("down", "--all", "--purge")
	if after := m.MustWeft("get", "pod", "-A", "-o", "json"); after != before {
		t.Error("taking the other instance down changed objects of this one")
	}
	m.Ping("b", "203.0.113.1")
}

func down(t *testing.T, m *machine.Machine) {
	out := m.MustWeft("down")
	for _, want := range []string{"removed Pod default/a\n", "removed Pod prod/b\n", "kept NetworkAttachmentDefinition default/lab\n", "weft down --all --purge"} {
		if !strings.Contains(out, want) {
			t.Errorf("down does not say %q:\n%s", want, out)
		}
	}
	if left := m.Leftovers(); len(left) != 0 {
		t.Errorf("down leaves %v", left)
	}
	if left := records(t, m); len(left) != 0 {
		t.Errorf("down leaves records %v", left)
	}
}
