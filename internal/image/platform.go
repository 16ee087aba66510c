package image

import (
	"fmt"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/weftnet/weft/internal/hint"
)

// machinePlatform is what guests of this machine run.
func machinePlatform() v1.Platform { return v1.Platform{OS: "linux", Architecture: runtime.GOARCH} }

// imageOf opens what desc names in index: an image, or of an index of images
// the one for this machine.
func imageOf(index v1.ImageIndex, desc v1.Descriptor) (v1.Image, error) {
	if !desc.MediaType.IsIndex() {
		img, err := index.Image(desc.Digest)
		if err != nil {
			return nil, fmt.Errorf("open image %s: %w", desc.Digest, err)
		}
		return img, nil
	}
	nested, err := index.ImageIndex(desc.Digest)
	if err != nil {
		return nil, fmt.Errorf("open image index %s: %w", desc.Digest, err)
	}
	return pickPlatform(nested)
}

// pickPlatform takes the image for this machine out of an index; an only image
// that names no platform fits.
func pickPlatform(index v1.ImageIndex) (v1.Image, error) {
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("read image index: %w", err)
	}
	want := machinePlatform()
	var others []string
	for _, desc := range manifest.Manifests {
		if err := checkHash(desc.Digest); err != nil {
			return nil, err
		}
		fits := desc.Platform == nil && len(manifest.Manifests) == 1
		if desc.Platform != nil {
			fits = desc.Platform.Satisfies(want)
			others = append(others, desc.Platform.String())
		}
		// An index may nest further; one level is all that tools write.
		if fits && desc.MediaType.IsImage() {
			return index.Image(desc.Digest)
		}
	}
	return nil, &hint.Error{
		Value: want.String(), Problem: "image is for other platforms: " + strings.Join(others, ", "),
		Remedy: "use an image built for " + want.String(),
	}
}
