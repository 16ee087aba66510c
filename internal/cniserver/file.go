package cniserver

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/install"
	"github.com/weftnet/weft/internal/linux"
)

// files are those of the node, whose root directory this process has at root.
type files struct{ root string }

// there says whether a file is.
func (f files) there(path string) bool {
	_, err := os.Stat(linux.Under(f.root, path))
	return err == nil
}

// config reads a CNI config; of a directory the first one by name.
func (f files) config(path string) ([]byte, error) {
	info, err := os.Stat(linux.Under(f.root, path))
	if err == nil && info.IsDir() {
		if path, err = f.first(path); err != nil {
			return nil, err
		}
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(linux.Under(f.root, path))
	}
	if err != nil {
		return nil, &hint.Error{Value: path, Problem: "cannot be read", Err: err, Remedy: "install the primary network plugin, or name another file"}
	}
	return install.Chained(f.root, path, text)
}

// first names the first config of a directory.
func (f files) first(dir string) (string, error) {
	entries, err := os.ReadDir(linux.Under(f.root, dir)) // sorted by name
	if err != nil {
		return "", fmt.Errorf("read directory of CNI configurations: %w", err)
	}
	for _, entry := range entries {
		switch filepath.Ext(entry.Name()) {
		case ".conf", ".conflist", ".json":
			return filepath.Join(dir, entry.Name()), nil
		}
	}
	return "", &hint.Error{Value: dir, Problem: "has no file *.conf, *.conflist or *.json", Remedy: "install the primary network plugin there"}
}
