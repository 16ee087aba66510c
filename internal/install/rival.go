package install

import (
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/weftnet/weft/internal/hint"
)

// ciliumSuffix is what Cilium adds to the names of all configurations but its
// own, as long as its option cni.exclusive is true, which it is by default
// (cilium, daemon/cmd/cni, "cni-exclusive").
const ciliumSuffix = ".cilium_bak"

// Rivals are told of again after remind, for events are forgotten; and are over
// when they were not seen for so long.
const (
	remind = 10 * time.Minute
	over   = time.Minute
)

// rivalry is what keeps the runtime from calling weft, as far as it was told.
type rivalry struct {
	problem    string
	seen, told time.Time
	written    bool // our file was there at an earlier look
}

// watchRivals warns when another configuration takes the node.
func (i *Installer) watchRivals(now time.Time) {
	err := i.rival()
	r := &i.rivalry
	switch {
	case err == nil && r.problem != "" && now.Sub(r.seen) >= over:
		i.Log.Info("the runtime calls weft again")
		r.problem = ""
	case err == nil:
	case err.Error() != r.problem:
		i.Log.Warn("the runtime does not call weft", "problem", err)
		r.problem, r.told = err.Error(), time.Time{}
		fallthrough
	default:
		if r.seen = now; now.Sub(r.told) >= remind {
			r.told = now
			if i.Rival != nil {
				i.Rival(r.problem)
			}
		}
	}
	_, statErr := os.Lstat(filepath.Join(i.ConfDir, ConfigFile))
	r.written = r.written || statErr == nil
}

// rival says who takes the node, if somebody does.
func (i *Installer) rival() error {
	ours := filepath.Join(i.ConfDir, ConfigFile)
	if _, err := os.Lstat(ours); os.IsNotExist(err) && i.rivalry.written {
		if _, err := os.Lstat(ours + ciliumSuffix); err == nil {
			return &hint.Error{
				Field: "CNI configuration", Value: ours, Problem: "Cilium renames it to " + ConfigFile + ciliumSuffix + ", since it wants to be the only network",
				Remedy: "set cni.exclusive=false in Cilium's Helm values (cni-exclusive in its ConfigMap)",
			}
		}
	}
	names, err := configs(i.ConfDir)
	if err != nil || len(names) == 0 || names[0] > ConfigFile { // by name
		return nil //nolint:nilerr // the look for the primary tells of a directory that cannot be read
	}
	for _, name := range names {
		kind, ok := pluginOf(filepath.Join(i.ConfDir, name))
		if name > ConfigFile || !ok {
			continue // runtimes pass over what is no configuration
		}
		remedy := "rename it so that it comes later, such as 10-" + name + "; weft follows it as the primary network"
		if kind == "multus" || kind == "multus-shim" {
			remedy = "delete Multus' DaemonSet, then this file on each node; weft takes that place"
		}
		return &hint.Error{
			Field: "CNI configuration", Value: filepath.Join(i.ConfDir, name), Problem: "comes before " + ConfigFile + " by name, so the runtime takes it", Remedy: remedy,
		}
	}
	return nil
}

// pluginOf gives the first plugin of a configuration.
func pluginOf(path string) (string, bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", false
	}
	var conf struct {
		Type    string `json:"type"`
		Plugins []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if json.Unmarshal(text, &conf) != nil {
		return "", false
	}
	if conf.Type == "" && len(conf.Plugins) > 0 {
		conf.Type = conf.Plugins[0].Type
	}
	return conf.Type, conf.Type != ""
}
