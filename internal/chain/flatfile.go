package chain

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
)

// maxNamedFile bounds what is read of a file that a network's config names, in
// bytes: any author of a network writes such a name.
const maxNamedFile = 1 << 20

// readNamedFile reads a file that a network's config names.
func readNamedFile(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe would have us wait for its writer
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxNamedFile {
		return nil, fmt.Errorf("%s is no file of at most %d bytes", path, maxNamedFile)
	}
	return io.ReadAll(io.LimitReader(file, maxNamedFile))
}

// readFlatFile reads a flat file of whereabouts. A directory, which is what its
// installer writes as configuration_path, means the file in it.
func readFlatFile(path string) ([]byte, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, "whereabouts.conf")
	}
	return readNamedFile(path)
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
