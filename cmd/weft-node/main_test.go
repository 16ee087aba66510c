package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// mostMiB bounds the program, nearly all of which becomes resident: three quarters
// of the memory that every node gives to the agent.
const mostMiB = 16

// TestSmall fails when the agent links what a node does not run.
func TestSmall(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.Lines(string(out)) {
		for _, much := range []string{
			"k8s.io/client-go", "k8s.io/api/", "kubevirt.io/", "google.golang.org/grpc", "github.com/google/go-containerregistry", "go.etcd.io/bbolt", "libvirt.org/",
		} {
			if strings.HasPrefix(dep, much) {
				t.Errorf("weft-node links %s", strings.TrimSpace(dep))
			}
		}
	}
	if testing.Short() {
		return
	}
	program := filepath.Join(t.TempDir(), "weft-node")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	info, err := os.Stat(program)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > mostMiB<<20 {
		t.Errorf("weft-node has %d KiB, want at most %d MiB", info.Size()>>10, mostMiB)
	}
}
