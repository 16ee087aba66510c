package image

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/weftnet/weft/internal/hint"
)

// containerdNameAnnotation holds the full name in archives written by docker
// and nerdctl, whose ref.name is the tag alone (containerd images/annotations.go).
const containerdNameAnnotation = "io.containerd.image.name"

// Load adds the images of an OCI layout directory, an OCI archive or an
// archive written by docker save, plain or gzipped. They get the names the
// archive gives them; as, unless empty, names the only image instead.
func (s *Store) Load(ctx context.Context, file, as string) ([]Image, error) {
	var name *imageName
	if as != "" {
		n, err := parseTag(as)
		if err != nil {
			return nil, err
		}
		name = &n
	}
	unlock, err := lockPath(ctx, s.path(lockFile), shared)
	if err != nil {
		return nil, err
	}
	defer unlock()
	found, err := s.readArchive(ctx, file)
	if err != nil {
		return nil, err
	}
	defer found.cleanup()
	named, err := nameAll(found.images, name, file)
	if err != nil {
		return nil, err
	}
	var loaded []Image
	for _, item := range named {
		img, err := s.add(ctx, item.name, item.image)
		if err != nil {
			return loaded, fmt.Errorf("load image %s from %s: %w", item.name.full, file, err)
		}
		loaded = append(loaded, img)
	}
	return loaded, nil
}

// add stores all parts of img and then its name. The caller holds the lock.
func (s *Store) add(ctx context.Context, n imageName, img v1.Image) (Image, error) {
	layers, err := img.Layers()
	if err != nil {
		return Image{}, fmt.Errorf("list layers: %w", err)
	}
	for _, layer := range layers {
		h, err := layer.Digest()
		if err != nil {
			return Image{}, fmt.Errorf("hash layer: %w", err)
		}
		if err := s.writeBlob(ctx, h, layer.Compressed); err != nil {
			return Image{}, err
		}
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return Image{}, fmt.Errorf("read config: %w", err)
	}
	if _, err := s.writeBytes(ctx, config, ""); err != nil {
		return Image{}, err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return Image{}, fmt.Errorf("read manifest: %w", err)
	}
	mediaType, err := img.MediaType()
	if err != nil {
		return Image{}, fmt.Errorf("read manifest: %w", err)
	}
	desc, err := s.writeBytes(ctx, manifest, mediaType)
	if err != nil {
		return Image{}, err
	}
	// The manifest may name a config or layer other than those just stored.
	if err := s.complete(desc.Digest); err != nil {
		return Image{}, err
	}
	if err := s.setName(ctx, n, desc); err != nil {
		return Image{}, err
	}
	desc.Annotations = map[string]string{refNameAnnotation: n.full}
	return s.describe(desc)
}

// complete checks that all the manifest h names is there.
func (s *Store) complete(h v1.Hash) error {
	manifest, err := s.manifest(h)
	if err != nil {
		return err
	}
	for _, part := range append([]v1.Descriptor{manifest.Config}, manifest.Layers...) {
		if err := checkHash(part.Digest); err != nil {
			return err
		}
		if _, err := os.Stat(s.blobPath(part.Digest)); err != nil {
			return damaged(part.Digest, err)
		}
	}
	return nil
}

// archived is an image of an archive with the names it has there.
type archived struct {
	image v1.Image
	names []string
}

// archive is what was found in a file given to Load.
type archive struct {
	images  []archived
	cleanup func()
}

type namedImage struct {
	name  imageName
	image v1.Image
}

// nameAll settles under which names the images of an archive are stored.
func nameAll(images []archived, as *imageName, file string) ([]namedImage, error) {
	if as != nil {
		if len(images) != 1 {
			return nil, &hint.Error{
				Value: file, Problem: fmt.Sprintf("archive holds %d images, so one name cannot name them", len(images)),
				Remedy: "load it without a name of your own",
			}
		}
		return []namedImage{{*as, images[0].image}}, nil
	}
	var named []namedImage
	for _, img := range images {
		if len(img.names) == 0 {
			return nil, &hint.Error{
				Value: file, Problem: "archive holds an image without a name",
				Remedy: "name it: weft image load --as NAME " + file,
			}
		}
		for _, text := range img.names {
			n, err := parseTag(text)
			if err != nil {
				return nil, err
			}
			named = append(named, namedImage{n, img.image})
		}
	}
	return named, nil
}

// readArchive finds out what file is and opens the images in it.
func (s *Store) readArchive(ctx context.Context, file string) (archive, error) {
	info, err := os.Stat(file)
	if err != nil {
		return archive{}, &hint.Error{
			Value: file, Problem: "cannot read image archive", Err: err,
			Remedy: "give a file written by docker save, podman save or weft, or an OCI layout directory",
		}
	}
	if info.IsDir() {
		images, err := readLayout(file)
		return archive{images, func() {}}, err
	}
	names, err := tarNames(ctx, file)
	if err != nil {
		return archive{}, notArchive(file, err)
	}
	switch {
	case names["oci-layout"] && names["index.json"]:
		return s.readOCIArchive(ctx, file)
	case names["manifest.json"]:
		images, err := readDockerArchive(file)
		return archive{images, func() {}}, err
	}
	return archive{}, notArchive(file, errors.New("neither index.json nor manifest.json is in it"))
}

func notArchive(file string, cause error) error {
	return &hint.Error{
		Value: file, Problem: "not an image archive", Err: cause,
		Remedy: "write it with: docker save NAME -o FILE, or: podman save --format oci-archive NAME -o FILE",
	}
}

// openTar opens a tar file, gzipped or not.
func openTar(file string) (io.ReadCloser, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	buffered := bufio.NewReaderSize(f, 1<<16)
	magic, err := buffered.Peek(2)
	if err != nil || magic[0] != 0x1f || magic[1] != 0x8b { // RFC 1952, section 2.3.1
		return readCloser{buffered, f}, nil // a short file fails as a tar
	}
	plain, err := gzip.NewReader(buffered)
	if err != nil {
		f.Close() // only read
		return nil, err
	}
	return readCloser{plain, f}, nil
}

type readCloser struct {
	io.Reader
	io.Closer
}

// eachEntry calls visit for each entry of a tar file.
func eachEntry(ctx context.Context, file string, visit func(*tar.Header, io.Reader) error) error {
	src, err := openTar(file)
	if err != nil {
		return err
	}
	defer src.Close() // only read
	entries := tar.NewReader(&contextReader{ctx, src})
	for {
		header, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := visit(header, entries); err != nil {
			return err
		}
	}
}

// tarNames gives the names of the top-level entries of a tar file.
func tarNames(ctx context.Context, file string) (map[string]bool, error) {
	names := map[string]bool{}
	err := eachEntry(ctx, file, func(header *tar.Header, _ io.Reader) error {
		if name := path.Clean(header.Name); !strings.Contains(name, "/") {
			names[name] = true
		}
		return nil
	})
	return names, err
}

// layoutEntry matches the files of an OCI layout; nothing else in an archive
// is unpacked, so that no name in it can point elsewhere.
var layoutEntry = regexp.MustCompile(`^(oci-layout|index\.json|blobs/sha256/[0-9a-f]{64})$`)

// readOCIArchive unpacks an archive beside the blobs and opens it as a layout.
func (s *Store) readOCIArchive(ctx context.Context, file string) (archive, error) {
	dir, err := os.MkdirTemp(s.path(tmpDir), "load-")
	if err != nil {
		return archive{}, fmt.Errorf("unpack %s: %w", file, err)
	}
	cleanup := func() { os.RemoveAll(dir) } // what stays is swept later
	err = eachEntry(ctx, file, func(header *tar.Header, content io.Reader) error {
		name := path.Clean(header.Name)
		if header.Typeflag != tar.TypeReg || !layoutEntry.MatchString(name) {
			return nil
		}
		return unpackEntry(filepath.Join(dir, filepath.FromSlash(name)), content)
	})
	if err != nil {
		cleanup()
		return archive{}, fmt.Errorf("unpack %s: %w", file, err)
	}
	images, err := readLayout(dir)
	if err != nil {
		cleanup()
		return archive{}, fmt.Errorf("read %s: %w", file, err)
	}
	return archive{images, cleanup}, nil
}

func unpackEntry(target string, content io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, content); err != nil {
		f.Close() // the copy's error says it
		return err
	}
	return f.Close()
}

// readLayout opens the images of an OCI layout; of an image for several
// platforms the one for this machine.
func readLayout(dir string) ([]archived, error) {
	at, err := layout.FromPath(dir)
	if err != nil {
		return nil, notArchive(dir, err)
	}
	root, err := at.ImageIndex()
	if err != nil {
		return nil, notArchive(dir, err)
	}
	index, err := root.IndexManifest()
	if err != nil {
		return nil, notArchive(dir, err)
	}
	var images []archived
	for _, desc := range index.Manifests {
		if err := checkHash(desc.Digest); err != nil {
			return nil, err
		}
		img, err := imageOf(root, desc)
		if err != nil {
			return nil, err
		}
		images = append(images, archived{image: img, names: namesOf(desc.Annotations)})
	}
	if len(images) == 0 {
		return nil, notArchive(dir, errors.New("index.json names no image"))
	}
	return images, nil
}

// namesOf reads the name of an image from its annotations. A bare tag is no
// name: it would become docker.io/library/TAG.
func namesOf(annotations map[string]string) []string {
	if name := annotations[containerdNameAnnotation]; name != "" {
		return []string{name}
	}
	if name := annotations[refNameAnnotation]; strings.ContainsAny(name, "/:") {
		return []string{name}
	}
	return nil
}

// readDockerArchive opens the images of an archive written by docker save.
func readDockerArchive(file string) ([]archived, error) {
	open := func() (io.ReadCloser, error) { return openTar(file) }
	manifest, err := tarball.LoadManifest(open)
	if err != nil {
		return nil, notArchive(file, err)
	}
	var images []archived
	for i, entry := range manifest {
		// The library picks an image by name or takes the only one: give it the one.
		one, err := json.Marshal(tarball.Manifest{manifest[i]})
		if err != nil {
			return nil, fmt.Errorf("encode manifest: %w", err)
		}
		img, err := tarball.Image(withManifest(open, one), nil)
		if err != nil {
			return nil, notArchive(file, err)
		}
		images = append(images, archived{image: img, names: entry.RepoTags})
	}
	if len(images) == 0 {
		return nil, notArchive(file, errors.New("manifest.json names no image"))
	}
	return images, nil
}

// withManifest puts manifest.json with that content before the entries of a
// tar file; readers take the first entry of a name.
func withManifest(open tarball.Opener, manifest []byte) tarball.Opener {
	var first strings.Builder
	w := tar.NewWriter(&first)
	header := &tar.Header{Name: "manifest.json", Mode: 0o644, Size: int64(len(manifest)), Typeflag: tar.TypeReg}
	err := w.WriteHeader(header)
	if err == nil {
		_, err = w.Write(manifest)
	}
	if err == nil {
		err = w.Flush() // no trailer: the archive follows
	}
	return func() (io.ReadCloser, error) {
		if err != nil {
			return nil, err
		}
		rest, err := open()
		if err != nil {
			return nil, err
		}
		return readCloser{io.MultiReader(strings.NewReader(first.String()), rest), rest}, nil
	}
}
