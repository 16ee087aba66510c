package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Collect frees what nothing needs: blobs no image names, remains of broken
// writes, and the files taken out of images that no name and no machine uses.
// inUse says of an image's digest whether a machine still runs on files of it.
func (s *Store) Collect(ctx context.Context, inUse func(digest string) bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.sweep(inUse); err != nil {
		return fmt.Errorf("collect images: %w", err)
	}
	return nil
}

// sweep is Collect. If somebody is adding an image it does nothing: the next
// sweep finds the same garbage.
func (s *Store) sweep(inUse func(digest string) bool) error {
	unlock, ok, err := tryLockPath(s.path(lockFile), exclusive)
	if err != nil || !ok {
		return err
	}
	defer unlock()
	index, err := s.readIndex()
	if err != nil {
		return err // nothing is swept on a guess
	}
	blobs, images := map[string]bool{}, map[string]bool{}
	for _, desc := range index.Manifests {
		images[desc.Digest.Hex] = true
		if err := s.mark(desc.Digest, blobs); err != nil {
			return err
		}
	}
	return errors.Join(
		removeUnless(s.blobDir(), func(name string) bool { return blobs[name] }),
		removeUnless(s.path(filesDir), func(name string) bool {
			digest := strings.TrimSuffix(name, ".lock")
			return images[digest] || inUse("sha256:"+digest)
		}),
		removeUnless(s.path(tmpDir), s.freshFile),
	)
}

// freshFile spares what a writer of index.json may be at: it need not hold the
// lock.
func (s *Store) freshFile(name string) bool {
	const writing = time.Minute
	info, err := os.Stat(s.path(tmpDir, name))
	return err == nil && strings.HasPrefix(name, "file-") && time.Since(info.ModTime()) < writing
}

// mark notes every blob of the image h. One whose manifest is broken keeps
// what of it is readable: nothing.
func (s *Store) mark(h v1.Hash, blobs map[string]bool) error {
	blobs[h.Hex] = true
	raw, err := s.readBlob(h)
	if err != nil {
		return err
	}
	manifest := &v1.Manifest{}
	if err := json.Unmarshal(raw, manifest); err != nil {
		return fmt.Errorf("parse manifest %s: %w", h, err)
	}
	blobs[manifest.Config.Digest.Hex] = true
	for _, layer := range manifest.Layers {
		blobs[layer.Digest.Hex] = true
	}
	return nil
}

// removeUnless empties a directory but for the entries keep wants.
func removeUnless(dir string, keep func(name string) bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var problems []error
	for _, entry := range entries {
		if !keep(entry.Name()) {
			problems = append(problems, os.RemoveAll(filepath.Join(dir, entry.Name())))
		}
	}
	return errors.Join(problems...)
}
