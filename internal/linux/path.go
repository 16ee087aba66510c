package linux

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxLinks is how many symbolic links the kernel follows (MAXSYMLINKS,
// include/linux/namei.h).
const maxLinks = 40

// Under gives the place of a file of a machine whose root directory this process
// has at root; empty: its own. Symbolic links on the way lead where they lead on
// that machine, as /var/run does to /run.
func Under(root, path string) string {
	if root == "" {
		return path
	}
	place, rest := "/", strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		if part == ".." || part == "." || part == "" {
			place = filepath.Join(place, part) // the root's .. is the root
			continue
		}
		next := filepath.Join(place, part)
		target, err := os.Readlink(filepath.Join(root, next))
		if err != nil || links == maxLinks {
			place = next // no link, or not there
			continue
		}
		links++
		if filepath.IsAbs(target) {
			place = "/"
		}
		rest = slices.Concat(strings.Split(target, "/"), rest)
	}
	return filepath.Join(root, place)
}
