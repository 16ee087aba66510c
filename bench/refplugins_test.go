package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/weftnet/weft/internal/linux"
)

// pluginsVersion is the release of github.com/containernetworking/plugins that
// is the reference.
const pluginsVersion = "v1.9.1"

// plugins are the programs built of it.
var plugins = []string{"main/bridge", "main/macvlan", "main/ptp", "ipam/host-local", "ipam/static"}

// binDir gives the directory of the reference plugins, built when first asked.
var binDir = sync.OnceValues(buildPlugins)

func buildPlugins() (string, error) {
	return cached("refplugins", []string{pluginsVersion, strings.Join(plugins, " ")}, func(dir string) error {
		args := []string{"install", "-trimpath", "-ldflags=-s -w"}
		for _, name := range plugins {
			args = append(args, "github.com/containernetworking/plugins/plugins/"+name+"@"+pluginsVersion)
		}
		return build("", append(os.Environ(), "GOBIN="+dir), args...)
	})
}

// cached gives a directory of programs, filled by build when it is first asked
// for; it is another one for each version of Go and of what it is made from.
func cached(name string, from []string, build func(dir string) error) (string, error) {
	cache := os.Getenv("WEFT_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find cache directory: %w", err)
		}
		cache = filepath.Join(user, "weft")
	}
	sum := sha256.Sum256([]byte(strings.Join(append(from, runtime.Version()), "\n")))
	dir := filepath.Join(cache, name, hex.EncodeToString(sum[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := build(tmp); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	// Whoever was faster built the same.
	if err := os.Rename(tmp, dir); err != nil && !errors.Is(err, os.ErrExist) {
		if _, statErr := os.Stat(dir); statErr != nil {
			return "", err
		}
	}
	return dir, nil
}

// build runs go in a directory, without the workspace.
func build(dir string, env []string, args ...string) error {
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Env = dir, append(env, "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", args[0], err, out)
	}
	return nil
}

// reference builds the plugins, or ends the test.
func reference(tb testing.TB) string {
	tb.Helper()
	dir, err := binDir()
	if err != nil {
		tb.Fatal(err)
	}
	return dir
}

// call is one call of a CNI plugin.
type call struct {
	command, sandbox, netns, ifName, args string
	conf                                  []byte
}

// exec runs a reference plugin in the namespace host, as a runtime would.
func (c call) exec(ctx context.Context, host *linux.NS, dir string) ([]byte, error) {
	var conf struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(c.conf, &conf); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(dir, conf.Type))
	cmd.Stdin = bytes.NewReader(c.conf)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "CNI_COMMAND=" + c.command, "CNI_CONTAINERID=" + c.sandbox, "CNI_NETNS=" + c.netns,
		"CNI_IFNAME=" + c.ifName, "CNI_ARGS=" + c.args, "CNI_PATH=" + dir,
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := host.Do(cmd.Run); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s%s", conf.Type, c.command, err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.Bytes(), nil
}
