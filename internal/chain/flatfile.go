package chain

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
)

// readFlatFile reads a flat file of whereabouts. A directory, which is what its
// installer writes as configuration_path, means the file in it.
func readFlatFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		path = filepath.Join(path, "whereabouts.conf")
	}
	return os.ReadFile(path)
}

// withFlatFile fills the ipam object of the first plugin from the first flat
// file there is. None is no error: unlike whereabouts we need nothing of it.
func (r *resolver) withFlatFile(conf *netattach.NetConf) (*netattach.NetConf, error) {
	if r.FlatFile == nil {
		return conf, nil
	}
	for _, path := range ipam.FlatFiles(conf.Plugins[0].Bytes) {
		text, err := r.FlatFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, &hint.Error{
				Field: "ipam.configuration_path", Value: path, Problem: "cannot be read",
				Remedy: "name a file with an ipam object, or remove the file", Err: err,
			}
		}
		merged, err := ipam.MergeFlat(conf.Plugins[0].Bytes, path, text)
		if err != nil {
			return nil, err
		}
		if string(merged) == string(conf.Plugins[0].Bytes) {
			return conf, nil
		}
		return withPlugin(conf, merged)
	}
	return conf, nil
}

// withPlugin gives a config whose first plugin is another.
func withPlugin(conf *netattach.NetConf, first []byte) (*netattach.NetConf, error) {
	plugins := []json.RawMessage{first}
	for _, p := range conf.Plugins[1:] {
		plugins = append(plugins, p.Bytes)
	}
	list, err := inject(conf.Bytes, map[string]any{"plugins": plugins})
	if err != nil {
		return nil, fmt.Errorf("put defaults into network %s: %w", conf.Name, err)
	}
	return netattach.ParseConfig(list, conf.Name)
}
