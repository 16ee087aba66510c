package netattach

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/weftnet/weft/internal/hint"
)

// NetworkAttachmentDefinition is what weft uses of the object of that kind.
type NetworkAttachmentDefinition struct {
	Name, Namespace string
	Annotations     map[string]string
	// Config is spec.config: the CNI configuration as text.
	Config string
}

// FullName gives namespace/name.
func (n *NetworkAttachmentDefinition) FullName() string { return n.Namespace + "/" + n.Name }

// ResourceName is the device plugin resource of its attachments; empty: none.
func (n *NetworkAttachmentDefinition) ResourceName() string {
	return n.Annotations[ResourceNameAnnotation]
}

// FromObject reads a NetworkAttachmentDefinition from a decoded document. It
// checks the types of the fields; whether the config can be used is ParseConfig's.
func FromObject(obj map[string]any) (*NetworkAttachmentDefinition, error) {
	raw, err := json.Marshal(obj)
	if err != nil {
		return nil, fmt.Errorf("marshal %s: %w", Kind, err)
	}
	return FromJSON(raw)
}

// FromJSON reads a NetworkAttachmentDefinition from its JSON document.
func FromJSON(doc []byte) (*NetworkAttachmentDefinition, error) {
	var object struct {
		Metadata struct {
			Name        string            `json:"name"`
			Namespace   string            `json:"namespace"`
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
		Spec struct {
			Config json.RawMessage `json:"config"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(doc, &object); err != nil {
		if bad, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return nil, &hint.Error{Field: bad.Field, Value: bad.Value, Problem: "has the wrong type", Remedy: "write a " + bad.Type.String()}
		}
		return nil, syntax("", doc, err)
	}
	n := &NetworkAttachmentDefinition{Name: object.Metadata.Name, Namespace: object.Metadata.Namespace, Annotations: object.Metadata.Annotations}
	if len(object.Spec.Config) == 0 || isNull(object.Spec.Config) {
		return n, nil
	}
	var err error
	if n.Config, err = text("spec.config", object.Spec.Config); err != nil {
		return nil, &hint.Error{Field: "spec.config", Value: shown(string(object.Spec.Config)), Problem: "is " + jsonKind(object.Spec.Config) + " where the CNI config as one string is wanted", Remedy: "in YAML write `config: |` and the JSON below it, or `config: '{...}'`"}
	}
	return n, nil
}

// NetConf is a CNI network configuration in one form, whether it was written as
// a single plugin or as a list.
type NetConf struct {
	// Name of the network.
	Name string
	// CNIVersion as written; empty means 0.1.0 to plugins.
	CNIVersion string
	// DisableCheck: CHECK is not to be called.
	DisableCheck bool
	Plugins      []PluginConf
	// Bytes is the whole as a configuration list.
	Bytes []byte
}

// PluginConf is one plugin of a NetConf.
type PluginConf struct {
	Type string
	// Capabilities the plugin declares and that are true.
	Capabilities []string
	// IPAMType is ipam.type; empty: no ipam.
	IPAMType string
	// Bytes is the plugin's own object as written, without name and cniVersion
	// unless it was a single plugin.
	Bytes []byte
}

// Declares says whether the plugin declared capability.
func (p *PluginConf) Declares(capability string) bool {
	return slices.Contains(p.Capabilities, capability)
}

// Declares says whether any plugin of the network declared capability.
func (c *NetConf) Declares(capability string) bool {
	return slices.ContainsFunc(c.Plugins, func(p PluginConf) bool { return p.Declares(capability) })
}

// cniVersions are the versions of the CNI specification there are.
var cniVersions = []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// networkName is what libcni takes as the name of a network; it becomes part of
// file names.
var networkName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`)

// configField is where the config stands in the user's document.
const configField = "spec.config"

// ParseConfig reads the CNI configuration of the NetworkAttachmentDefinition
// nadName: a single plugin or a list. A missing name becomes nadName. Fields of
// hints start with spec.config.
func ParseConfig(config []byte, nadName string) (*NetConf, error) {
	if strings.TrimSpace(string(config)) == "" {
		return nil, &hint.Error{Field: configField, Problem: "is empty", Remedy: "write a CNI configuration, such as {\"cniVersion\":\"1.0.0\",\"type\":\"bridge\",...}"}
	}
	if err := document(configField, config); err != nil {
		return nil, err
	}
	top, err := members(configField, config)
	if err != nil {
		return nil, err
	}
	conf := &NetConf{Name: nadName}
	if err := conf.readTop(top); err != nil {
		return nil, err
	}
	single, list := find(top, "type"), find(top, "plugins")
	switch {
	case single != nil && list != nil:
		return nil, &hint.Error{Field: configField + ".plugins", Value: shownJSON(list), Problem: "stands beside type, so it is unclear whether this is one plugin or a list", Remedy: "move the plugin into the list, or remove plugins"}
	case single != nil:
		err = conf.addPlugin(configField, withName(config, top, conf.Name))
	case list != nil:
		err = conf.addPlugins(list)
	default:
		err = &hint.Error{Field: configField + ".type", Problem: "is missing, and so is plugins", Remedy: "name the CNI plugin in type, or list several in plugins"}
	}
	if err != nil {
		return nil, err
	}
	return conf, conf.render()
}

func find(list []member, key string) json.RawMessage {
	for _, m := range list {
		if m.key == key && !isNull(m.value) {
			return m.value
		}
	}
	return nil
}

func (c *NetConf) readTop(top []member) error {
	var errs []error
	if raw := find(top, "name"); raw != nil {
		name, err := text(configField+".name", raw)
		if name != "" {
			c.Name = name
		}
		errs = append(errs, err)
	}
	if !networkName.MatchString(c.Name) {
		errs = append(errs, &hint.Error{Field: configField + ".name", Value: shown(c.Name), Problem: "is no CNI network name", Remedy: "use letters, digits, '_', '.' and '-', a letter or digit first"})
	}
	var versions []string
	if raw := find(top, "cniVersion"); raw != nil {
		v, err := text(configField+".cniVersion", raw)
		errs = append(errs, err)
		if v != "" {
			versions = append(versions, v)
		}
	}
	several := false
	if raw := find(top, "cniVersions"); raw != nil {
		more, err := texts(configField+".cniVersions", raw)
		errs = append(errs, err)
		versions = append(versions, more...)
		several = len(more) > 0
	}
	best := -1
	for _, v := range versions {
		best = max(best, slices.Index(cniVersions, v))
	}
	switch {
	case best >= 0:
		c.CNIVersion = cniVersions[best]
	case len(versions) > 0 || several:
		errs = append(errs, &hint.Error{Field: configField + ".cniVersion", Value: shown(strings.Join(versions, ",")), Problem: "is no version of the CNI specification", Remedy: "write one of " + strings.Join(cniVersions, ", ")})
	}
	if raw := find(top, "disableCheck"); raw != nil {
		// The specification says boolean; libcni also takes the words as strings.
		word := strings.ToLower(strings.Trim(strings.TrimSpace(string(raw)), `"`))
		if word != "true" && word != "false" {
			errs = append(errs, &hint.Error{Field: configField + ".disableCheck", Value: shownJSON(raw), Problem: "is no boolean", Remedy: "write true or false"})
		}
		c.DisableCheck = word == "true"
	}
	return errors.Join(errs...)
}

// withName gives the single plugin's config with name in it if it had none.
func withName(config []byte, top []member, name string) []byte {
	if raw := find(top, "name"); raw != nil && string(raw) != `""` {
		return config
	}
	quoted, err := json.Marshal(name)
	if err != nil {
		return config // unreachable: strings always marshal
	}
	var out strings.Builder
	out.WriteString(`{"name":` + string(quoted))
	for _, m := range top {
		if m.key == "name" {
			continue
		}
		key, err := json.Marshal(m.key)
		if err != nil {
			return config // unreachable: strings always marshal
		}
		out.WriteString("," + string(key) + ":" + string(m.value))
	}
	out.WriteString("}")
	return []byte(out.String())
}

func (c *NetConf) addPlugins(raw json.RawMessage) error {
	field := configField + ".plugins"
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil {
		return &hint.Error{Field: field, Value: shownJSON(raw), Problem: "is " + jsonKind(raw) + " where a list is wanted", Remedy: `write "plugins":[{"type":"..."}]`}
	}
	if len(items) == 0 {
		return &hint.Error{Field: field, Value: "[]", Problem: "lists no plugin", Remedy: `list at least one: [{"type":"..."}]`}
	}
	var errs []error
	for i, item := range items {
		errs = append(errs, c.addPlugin(fmt.Sprintf("%s[%d]", field, i), item))
	}
	return errors.Join(errs...)
}

func (c *NetConf) addPlugin(field string, raw []byte) error {
	fields, err := members(field, raw)
	if err != nil {
		return err
	}
	p := PluginConf{Bytes: raw}
	var errs []error
	if value := find(fields, "type"); value == nil {
		errs = append(errs, &hint.Error{Field: field + ".type", Problem: "is missing", Remedy: "name the CNI plugin, such as bridge or macvlan"})
	} else {
		p.Type, err = text(field+".type", value)
		errs = append(errs, err)
		if err == nil && (p.Type == "" || p.Type == "." || p.Type == ".." || strings.ContainsAny(p.Type, "/\\\x00")) {
			errs = append(errs, &hint.Error{Field: field + ".type", Value: shown(p.Type), Problem: "is no plugin name", Remedy: "write the file name of a CNI plugin, without a directory"})
		}
	}
	if value := find(fields, "capabilities"); value != nil {
		var declared map[string]bool
		if err := json.Unmarshal(value, &declared); err != nil {
			errs = append(errs, &hint.Error{Field: field + ".capabilities", Value: shownJSON(value), Problem: "is no object of booleans", Remedy: `write {"ips": true}`})
		}
		for name, on := range declared {
			if on {
				p.Capabilities = append(p.Capabilities, name)
			}
		}
		slices.Sort(p.Capabilities)
	}
	if value := find(fields, "ipam"); value != nil {
		p.IPAMType, err = ipamType(field+".ipam", value)
		errs = append(errs, err)
	}
	c.Plugins = append(c.Plugins, p)
	return errors.Join(errs...)
}

// ipamType reads ipam.type; an empty object, as some write it for "none", has
// none.
func ipamType(field string, raw json.RawMessage) (string, error) {
	fields, err := members(field, raw)
	if err != nil {
		return "", err
	}
	value := find(fields, "type")
	if value == nil {
		if len(fields) == 0 {
			return "", nil
		}
		return "", &hint.Error{Field: field + ".type", Problem: "is missing", Remedy: "name the IPAM plugin, such as host-local, static or whereabouts"}
	}
	name, err := text(field+".type", value)
	if err == nil && (name == "." || name == ".." || strings.ContainsAny(name, "/\\\x00")) {
		return "", &hint.Error{Field: field + ".type", Value: shown(name), Problem: "is no plugin name", Remedy: "write the file name of an IPAM plugin, without a directory"}
	}
	return name, err
}

// render makes Bytes.
func (c *NetConf) render() error {
	list := struct {
		CNIVersion   string            `json:"cniVersion,omitempty"`
		Name         string            `json:"name"`
		DisableCheck bool              `json:"disableCheck,omitempty"`
		Plugins      []json.RawMessage `json:"plugins"`
	}{CNIVersion: c.CNIVersion, Name: c.Name, DisableCheck: c.DisableCheck}
	for _, p := range c.Plugins {
		list.Plugins = append(list.Plugins, p.Bytes)
	}
	var err error
	if c.Bytes, err = json.Marshal(list); err != nil {
		return fmt.Errorf("marshal config of network %s: %w", c.Name, err)
	}
	return nil
}
