package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/weftnet/weft/internal/hint"
)

// Pull fetches the image ref from its registry and stores it under that name.
// Credentials are those docker or podman login left.
func (s *Store) Pull(ctx context.Context, ref string) (Image, error) {
	n, err := parseName(ref)
	if err != nil {
		return Image{}, err
	}
	if n.local() {
		return Image{}, notFound(n, ref)
	}
	unlock, err := lockPath(ctx, s.path(lockFile), shared)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	remoteImage, err := fetch(ctx, n)
	if err != nil {
		return Image{}, pullError(ctx, ref, err)
	}
	img, err := s.add(ctx, n, remoteImage)
	if err != nil {
		return Image{}, pullError(ctx, ref, err)
	}
	return img, nil
}

// fetch opens an image of a registry, the one for this machine.
func fetch(ctx context.Context, n imageName) (v1.Image, error) {
	desc, err := remote.Get(n.ref, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain))
	if err != nil {
		return nil, err
	}
	if !desc.MediaType.IsIndex() {
		return desc.Image()
	}
	index, err := desc.ImageIndex()
	if err != nil {
		return nil, err
	}
	return pickPlatform(index)
}

// pullError adds the remedy, unless the cause has its own.
func pullError(ctx context.Context, ref string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("pull image %s: %w", ref, errors.Join(ctx.Err(), err))
	}
	if _, ok := errors.AsType[*hint.Error](err); ok {
		return fmt.Errorf("pull image %s: %w", ref, err)
	}
	return &hint.Error{
		Value: ref, Problem: "cannot pull image", Err: err,
		Remedy: "check the name and that the registry answers (podman login, if it asks for credentials), " +
			"or load the image from a file with: weft image load FILE",
	}
}
