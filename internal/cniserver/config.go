package cniserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/device"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/record"
)

// netConf is the network configuration of weft-cni. Its keys are Multus' where
// that has them.
type netConf struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	// Delegates: the first is the default network, the others are attached to
	// every Pod. ClusterNetwork goes before.
	Delegates []json.RawMessage `json:"delegates"`
	// ClusterNetwork is the default network: a file or directory of CNI configs,
	// or a NetworkAttachmentDefinition in MultusNamespace.
	ClusterNetwork string `json:"clusterNetwork"`
	// DefaultNetworks are attached to every Pod that is not in SystemNamespaces.
	DefaultNetworks  []string `json:"defaultNetworks"`
	SystemNamespaces []string `json:"systemNamespaces"`
	MultusNamespace  string   `json:"multusNamespace"`
	// NamespaceIsolation lets Pods use networks of their own namespace and of
	// GlobalNamespaces only.
	NamespaceIsolation bool   `json:"namespaceIsolation"`
	GlobalNamespaces   string `json:"globalNamespaces"`
	// ConfDir has the configs of networks whose NetworkAttachmentDefinition has none,
	// and of those that are named without one.
	ConfDir string `json:"confDir"`
	// ReadinessIndicatorFile must be there before Pods are attached.
	ReadinessIndicatorFile string `json:"readinessindicatorfile"`
	// PluginTimeout bounds each call of another plugin, as Go writes durations.
	PluginTimeout string `json:"pluginTimeout"`
	// RuntimeConfig is what the runtime tells about the Pod.
	RuntimeConfig map[string]json.RawMessage `json:"runtimeConfig"`
}

// annotationsKey is the capability by which a runtime passes the Pod's annotations.
const annotationsKey = "io.kubernetes.cri.pod-annotations"

// knownKeys are those of netConf and of what others read: weft-cni, the runtime,
// Multus' logging and daemon.
var knownKeys = []string{
	"cniVersion", "name", "type", "delegates", "clusterNetwork", "defaultNetworks", "systemNamespaces", "multusNamespace",
	"namespaceIsolation", "globalNamespaces", "readinessindicatorfile", "pluginTimeout", "runtimeConfig", "capabilities", "prevResult",
	"cni.dev/attachments", "cni.dev/valid-attachments", "disableCheck", "disableGC",
	"socket", "agentWait", "queue", "thin", "instance", "stateDir", "runDir", "daemonSocketDir", "kubeconfig", "confDir", "cniDir", "binDir",
	"retryDeleteOnError", // always done
	"logFile", "logLevel", "logToStderr", "logOptions",
}

// readConfig reads a configuration, and says which keys nobody knows.
func readConfig(data []byte) (conf netConf, unknown []string, err error) {
	if err := json.Unmarshal(data, &conf); err != nil {
		return conf, nil, &hint.Error{Field: "network configuration", Problem: "cannot be read", Err: err, Remedy: "correct the file in the runtime's CNI directory"}
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(data, &keys); err != nil {
		return conf, nil, fmt.Errorf("read network configuration: %w", err)
	}
	for key := range keys {
		if !slices.Contains(knownKeys, key) {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	return conf, unknown, nil
}

// patience gives the engine with the plugins' deadline of the configuration, as
// it is if that cannot be read.
func (c netConf) patience(engine *chain.Engine) (*chain.Engine, error) {
	if c.PluginTimeout == "" {
		return engine, nil
	}
	limit, err := time.ParseDuration(c.PluginTimeout)
	if err != nil || limit <= 0 {
		return engine, &hint.Error{Field: "pluginTimeout", Value: c.PluginTimeout, Problem: "is no duration", Remedy: "write it like 30s"}
	}
	return engine.WithPluginTimeout(limit), nil
}

// defaultNetwork gives the default network a Pod gets; nil: the agent's own.
func (c netConf) defaultNetwork(f files) (*chain.DefaultNetwork, error) {
	switch {
	case strings.Contains(c.ClusterNetwork, "/"):
		config, err := f.config(c.ClusterNetwork)
		if err != nil {
			return nil, hint.At("clusterNetwork", err)
		}
		return &chain.DefaultNetwork{Config: config}, nil
	case c.ClusterNetwork != "":
		return &chain.DefaultNetwork{Namespace: c.namespace(), Name: c.ClusterNetwork}, nil
	case len(c.Delegates) > 0:
		return &chain.DefaultNetwork{Config: c.Delegates[0]}, nil
	}
	return nil, nil
}

// everywhere gives the further networks of every Pod.
func (c netConf) everywhere(f files, namespace string) ([]chain.DefaultNetwork, error) {
	var list []chain.DefaultNetwork
	if c.ClusterNetwork == "" {
		for i, config := range c.Delegates {
			if i > 0 {
				list = append(list, chain.DefaultNetwork{Config: config})
			}
		}
		return list, nil // Multus reads defaultNetworks beside clusterNetwork only
	}
	if slices.Contains(c.systemNamespaces(), namespace) {
		return nil, nil
	}
	for i, name := range c.DefaultNetworks {
		if !strings.Contains(name, "/") {
			list = append(list, chain.DefaultNetwork{Namespace: c.namespace(), Name: name})
			continue
		}
		config, err := f.config(name)
		if err != nil {
			return nil, hint.At(fmt.Sprintf("defaultNetworks[%d]", i), err)
		}
		list = append(list, chain.DefaultNetwork{Config: config})
	}
	return list, nil
}

func (c netConf) systemNamespaces() []string {
	if c.SystemNamespaces == nil {
		return []string{"kube-system"}
	}
	return c.SystemNamespaces
}

// isolation gives what namespaceIsolation asks for.
func (c netConf) isolation() *record.Isolation {
	if !c.NamespaceIsolation {
		return nil
	}
	if c.GlobalNamespaces == "" {
		return &record.Isolation{Namespaces: []string{"default"}}
	}
	var namespaces []string
	for name := range strings.SplitSeq(c.GlobalNamespaces, ",") {
		namespaces = append(namespaces, strings.TrimSpace(name))
	}
	return &record.Isolation{Namespaces: namespaces}
}

// namespace is where networks that name none are looked up.
func (c netConf) namespace() string {
	if c.MultusNamespace == "" {
		return "kube-system"
	}
	return c.MultusNamespace
}

// confDir is where the configs of networks are that the API knows by name at most.
func (c netConf) confDir() string {
	if c.ConfDir == "" {
		return "/etc/cni/multus/net.d"
	}
	return c.ConfDir
}

// annotations of the Pod as the runtime passed them; ok is false if it did not.
func (c netConf) annotations() (annotations map[string]string, ok bool) {
	raw, ok := c.RuntimeConfig[annotationsKey]
	if !ok || json.Unmarshal(raw, &annotations) != nil || annotations == nil {
		return nil, false
	}
	return annotations, true
}

// podArgs are CNI_ARGS taken apart (CNI conventions document, "CNI_ARGS").
type podArgs struct {
	namespace, name, uid string
	all                  [][2]string
}

func parseArgs(text string) podArgs {
	var args podArgs
	for part := range strings.SplitSeq(text, ";") {
		key, value, ok := strings.Cut(part, "=")
		if !ok {
			continue
		}
		switch key {
		case "K8S_POD_NAMESPACE":
			args.namespace = value
		case "K8S_POD_NAME":
			args.name = value
		case "K8S_POD_UID":
			args.uid = value
		}
		args.all = append(args.all, [2]string{key, value})
	}
	return args
}

// Unanswered says what to do about a question the API server did not answer, or
// to which it knows no answer (missing). Errors that say so themselves come back
// as they are.
func Unanswered(err error, missing bool) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*hint.Error](err); ok {
		return err
	}
	problem, remedy := "did not answer", "see that it can be reached from this node; the runtime tries again"
	if missing {
		problem, remedy = "does not have it", "nothing, if it was deleted; otherwise the runtime tries again"
	}
	return &hint.Error{Field: "API server", Problem: problem, Err: fmt.Errorf("%w (%w)", err, ErrTryAgain), Remedy: remedy}
}

// cniError gives an error its code of the CNI specification, section 5.
func cniError(err error) (code uint) {
	if own, ok := errors.AsType[*types.Error](err); ok {
		switch own.Code { // a plugin's own, of which runtimes make something
		case types.ErrTryAgainLater, types.ErrPluginNotAvailable, types.ErrLimitedConnectivity:
			return own.Code
		}
	}
	switch {
	case errors.Is(err, chain.ErrUnknownNetwork):
		return types.ErrInvalidNetworkConfig
	case errors.Is(err, ErrTryAgain), errors.Is(err, device.ErrNotYet), errors.Is(err, ipam.ErrUnanswered), errors.Is(err, chain.ErrNoClaim):
		return types.ErrTryAgainLater
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EROFS):
		return types.ErrIOFailure
	}
	if _, ok := errors.AsType[*hint.Error](err); ok {
		return types.ErrInvalidNetworkConfig
	}
	return types.ErrInternal
}
