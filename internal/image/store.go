// Package image keeps the OCI images virtual machines are made of, kernels
// with their initrds and container disks, in a directory of this machine and
// gives the files inside them as host files.
//
// It runs no containers, unpacks no root file systems and decides nothing
// about when an image is fetched.
package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/weftnet/weft/internal/hint"
)

// ErrNotFound is wrapped by every error about an image the store does not hold.
var ErrNotFound = errors.New("no such image")

// The store on disk. Whatever index.json names is whole: blobs are written,
// synced and renamed first, then the index. tmp holds what is being written
// and is emptied by the next sweep.
//
//	DIR/lock                    held shared by whoever adds, exclusively by the sweep
//	DIR/index.lock              held while index.json is rewritten
//	DIR/layout/oci-layout       an OCI image layout (image-spec v1.1)
//	DIR/layout/index.json       one descriptor per name, annotated with it
//	DIR/layout/blobs/sha256/HEX
//	DIR/files/HEX.lock          held while a file of that image is taken out
//	DIR/files/HEX/KEY-NAME      a file of image HEX, KEY is a hash of its path there
//	DIR/tmp/
const (
	lockFile      = "lock"
	indexLockFile = "index.lock"
	layoutDir     = "layout"
	filesDir      = "files"
	tmpDir        = "tmp"
)

// refNameAnnotation carries an image's name in index.json (image-spec v1.1,
// annotations.md).
const refNameAnnotation = "org.opencontainers.image.ref.name"

// Store is the image store in one directory. Its methods may be called from
// several goroutines and processes at once.
type Store struct {
	dir string
}

// Image is one name the store knows.
type Image struct {
	// Name is the full name, registry and tag included.
	Name string
	// Digest is that of the manifest, sha256:HEX.
	Digest string
	// Size is that of config and layers as stored, in bytes.
	Size int64
	// Created is what the image says of itself; zero if it says nothing.
	Created time.Time
}

// Open makes the directory if need be and returns the store in it.
func Open(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open image store %s: %w", dir, err)
	}
	s := &Store{dir: abs}
	// 0755: QEMU runs as another user and opens the files taken out.
	for _, sub := range []string{s.blobDir(), s.path(filesDir), s.path(tmpDir)} {
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	marker := s.path(layoutDir, "oci-layout")
	if _, err := os.Stat(marker); errors.Is(err, fs.ErrNotExist) {
		if err := s.writeFile(marker, []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	return s, nil
}

// List gives every image, ordered by name.
func (s *Store) List() ([]Image, error) {
	index, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	images := make([]Image, 0, len(index.Manifests))
	var problems []error
	for _, desc := range index.Manifests {
		img, err := s.describe(desc)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		images = append(images, img)
	}
	slices.SortFunc(images, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	return images, errors.Join(problems...)
}

// Resolve finds the image ref names, by tag or by digest.
func (s *Store) Resolve(ref string) (Image, error) {
	n, err := parseName(ref)
	if err != nil {
		return Image{}, err
	}
	index, err := s.readIndex()
	if err != nil {
		return Image{}, err
	}
	i := slices.IndexFunc(index.Manifests, n.matches)
	if i < 0 {
		return Image{}, notFound(n, ref)
	}
	return s.describe(index.Manifests[i])
}

// Remove forgets the name ref and frees the blobs no other name needs. Files
// already taken out stay until Collect.
func (s *Store) Remove(ctx context.Context, ref string) error {
	n, err := parseName(ref)
	if err != nil {
		return err
	}
	found := false
	err = s.editIndex(ctx, func(index *v1.IndexManifest) {
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d v1.Descriptor) bool {
			hit := n.matches(d)
			found = found || hit
			return hit
		})
	})
	if err != nil {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	if !found {
		return notFound(n, ref)
	}
	if err := s.sweep(func(string) bool { return true }); err != nil {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	return nil
}

// notFound is the error for a name the store lacks, with what to do about it.
func notFound(n imageName, ref string) error {
	remedy := fmt.Sprintf("fetch it with: weft image pull %s, or load it from a file with: weft image load FILE", ref)
	switch {
	case n.repository == "localhost/weft/guest":
		remedy = "build and load it with: make guest, or load its archive with: weft image load FILE"
	case n.local():
		remedy = "names under localhost/ are in no registry: load it from a file with: weft image load FILE"
	}
	return &hint.Error{Value: ref, Problem: "image is not in the local store", Remedy: remedy, Err: ErrNotFound}
}

// describe reads what Image holds from the manifest and config of desc.
func (s *Store) describe(desc v1.Descriptor) (Image, error) {
	name := desc.Annotations[refNameAnnotation]
	manifest, err := s.manifest(desc.Digest)
	if err != nil {
		return Image{}, fmt.Errorf("read image %s: %w", name, err)
	}
	img := Image{Name: name, Digest: desc.Digest.String(), Size: manifest.Config.Size}
	for _, layer := range manifest.Layers {
		img.Size += layer.Size
	}
	raw, err := s.readBlob(manifest.Config.Digest)
	if err != nil {
		return Image{}, fmt.Errorf("read image %s: %w", name, err)
	}
	// Images that are no container images (artifacts) may have any config.
	var config struct {
		Created time.Time `json:"created"`
	}
	if json.Unmarshal(raw, &config) == nil {
		img.Created = config.Created
	}
	return img, nil
}

// manifest reads and checks the image manifest with digest h.
func (s *Store) manifest(h v1.Hash) (*v1.Manifest, error) {
	raw, err := s.readBlob(h)
	if err != nil {
		return nil, err
	}
	manifest := &v1.Manifest{}
	if err := json.Unmarshal(raw, manifest); err != nil {
		return nil, fmt.Errorf("parse manifest %s: %w", h, err)
	}
	return manifest, nil
}

// readIndex reads index.json; there is none in a new store.
func (s *Store) readIndex() (*v1.IndexManifest, error) {
	raw, err := os.ReadFile(s.path(layoutDir, "index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read image index: %w", err)
	}
	index := &v1.IndexManifest{}
	if err := json.Unmarshal(raw, index); err != nil {
		return nil, &hint.Error{
			Value: s.path(layoutDir, "index.json"), Problem: "image index is damaged", Err: err,
			Remedy: "delete the directory " + s.dir + " and load the images again",
		}
	}
	return index, nil
}

// editIndex changes index.json atomically.
func (s *Store) editIndex(ctx context.Context, edit func(*v1.IndexManifest)) error {
	unlock, err := lockPath(ctx, s.path(indexLockFile), exclusive)
	if err != nil {
		return err
	}
	defer unlock()
	index, err := s.readIndex()
	if err != nil {
		return err
	}
	edit(index)
	raw, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return fmt.Errorf("encode image index: %w", err)
	}
	return s.writeFile(s.path(layoutDir, "index.json"), raw)
}

// setName makes name point at the image desc, whose blobs are all there.
func (s *Store) setName(ctx context.Context, n imageName, desc v1.Descriptor) error {
	return s.editIndex(ctx, func(index *v1.IndexManifest) {
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d v1.Descriptor) bool {
			return d.Annotations[refNameAnnotation] == n.full
		})
		index.Manifests = append(index.Manifests, v1.Descriptor{
			MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size,
			Annotations: map[string]string{refNameAnnotation: n.full},
		})
	})
}

// path joins elem to the store's directory.
func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}
