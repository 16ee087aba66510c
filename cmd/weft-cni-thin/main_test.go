package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestIsLean: one process does all of a call, so what only an agent needs must
// not be loaded for each.
func TestIsLean(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		for _, heavy := range []string{"github.com/prometheus/", "k8s.io/", "net/http/pprof", "github.com/weftnet/weft/internal/nodeagent"} {
			if strings.HasPrefix(dep, heavy) {
				t.Errorf("it has %s", dep)
			}
		}
	}
}
