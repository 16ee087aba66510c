package kind

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weftnet/weft/internal/nft"
)

// srcnat is the priority of source NAT (NF_IP_PRI_NAT_SRC,
// include/uapi/linux/netfilter_ipv4.h).
const srcnat = 100

// MasqueradeTable gives the host's one table for the Masquerade subnets of all
// attachments, in any order and with repetitions: what comes from a subnet and
// goes neither to it nor to a multicast group takes the host's address. With no
// subnet the table has no chain; the caller removes it.
func MasqueradeTable(name, alias string, subnets []netip.Prefix) nft.Table {
	table := nft.Table{Family: nft.Inet, Name: name, Alias: alias}
	sorted := slices.Clone(subnets)
	slices.SortFunc(sorted, netip.Prefix.Compare)
	sorted = slices.Compact(sorted)
	if len(sorted) == 0 {
		return table
	}
	chain := nft.Chain{
		Name: "postrouting", Type: "nat", Hook: "postrouting", Priority: srcnat,
		Rules: []nft.Rule{"ip daddr 224.0.0.0/4 return", "ip6 daddr ff00::/8 return"},
	}
	for _, subnet := range sorted {
		family := "ip"
		if subnet.Addr().Is6() {
			family = "ip6"
		}
		chain.Rules = append(chain.Rules,
			nft.Rule(fmt.Sprintf("%s saddr %s %s daddr != %s masquerade", family, subnet, family, subnet)))
	}
	table.Chains = []nft.Chain{chain}
	return table
}
