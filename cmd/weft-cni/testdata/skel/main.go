// Command skel is the least a CNI plugin in Go can be: what weft-cni's start is
// measured against.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

func main() {
	nothing := func(*skel.CmdArgs) error { return nil }
	skel.PluginMainFuncs(skel.CNIFuncs{Add: nothing, Del: nothing, Check: nothing, GC: nothing, Status: nothing}, version.All, "skel")
}
