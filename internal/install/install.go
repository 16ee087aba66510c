// Package install puts weft on a node: its CNI programs where the container
// runtime runs plugins, and a CNI configuration that comes before the primary
// network's and names that as the default network. It follows the primary's
// configuration as that appears and changes.
//
// It never takes its configuration away. While no agent runs, Pods with
// several networks wait; without the file they would start with one.
package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/linux"
)

// ConfigFile is weft's configuration in the runtime's directory: runtimes take
// the first one by name.
const ConfigFile = "00-weft.conflist"

// Programs are what the runtime calls, and what that hands over to.
var Programs = []string{"weft-cni", "weft-cni-thin"}

// Every second a few small files are read. Notifications would not spare that:
// only a second look tells a file that is being written from one that is done,
// and they are not sent for every kind of file system.
const lookEvery = time.Second

// Installer keeps one node installed.
type Installer struct {
	// From is the directory with our programs, BinDir where the runtime looks for
	// plugins, ConfDir where it looks for configurations.
	From, BinDir, ConfDir string
	// HostRoot is where the node's other files are, if this is a container; optional.
	HostRoot string
	// Settings is a file with keys for our configuration, in Multus' form; empty,
	// or none there: none.
	Settings string
	// Rival is told, now and again, of what keeps the runtime from calling weft:
	// another configuration that comes first, or somebody who takes ours away. It
	// must not wait. Optional.
	Rival func(problem string)
	Log   *slog.Logger

	last    seen
	told    string // the last thing we complained of
	wrote   string // what our file was last said to be
	rivalry rivalry
}

// seen is what one look finds.
type seen struct {
	config  string // what our file should be; unless problem says why not
	primary string // the file it names
	problem string
}

// String names the task.
func (i *Installer) String() string { return "installer of " + filepath.Join(i.ConfDir, ConfigFile) }

// Prepare copies the programs, after taking away what an installer that was
// killed has left. There must be no other installer of this node.
func (i *Installer) Prepare() error {
	for _, dir := range []string{i.BinDir, i.ConfDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make a directory of the runtime: %w", err)
		}
		if err := sweep(dir); err != nil {
			return err
		}
	}
	for _, name := range Programs {
		if err := i.copyProgram(name); err != nil {
			return err
		}
	}
	return nil
}

func (i *Installer) copyProgram(name string) error {
	program, err := os.ReadFile(filepath.Join(i.From, name))
	if err != nil {
		return &hint.Error{
			Field: "program", Value: filepath.Join(i.From, name), Problem: "cannot be read", Err: err,
			Remedy: "keep " + strings.Join(Programs, " and ") + " beside weft-node",
		}
	}
	changed, err := replace(filepath.Join(i.BinDir, name), program, 0o755)
	if changed {
		i.Log.Info("installed a program", "path", filepath.Join(i.BinDir, name))
	}
	return err
}

// Run follows the primary network's configuration until ctx ends.
func (i *Installer) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		i.step(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// step looks once, and acts on what two looks in a row have seen: what changes
// in between is not done yet.
func (i *Installer) step(now time.Time) {
	i.watchRivals(now)
	found := i.look(now)
	if found != i.last {
		i.last = found
		return
	}
	problem := found.problem
	if problem == "" {
		path := filepath.Join(i.ConfDir, ConfigFile)
		changed, err := replace(path, []byte(found.config), 0o600)
		if changed && found.config != i.wrote { // the same again: see watchRivals
			i.Log.Info("wrote the CNI configuration", "path", path, "primary", found.primary)
			i.wrote = found.config
		}
		if err != nil {
			problem = err.Error() // tried again soon
		}
	}
	if problem != i.told && problem != "" {
		i.Log.Warn("the CNI configuration stays as it is", "problem", problem)
	}
	i.told = problem
}

// look reads the settings and the primary's configuration.
func (i *Installer) look(now time.Time) seen {
	chosen, err := readSettings(i.Settings)
	if err != nil {
		return seen{problem: err.Error()}
	}
	network, err := i.primary(chosen, now)
	if err != nil {
		return seen{problem: err.Error()}
	}
	text, err := chosen.config(network)
	if err != nil {
		return seen{problem: err.Error()}
	}
	return seen{config: text, primary: network.path}
}

// primary gives the network that every Pod gets first: what the settings name,
// else the first other configuration by name.
func (i *Installer) primary(chosen settings, now time.Time) (primary, error) {
	switch {
	case strings.Contains(chosen.clusterNetwork, "/"):
		return i.readPrimary(chosen.clusterNetwork)
	case chosen.clusterNetwork != "" || chosen.delegates:
		return primary{}, nil // stands in the settings or in the API
	case chosen.master != "":
		return i.readPrimary(filepath.Join(i.ConfDir, chosen.master))
	}
	names, err := configs(i.ConfDir)
	if err != nil {
		return primary{}, err
	}
	var errs []error
	for _, name := range names {
		found, err := i.readPrimary(filepath.Join(i.ConfDir, name))
		if err == nil {
			return found, nil
		}
		if fresh(filepath.Join(i.ConfDir, name), now) {
			return primary{}, err // being written, likely; the next by name is not meant
		}
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return primary{}, errors.Join(errs...)
	}
	return primary{}, &hint.Error{
		Value: i.ConfDir, Problem: "has no configuration of a primary network", Remedy: "install the primary network plugin; weft follows",
	}
}

// configs lists the configurations a runtime would read beside ours, by name
// (libcni, ConfFiles; its users ask for these three endings).
func configs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the runtime's CNI directory: %w", err)
	}
	var names []string
	for _, entry := range entries {
		ending := slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(entry.Name()))
		if ending && !entry.IsDir() && entry.Name() != ConfigFile {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// unfinished is how long a file that cannot be used is held to be one that is
// being written.
const unfinished = 10 * time.Second

func fresh(path string, now time.Time) bool {
	info, err := os.Stat(path)
	return err == nil && now.Sub(info.ModTime()) < unfinished
}

// primary is the configuration of the network that was there before us.
type primary struct {
	path, name, cniVersion string
	capabilities           []string
}

// metaPlugins would call us or what we call.
var metaPlugins = []string{"weft-cni", "weft-cni-thin", "multus", "multus-shim"}

// readPrimary reads a configuration or list of them (CNI specification 1.1,
// section 1), with the plugins that are chained to it.
func (i *Installer) readPrimary(path string) (primary, error) {
	refuse := func(problem, remedy string, cause error) (primary, error) {
		return primary{}, &hint.Error{Field: "primary network", Value: path, Problem: problem, Err: cause, Remedy: remedy}
	}
	text, err := os.ReadFile(linux.Under(i.HostRoot, path))
	if err != nil {
		return refuse("cannot be read", "see that the primary network plugin is installed", err)
	}
	if whole, err := Chained(i.HostRoot, path, text); err == nil { // else the next ADD tells
		text = whole
	}
	type plugin struct {
		Type         string          `json:"type"`
		Capabilities map[string]bool `json:"capabilities"`
	}
	var conf struct {
		Name       string `json:"name"`
		CNIVersion string `json:"cniVersion"`
		plugin
		Plugins []plugin `json:"plugins"`
	}
	if err := json.Unmarshal(bytes.TrimSpace(text), &conf); err != nil {
		return refuse("is no complete JSON document", "see whether the primary network plugin still writes it; remove it if nobody does", err)
	}
	plugins := conf.Plugins
	if conf.Type != "" {
		plugins = []plugin{conf.plugin}
	}
	if len(plugins) == 0 || slices.ContainsFunc(plugins, func(p plugin) bool { return p.Type == "" }) {
		return refuse("names no plugin", `give it a "type", or "plugins" that each have one`, nil)
	}
	found := primary{path: path, name: conf.Name, cniVersion: conf.CNIVersion}
	for _, p := range plugins {
		if slices.Contains(metaPlugins, p.Type) {
			return refuse("is the configuration of "+p.Type+", which is no primary network", "remove it: weft takes that place", nil)
		}
		for capability, has := range p.Capabilities {
			if has && !slices.Contains(found.capabilities, capability) {
				found.capabilities = append(found.capabilities, capability)
			}
		}
	}
	return found, nil
}
