package netstate

import (
	"hash/fnv"
	"strings"
)

// aliasPrefix begins every mark of ours.
const aliasPrefix = "weft:"

// Alias gives the mark of an owner within an instance of weft, as it stands in
// IFLA_IFALIAS of a link and in the comment of an nft table:
// weft:INSTANCE:OWNER. An instance has no colon in its name; an owner may.
func Alias(instance, owner string) string {
	return aliasPrefix + instance + ":" + owner
}

// ParseAlias takes a mark apart. ok is false for any text that is not one.
func ParseAlias(alias string) (instance, owner string, ok bool) {
	rest, ok := strings.CutPrefix(alias, aliasPrefix)
	if !ok {
		return "", "", false
	}
	instance, owner, ok = strings.Cut(rest, ":")
	return instance, owner, ok && owner != ""
}

// GroupOf gives the link group that goes with a mark. It is never zero (the
// kernel's default group) and its upper bit pattern keeps it away from the small
// numbers people choose.
func GroupOf(alias string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(alias)) // never fails (hash.Hash)
	return h.Sum32()&0x3fffffff | 0x40000000
}

// sharedOwner begins the owner of a shared link's mark; its name follows.
const sharedOwner = "shared/"

// SharedAlias gives the mark of a link of the host that attachments share.
func SharedAlias(instance string, name IfName) string {
	return Alias(instance, sharedOwner+string(name))
}
