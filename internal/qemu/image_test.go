package qemu

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/hint"
)

// owner is whom files can be given to in this test.
func owner() Owner {
	if os.Geteuid() == 0 {
		return Owner{UID: 64107, GID: 64107}
	}
	return Owner{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
}

func checkOwned(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	if (Owner{stat.Uid, stat.Gid}) != owner() || info.Mode().Perm() != 0o600 {
		t.Errorf("%s belongs to %d:%d with mode %s", path, stat.Uid, stat.Gid, info.Mode())
	}
	if leftovers, err := filepath.Glob(path + ".*"); err != nil || len(leftovers) > 0 {
		t.Errorf("left over: %v, %v", leftovers, err)
	}
}

func TestDisks(t *testing.T) {
	needTool(t, ImageTool, "qemu-utils")
	ctx := t.Context()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	check := func(name string, want ImageInfo) {
		t.Helper()
		checkOwned(t, path(name))
		got, err := InspectImage(ctx, path(name))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if err := os.WriteFile(path("empty.new"), []byte("left by a crash"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CreateDisk(ctx, path("empty"), 1<<30, owner()); err != nil {
		t.Fatal(err)
	}
	check("empty", ImageInfo{QCOW2, 1 << 30})
	if err := CreateRawDisk(path("raw"), 64<<20, owner()); err != nil {
		t.Fatal(err)
	}
	check("raw", ImageInfo{Raw, 64 << 20})

	// What is there is kept, even if it is something else.
	before, err := os.ReadFile(path("empty"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(CreateDisk(ctx, path("empty"), 1, owner()), CreateRawDisk(path("empty"), 1, owner())); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(path("empty"))
	if err != nil || string(before) != string(after) {
		t.Errorf("a disk that is there was changed (%v)", err)
	}

	for _, base := range []string{"raw", "empty"} {
		if err := CreateOverlay(ctx, path("over-"+base), path(base), owner()); err != nil {
			t.Fatal(err)
		}
		checkOwned(t, path("over-"+base))
		// An overlay names another file: as an image of a stranger it is refused.
		_, err := InspectImage(ctx, path("over-"+base))
		var h *hint.Error
		if !errors.As(err, &h) || !strings.Contains(h.Problem, path(base)) {
			t.Errorf("image with a backing file: %v", err)
		}
		if err := CreateOverlay(ctx, path("second"), path("over-"+base), owner()); !errors.As(err, &h) {
			t.Errorf("overlay on such an image: %v", err)
		}
		if _, err := os.Stat(path("second")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a refused overlay is there: %v", err)
		}
	}
	if err := os.WriteFile(path("vmdk"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(ImageTool, "create", "-f", "vmdk", path("vmdk"), "1M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var h *hint.Error
	if _, err := InspectImage(ctx, path("vmdk")); !errors.As(err, &h) || h.Value != "vmdk" {
		t.Errorf("vmdk: %v", err)
	}
	if _, err := InspectImage(ctx, path("nothing")); err == nil || !strings.Contains(err.Error(), "No such file") {
		t.Errorf("no file: %v", err)
	}
	for _, name := range []string{"dir/none", "\x00"} {
		if err := CreateDisk(ctx, path(name), 1<<20, owner()); err == nil {
			t.Errorf("made %q", name)
		}
	}
}

func TestNoCloud(t *testing.T) {
	program, _, err := isoTool()
	if err != nil {
		needTool(t, "genisoimage", "genisoimage")
	}
	t.Logf("written by %s", program)
	needTool(t, "isoinfo", "genisoimage")
	path := filepath.Join(t.TempDir(), "seed.iso")
	content := NoCloud{MetaData: []byte("instance-id: i1\n"), UserData: []byte("#cloud-config\nhostname: vm1\n"), NetworkConfig: []byte("version: 2\n")}
	isoinfo := func(args ...string) string {
		out, err := exec.Command("isoinfo", append([]string{"-i", path}, args...)...).Output()
		if err != nil {
			t.Fatalf("isoinfo %v: %v", args, err)
		}
		return string(out)
	}
	for range 2 { // the second replaces the first
		if err := WriteNoCloud(t.Context(), path, content, owner()); err != nil {
			t.Fatal(err)
		}
		checkOwned(t, path)
		if got := isoinfo("-d"); !strings.Contains(got, "Volume id: cidata\n") || !strings.Contains(got, "Joliet") || !strings.Contains(got, "Rock Ridge") {
			t.Errorf("medium: %s", got)
		}
		for _, names := range []string{"-R", "-J"} {
			for name, want := range map[string][]byte{"meta-data": content.MetaData, "user-data": content.UserData, "network-config": content.NetworkConfig} {
				if got := isoinfo(names, "-x", "/"+name); got != string(want) {
					t.Errorf("%s %s: %q, want %q", names, name, got, want)
				}
			}
		}
		content.UserData = []byte("#cloud-config\nhostname: vm2\n")
	}
	if err := WriteNoCloud(t.Context(), path, NoCloud{}, owner()); err != nil {
		t.Fatal(err)
	}
	if got := isoinfo("-R", "-f"); got != "/meta-data\n" {
		t.Errorf("least medium holds %q", got)
	}
}
