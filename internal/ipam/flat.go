package ipam

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/weftnet/weft/internal/hint"
)

// flatFiles are where whereabouts looks for defaults of every network: one file
// with an ipam object. The first that exists is the only one that counts.
var flatFiles = []string{
	"/etc/kubernetes/cni/net.d/whereabouts.d/whereabouts.conf",
	"/etc/cni/net.d/whereabouts.d/whereabouts.conf",
	"/host/etc/cni/net.d/whereabouts.d/whereabouts.conf",
}

// FlatFiles lists the files that may hold defaults for the ipam object of a CNI
// plugin config, the most important first; none unless it is of type
// whereabouts.
func FlatFiles(conf []byte) []string {
	var doc struct {
		IPAM struct {
			Type              string `json:"type"`
			ConfigurationPath string `json:"configuration_path"`
		} `json:"ipam"`
	}
	// What is wrong with the config, Parse says.
	if err := json.Unmarshal(conf, &doc); err != nil || doc.IPAM.Type != TypeWhereabouts {
		return nil
	}
	if doc.IPAM.ConfigurationPath == "" {
		return slices.Clone(flatFiles)
	}
	return append([]string{doc.IPAM.ConfigurationPath}, flatFiles...)
}

// MergeFlat fills the keys that the ipam object of a CNI plugin config leaves
// empty from the flat file at path. Keys without effect here are left out, so
// that the usual file, which says where the API is, changes nothing; then conf
// itself comes back. As in whereabouts, enable_overlapping_ranges counts in the
// network's own config only.
func MergeFlat(conf []byte, path string, flat []byte) ([]byte, error) {
	var defaults map[string]json.RawMessage
	if err := json.Unmarshal(flat, &defaults); err != nil {
		// The file may be any on this machine: its text is not shown.
		return nil, &hint.Error{
			Field: "ipam.configuration_path", Value: path, Problem: "the file holds no JSON object",
			Remedy: `write an ipam object there, such as {"range": "10.1.2.0/24"}, or remove the file`,
		}
	}
	var doc, ipam map[string]json.RawMessage
	if err := json.Unmarshal(conf, &doc); err != nil {
		return nil, hint.JSON("", err)
	}
	raw, _ := find(doc, "ipam")
	if err := json.Unmarshal(raw, &ipam); err != nil {
		return nil, hint.JSON("ipam", err)
	}
	changed := false
	for _, key := range whereaboutsKeys {
		value, given := find(defaults, key)
		if !given || isEmpty(value) || key == "type" || key == "enable_overlapping_ranges" || slices.Contains(whereaboutsIgnored, key) {
			continue
		}
		own, has := find(ipam, key)
		merged := fill(own, value)
		if has && bytes.Equal(merged, own) {
			continue
		}
		for name := range ipam {
			if strings.EqualFold(name, key) {
				delete(ipam, name)
			}
		}
		ipam[key], changed = merged, true
	}
	if !changed {
		return conf, nil
	}
	merged, err := json.Marshal(ipam)
	if err != nil {
		return nil, fmt.Errorf("encode ipam: %w", err)
	}
	for name := range doc {
		if strings.EqualFold(name, "ipam") {
			delete(doc, name)
		}
	}
	doc["ipam"] = merged
	out, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode plugin config: %w", err)
	}
	return out, nil
}

// fill gives own, or value if own is empty; objects are filled key by key.
func fill(own, value json.RawMessage) json.RawMessage {
	if isEmpty(own) {
		return value
	}
	var mine, theirs map[string]json.RawMessage
	if json.Unmarshal(own, &mine) != nil || json.Unmarshal(value, &theirs) != nil {
		return own // not both objects: what is there stays
	}
	changed := false
	for key, def := range theirs {
		has, _ := find(mine, key)
		if isEmpty(has) && !isEmpty(def) {
			mine[key], changed = def, true
		}
	}
	if !changed {
		return own
	}
	out, err := json.Marshal(mine)
	if err != nil {
		return own // unreachable: it has just been decoded
	}
	return out
}

// isEmpty says that a value is not there, or is its type's zero.
func isEmpty(raw json.RawMessage) bool {
	switch string(bytes.TrimSpace(raw)) {
	case "", "null", `""`, "0", "false", "[]", "{}":
		return true
	}
	return false
}
