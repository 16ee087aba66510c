package linux

import (
	"os"
	"path/filepath"
	"testing"
)

func TestUnder(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, dir := range []string{"run/x", "var/lib", "usr/lib/cni"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"var/run":     "/run",
		"opt":         "var/opt", // to what is not there
		"usr/lib/up":  "../../run",
		"usr/lib/out": "../../../../etc",
		"run/again":   "/var/run/x",
		"loop":        "/loop",
		"var/lib/cni": "/usr/lib/cni",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"/run/x":                "/run/x",
		"/var/run/x/y":          "/run/x/y",
		"/var/run/again/y":      "/run/x/y",
		"/opt/cni/bin":          "/var/opt/cni/bin",
		"/usr/lib/up/x":         "/run/x",
		"/usr/lib/out/passwd":   "/etc/passwd",
		"/../../etc/passwd":     "/etc/passwd",
		"/var/lib/cni/bridge":   "/usr/lib/cni/bridge",
		"/loop/x":               "/loop/x",
		"/not/there/../either/": "/not/either",
		"":                      "/",
	} {
		if got := Under(root, path); got != filepath.Join(root, want) {
			t.Errorf("%s is at %s, want %s below the root", path, got, want)
		}
	}
	if got := Under("", "/var/run/x"); got != "/var/run/x" {
		t.Errorf("without another root: %s", got)
	}
}
