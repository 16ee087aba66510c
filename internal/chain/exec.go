package chain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	cni "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/linux"
)

// maxOutput bounds what is kept of a plugin's output, in bytes. A result of a
// hundred addresses is 10 KiB.
const maxOutput = 1 << 20

// pipeGrace is how long a plugin's descendants may hold its output open after
// it ended; beyond it they are not waited for.
const pipeGrace = 2 * time.Second

// What a PluginError is; test with errors.Is.
var (
	// ErrNoPlugin: there is no such binary.
	ErrNoPlugin = errors.New("is not installed")
	// ErrPluginHung: it did not answer in time and was killed.
	ErrPluginHung = errors.New("did not answer")
	// ErrPluginFailed: it ended with an error.
	ErrPluginFailed = errors.New("failed")
	// ErrPluginGarbage: it claims success, but what it printed is no CNI result.
	ErrPluginGarbage = errors.New("printed no CNI result")
)

// PluginError is the cause inside the hint that tells of a foreign plugin.
type PluginError struct {
	// Kind is one of the errors above.
	Kind error
	Text string
	// Own is the CNI error the plugin itself gave, if it did.
	Own *types.Error
	Err error
}

// Error gives the details; the hint around it says the rest.
func (e *PluginError) Error() string { return e.Text }

// Unwrap gives the kind and the cause.
func (e *PluginError) Unwrap() []error {
	out := []error{e.Kind}
	if e.Own != nil {
		out = append(out, e.Own)
	}
	if e.Err != nil {
		out = append(out, e.Err)
	}
	return out
}

// runner runs foreign CNI plugins.
type runner struct {
	binDirs []string
	// root is the directory plugins have as their root, and find binDirs in; may
	// be empty.
	root string
	// deadline is how long one call of one plugin may take.
	deadline time.Duration
	rooms    *rooms
	// hostNS is the namespace plugins run in; empty: this process's.
	hostNS string
	// observe, if set, is told how long each call took.
	observe func(Phase)
}

// call is one call of one plugin.
type call struct {
	plugin, verb, network string
	config                []byte
	sandbox, netns        string
	ifName                string
	args                  [][2]string
}

// run executes the plugin and gives what it printed.
func (r runner) run(ctx context.Context, c call) ([]byte, error) {
	path, err := r.find(c)
	if err != nil {
		return nil, err
	}
	leave, ok := r.rooms.enter(ctx, c.plugin)
	if !ok {
		cause := context.Cause(ctx)
		return nil, c.hint("see what those wait for", &PluginError{Kind: ErrPluginHung, Text: fmt.Sprintf("%d calls of it had not ended when this one's time was up", maxPluginCalls), Err: cause})
	}
	defer leave()
	defer measure(r.observe, c.verb, c.plugin, "exec")()
	limited, cancel := context.WithTimeout(ctx, r.deadline)
	defer cancel()
	stdout, stderr := &tail{limit: maxOutput}, &tail{limit: 4096}
	cmd, err := r.start(limited, path, c, stdout, stderr)
	if err == nil {
		err = cmd.Wait()
	}
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return stdout.Bytes(), nil
	case ctx.Err() != nil:
		return nil, c.hint("try again; its caller gave up", &PluginError{Kind: ErrPluginHung, Text: context.Cause(ctx).Error() + stderr.said(), Err: context.Cause(ctx)})
	case limited.Err() != nil:
		return nil, c.hint("see what it waits for: run it by hand, or look at the log of its daemon if it has one",
			&PluginError{Kind: ErrPluginHung, Text: fmt.Sprintf("killed after %s%s", r.deadline, stderr.said()), Err: context.DeadlineExceeded})
	}
	return nil, c.failed(err, stdout.Bytes(), stderr)
}

// start starts the plugin, again if its file is just being written: an
// installer that writes in place makes execve(2) fail with ETXTBSY for a moment.
func (r runner) start(ctx context.Context, path string, c call, stdout, stderr *tail) (*exec.Cmd, error) {
	const tries, pause = 20, 50 * time.Millisecond
	for try := 1; ; try++ {
		cmd := exec.CommandContext(ctx, path)
		cmd.Env = (&invoke.Args{
			Command: c.verb, ContainerID: c.sandbox, NetNS: c.netns, PluginArgs: c.args, IfName: c.ifName,
			Path: strings.Join(r.binDirs, string(os.PathListSeparator)),
		}).AsEnv()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(c.config), stdout, stderr
		// A group of its own, so that what the plugin started dies with it.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Chroot: r.root}
		if r.root != "" {
			cmd.Dir = "/"
		}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = pipeGrace
		err := r.spawn(cmd)
		if err == nil {
			return cmd, nil
		}
		if !errors.Is(err, syscall.ETXTBSY) || try == tries {
			return nil, err
		}
		select { // nothing tells when the writer closes the file
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// spawn starts cmd in the host's namespace.
func (r runner) spawn(cmd *exec.Cmd) error {
	if r.hostNS == "" {
		return cmd.Start()
	}
	return linux.InNS(r.hostNS, cmd.Start)
}

// find gives the path of a plugin below root.
func (r runner) find(c call) (string, error) {
	for _, dir := range r.binDirs {
		path := filepath.Join(dir, c.plugin)
		if info, err := os.Stat(linux.Under(r.root, path)); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	var there []string
	for _, dir := range r.binDirs {
		entries, err := os.ReadDir(linux.Under(r.root, dir))
		if err != nil {
			continue // a directory that is missing holds no plugin
		}
		for _, entry := range entries {
			there = append(there, entry.Name())
		}
	}
	remedy := "install it there"
	if len(there) > 0 && len(there) <= 40 {
		remedy += ", or use one that is there: " + strings.Join(there, ", ")
	}
	return "", c.hint(remedy, &PluginError{Kind: ErrNoPlugin, Text: "no such file in " + strings.Join(r.binDirs, ", ")})
}

func (c call) hint(remedy string, cause *PluginError) error {
	return &hint.Error{
		Field: fmt.Sprintf("network %s: CNI %s of plugin", c.network, c.verb), Value: c.plugin,
		Problem: cause.Kind.Error(), Remedy: remedy, Err: cause,
	}
}

// failed tells why a plugin ended badly, in its own words if it left any.
func (c call) failed(err error, stdout []byte, stderr *tail) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return c.hint("see whether the file is an executable for this machine", &PluginError{Kind: ErrPluginFailed, Text: err.Error(), Err: err})
	}
	var own types.Error
	if json.Unmarshal(stdout, &own) == nil && own.Msg != "" {
		words := fmt.Sprintf("code %d: %s", own.Code, own.Msg)
		if own.Details != "" {
			words += ": " + own.Details
		}
		return c.hint(c.remedy(words), &PluginError{Kind: ErrPluginFailed, Text: words, Own: &own})
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return c.hint("report it to that plugin's authors", &PluginError{Kind: ErrPluginFailed, Text: "it crashed: " + status.Signal().String() + stderr.said()})
	}
	said := stderr.said()
	if said == "" && len(bytes.TrimSpace(stdout)) > 0 {
		said = ": it printed " + excerpt(stdout)
	}
	return c.hint("see that plugin's documentation", &PluginError{Kind: ErrPluginFailed, Text: fmt.Sprintf("status %d and no CNI error%s", exit.ExitCode(), said)})
}

// features are the kernel's names for what the reference plugins make
// (drivers/net/Kconfig, net/8021q/Kconfig, net/sched/Kconfig).
var features = map[string]string{
	"ipvlan": "CONFIG_IPVLAN", "vlan": "CONFIG_VLAN_8021Q", "macvlan": "CONFIG_MACVLAN", "vrf": "CONFIG_NET_VRF",
	"dummy": "CONFIG_DUMMY", "bridge": "CONFIG_BRIDGE", "ptp": "CONFIG_VETH", "bandwidth": "CONFIG_IFB and CONFIG_NET_SCH_TBF",
}

// remedy is what to do about a plugin's own error. Plugins pass the kernel's
// EOPNOTSUPP on as text, and name no feature.
func (c call) remedy(words string) string {
	if strings.Contains(words, syscall.EOPNOTSUPP.Error()) {
		if feature, known := features[c.plugin]; known {
			return "this kernel lacks " + feature + ": load its module, or use a kernel that has it"
		}
		return "this kernel lacks what the plugin needs: see that plugin's documentation"
	}
	return "correct the network's config if the text names it, or see that plugin's documentation"
}

// result reads what the plugin printed on ADD, in whichever version it speaks,
// as a result of the newest one.
func (c call) result(stdout []byte) (*cni.Result, error) {
	garbage := func(cause error) error {
		return c.hint("report it to that plugin's authors", &PluginError{Kind: ErrPluginGarbage, Text: "it claims success with " + excerpt(stdout), Err: cause})
	}
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(stdout, &raw); err != nil {
		return nil, garbage(err)
	}
	if raw == nil || holdsNull(stdout) {
		// libcni's types dereference the elements of lists.
		return nil, garbage(errors.New("a value is null"))
	}
	var conf struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(c.config, &conf); err != nil {
		return nil, fmt.Errorf("read plugin config: %w", err)
	}
	if version, ok := raw["cniVersion"]; !ok || string(version) == `""` {
		// A result without version is of the config's, as libcni has it
		// (containernetworking/cni#895).
		fixed, err := inject(stdout, map[string]any{"cniVersion": conf.CNIVersion})
		if err != nil {
			return nil, garbage(err)
		}
		stdout = fixed
	}
	version, err := create.DecodeVersion(stdout)
	if err != nil {
		return nil, garbage(err)
	}
	spoken, err := create.Create(version, stdout)
	if err != nil {
		return nil, garbage(err)
	}
	result, err := cni.NewResultFromResult(spoken)
	if err != nil {
		return nil, garbage(err)
	}
	if _, err := addressesOf(result); err != nil {
		return nil, garbage(err)
	}
	return result, nil
}

// holdsNull says whether a list anywhere in a JSON document has a null in it.
func holdsNull(doc []byte) bool {
	var value any
	if json.Unmarshal(doc, &value) != nil {
		return false
	}
	var walk func(v any) bool
	walk = func(v any) bool {
		switch v := v.(type) {
		case []any:
			return slices.ContainsFunc(v, func(el any) bool { return el == nil || walk(el) })
		case map[string]any:
			for _, el := range v {
				if walk(el) {
					return true
				}
			}
		}
		return false
	}
	return walk(value)
}

func excerpt(output []byte) string {
	text := strings.Join(strings.Fields(strings.ToValidUTF8(string(output), "?")), " ")
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + "..."
	}
	return fmt.Sprintf("%q", text)
}

// tail keeps the first limit bytes written to it and drops the rest, so that a
// plugin that prints without end fills no memory.
type tail struct {
	bytes.Buffer
	limit int
}

func (t *tail) Write(p []byte) (int, error) {
	if room := t.limit - t.Len(); room > 0 {
		t.Buffer.Write(p[:min(room, len(p))]) // never fails (bytes.Buffer)
	}
	return len(p), nil
}

// ReadFrom keeps io.Copy from filling the embedded buffer past its limit.
func (t *tail) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{t}, r)
}

// said gives what a plugin wrote to stderr, to be put behind a problem.
func (t *tail) said() string {
	if len(bytes.TrimSpace(t.Bytes())) == 0 {
		return ""
	}
	return ": it wrote " + excerpt(t.Bytes())
}

// defaultBinDirs is where CNI plugins lie unless told otherwise: the
// specification's directory and Debian's.
func defaultBinDirs() []string { return []string{"/opt/cni/bin", filepath.Join("/usr", "lib", "cni")} }
