package cniserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/weftnet/weft/internal/hint"
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
	return f.chained(path, text)
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

// chained adds to a list the plugins that others put into the directory of its
// name beside it, as runtimes do (libcni 1.3, LoadNetworkConf).
func (f files) chained(path string, text []byte) ([]byte, error) {
	var list struct {
		Name                   string            `json:"name"`
		LoadOnlyInlinedPlugins bool              `json:"loadOnlyInlinedPlugins"`
		Plugins                []json.RawMessage `json:"plugins"`
	}
	if filepath.Ext(path) != ".conflist" || json.Unmarshal(text, &list) != nil || list.LoadOnlyInlinedPlugins || strings.HasPrefix(list.Name, ".") || list.Name != filepath.Base(list.Name) {
		return text, nil // what is wrong with it is told where it is used
	}
	dir := filepath.Join(filepath.Dir(path), list.Name)
	entries, err := os.ReadDir(linux.Under(f.root, dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read directory of chained plugins: %w", err)
	}
	inlined := len(list.Plugins)
	for _, entry := range entries {
		if filepath.Ext(entry.Name()) != ".conf" {
			continue
		}
		file := filepath.Join(dir, entry.Name())
		plugin, err := os.ReadFile(linux.Under(f.root, file))
		if err == nil && !json.Valid(plugin) {
			err = errors.New("it is no JSON document")
		}
		if err != nil {
			return nil, &hint.Error{Value: file, Problem: "cannot be chained to network " + list.Name, Err: err, Remedy: "correct the file, or remove it"}
		}
		list.Plugins = append(list.Plugins, plugin)
	}
	if len(list.Plugins) == inlined {
		return text, nil
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(text, &fields); err != nil {
		return nil, fmt.Errorf("decode %s: %w", path, err)
	}
	if fields["plugins"], err = json.Marshal(list.Plugins); err != nil {
		return nil, fmt.Errorf("encode plugins of %s: %w", path, err)
	}
	return json.Marshal(fields)
}
