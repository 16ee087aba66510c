package inventory

import (
	"strings"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/store"
)

// KeptByVMs says whether VMs keep their addresses of a network: weft gives them,
// unique in the cluster, and the network does not want otherwise.
func KeptByVMs(obj *store.Object) bool {
	definition, err := netattach.FromObject(obj.Object)
	if err != nil {
		return false
	}
	conf, err := netattach.ParseConfig([]byte(definition.Config), obj.GetName())
	if err != nil || !conf.PersistentIPs() {
		return false
	}
	main := conf.Plugins[0]
	if _, native := kind.Lookup(main.Type); !native {
		return false
	}
	config, err := configOf(definition.FullName(), main)
	return err == nil && config.ClusterWide
}

// TakesMAC says whether a NIC on a network gets the MAC that it is to have, as far as
// the definition tells: what stands in files of the nodes may.
func TakesMAC(obj *store.Object) bool {
	definition, err := netattach.FromObject(obj.Object)
	if err != nil {
		return false
	}
	if strings.TrimSpace(definition.Config) == "" {
		return true
	}
	conf, err := netattach.ParseConfig([]byte(definition.Config), obj.GetName())
	if err != nil {
		return false
	}
	_, native := kind.Lookup(conf.Plugins[0].Type)
	return conf.TakesMAC(native)
}
