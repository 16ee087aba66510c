// Command weft-cni is the CNI plugin a container runtime calls. It passes the
// call to the agent of this machine and the answer back. It knows nothing of
// networks or Kubernetes, because it is started for every call.
//
// While the agent is away, see away.go, no state is lost and no Pod that asks
// for one network only has to wait.
package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/weftnet/weft/internal/cniwire"
)

// versions of CNI weft speaks.
var versions = cniversion.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")

func main() {
	command := func(name string) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error { return run(name, args) }
	}
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add: command("ADD"), Del: command("DEL"), Check: command("CHECK"), GC: command("GC"), Status: command("STATUS"),
	}, versions, "weft-cni: passes CNI calls to weft-node, the agent of this machine")
}

// callLimit bounds one call. The runtime's own limit is four minutes at most
// (kubelet, runtimeRequestTimeout), and the agent gives each step less.
const callLimit = 210 * time.Second

func run(command string, args *skel.CmdArgs) error {
	conf, err := readConfig(args.StdinData)
	if err != nil {
		return err
	}
	wait := conf.wait()
	if command != "ADD" || conf.plain() {
		wait = 0 // there is an answer without the agent
	}
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	response, err := cniwire.Call(ctx, conf.socket(), wait, cniwire.Request{
		Command: command, ContainerID: args.ContainerID, NetNS: args.Netns, IfName: args.IfName,
		Args: args.Args, Path: args.Path, Config: args.StdinData,
	})
	if err != nil {
		return away(command, args, conf, err)
	}
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

// away answers a call the agent did not.
func away(command string, args *skel.CmdArgs, conf config, cause error) error {
	gone := errors.Is(cause, cniwire.ErrAway)
	switch {
	case command == "DEL":
		return queueDel(conf.queue(), args)
	case command == "GC" && gone:
		return nil // the agent compares with the runtime by itself when it is back
	case (command == "STATUS" || command == "ADD" && conf.plain()) && gone:
		return handOver(conf.thin(), args.StdinData, cause)
	case gone:
		return types.NewError(types.ErrTryAgainLater, "weft's agent is away", cause.Error()+"; see that weft-node runs on this machine (its DaemonSet)")
	default:
		return types.NewError(types.ErrTryAgainLater, "weft's agent did not answer", cause.Error())
	}
}
