package chain

import "github.com/weftnet/weft/internal/netstate"

// mergePlans puts plans into one that has nothing in common with them. Links and
// tables bring their own marks.
func mergePlans(plans ...netstate.Plan) netstate.Plan {
	var all netstate.Plan
	for _, p := range plans {
		for _, side := range []netstate.Side{netstate.Host, netstate.Pod} {
			to, from := all.At(side), p.At(side)
			for _, l := range from.Links {
				if l.Alias == "" && l.Presence != netstate.Existing {
					l.Alias = p.Alias
				}
				to.Links = append(to.Links, l)
			}
			for _, table := range from.Tables {
				if table.Alias == "" {
					table.Alias = p.Alias
				}
				to.Tables = append(to.Tables, table)
			}
			to.Addrs = append(to.Addrs, from.Addrs...)
			to.Routes = append(to.Routes, from.Routes...)
			to.Rules = append(to.Rules, from.Rules...)
			to.FDB = append(to.FDB, from.FDB...)
			to.Sysctls = append(to.Sysctls, from.Sysctls...)
		}
	}
	return all
}
