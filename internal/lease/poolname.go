package lease

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"github.com/weftnet/weft/internal/ipam"
)

// PoolName is the name of the object that tells how full a range is, with the
// networks in front as in the names of leases:
//
//	10.0.0.0-24                       all of a subnet that hosts may have
//	blue-10.0.0.2-10.0.0.99           a part of it, of network_name blue
//	10.0.0.0-24.10.0.0.0-24           one whose addresses are held once in that range only
//	10.0.0.0-24-6f1d0a8e              one with holes
func PoolName(scope ipam.Scope, r ipam.Range) string {
	spans := r.Usable()
	switch whole := ipam.Usable(r.Subnet); {
	case slices.Equal(spans, []ipam.Span{whole}):
		return named(scope, text(r.Subnet.String()))
	case len(spans) == 1:
		return named(scope, text(spans[0].First.String())+"-"+text(spans[0].Last.String()))
	}
	sum := sha256.Sum256([]byte(r.Key()))
	return named(scope, text(r.Subnet.String())+"-"+hex.EncodeToString(sum[:4]))
}
