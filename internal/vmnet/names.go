package vmnet

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
)

// maxIfName is IFNAMSIZ-1, include/uapi/linux/if.h.
const maxIfName = 15

const (
	podPrefix    = "pod"
	bridgePrefix = "k6t-"
	tapPrefix    = "tap"
	primaryTAP   = "tap0"
)

// podHashLen leaves room for "k6t-" within 15 bytes; KubeVirt's number.
const podHashLen = 11

// PodIfName is the name of the link in the Pod that stands for a secondary
// network: what the networks annotation asks for.
func PodIfName(network string) netstate.IfName {
	sum := sha256.Sum256([]byte(network))
	return netstate.IfName(podPrefix + hex.EncodeToString(sum[:])[:podHashLen])
}

// BridgeName is the in-Pod bridge between a Pod link and its TAP.
func BridgeName(podLink netstate.IfName) netstate.IfName {
	return netstate.IfName(bridgePrefix + strings.TrimPrefix(string(podLink), podPrefix))
}

// TAPName is the TAP behind a Pod link: tap0 on the default network, else tap
// and what follows the first three characters of the Pod link's name.
func TAPName(podLink netstate.IfName, primary bool) netstate.IfName {
	if primary {
		return primaryTAP
	}
	rest := string(podLink)
	return netstate.IfName(tapPrefix + rest[min(len(podPrefix), len(rest)):])
}

// StableMAC derives the MAC of a NIC nobody asked a MAC for: the same VM and
// network always give the same one. It is unicast, locally administered and
// not ReservedMAC.
func StableMAC(vmUID, network string) netstate.MAC {
	sum := sha256.Sum256([]byte(vmUID + "\x00" + network))
	// 02:... is what KubeVirt's reserved address begins with; 0x0a keeps clear of
	// it and is locally administered too.
	sum[0] = 0x0a
	text := hex.EncodeToString(sum[:6])
	var b strings.Builder
	for i := 0; i < len(text); i += 2 {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(text[i : i+2])
	}
	return netstate.MAC(b.String())
}

// linkNames gives the two names made from a Pod link's name, or says why they
// cannot be. The name ends up inside quotes in nft rules, so only characters
// that mean nothing there pass.
func linkNames(link netstate.IfName, primary bool) (bridge, tap netstate.IfName, err error) {
	for _, c := range []byte(link) {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.@:", rune(c)) {
			return "", "", &hint.Error{
				Value: string(link), Problem: "the name of its link in the Pod contains a character weft does not use in rules",
				Remedy: "name it with letters, digits, '-', '_', '.', '@' and ':' only",
			}
		}
	}
	bridge, tap = BridgeName(link), TAPName(link, primary)
	if link == "" || len(link) > maxIfName || len(bridge) > maxIfName {
		return "", "", &hint.Error{
			Value: string(link), Problem: "the name of its link in the Pod leaves no room for the names of the VM's bridge and TAP (15 bytes)",
			Remedy: "use a name of 1 to 11 bytes, or none: weft then names the link itself",
		}
	}
	return bridge, tap, nil
}
