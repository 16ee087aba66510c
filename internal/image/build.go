package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/weftnet/weft/internal/hint"
)

// Build stores an image of one layer under the name ref. files maps paths in
// the image to files of this machine. The same files give the same digest.
func (s *Store) Build(ctx context.Context, ref string, files map[string]string) (Image, error) {
	n, err := parseTag(ref)
	if err != nil {
		return Image{}, err
	}
	unlock, err := lockPath(ctx, s.path(lockFile), shared)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	built, err := buildImage(files)
	if err != nil {
		return Image{}, fmt.Errorf("build image %s: %w", n.full, err)
	}
	img, err := s.add(ctx, n, built)
	if err != nil {
		return Image{}, fmt.Errorf("build image %s: %w", n.full, err)
	}
	return img, nil
}

// BuildArchive writes such an image as an OCI archive that Load, podman and
// skopeo read. An archive that is there is replaced, whole or not at all.
func BuildArchive(ctx context.Context, out, ref string, files map[string]string) (err error) {
	n, err := parseTag(ref)
	if err != nil {
		return err
	}
	built, err := buildImage(files)
	if err != nil {
		return fmt.Errorf("build image %s: %w", n.full, err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(out), ".image-")
	if err != nil {
		return fmt.Errorf("write archive %s: %w", out, err)
	}
	defer os.Remove(tmp.Name()) // gone already after the rename
	if err := commit(tmp, writeArchive(ctx, tmp, n, built), out); err != nil {
		return fmt.Errorf("write archive %s: %w", out, err)
	}
	return nil
}

// writeArchive writes the OCI layout of one image as a tar.
func writeArchive(ctx context.Context, out io.Writer, n imageName, img v1.Image) error {
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	config, configErr := img.RawConfigFile()
	manifest, manifestErr := img.RawManifest()
	digest, digestErr := img.Digest()
	if err := errors.Join(configErr, manifestErr, digestErr); err != nil {
		return err
	}
	index, err := json.Marshal(v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: types.OCIManifestSchema1, Digest: digest, Size: int64(len(manifest)),
			Annotations: map[string]string{refNameAnnotation: n.full, containerdNameAnnotation: n.full},
		}},
	})
	if err != nil {
		return err
	}
	w := tar.NewWriter(out)
	err = errors.Join(
		addBytes(w, "oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)),
		addBytes(w, "index.json", index),
		addDocument(w, manifest),
		addDocument(w, config))
	if err != nil {
		return err
	}
	for _, layer := range layers {
		if err := addLayer(ctx, w, layer); err != nil {
			return err
		}
	}
	return w.Close()
}

func addBytes(w *tar.Writer, name string, content []byte) error {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

func addDocument(w *tar.Writer, content []byte) error {
	h, _, err := v1.SHA256(bytes.NewReader(content))
	if err != nil {
		return err
	}
	return addBytes(w, "blobs/sha256/"+h.Hex, content)
}

func addLayer(ctx context.Context, w *tar.Writer, layer v1.Layer) error {
	digest, digestErr := layer.Digest()
	size, sizeErr := layer.Size()
	content, contentErr := layer.Compressed()
	if err := errors.Join(digestErr, sizeErr, contentErr); err != nil {
		return err
	}
	defer content.Close() // only read
	header := &tar.Header{Typeflag: tar.TypeReg, Name: "blobs/sha256/" + digest.Hex, Mode: 0o644, Size: size}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.Copy(w, &contextReader{ctx, content})
	return err
}

// buildImage makes an image of one uncompressed layer: what goes into a
// machine's image is compressed already or sparse, and is read often.
func buildImage(files map[string]string) (v1.Image, error) {
	clean := map[string]string{}
	for name, source := range files {
		inside := strings.TrimPrefix(path.Clean("/"+name), "/")
		if inside == "" {
			return nil, &hint.Error{Value: name, Problem: "not a path of a file in an image", Remedy: "write it as /DIR/FILE"}
		}
		if _, taken := clean[inside]; taken {
			return nil, &hint.Error{Value: name, Problem: "path is there twice", Remedy: "give each file a path of its own"}
		}
		clean[inside] = source
	}
	layer, err := newFileLayer(clean)
	if err != nil {
		return nil, err
	}
	base := mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1)
	platform := machinePlatform()
	base, err = mutate.ConfigFile(base, &v1.ConfigFile{
		OS: platform.OS, Architecture: platform.Architecture, RootFS: v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(base, layer)
}

// fileLayer is a layer made of files of this machine each time it is read.
type fileLayer struct {
	files  map[string]string
	digest v1.Hash
	size   int64
}

var _ v1.Layer = (*fileLayer)(nil)

func newFileLayer(files map[string]string) (*fileLayer, error) {
	l := &fileLayer{files: files}
	content, err := l.Uncompressed()
	if err != nil {
		return nil, err
	}
	defer content.Close() // only read
	l.digest, l.size, err = v1.SHA256(content)
	return l, err
}

// Digest implements v1.Layer.
func (l *fileLayer) Digest() (v1.Hash, error) { return l.digest, nil }

// DiffID implements v1.Layer: uncompressed, it is the digest.
func (l *fileLayer) DiffID() (v1.Hash, error) { return l.digest, nil }

// Size implements v1.Layer.
func (l *fileLayer) Size() (int64, error) { return l.size, nil }

// MediaType implements v1.Layer.
func (l *fileLayer) MediaType() (types.MediaType, error) { return types.OCIUncompressedLayer, nil }

// Compressed implements v1.Layer.
func (l *fileLayer) Compressed() (io.ReadCloser, error) { return l.Uncompressed() }

// Uncompressed implements v1.Layer. The writing goroutine ends when the reader
// is read to its end or closed.
func (l *fileLayer) Uncompressed() (io.ReadCloser, error) {
	r, w := io.Pipe()
	go func() { w.CloseWithError(l.write(w)) }() // never fails
	return r, nil
}

// write gives the tar of the layer: sorted, without times and owners.
func (l *fileLayer) write(out io.Writer) error {
	w := tar.NewWriter(out)
	for _, dir := range parents(l.files) {
		header := &tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(l.files)) {
		if err := addFile(w, name, l.files[name]); err != nil {
			return err
		}
	}
	return w.Close()
}

// parents gives every directory files are in, outer ones first.
func parents(files map[string]string) []string {
	dirs := map[string]bool{}
	for name := range files {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			dirs[dir] = true
		}
	}
	return slices.Sorted(maps.Keys(dirs))
}

func addFile(w *tar.Writer, name, source string) error {
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return &hint.Error{Value: source, Problem: "not a regular file", Remedy: "an image is built from files only"}
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o444, Size: info.Size()}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}
