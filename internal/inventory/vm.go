package inventory

import (
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
