package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
)

// Names of entries that take away what lower layers hold (image-spec v1.1,
// layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	opaqueWhiteout = ".wh..wh..opq"
)

// maxLinks bounds the symbolic links followed for one path, as Linux does
// (MAXSYMLINKS, include/linux/namei.h).
const maxLinks = 40

// node is a file, directory or link of an image's root file system, as the
// layers together make it. Nothing of it is on disk.
type node struct {
	// children is non-nil for directories alone.
	children map[string]*node
	// link is the target of a symbolic link.
	link string
	// regular says that it is a file, found in a layer as its entry number entry.
	regular      bool
	layer, entry int
	size         int64
}

func newDir() *node { return &node{children: map[string]*node{}} }

// readTree lists the layers of an image, lowest first, and lays them over
// each other.
func (s *Store) readTree(ctx context.Context, layers []v1.Descriptor) (*node, error) {
	root := newDir()
	for i, desc := range layers {
		if err := s.lay(ctx, root, i, desc); err != nil {
			return nil, fmt.Errorf("read layer %s: %w", desc.Digest, err)
		}
	}
	return root, nil
}

// lay puts one layer over the tree of those below.
func (s *Store) lay(ctx context.Context, root *node, number int, desc v1.Descriptor) error {
	var headers []*tar.Header
	err := s.eachLayerEntry(ctx, desc, func(_ int, header *tar.Header, _ io.Reader) error {
		headers = append(headers, header)
		return nil
	})
	if err != nil {
		return err
	}
	root.overlay(headers, number)
	return nil
}

// overlay puts the entries of layer number over those below.
func (n *node) overlay(headers []*tar.Header, number int) {
	// A whiteout hides what is below its layer, wherever in the layer it stands.
	for _, header := range headers {
		n.hide(split(header.Name))
	}
	for entry, header := range headers {
		n.place(header, number, entry)
	}
}

// eachLayerEntry calls visit for each entry of a layer and then reads on to
// the layer's end, so that its digest is known to be right on success.
func (s *Store) eachLayerEntry(ctx context.Context, desc v1.Descriptor, visit func(int, *tar.Header, io.Reader) error) error {
	layer, err := partial.CompressedToLayer(layerBlob{s, desc})
	if err != nil {
		return err
	}
	content, err := layer.Uncompressed()
	if err != nil {
		return err
	}
	defer content.Close() // only read
	src := &contextReader{ctx, content}
	entries := tar.NewReader(src)
	for number := 0; ; number++ {
		header, err := entries.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = visit(number, header, entries)
		}
		if err != nil {
			return corruptIs(desc.Digest, err)
		}
	}
	_, err = io.Copy(io.Discard, src)
	return corruptIs(desc.Digest, err)
}

// corruptIs adds the remedy if err says that a blob is damaged.
func corruptIs(h v1.Hash, err error) error {
	if errors.Is(err, ErrCorrupt) {
		return damaged(h, err)
	}
	return err
}

// split gives the parts of a path; it cannot lead above the image's root.
func split(name string) []string {
	clean := strings.Trim(path.Clean("/"+name), "/")
	if clean == "" {
		return nil
	}
	return strings.Split(clean, "/")
}

// hide applies the entry at parts if it is a whiteout.
func (n *node) hide(parts []string) {
	if len(parts) == 0 {
		return
	}
	base := parts[len(parts)-1]
	name, ok := strings.CutPrefix(base, whiteoutPrefix)
	if !ok {
		return
	}
	dir := n
	for _, part := range parts[:len(parts)-1] {
		dir = dir.children[part]
		if dir == nil {
			return
		}
	}
	if base == opaqueWhiteout {
		clear(dir.children)
		return
	}
	delete(dir.children, name)
}

// place puts the entry of a layer into the tree.
func (n *node) place(header *tar.Header, layer, entry int) {
	parts := split(header.Name)
	if len(parts) == 0 {
		return
	}
	base := parts[len(parts)-1]
	if strings.HasPrefix(base, whiteoutPrefix) {
		return
	}
	dir := n
	for _, part := range parts[:len(parts)-1] {
		next := dir.children[part]
		if next == nil || next.children == nil {
			next = newDir() // a directory takes the place of anything else
			dir.children[part] = next
		}
		dir = next
	}
	switch header.Typeflag {
	case tar.TypeDir:
		if have := dir.children[base]; have == nil || have.children == nil {
			dir.children[base] = newDir()
		}
	case tar.TypeReg, tar.TypeGNUSparse:
		dir.children[base] = &node{regular: true, layer: layer, entry: entry, size: header.Size}
	case tar.TypeSymlink:
		dir.children[base] = &node{link: header.Linkname}
	case tar.TypeLink:
		// A second name of a file that stands before it.
		if target := n.at(split(header.Linkname)); target != nil && target.regular {
			dir.children[base] = target
		}
	default:
		dir.children[base] = &node{} // devices and the like are no files for us
	}
}

// at finds a node without following links.
func (n *node) at(parts []string) *node {
	for _, part := range parts {
		n = n.children[part]
		if n == nil {
			return nil
		}
	}
	return n
}

// find finds a node, following symbolic links inside the image.
func (n *node) find(name string) (*node, error) {
	todo := split(name)
	var done []string
	for links := 0; len(todo) > 0; {
		next := n.at(append(slices.Clone(done), todo[0]))
		if next == nil {
			return nil, fs.ErrNotExist
		}
		if next.link == "" {
			done, todo = append(done, todo[0]), todo[1:]
			continue
		}
		if links++; links > maxLinks {
			return nil, errors.New("too many symbolic links")
		}
		target := next.link
		if !path.IsAbs(target) {
			target = "/" + path.Join(append(slices.Clone(done), target)...)
		}
		// The target may lead through links again: start over.
		done, todo = nil, append(split(target), todo[1:]...)
	}
	return n.at(done), nil
}

// files gives the names of the regular files in a directory.
func (n *node) files() []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(n.children)) {
		if n.children[name].regular {
			names = append(names, name)
		}
	}
	return names
}
