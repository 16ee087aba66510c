// Package nft describes nftables tables as values and renders them as the
// text `nft -f -` takes. weft writes only tables of its own; each belongs to
// one owner and is replaced as a whole in one transaction.
//
// Nothing here runs nft; dataplane does.
package nft

// Family is an nftables address family, as nft(8) says it.
type Family string

// Families weft uses.
const (
	IP     Family = "ip"
	IP6    Family = "ip6"
	Inet   Family = "inet"
	Bridge Family = "bridge"
)

// Table is one table, ours from its first rule to its last.
type Table struct {
	Family Family `json:",omitzero"`
	Name   string `json:",omitzero"`
	// Alias is our mark, the same text links carry (netstate.Alias). It stands in
	// the table's comment, so that a table is known by its owner.
	Alias  string  `json:",omitzero"`
	Chains []Chain `json:",omitempty"`
}

// Chain is a base chain if Hook is set, else a plain one.
type Chain struct {
	Name string `json:",omitzero"`
	// Type is filter, nat or route; Hook prerouting, input, forward, output or
	// postrouting; Priority the number nft prints (-100 is dstnat).
	Type, Hook string `json:",omitzero"`
	Priority   int    `json:",omitzero"`
	// Policy is accept (default) or drop; base chains only.
	Policy string `json:",omitzero"`
	Rules  []Rule `json:",omitempty"`
}

// Rule is one rule in nft's own syntax without the chain, such as
// `iifname "eth0" counter dnat to 10.0.2.2`.
type Rule string
