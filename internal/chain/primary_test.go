package chain

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/kind"
)

// TestStatusWaitsForNobody: a plugin tells its status while all its places are
// taken by calls that do not end.
func TestStatusWaitsForNobody(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	asked := filepath.Join(dir, "asked")
	script := "#!/bin/sh\necho $CNI_COMMAND > " + asked + "\n"
	if err := os.WriteFile(filepath.Join(dir, "primary"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	r := runner{rooms: &rooms{}, binDirs: []string{dir}, deadline: time.Minute}
	for range maxPluginCalls {
		if _, ok := r.rooms.enter(t.Context(), "primary"); !ok {
			t.Fatal("no place")
		}
	}
	conf, err := netattach.ParseConfig([]byte(`{"cniVersion":"1.1.0","name":"main","type":"primary"}`), "main")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := r.status(ctx, conf, kind.Lookup); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(asked); err != nil || string(text) != "STATUS\n" {
		t.Errorf("the plugin was asked for %q (%v)", text, err)
	}
}
