package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/weftnet/weft/internal/hint"
)

// entry is one entry of a layer under test.
type entry struct {
	name, content, link string
	kind                byte
}

// layerOf makes a layer of entries, in that order.
func layerOf(t testing.TB, entries ...entry) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		header := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: 0o644, Size: int64(len(e.content))}
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return static.NewLayer(buf.Bytes(), types.OCIUncompressedLayer)
}

func imageWith(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func newStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// addImage stores img under name without an archive.
func addImage(t testing.TB, s *Store, ref string, img v1.Image) Image {
	t.Helper()
	n, err := parseTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	added, err := s.add(t.Context(), n, img)
	if err != nil {
		t.Fatal(err)
	}
	return added
}

func read(t testing.TB, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// names lists the store by name.
func names(t testing.TB, s *Store) []string {
	t.Helper()
	images, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, img := range images {
		out = append(out, img.Name)
	}
	return out
}

// tree lists the files below the store, as they are kept on disk.
func tree(t testing.TB, s *Store) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() && !strings.HasSuffix(path, "lock") {
			out = append(out, strings.TrimPrefix(path, s.dir+"/"))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func wantHint(t *testing.T, err error, problem string) {
	t.Helper()
	h, ok := errors.AsType[*hint.Error](err)
	if !ok {
		t.Fatalf("got error %v, want a hint", err)
	}
	if h.Remedy == "" || !strings.Contains(err.Error(), problem) {
		t.Errorf("got %q, remedy %q; want %q in it and a remedy", err, h.Remedy, problem)
	}
}

// normalize gives the full form of an image name.
func normalize(ref string) (string, error) {
	n, err := parseName(ref)
	return n.full, err
}

func TestNormalize(t *testing.T) {
	tests := []struct{ in, want string }{
		{"localhost/weft/guest", "localhost/weft/guest:latest"},
		{"localhost/weft/guest:v1", "localhost/weft/guest:v1"},
		{"busybox", "docker.io/library/busybox:latest"},
		{"docker.io/library/busybox:latest", "docker.io/library/busybox:latest"},
		{"quay.io/kubevirt/cirros", "quay.io/kubevirt/cirros:latest"},
		{"localhost:5000/a/b:c", "localhost:5000/a/b:c"},
		{"quay.io/a/b@sha256:" + strings.Repeat("0", 64), "quay.io/a/b@sha256:" + strings.Repeat("0", 64)},
	}
	for _, tt := range tests {
		got, err := normalize(tt.in)
		if err != nil || got != tt.want {
			t.Errorf("normalize(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
	for _, bad := range []string{"", "UPPER/case", "a b", "x@sha256:12", "../etc", "quay.io/a:b:c"} {
		got, err := normalize(bad)
		if err == nil {
			t.Errorf("normalize(%q) = %q, want an error", bad, got)
			continue
		}
		wantHint(t, err, "not an image name")
	}
}

// write makes a file for Build.
func write(t testing.TB, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestBuildArchiveLoadExtract(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	archive := filepath.Join(t.TempDir(), "guest.oci.tar")
	files := map[string]string{"/boot/vmlinuz": write(t, "kernel"), "/boot/initrd": write(t, "initrd")}
	if err := BuildArchive(ctx, archive, "localhost/weft/guest", files); err != nil {
		t.Fatal(err)
	}
	loaded, err := s.Load(ctx, archive, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(loaded) != 1 || loaded[0].Name != "localhost/weft/guest:latest" {
		t.Fatalf("got %v, want localhost/weft/guest:latest", loaded)
	}
	for path, want := range map[string]string{"/boot/vmlinuz": "kernel", "boot/initrd": "initrd"} {
		file, err := s.Extract(ctx, "localhost/weft/guest", path)
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, file.Path); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
		info, err := os.Stat(file.Path)
		if err != nil || info.Mode().Perm() != 0o444 {
			t.Errorf("%s: mode %v, %v; want 0444, for QEMU's user to read", path, info.Mode(), err)
		}
		again, err := s.Extract(ctx, loaded[0].Name, path)
		if err != nil || again.Path != file.Path {
			t.Errorf("second time: got %s, %v; want %s", again.Path, err, file.Path)
		}
	}
	// The same files make the same image, built in place or through an archive.
	built, err := s.Build(ctx, "localhost/other", files)
	if err != nil || built.Digest != loaded[0].Digest {
		t.Errorf("got digest %s, %v; want %s", built.Digest, err, loaded[0].Digest)
	}
	if got, want := names(t, s), []string{"localhost/other:latest", "localhost/weft/guest:latest"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	// Loading twice changes nothing.
	before := tree(t, s)
	if _, err := s.Load(ctx, archive, ""); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, tree(t, s)); diff != "" {
		t.Errorf("second load changed files (-before +after):\n%s", diff)
	}
}

func TestLoadNames(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	img := imageWith(t, layerOf(t, entry{name: "a", content: "one"}))
	tagOf := func(ref string) name.Tag {
		tag, err := name.NewTag(ref)
		if err != nil {
			t.Fatal(err)
		}
		return tag
	}
	docker := filepath.Join(dir, "docker.tar")
	other := imageWith(t, layerOf(t, entry{name: "a", content: "two"}))
	err := tarball.MultiRefWriteToFile(docker, map[name.Reference]v1.Image{tagOf("example.com/one:1"): img, tagOf("two:2"): other})
	if err != nil {
		t.Fatal(err)
	}
	zipped := filepath.Join(dir, "docker.tar.gz")
	var buf bytes.Buffer
	gz := gzip.NewWriter(&buf)
	_, err = gz.Write([]byte(read(t, docker)))
	if err := errors.Join(err, gz.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(zipped, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	oci := filepath.Join(dir, "layout")
	at, err := layout.Write(oci, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := at.AppendImage(img, layout.WithAnnotations(map[string]string{refNameAnnotation: "latest"})); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, file, as string
		want           []string
		problem        string
	}{
		{name: "docker", file: docker, want: []string{"docker.io/library/two:2", "example.com/one:1"}},
		{name: "gzipped", file: zipped, want: []string{"docker.io/library/two:2", "example.com/one:1"}},
		{name: "two images, one name", file: docker, as: "x", problem: "2 images"},
		{name: "layout without name", file: oci, problem: "without a name"},
		{name: "layout named", file: oci, as: "localhost/x:y", want: []string{"localhost/x:y"}},
		{name: "by digest", file: oci, as: "x@sha256:" + strings.Repeat("a", 64), problem: "by digest"},
		{name: "missing", file: filepath.Join(dir, "none"), problem: "cannot read"},
		{name: "no archive", file: write(t, "not a tar"), problem: "not an image archive"},
		{name: "empty", file: write(t, ""), problem: "not an image archive"},
		{name: "no layout", file: t.TempDir(), problem: "not an image archive"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			_, err := s.Load(ctx, tt.file, tt.as)
			if tt.problem != "" {
				wantHint(t, err, tt.problem)
				if got := names(t, s); len(got) != 0 {
					t.Errorf("got images %v after an error", got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := names(t, s); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			file, err := s.Extract(ctx, tt.want[len(tt.want)-1], "a")
			if err != nil || read(t, file.Path) != "one" {
				t.Errorf("got %v, %v; want the file", file, err)
			}
		})
	}
}

func TestPull(t *testing.T) {
	ctx := t.Context()
	server := httptest.NewServer(registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	ref, err := name.ParseReference(host + "/disks/small:1")
	if err != nil {
		t.Fatal(err)
	}
	img := imageWith(t, layerOf(t, entry{name: "disk/only.img", content: "raw disk"}))
	foreign := imageWith(t, layerOf(t, entry{name: "disk/only.img", content: "other machine"}))
	want := machinePlatform()
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: foreign, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &want}})
	if err := remote.WriteIndex(ref, index, remote.WithContext(ctx)); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	pulled, err := s.Pull(ctx, ref.String())
	if err != nil {
		t.Fatal(err)
	}
	disk, err := s.Disk(ctx, ref.String(), "")
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, disk.Path); got != "raw disk" || disk.Format != Raw || disk.VirtualSize != 8 {
		t.Errorf("got %q, %+v; want the raw disk of this machine's platform", got, disk)
	}
	byDigest, err := s.Resolve(host + "/disks/small@" + pulled.Digest)
	if err != nil || byDigest.Name != pulled.Name {
		t.Errorf("by digest: got %+v, %v; want %s", byDigest, err, pulled.Name)
	}
	if _, err := s.Pull(ctx, host+"/disks/small@"+pulled.Digest); err != nil {
		t.Errorf("pull by digest: %v", err)
	}
	_, err = s.Pull(ctx, host+"/disks/none")
	wantHint(t, err, "cannot pull image")
	_, err = s.Pull(ctx, "localhost/weft/guest")
	wantHint(t, err, "make guest")
	only := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: foreign, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}})
	if err := remote.WriteIndex(ref, only, remote.WithContext(ctx)); err != nil {
		t.Fatal(err)
	}
	_, err = s.Pull(ctx, ref.String())
	wantHint(t, err, "other platforms: linux/s390x")
}

func TestRemoveAndCollect(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	shared := layerOf(t, entry{name: "boot/a", content: "a"})
	one := addImage(t, s, "localhost/one", imageWith(t, shared))
	addImage(t, s, "localhost/two", imageWith(t, shared, layerOf(t, entry{name: "boot/b", content: "b"})))
	for _, ref := range []string{"localhost/one", "localhost/two"} {
		if _, err := s.Extract(ctx, ref, "boot/a"); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(s.path(tmpDir, "blob-left"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "localhost/one"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve("localhost/one"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	inUse := func(digest string) bool { return digest == one.Digest }
	if err := s.Collect(ctx, inUse); err != nil {
		t.Fatal(err)
	}
	count := func(part string) (n int) {
		for _, file := range tree(t, s) {
			if strings.HasPrefix(file, part) {
				n++
			}
		}
		return n
	}
	if got := count("layout/blobs"); got != 4 { // manifest, config, two layers
		t.Errorf("got %d blobs, want those of image two: %v", got, tree(t, s))
	}
	if got := count("files"); got != 2 {
		t.Errorf("got %d files, want the one in use kept: %v", got, tree(t, s))
	}
	if got := count("tmp"); got != 0 {
		t.Errorf("got remains %v, want none", tree(t, s))
	}
	if err := s.Collect(ctx, func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if got := count("files"); got != 1 {
		t.Errorf("got %d files, want image two's: %v", got, tree(t, s))
	}
	file, err := s.Extract(ctx, "localhost/two", "boot/b")
	if err != nil || read(t, file.Path) != "b" {
		t.Errorf("image two is broken: %v", err)
	}
	if err := s.Remove(ctx, "localhost/two"); err != nil {
		t.Fatal(err)
	}
	if got := count("layout/blobs") + count("files/"); got != 2 { // the files taken out wait for Collect
		t.Errorf("got %v, want no blobs", tree(t, s))
	}
	wantHint(t, s.Remove(ctx, "localhost/two"), "not in the local store")
}

// TestSweepSparesWriters: while an image is added, its blobs have no name yet.
func TestSweepSparesWriters(t *testing.T) {
	s := newStore(t)
	unlock, err := lockPath(t.Context(), s.path(lockFile), shared)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.writeBytes(t.Context(), []byte("half an image"), ""); err != nil {
		t.Fatal(err)
	}
	nobody := func(string) bool { return false }
	if err := s.Collect(t.Context(), nobody); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, s); len(got) != 2 {
		t.Errorf("got %v, want the new blob spared", got)
	}
	unlock()
	if err := s.Collect(t.Context(), nobody); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, s); len(got) != 1 {
		t.Errorf("got %v, want the blob gone", got)
	}
}

func TestMissing(t *testing.T) {
	s := newStore(t)
	for ref, remedy := range map[string]string{
		"localhost/weft/guest":    "make guest",
		"localhost/mine":          "weft image load",
		"quay.io/kubevirt/cirros": "weft image pull quay.io/kubevirt/cirros",
	} {
		_, err := s.Extract(t.Context(), ref, "/boot/vmlinuz")
		wantHint(t, err, remedy)
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: got %v, want ErrNotFound", ref, err)
		}
	}
}

// TestLoadCutOff kills a load at many points: nothing of the image must be
// visible, and the next load must repair whatever is there.
func TestLoadCutOff(t *testing.T) {
	archive := filepath.Join(t.TempDir(), "a.tar")
	files := map[string]string{"/disk/d.img": write(t, strings.Repeat("x", 200_000))}
	if err := BuildArchive(t.Context(), archive, "localhost/a", files); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	cut := 0
	for ; ; cut++ {
		ctx := &fuse{Context: t.Context(), left: cut}
		_, err := s.Load(ctx, archive, "")
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("cut %d: got %v, want the cancellation", cut, err)
		}
		if got := names(t, s); len(got) != 0 {
			t.Fatalf("cut %d: got %v, want no image", cut, got)
		}
	}
	if cut < 10 {
		t.Errorf("the load was cut at %d points only", cut)
	}
	disk, err := s.Disk(t.Context(), "localhost/a", "")
	if err != nil || disk.VirtualSize != 200_000 {
		t.Errorf("got %+v, %v; want the whole disk", disk, err)
	}
}

// fuse is a context that is cancelled at the n-th look at it.
type fuse struct {
	context.Context
	left int
}

func (f *fuse) Err() error {
	if f.left--; f.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestDamage: what the disk lost after the load is noticed and repaired.
func TestDamage(t *testing.T) {
	ctx := t.Context()
	for _, how := range []string{"truncated", "other bytes", "gone"} {
		t.Run(how, func(t *testing.T) {
			s := newStore(t)
			img := imageWith(t, layerOf(t, entry{name: "boot/a", content: "content"}))
			added := addImage(t, s, "localhost/a", img)
			layers, err := img.Layers()
			if err != nil {
				t.Fatal(err)
			}
			h, err := layers[0].Digest()
			if err != nil {
				t.Fatal(err)
			}
			raw := []byte(read(t, s.blobPath(h)))
			if err := os.Remove(s.blobPath(h)); err != nil {
				t.Fatal(err)
			}
			switch how {
			case "truncated":
				err = os.WriteFile(s.blobPath(h), raw[:1024], 0o600)
			case "other bytes":
				raw[512] ^= 1
				err = os.WriteFile(s.blobPath(h), raw, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Extract(ctx, "localhost/a", "boot/a")
			wantHint(t, err, "missing or damaged")
			if got := tree(t, s); slices.ContainsFunc(got, func(f string) bool { return strings.HasPrefix(f, "files/") || strings.HasPrefix(f, "tmp/") }) {
				t.Errorf("got %v, want nothing taken out", got)
			}
			if again := addImage(t, s, "localhost/a", img); again.Digest != added.Digest {
				t.Errorf("got %s, want %s", again.Digest, added.Digest)
			}
			file, err := s.Extract(ctx, "localhost/a", "boot/a")
			if err != nil || read(t, file.Path) != "content" {
				t.Errorf("not repaired: %v", err)
			}
		})
	}
}

// TestWrongDigest: an archive whose blob is not what its name says.
func TestWrongDigest(t *testing.T) {
	dir := t.TempDir()
	at, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	img := imageWith(t, layerOf(t, entry{name: "a", content: "good"}))
	if err := at.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	h, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", h.Hex), []byte("evil"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	_, err = s.Load(t.Context(), dir, "localhost/a")
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
	if got := names(t, s); len(got) != 0 {
		t.Errorf("got %v, want no image", got)
	}
}

func TestLayers(t *testing.T) {
	img := imageWith(t,
		layerOf(t,
			entry{name: "boot/", kind: tar.TypeDir},
			entry{name: "boot/vmlinuz-1", content: "old"},
			entry{name: "boot/vmlinuz", kind: tar.TypeSymlink, link: "vmlinuz-1"},
			entry{name: "gone/file", content: "x"},
			entry{name: "opaque/low", content: "x"},
			entry{name: "replaced/file", content: "x"},
			entry{name: "link-to-dir", kind: tar.TypeSymlink, link: "/boot"},
			entry{name: "loop", kind: tar.TypeSymlink, link: "loop"},
			entry{name: "escape", kind: tar.TypeSymlink, link: "../../../../etc/passwd"},
			entry{name: "dev", kind: tar.TypeChar},
		),
		layerOf(t,
			entry{name: "./boot/vmlinuz-1", content: "new"},
			entry{name: "boot/hard", kind: tar.TypeLink, link: "boot/vmlinuz-1"},
			entry{name: "boot/lowhard", kind: tar.TypeLink, link: "./opaque/../gone/file"},
			entry{name: ".wh.gone"},
			entry{name: "opaque/high", content: "high"},
			entry{name: "opaque/.wh..wh..opq"},
			entry{name: "replaced", content: "now a file"},
			entry{name: "../../etc/evil", content: "inside"},
			entry{name: "/abs", content: "abs"},
			entry{name: "twice", content: "first"},
			entry{name: "twice", content: "second"},
		))
	s := newStore(t)
	addImage(t, s, "localhost/a", img)
	good := map[string]string{
		"/boot/vmlinuz": "new", "/boot/hard": "new", "/link-to-dir/vmlinuz": "new", "/opaque/high": "high",
		"/replaced": "now a file", "/etc/evil": "inside", "/abs": "abs", "/twice": "second", "../../abs": "abs",
	}
	for path, want := range good {
		file, err := s.Extract(t.Context(), "localhost/a", path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if got := read(t, file.Path); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
		if !strings.HasPrefix(file.Path, s.path(filesDir)+"/") {
			t.Errorf("%s: taken out to %s", path, file.Path)
		}
	}
	for _, path := range []string{"/gone/file", "/opaque/low", "/replaced/file", "/loop", "/escape", "/dev", "/boot", "/boot/lowhard", "/", "/none", "/abs/x"} {
		_, err := s.Extract(t.Context(), "localhost/a", path)
		wantHint(t, err, "cannot take the file out")
	}
	_, err := s.Extract(t.Context(), "localhost/a", "/boot/vmlinux")
	wantHint(t, err, "hard, vmlinuz-1")
}

func TestDisk(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	addImage(t, s, "localhost/none", imageWith(t, layerOf(t, entry{name: "a", content: "x"})))
	_, err := s.Disk(ctx, "localhost/none", "")
	wantHint(t, err, "no file in /disk")
	addImage(t, s, "localhost/two", imageWith(t, layerOf(t, entry{name: "disk/a", content: "x"}, entry{name: "disk/b", content: "yy"})))
	_, err = s.Disk(ctx, "localhost/two", "")
	wantHint(t, err, "several files in /disk: a, b")
	disk, err := s.Disk(ctx, "localhost/two", "/disk/b")
	if err != nil || disk.VirtualSize != 2 {
		t.Errorf("got %+v, %v; want b", disk, err)
	}
}

func TestInspectDisk(t *testing.T) {
	dir := t.TempDir()
	if _, err := exec.LookPath("qemu-img"); err == nil {
		good := filepath.Join(dir, "good.qcow2")
		for _, args := range [][]string{
			{"create", "-q", "-f", "qcow2", good, "3M"},
			{"create", "-q", "-f", "qcow2", "-o", "compat=0.10", filepath.Join(dir, "v2.qcow2"), "3M"},
			{"create", "-q", "-f", "qcow2", "-b", good, "-F", "qcow2", filepath.Join(dir, "backed.qcow2")},
			{"create", "-q", "-f", "qcow2", "-o", "data_file=" + filepath.Join(dir, "data"), filepath.Join(dir, "external.qcow2"), "3M"},
		} {
			if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
				t.Fatalf("qemu-img %v: %v: %s", args, err, out)
			}
		}
		for _, file := range []string{"good.qcow2", "v2.qcow2"} {
			disk, err := InspectDisk(filepath.Join(dir, file))
			if err != nil || disk.Format != QCOW2 || disk.VirtualSize != 3<<20 {
				t.Errorf("%s: got %+v, %v; want qcow2 of 3 MiB", file, disk, err)
			}
		}
		_, err = InspectDisk(filepath.Join(dir, "backed.qcow2"))
		wantHint(t, err, "backing file")
		_, err = InspectDisk(filepath.Join(dir, "external.qcow2"))
		wantHint(t, err, "another file")
	} else if os.Getenv("CI") != "" {
		t.Fatal("qemu-img is not installed")
	}
	_, err := InspectDisk(write(t, ""))
	wantHint(t, err, "empty")
	_, err = InspectDisk(write(t, "QFI\xfb"))
	wantHint(t, err, "cut off")
	disk, err := InspectDisk(write(t, "abc"))
	if err != nil || disk.Format != Raw || disk.VirtualSize != 3 {
		t.Errorf("got %+v, %v; want raw", disk, err)
	}
}

// TestSparse: zero blocks of a disk take no room.
func TestSparse(t *testing.T) {
	s := newStore(t)
	const size = 8 << 20
	content := make([]byte, size+5)
	copy(content[size/2:], "middle")
	addImage(t, s, "localhost/a", imageWith(t, layerOf(t, entry{name: "disk/d", content: string(content)})))
	disk, err := s.Disk(t.Context(), "localhost/a", "")
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, disk.Path); got != string(content) {
		t.Error("the disk taken out differs")
	}
	out, err := exec.Command("du", "-k", disk.Path).Output()
	if err != nil || !strings.HasPrefix(string(out), "64\t") && !strings.HasPrefix(string(out), "128\t") {
		t.Errorf("got %s, %v; want one or two blocks of 64 KiB", out, err)
	}
}

// FuzzLayer: no layer hangs, panics or makes a path outside the store.
func FuzzLayer(f *testing.F) {
	f.Add("a/.wh..wh..opq\n../x\nboot/vmlinuz\n.wh.\nl>boot\nh=boot/vmlinuz", "/boot/vmlinuz")
	f.Add("a>b\nb>a\n/>/", "a/..")
	f.Fuzz(func(t *testing.T, text, path string) {
		var headers []*tar.Header
		for line := range strings.Lines(text) {
			header := &tar.Header{Name: strings.TrimSuffix(line, "\n"), Typeflag: tar.TypeReg}
			for sep, kind := range map[string]byte{">": tar.TypeSymlink, "=": tar.TypeLink} {
				if name, target, ok := strings.Cut(header.Name, sep); ok {
					header = &tar.Header{Name: name, Linkname: target, Typeflag: kind}
					break
				}
			}
			headers = append(headers, header)
		}
		root := newDir()
		root.overlay(headers, 0)
		root.overlay(headers, 1)
		if found, err := root.find(path); err == nil && found == nil {
			t.Errorf("%q: neither found nor missing", path)
		}
		s := &Store{dir: "/store"}
		target := s.filePath(v1.Hash{Algorithm: "sha256", Hex: "00"}, path)
		if filepath.Dir(target) != "/store/files/00" {
			t.Errorf("%q would be taken out to %s", path, target)
		}
	})
}

// FuzzName: normalising is idempotent and gives names that resolve.
func FuzzName(f *testing.F) {
	for _, seed := range []string{"a", "localhost/a:b", "quay.io/a/b@sha256:" + strings.Repeat("0", 64)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		full, err := normalize(ref)
		if err != nil {
			return
		}
		if again, err := normalize(full); err != nil || again != full {
			t.Errorf("%q: got %q, then %q, %v", ref, full, again, err)
		}
	})
}
