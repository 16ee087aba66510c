// Command weft-cni-thin is a CNI plugin that does each call itself, without an
// agent: for podman, nerdctl and machines with few containers; and what weft-cni
// hands over to where its agent is away and not needed.
//
// It attaches the networks of the CNI configuration and, where that names a
// kubeconfig, those that the Pod's annotations ask for. Without a kubeconfig Pods
// that ask for more are refused.
package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/weftnet/weft/internal/cniserver"
	"github.com/weftnet/weft/internal/cniwire"
	"github.com/weftnet/weft/internal/kubeapi"
)

// versions of CNI weft speaks.
var versions = cniversion.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")

func main() {
	command := func(name string) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error { return run(name, args) }
	}
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add: command("ADD"), Del: command("DEL"), Check: command("CHECK"), GC: command("GC"), Status: command("STATUS"),
	}, versions, "weft-cni-thin: attaches the networks of its configuration, without an agent")
}

// callLimit bounds one call.
const callLimit = 210 * time.Second

// Defaults: those of weft-node.
const (
	defaultInstance = "weft"
	defaultState    = "/var/lib/weft"
	runDirs         = "/run" // each instance's is below, by its name
)

func run(command string, args *skel.CmdArgs) error {
	conf := struct {
		Type       string `json:"type"`
		Instance   string `json:"instance"`
		StateDir   string `json:"stateDir"`
		RunDir     string `json:"runDir"`
		BinDir     string `json:"binDir"`
		Kubeconfig string `json:"kubeconfig"`
	}{Instance: defaultInstance, StateDir: defaultState}
	if err := json.Unmarshal(args.StdinData, &conf); err != nil {
		return types.NewError(types.ErrDecodingFailure, "the network configuration cannot be read", err.Error())
	}
	if conf.RunDir == "" {
		conf.RunDir = filepath.Join(runDirs, conf.Instance)
	}
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	handedOver := conf.Type == "weft-cni"
	direct := cniserver.Direct{
		Instance: conf.Instance, State: conf.StateDir, Run: conf.RunDir, Machine: machine(), BinDirs: binDirs(conf.BinDir, args.Path), Cluster: handedOver,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	// A call that weft-cni hands over needs no API: the agent tells it, one day.
	if conf.Kubeconfig != "" && !handedOver && command == "ADD" {
		client, err := kubeapi.Open(conf.Kubeconfig, kubeapi.Options{Agent: "weft-cni-thin"})
		if err != nil {
			return types.NewError(types.ErrInvalidNetworkConfig, err.Error(), "")
		}
		direct.API = client
	}
	response := direct.Call(ctx, cniwire.Request{
		Command: command, ContainerID: args.ContainerID, NetNS: args.Netns, IfName: args.IfName,
		Args: args.Args, Path: args.Path, Config: args.StdinData,
	})
	if response.Error != nil {
		return types.NewError(response.Error.Code, response.Error.Msg, response.Error.Details)
	}
	if len(response.Result) == 0 {
		return nil
	}
	if _, err := os.Stdout.Write(response.Result); err != nil {
		return types.NewError(types.ErrIOFailure, "write the result", err.Error())
	}
	return nil
}

// binDirs are where foreign plugins are: where the config says, then where the
// runtime found us.
func binDirs(dir, path string) []string {
	var dirs []string
	if dir != "" {
		dirs = append(dirs, dir)
	}
	for part := range strings.SplitSeq(path, string(os.PathListSeparator)) {
		if part != "" {
			dirs = append(dirs, part)
		}
	}
	return dirs
}

// machine is what tells this machine from others.
func machine() string {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		name, _ := os.Hostname() // empty at worst: MACs of two machines then come out the same
		return name
	}
	return strings.TrimSpace(string(id))
}
