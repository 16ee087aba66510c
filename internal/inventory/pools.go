package inventory

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/store"
)

// Pool is a range in its scope, and the networks that give addresses of it.
type Pool struct {
	// Name is that of its AddressPool.
	Name     string
	Scope    ipam.Scope
	Range    ipam.Range
	Networks []string
	// Overlaps are the problems with pools of other networks that could give the same
	// address once more.
	Overlaps []string
}

// NetworksOf reads what a NetworkAttachmentDefinition says of addresses: one
// configuration for each plugin of it that gives some. One that cannot be read is
// the business of whoever attaches it.
func NetworksOf(obj *store.Object) (list []ipam.Network) {
	definition, err := netattach.FromObject(obj.Object)
	if err != nil {
		return nil
	}
	list, err = NetworksIn(definition.FullName(), obj.GetName(), []byte(definition.Config))
	if err != nil {
		return nil
	}
	return list
}

// NetworksIn is NetworksOf for a configuration that people call name, empty: as it
// calls itself; which is of the network confName unless it says so itself.
func NetworksIn(name, confName string, config []byte) (list []ipam.Network, err error) {
	conf, err := netattach.ParseConfig(config, confName)
	if err != nil {
		return nil, err
	}
	if name == "" {
		name = conf.Name
	}
	for _, plugin := range conf.Plugins {
		if !ipam.Supported(plugin.IPAMType) {
			continue
		}
		if config, err := configOf(conf.Name, plugin); err == nil {
			list = append(list, ipam.Network{Name: name, Config: config})
		}
	}
	return list, nil
}

// configOf reads the configuration of one plugin, as it is called: with the network's
// name, which is the scope of some addresses.
func configOf(network string, plugin netattach.PluginConf) (ipam.Config, error) {
	members := map[string]json.RawMessage{}
	if err := json.Unmarshal(plugin.Bytes, &members); err != nil {
		return ipam.Config{}, hint.JSON("", err)
	}
	quoted, err := json.Marshal(network)
	if err != nil {
		return ipam.Config{}, fmt.Errorf("name of network: %w", err)
	}
	members["name"] = quoted
	text, err := json.Marshal(members)
	if err != nil {
		return ipam.Config{}, fmt.Errorf("configuration of network %s: %w", network, err)
	}
	native, ok := kind.Lookup(plugin.Type)
	if !ok {
		return ipam.Parse(text, "")
	}
	conf, err := native.Parse(kind.Input{Config: text})
	if err != nil {
		return ipam.Config{}, err
	}
	return conf.IPAM(), nil
}

// ClusterWide gives the networks whose addresses are unique in the cluster.
func ClusterWide(all []ipam.Network) (list []ipam.Network) {
	for _, network := range all {
		if network.Config.ClusterWide {
			list = append(list, network)
		}
	}
	return list
}

// Pools gives the pools of networks, by their names. Ranges that give the same
// addresses in the same scope are one pool.
func Pools(networks []ipam.Network) []Pool {
	type key struct {
		scope ipam.Scope
		key   string
	}
	at := map[key]*Pool{}
	var all []*Pool
	for _, network := range networks {
		for _, set := range network.Config.Sets {
			for _, r := range set.Ranges {
				pool := at[key{set.Scope, r.Key()}]
				if pool == nil {
					pool = &Pool{Name: lease.PoolName(set.Scope, r), Scope: set.Scope, Range: r}
					at[key{set.Scope, r.Key()}] = pool
					all = append(all, pool)
				}
				if !slices.Contains(pool.Networks, network.Name) {
					pool.Networks = append(pool.Networks, network.Name)
				}
			}
		}
	}
	for _, overlap := range ipam.Overlaps(networks) {
		for _, end := range []ipam.OverlapEnd{overlap.A, overlap.B} {
			pool := at[key{end.Scope, end.Range.Key()}]
			if text := overlap.Err.Error(); pool != nil && !slices.Contains(pool.Overlaps, text) {
				pool.Overlaps = append(pool.Overlaps, text)
			}
		}
	}
	out := make([]Pool, 0, len(all))
	for _, pool := range all {
		slices.Sort(pool.Networks)
		out = append(out, *pool)
	}
	distinct(out)
	slices.SortFunc(out, func(a, b Pool) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// distinct gives pools other names that have the same one: of networks whose names
// read like another's address.
func distinct(pools []Pool) {
	count := map[string]int{}
	for _, pool := range pools {
		count[pool.Name]++
	}
	for i, pool := range pools {
		if count[pool.Name] > 1 {
			sum := sha256.Sum256([]byte(string(pool.Scope) + " " + pool.Range.Key()))
			pools[i].Name = "x" + hex.EncodeToString(sum[:16])
		}
	}
}

// PoolOf gives the pool an address is given from: in its scope, and if there are
// several, the one of its network. nil: none gives it any more.
func PoolOf(pools []Pool, is Holding) *Pool {
	var found *Pool
	for i, pool := range pools {
		if string(pool.Scope) != is.Scope || !pool.Range.Contains(is.Address) {
			continue
		}
		if slices.Contains(pool.Networks, is.Network) {
			return &pools[i]
		}
		if found == nil {
			found = &pools[i]
		}
	}
	return found
}
