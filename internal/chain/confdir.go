package chain

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/linux"
)

// configFile finds the config of a network by its name among the files of a
// directory, lists first (de-facto standard, section 3.4.1). Files that are not
// to be used are passed over, and named if there is no other.
func (e *Engine) configFile(dir, name string) (string, error) {
	entries, err := os.ReadDir(linux.Under(e.HostRoot, dir)) // sorted by name
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read directory of network configurations: %w", err)
	}
	var passedOver []string
	for _, endings := range [][]string{{".conflist"}, {".conf", ".json"}} {
		for _, entry := range entries {
			if !slices.Contains(endings, filepath.Ext(entry.Name())) {
				continue
			}
			text, err := os.ReadFile(linux.Under(e.HostRoot, filepath.Join(dir, entry.Name())))
			var conf struct{ Name string }
			if err == nil {
				err = json.Unmarshal(text, &conf)
			}
			if err != nil {
				passedOver = append(passedOver, fmt.Sprintf("%s (%v)", entry.Name(), err))
				continue
			}
			if conf.Name == name {
				return string(text), nil
			}
		}
	}
	h := &hint.Error{
		Field: "spec.config", Problem: fmt.Sprintf("is empty, and no file in %s has the name %q", dir, name),
		Remedy: "write a CNI configuration, such as {\"cniVersion\":\"1.0.0\",\"type\":\"bridge\",...}",
	}
	if len(passedOver) > 0 {
		h.Remedy = "correct " + some(passedOver) + ", or " + h.Remedy
	}
	return "", h
}
