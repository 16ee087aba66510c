package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/weftnet/weft/internal/hint"
)

// ErrCorrupt is wrapped by errors about content that is not what its digest says.
var ErrCorrupt = errors.New("content does not match its digest")

// maxDocument bounds manifests and configs, in bytes: the distribution spec
// asks registries for 4 MiB.
const maxDocument = 4 << 20

func (s *Store) blobDir() string { return s.path(layoutDir, "blobs", "sha256") }

func (s *Store) blobPath(h v1.Hash) string { return filepath.Join(s.blobDir(), h.Hex) }

// checkHash refuses digests that are not sha256, so that a digest read from a
// document can be part of a path.
func checkHash(h v1.Hash) error {
	raw, err := hex.DecodeString(h.Hex)
	if h.Algorithm != "sha256" || err != nil || len(raw) != sha256.Size {
		return fmt.Errorf("digest %s: only sha256 is supported", h)
	}
	return nil
}

// writeBlob stores what open reads under digest h, or fails leaving nothing.
// A blob that is there already and whole is kept.
func (s *Store) writeBlob(ctx context.Context, h v1.Hash, open func() (io.ReadCloser, error)) error {
	if err := checkHash(h); err != nil {
		return err
	}
	if s.verifyBlob(ctx, h) == nil {
		return nil
	}
	src, err := open()
	if err != nil {
		return fmt.Errorf("open blob %s: %w", h, err)
	}
	defer src.Close() // reading ended or failed before; nothing to lose
	tmp, err := os.CreateTemp(s.path(tmpDir), "blob-")
	if err != nil {
		return fmt.Errorf("write blob %s: %w", h, err)
	}
	defer os.Remove(tmp.Name()) // gone already after the rename
	verified := newVerifier(&contextReader{ctx, src}, h)
	_, err = io.Copy(tmp, verified)
	if err := commit(tmp, err, s.blobPath(h)); err != nil {
		return fmt.Errorf("write blob %s: %w", h, err)
	}
	return nil
}

// writeBytes stores raw and returns its descriptor.
func (s *Store) writeBytes(ctx context.Context, raw []byte, mediaType types.MediaType) (v1.Descriptor, error) {
	h, size, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("hash document: %w", err)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }
	if err := s.writeBlob(ctx, h, open); err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{MediaType: mediaType, Digest: h, Size: size}, nil
}

// verifyBlob says whether blob h is there and whole.
func (s *Store) verifyBlob(ctx context.Context, h v1.Hash) error {
	f, err := s.openBlob(h)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	_, err = io.Copy(io.Discard, &contextReader{ctx, f})
	return err
}

// readBlob reads a document.
func (s *Store) readBlob(h v1.Hash) ([]byte, error) {
	f, err := s.openBlob(h)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	raw, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", h, err)
	}
	if len(raw) > maxDocument {
		return nil, fmt.Errorf("read blob %s: longer than %d bytes", h, maxDocument)
	}
	return raw, nil
}

// openBlob opens blob h; the reader fails at its end if the content is not
// what the digest says.
func (s *Store) openBlob(h v1.Hash) (io.ReadCloser, error) {
	if err := checkHash(h); err != nil {
		return nil, err
	}
	f, err := os.Open(s.blobPath(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damaged(h, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", h, err)
	}
	return &verifier{src: f, closer: f, want: h, sum: sha256.New()}, nil
}

// damaged is the error for a blob that an image of the store needs and that
// is missing or broken.
func damaged(h v1.Hash, cause error) error {
	return &hint.Error{
		Value: h.String(), Problem: "part of an image is missing or damaged", Err: cause,
		Remedy: "load or pull the image again",
	}
}

// layerBlob is a stored layer in the form the library decompresses.
type layerBlob struct {
	store *Store
	desc  v1.Descriptor
}

// Digest, Compressed, Size and MediaType make it a partial.CompressedLayer.
func (l layerBlob) Digest() (v1.Hash, error) { return l.desc.Digest, nil }

func (l layerBlob) Compressed() (io.ReadCloser, error) { return l.store.openBlob(l.desc.Digest) }

func (l layerBlob) Size() (int64, error) { return l.desc.Size, nil }

func (l layerBlob) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }

// verifier passes a stream through and fails instead of ending if the stream
// is not what the digest says.
type verifier struct {
	src    io.Reader
	closer io.Closer
	want   v1.Hash
	sum    hash.Hash
}

func newVerifier(src io.Reader, want v1.Hash) *verifier {
	return &verifier{src: src, want: want, sum: sha256.New()}
}

// Read implements io.Reader.
func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.src.Read(p)
	v.sum.Write(p[:n]) // a hash never fails
	if errors.Is(err, io.EOF) {
		if got := hex.EncodeToString(v.sum.Sum(nil)); got != v.want.Hex {
			return n, fmt.Errorf("digest is sha256:%s, want %s: %w", got, v.want, ErrCorrupt)
		}
	}
	return n, err
}

// Close implements io.Closer.
func (v *verifier) Close() error {
	if v.closer == nil {
		return nil
	}
	return v.closer.Close()
}

// contextReader ends a long copy when its context does.
type contextReader struct {
	ctx context.Context
	src io.Reader
}

// Read implements io.Reader.
func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.src.Read(p)
}

// writeFile replaces the file at path by raw, whole or not at all.
func (s *Store) writeFile(path string, raw []byte) error {
	tmp, err := os.CreateTemp(s.path(tmpDir), "file-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // gone already after the rename
	_, err = tmp.Write(raw)
	return commit(tmp, err, path)
}

// commit ends the writing of tmp, whose last error is given, and puts it at
// path so that it survives a power cut.
func commit(tmp *os.File, err error, path string) error {
	if err == nil {
		err = tmp.Chmod(0o444)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a rename in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() // only read
	return d.Sync()
}
