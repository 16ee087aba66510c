package chain

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
)

// TestFlatFile: what the network's config leaves open comes from whereabouts'
// flat file, named as a file or, as its installer does, as a directory. The
// record has the whole, so DEL and CHECK need no file.
func TestFlatFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "whereabouts.conf")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	nad := func(name, path, more string) {
		w.nads.add("demo/"+name, `{"cniVersion":"1.0.0","type":"bridge","bridge":"f0","ipam":{"type":"whereabouts"`+more+`,"configuration_path":"`+path+`"}}`)
	}
	nad("byfile", file, "")
	nad("bydir", dir, `,"range_start":"10.9.0.20"`)
	nad("inline", file, `,"range":"10.8.0.0/24"`)
	nad("nofile", filepath.Join(dir, "absent"), `,"range":"10.7.0.0/24"`)
	write(`{"range":"10.9.0.0/24","exclude":["10.9.0.1"],"kubernetes":{"kubeconfig":"/x"}}`)
	for _, tt := range []struct{ network, address string }{
		{"byfile", "10.9.0.2/24"}, {"bydir", "10.9.0.20/24"}, {"inline", "10.8.0.1/24"}, {"nofile", "10.7.0.1/24"},
	} {
		w.add(tt.network, tt.network)
		w.same("address of "+tt.network, w.addrs(w.pod(tt.network), "net1"), []string{tt.address})
	}
	write(`no JSON`)
	for _, id := range []string{"byfile", "bydir", "inline", "nofile"} {
		if err := w.engine.Check(t.Context(), id); err != nil {
			t.Errorf("CHECK %s after the file has changed: %v", id, err)
		}
		if err := w.engine.Del(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	w.namespace("d")
	_, err := w.engine.Add(t.Context(), w.request("d", "byfile"))
	if h, ok := errors.AsType[*hint.Error](err); !ok || h.Value != file {
		t.Errorf("a file that is no JSON: %v", err)
	}
	w.empty()
}

// TestReadFlatFile: the path is any that the author of a network writes.
func TestReadFlatFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipe, big := filepath.Join(dir, "pipe"), filepath.Join(dir, "big")
	if err := errors.Join(unix.Mkfifo(pipe, 0o600), os.WriteFile(big, make([]byte, maxNamedFile+1), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, big, "/dev/zero"} {
		if _, err := readFlatFile(path); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %v", path, err)
		}
	}
	for _, path := range []string{filepath.Join(dir, "absent"), dir} {
		if _, err := readFlatFile(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %v, want %v", path, err, fs.ErrNotExist)
		}
	}
}
