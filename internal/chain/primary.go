package chain

import (
	"context"
	"errors"
	"time"

	"github.com/containernetworking/cni/pkg/version"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/kind"
)

// Runtimes ask for the status again and again, and take no answer for a bad one.
const statusPatience = 10 * time.Second

// Status is the default network's own answer to whether Pods can be attached: that
// of its foreign plugins, if its config speaks the version that has STATUS (CNI
// 1.1). Weft's kinds are always ready. Of req what Add would choose the default
// network by is read.
func (e *Engine) Status(ctx context.Context, req Request) error {
	var q Question
	err := e.defaultNetwork(ctx, req, nil, &q)
	byName := len(e.Default.Config) == 0
	if req.Default != nil {
		byName = len(req.Default.Config) == 0
	}
	if err != nil && byName && !errors.Is(err, ErrUnknownNetwork) {
		return nil // an API server that is away is no reason to take no Pods: those that are plain need none
	}
	if err != nil || q.Default == nil {
		return err
	}
	return e.runner.status(ctx, q.Default, e.Kinds)
}

// PluginStatus is Status for a process without an engine, of a config.
func PluginStatus(ctx context.Context, config []byte, binDirs []string) error {
	conf, err := netattach.ParseConfig(config, "default")
	if err != nil {
		return ofNetwork("default", err)
	}
	if len(binDirs) == 0 {
		binDirs = defaultBinDirs()
	}
	return runner{binDirs: binDirs, deadline: statusPatience}.status(ctx, conf, kind.Lookup)
}

func (r runner) status(ctx context.Context, conf *netattach.NetConf, kinds func(string) (kind.Kind, bool)) error {
	has, err := version.GreaterThanOrEqualTo(conf.CNIVersion, "1.1.0")
	if err != nil || !has {
		return nil
	}
	// It waits for no place: Pods whose plugin hangs must not make the node NotReady.
	r.deadline, r.rooms = min(r.deadline, statusPatience), nil
	for i := range conf.Plugins {
		p := &conf.Plugins[i]
		if _, native := kinds(p.Type); native && i == 0 {
			continue
		}
		config, err := pluginConfig(conf, p, nil)
		if err != nil {
			return err
		}
		if _, err := r.run(ctx, call{plugin: p.Type, verb: "STATUS", network: conf.Name, config: config}); err != nil {
			return err
		}
	}
	return nil
}
