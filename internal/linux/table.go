package linux

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/nft"
)

// Table is one nftables table: its name and the comment it carries.
type Table struct {
	nft.ID
	Comment string
}

// Constants of nf_tables netlink (include/uapi/linux/netfilter/nf_tables.h) and
// of libnftnl's user data (include/libnftnl/udata.h, NFTNL_UDATA_TABLE_COMMENT).
const (
	nftaTableUserData = 6 // NFTA_TABLE_USERDATA, Linux 5.10
	udataTableComment = 0
	sizeofNfGenMsg    = 4
)

// nftFamilies maps NFPROTO_* to nft's words.
var nftFamilies = map[byte]nft.Family{
	unix.NFPROTO_IPV4: nft.IP, unix.NFPROTO_IPV6: nft.IP6,
	unix.NFPROTO_INET: nft.Inet, unix.NFPROTO_BRIDGE: nft.Bridge,
}

// Tables lists the nftables tables of the namespace. c must be a connection of
// protocol unix.NETLINK_NETFILTER. A kernel without nftables has none.
func (c *Conn) Tables() ([]Table, error) {
	var tables []Table
	err := c.Dump(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, func() { tables = nil }, func(data []byte) error {
		t, err := parseTable(data)
		tables = append(tables, t)
		return err
	}, &nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC})
	// EINVAL and EOPNOTSUPP: nf_tables is not there, so neither are its tables.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	return tables, nil
}

// parseTable decodes NFT_MSG_NEWTABLE: struct nfgenmsg and attributes.
func parseTable(data []byte) (Table, error) {
	if len(data) < sizeofNfGenMsg {
		return Table{}, fmt.Errorf("decode nftables table: %d bytes, want %d at least", len(data), sizeofNfGenMsg)
	}
	t := Table{ID: nft.ID{Family: nftFamilies[data[0]]}}
	for kind, v := range attributes(data[sizeofNfGenMsg:]) {
		switch kind {
		case unix.NFTA_TABLE_NAME:
			t.Name = text(v)
		case nftaTableUserData:
			t.Comment = udataComment(v)
		}
	}
	return t, nil
}

// udataComment reads libnftnl's list of one-byte type, one-byte length, value.
func udataComment(b []byte) string {
	for len(b) >= 2 {
		kind, length := b[0], int(b[1])
		if length > len(b)-2 {
			return ""
		}
		if kind == udataTableComment {
			return text(b[2 : 2+length])
		}
		b = b[2+length:]
	}
	return ""
}
