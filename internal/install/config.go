package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/weftnet/weft/internal/hint"
)

// settings are keys that somebody wants in our configuration. They may stand in
// a configuration or a list written for Multus, or in its daemon's file.
type settings struct {
	// keys go into the configuration as they are.
	keys map[string]json.RawMessage

	name, cniVersion, clusterNetwork string
	delegates                        bool
	// master is the primary's file, primaryName says that its name becomes ours
	// (multusMasterCNI and overrideNetworkName in Multus).
	master       string
	primaryName  bool
	capabilities map[string]bool
}

// notOurs are keys that the installer answers itself, or that tell Multus where
// its own files are.
var notOurs = []string{
	"type", "plugins", "name", "cniVersion", "capabilities", "prevResult", "runtimeConfig", "multusMasterCNI", "overrideNetworkName", "forceCNIVersion",
	"multusConfigFile", "multusAutoconfigDir", "cniConfigDir", "chrootDir", "socketDir", "daemonSocketDir", "metricsPort", "enablePprof", "perNodeCertificate",
}

// readSettings reads a file; there may be none.
func readSettings(path string) (settings, error) {
	if path == "" {
		return settings{}, nil
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(bytes.TrimSpace(text)) == 0 {
		return settings{}, nil
	}
	s, decodeErr := parseSettings(text)
	if err := errors.Join(err, decodeErr); err != nil {
		return settings{}, &hint.Error{Field: "settings", Value: path, Problem: "cannot be used", Err: err, Remedy: "write a JSON object with keys as docs/cni.md has them"}
	}
	return s, nil
}

func parseSettings(text []byte) (settings, error) {
	var s settings
	if err := json.Unmarshal(text, &s.keys); err != nil {
		return s, err
	}
	var plugins []map[string]json.RawMessage
	if list, ok := s.keys["plugins"]; ok {
		if err := json.Unmarshal(list, &plugins); err != nil {
			return s, fmt.Errorf("plugins: %w", err)
		}
		if len(plugins) != 1 {
			return s, fmt.Errorf("plugins has %d elements; a list made for Multus has one", len(plugins))
		}
		for key, value := range plugins[0] {
			s.keys[key] = value
		}
	}
	var delegates []json.RawMessage
	var errs []error
	for key, to := range map[string]any{
		"name": &s.name, "cniVersion": &s.cniVersion, "clusterNetwork": &s.clusterNetwork, "multusMasterCNI": &s.master,
		"overrideNetworkName": &s.primaryName, "capabilities": &s.capabilities, "delegates": &delegates,
	} {
		if value, ok := s.keys[key]; ok {
			if err := json.Unmarshal(value, to); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", key, err))
			}
		}
	}
	s.delegates = len(delegates) > 0
	for _, key := range notOurs {
		delete(s.keys, key)
	}
	return s, errors.Join(errs...)
}

// annotations is the capability by which a runtime passes a Pod's annotations
// (containerd, internal/cri/server/sandbox_run.go; cri-o does the same).
const annotations = "io.kubernetes.cri.pod-annotations"

// spoken are the versions of CNI that weft-cni answers in.
var spoken = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// config gives our file for a primary network.
func (s settings) config(network primary) (string, error) {
	capabilities := map[string]bool{annotations: true}
	for _, capability := range network.capabilities {
		capabilities[capability] = true
	}
	for capability, has := range s.capabilities {
		capabilities[capability] = has
	}
	plugin := map[string]any{}
	for key, value := range s.keys {
		plugin[key] = value
	}
	plugin["type"], plugin["capabilities"] = Programs[0], capabilities
	if network.path != "" {
		plugin["clusterNetwork"] = network.path
	}
	// The runtime speaks the version of a file it has read before.
	version := network.cniVersion
	if s.cniVersion != "" {
		version = s.cniVersion
	}
	if !slices.Contains(spoken, version) {
		version = "1.0.0"
	}
	name := "weft"
	switch {
	case s.primaryName && network.name != "":
		name = network.name
	case s.name != "":
		name = s.name
	}
	text, err := json.MarshalIndent(map[string]any{"cniVersion": version, "name": name, "plugins": []any{plugin}}, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode the CNI configuration: %w", err)
	}
	return string(text) + "\n", nil
}

// Config gives the plugin's configuration in our installed file as the runtime
// passes it on (CNI specification 1.1, section 3, "Deriving execution
// configuration").
func Config(dir string) ([]byte, error) {
	path := filepath.Join(dir, ConfigFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("weft is not installed: %w", err)
	}
	var list struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("decode %s: %w", path, err)
	}
	if len(list.Plugins) != 1 {
		return nil, fmt.Errorf("%s has %d plugins, weft writes one", path, len(list.Plugins))
	}
	plugin := list.Plugins[0]
	plugin["cniVersion"], plugin["name"] = list.CNIVersion, list.Name
	return json.Marshal(plugin)
}
