package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weftnet/weft/guest/echo"
)

func TestParseCmdline(t *testing.T) {
	got := parseCmdline(`console=ttyS0 quiet weft.run="echo a b; echo c" "weft.end=off" weft.serve=80,8080,nonsense ` +
		"weft.mcast=239.1.1.1:5@eth1,10.0.0.1:5@eth1,[ff02::9]:6@eth0 weft.hostname=h weft.unconfigured=eth2,eth3 weft.odd=1\n")
	want := cmdline{
		run: "echo a b; echo c", end: "off", hostname: "h", serve: []int{80, 8080}, unconfigured: []string{"eth2", "eth3"},
		mcast: []echo.Group{
			{Addr: netip.MustParseAddrPort("239.1.1.1:5"), Link: "eth1"},
			{Addr: netip.MustParseAddrPort("[ff02::9]:6"), Link: "eth0"},
		},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(cmdline{}), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
