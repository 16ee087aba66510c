package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/weftnet/weft/internal/hint"
)

// File is a file of an image as a file of this machine. It is for reading
// only: every machine made of the image shares it.
type File struct {
	Path string
	// Image is the image it came from; Collect keeps the file while a machine
	// uses Image.Digest.
	Image Image
}

// Extract gives the file name of the image ref. It is taken out once and
// found again later.
func (s *Store) Extract(ctx context.Context, ref, name string) (File, error) {
	opened, err := s.open(ctx, ref)
	if err != nil {
		return File{}, err
	}
	defer opened.unlock()
	return s.extract(ctx, opened, name)
}

// openedImage is an image protected from the sweep until unlock.
type openedImage struct {
	Image
	hash   v1.Hash
	unlock func()
}

// open finds the image ref and keeps it from being swept.
func (s *Store) open(ctx context.Context, ref string) (openedImage, error) {
	unlock, err := lockPath(ctx, s.path(lockFile), shared)
	if err != nil {
		return openedImage{}, err
	}
	img, err := s.Resolve(ref)
	if err != nil {
		unlock()
		return openedImage{}, err
	}
	h, err := v1.NewHash(img.Digest)
	if err != nil {
		unlock()
		return openedImage{}, fmt.Errorf("parse digest %s: %w", img.Digest, err)
	}
	return openedImage{img, h, unlock}, nil
}

// extract is Extract of an opened image.
func (s *Store) extract(ctx context.Context, img openedImage, name string) (File, error) {
	target := s.filePath(img.hash, name)
	out := File{Path: target, Image: img.Image}
	// One at a time per image: machines that start together share the work.
	unlock, err := lockPath(ctx, s.path(filesDir, img.hash.Hex+".lock"), exclusive)
	if err != nil {
		return File{}, err
	}
	defer unlock()
	if _, err := os.Stat(target); err == nil {
		return out, nil
	}
	manifest, err := s.manifest(img.hash)
	if err != nil {
		return File{}, err
	}
	root, err := s.readTree(ctx, manifest.Layers)
	if err != nil {
		return File{}, fmt.Errorf("read image %s: %w", img.Name, err)
	}
	found, err := root.find(name)
	if err == nil && !found.regular {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return File{}, noFile(img.Name, name, root, err)
	}
	if err := s.copyOut(ctx, manifest.Layers[found.layer], found.entry, target); err != nil {
		return File{}, fmt.Errorf("take %s out of image %s: %w", name, img.Name, err)
	}
	return out, nil
}

// noFile says which files stand where the wanted one does not.
func noFile(ref, name string, root *node, cause error) error {
	remedy := "give the path of a file that is in the image"
	dir := path.Dir(path.Clean("/" + name))
	if parent, err := root.find(dir); err == nil && len(parent.files()) > 0 {
		const shown = 8
		names := parent.files()
		if len(names) > shown {
			names = append(names[:shown:shown], "…")
		}
		remedy += "; in " + dir + " there are: " + strings.Join(names, ", ")
	}
	if errors.Is(cause, fs.ErrNotExist) {
		cause = fs.ErrNotExist
	}
	return &hint.Error{Value: name, Problem: "cannot take the file out of image " + ref, Err: cause, Remedy: remedy}
}

// filePath is where the file name of image h is put. No text of the image
// gets into the path but letters and digits.
func (s *Store) filePath(h v1.Hash, name string) string {
	clean := path.Clean("/" + name)
	key := sha256.Sum256([]byte(clean))
	base := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r) {
			return r
		}
		return '_'
	}, path.Base(clean))
	const longest = 64
	return s.path(filesDir, h.Hex, hex.EncodeToString(key[:8])+"-"+base[:min(len(base), longest)])
}

// copyOut writes one entry of a layer to target.
func (s *Store) copyOut(ctx context.Context, desc v1.Descriptor, wanted int, target string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(s.path(tmpDir), "out-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // gone already after the rename
	err = s.eachLayerEntry(ctx, desc, func(number int, _ *tar.Header, content io.Reader) error {
		if number != wanted {
			return nil
		}
		return copySparse(tmp, content)
	})
	return commit(tmp, err, target)
}

// copySparse copies src to dst, leaving holes where a whole block is zero:
// disk images are mostly that.
func copySparse(dst *os.File, src io.Reader) error {
	block := make([]byte, 64<<10)
	zero := make([]byte, len(block))
	var size int64
	for {
		n, err := io.ReadFull(src, block)
		if n > 0 && !bytes.Equal(block[:n], zero[:n]) {
			if _, err := dst.WriteAt(block[:n], size); err != nil {
				return err
			}
		}
		size += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return dst.Truncate(size)
		}
		if err != nil {
			return err
		}
	}
}
