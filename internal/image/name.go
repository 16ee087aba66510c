package image

import (
	"errors"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/weftnet/weft/internal/hint"
)

// imageName is an image reference in its full form.
type imageName struct {
	// full is registry/repository:tag, or registry/repository@digest.
	full string
	// repository is full without tag and digest.
	repository string
	// digest is sha256:HEX if the reference fixes one.
	digest string
	ref    name.Reference
}

// parseName reads a reference and gives its full form, as docker does: the tag is
// latest if there is none, the registry docker.io if the first part is no host.
func parseName(ref string) (imageName, error) {
	parsed, err := name.ParseReference(ref)
	// The library takes ".." for a host.
	if err == nil && strings.HasPrefix(parsed.Context().RegistryStr(), ".") {
		err = errors.New("host begins with a dot")
	}
	if err != nil {
		return imageName{}, &hint.Error{
			Value: ref, Problem: "not an image name", Err: err,
			Remedy: "write [HOST[:PORT]/]PATH[:TAG], lower case, such as localhost/weft/guest:latest",
		}
	}
	// The library calls docker.io by the host that serves it.
	repository := parsed.Context().Name()
	if rest, ok := strings.CutPrefix(repository, name.DefaultRegistry+"/"); ok {
		repository = "docker.io/" + rest
	}
	n := imageName{repository: repository, ref: parsed}
	if _, ok := parsed.(name.Digest); ok {
		n.digest = parsed.Identifier()
		n.full = repository + "@" + n.digest
		return n, nil
	}
	n.full = repository + ":" + parsed.Identifier()
	return n, nil
}

// local says that no registry is behind the name: podman's convention for
// images that were built here.
func (n imageName) local() bool { return strings.HasPrefix(n.repository, "localhost/") }

// matches says whether the descriptor of index.json is the image n names: its
// name is the same, or n fixes a digest of that repository and it is this one.
func (n imageName) matches(d v1.Descriptor) bool {
	have := d.Annotations[refNameAnnotation]
	if have == n.full {
		return true
	}
	if n.digest == "" || d.Digest.String() != n.digest {
		return false
	}
	return strings.HasPrefix(have, n.repository+":") || strings.HasPrefix(have, n.repository+"@")
}

// parseTag is parseName for a name that is to be given: it has a tag, no digest.
func parseTag(ref string) (imageName, error) {
	n, err := parseName(ref)
	if err != nil {
		return n, err
	}
	if n.digest != "" {
		return n, &hint.Error{
			Value: ref, Problem: "an image cannot be named by digest",
			Remedy: "give it a tag: " + n.repository + ":latest",
		}
	}
	return n, nil
}
