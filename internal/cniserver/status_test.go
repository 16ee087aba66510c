package cniserver

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// TestStatus: whether Pods can be attached is for the primary network's plugins to
// say, if they speak the version that has STATUS, with an agent and without.
func TestStatus(t *testing.T) {
	n := newNode(t)
	n.plugins()
	ill := filepath.Join(n.dir, "ill")
	script := `#!/bin/sh
if [ $CNI_COMMAND = STATUS ] && [ -e ` + ill + ` ]; then
	grep -q '"key":"kept"' && echo '{"cniVersion":"1.1.0","code":50,"msg":"no uplink"}'
	exit 1
fi
`
	if err := os.WriteFile(filepath.Join(n.dir, "plugins", "primary"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	list := func(plugin, version string) *libcni.NetworkConfigList {
		return n.list("1.1.0", `,"binDir":"`+filepath.Join(n.dir, "plugins")+`","delegates":[{"cniVersion":"`+version+`","name":"main","plugins":[`+plugin+`,{"type":"primary","key":"kept"}]}]`)
	}
	status := func(plugin, version string) error {
		return n.runtime.GetStatusNetworkList(t.Context(), list(plugin, version))
	}
	const foreign, ours = `{"type":"primary","key":"kept"}`, `{"type":"bridge","bridge":"pri0"}`
	check := func(who string) {
		t.Helper()
		for _, plugin := range []string{foreign, ours} {
			if err := status(plugin, "1.1.0"); err != nil {
				t.Errorf("%s: STATUS of a healthy primary network: %v", who, err)
			}
		}
		if err := os.WriteFile(ill, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(ill)
		for _, plugin := range []string{foreign, ours} {
			own, ok := errors.AsType[*types.Error](status(plugin, "1.1.0"))
			if !ok || own.Code != types.ErrPluginNotAvailable || !strings.Contains(own.Msg, "no uplink") {
				t.Errorf("%s: STATUS of an ill primary network: %v", who, own)
			}
		}
		if err := status(foreign, "1.0.0"); err != nil {
			t.Errorf("%s: STATUS of a plugin that has none: %v", who, err)
		}
		broken := n.runtime.GetStatusNetworkList(t.Context(), n.list("1.1.0", `,"delegates":[{"cniVersion":"1.0.0","name":"main","plugins":[{}]}]`))
		wantError(t, broken, types.ErrInvalidNetworkConfig, "plugins[0].type", "is missing")
	}
	check("agent")
	n.stop()
	check("thin")
}
