package local

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// hostRoutes gives the prefixes this machine's namespace has routes for, from
// /proc/net/route and ipv6_route (proc_pid_net(5)). It is asked once, to choose
// a free subnet; nothing is written on account of it.
func hostRoutes() ([]netip.Prefix, error) {
	var routes []netip.Prefix
	for _, file := range []struct {
		name string
		read func(fields []string) (netip.Prefix, bool)
	}{{"route", route4}, {"ipv6_route", route6}} {
		f, err := os.Open("/proc/thread-self/net/" + file.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without that family
		}
		if err != nil {
			return nil, fmt.Errorf("read routes: %w", err)
		}
		scanner := bufio.NewScanner(f)
		for scanner.Scan() {
			if p, ok := file.read(strings.Fields(scanner.Text())); ok {
				routes = append(routes, p)
			}
		}
		if err := errors.Join(scanner.Err(), f.Close()); err != nil {
			return nil, fmt.Errorf("read routes: %w", err)
		}
	}
	return routes, nil
}

// route4 reads Iface Destination Gateway Flags RefCnt Use Metric Mask ..., the
// addresses as hexadecimal numbers in host byte order.
func route4(fields []string) (netip.Prefix, bool) {
	if len(fields) < 8 {
		return netip.Prefix{}, false
	}
	dst, err := strconv.ParseUint(fields[1], 16, 32)
	mask, maskErr := strconv.ParseUint(fields[7], 16, 32)
	if err != nil || maskErr != nil { // the heading
		return netip.Prefix{}, false
	}
	var addr [4]byte
	binary.NativeEndian.PutUint32(addr[:], uint32(dst))
	bits := 0
	for ; mask != 0; mask &= mask - 1 {
		bits++
	}
	return netip.PrefixFrom(netip.AddrFrom4(addr), bits), true
}

// route6 reads DESTINATION PREFIXLEN ..., both hexadecimal.
func route6(fields []string) (netip.Prefix, bool) {
	if len(fields) < 2 {
		return netip.Prefix{}, false
	}
	raw, err := hex.DecodeString(fields[0])
	bits, bitsErr := strconv.ParseUint(fields[1], 16, 8)
	addr, ok := netip.AddrFromSlice(raw)
	if err != nil || bitsErr != nil || !ok {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, int(bits)), true
}
