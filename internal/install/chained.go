package install

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

// Chained adds to the CNI configuration list of a file the plugins that others put
// into the directory of its name beside it, as runtimes do (libcni 1.3,
// LoadNetworkConf). root is where the node's files are, empty for /.
func Chained(root, path string, text []byte) ([]byte, error) {
	var list struct {
		Name                   string            `json:"name"`
		LoadOnlyInlinedPlugins bool              `json:"loadOnlyInlinedPlugins"`
		Plugins                []json.RawMessage `json:"plugins"`
	}
	if filepath.Ext(path) != ".conflist" || json.Unmarshal(text, &list) != nil || list.LoadOnlyInlinedPlugins || strings.HasPrefix(list.Name, ".") || list.Name != filepath.Base(list.Name) {
		return text, nil // what is wrong with it is told where it is used
	}
	dir := filepath.Join(filepath.Dir(path), list.Name)
	entries, err := os.ReadDir(linux.Under(root, dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read directory of chained plugins: %w", err)
	}
	inlined := len(list.Plugins)
	for _, entry := range entries {
		if filepath.Ext(entry.Name()) != ".conf" {
			continue
		}
		file := filepath.Join(dir, entry.Name())
		plugin, err := os.ReadFile(linux.Under(root, file))
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
