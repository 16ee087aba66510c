package qemu

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/weftnet/weft/internal/netstate"
)

// GuestLink is a link as the guest reports it.
type GuestLink struct {
	Name string
	// MAC is empty where the link has none, as the guest's loopback in some agents.
	MAC   netstate.MAC
	Addrs []netip.Prefix
}

// NetworkInterfaces asks for the guest's links and addresses. What the guest
// says wrongly, such as an address that is none, is left out.
func (a *Agent) NetworkInterfaces(ctx context.Context) ([]GuestLink, error) {
	var raw []struct {
		Name  string `json:"name"`
		MAC   string `json:"hardware-address"`
		Addrs []struct {
			Addr string `json:"ip-address"`
			Bits int    `json:"prefix"`
		} `json:"ip-addresses"`
	}
	if err := a.Execute(ctx, "guest-network-get-interfaces", nil, &raw); err != nil {
		return nil, err
	}
	links := make([]GuestLink, 0, len(raw))
	for _, r := range raw {
		link := GuestLink{Name: r.Name}
		if mac, err := netstate.ParseMAC(r.MAC); err == nil {
			link.MAC = mac
		}
		for _, text := range r.Addrs {
			addr, err := netip.ParseAddr(text.Addr)
			if err != nil {
				continue
			}
			// An agent may append a zone; a prefix has none.
			if prefix := netip.PrefixFrom(addr.WithZone(""), text.Bits); prefix.IsValid() {
				link.Addrs = append(link.Addrs, prefix)
			}
		}
		links = append(links, link)
	}
	return links, nil
}

// GuestInfo is what the agent says of itself.
type GuestInfo struct {
	Version string
	// Commands are those it knows and allows.
	Commands map[string]bool
}

// Info asks the agent for its version and commands.
func (a *Agent) Info(ctx context.Context) (GuestInfo, error) {
	var raw struct {
		Version  string `json:"version"`
		Commands []struct {
			Name    string `json:"name"`
			Enabled bool   `json:"enabled"`
		} `json:"supported_commands"`
	}
	if err := a.Execute(ctx, "guest-info", nil, &raw); err != nil {
		return GuestInfo{}, err
	}
	info := GuestInfo{Version: raw.Version, Commands: map[string]bool{}}
	for _, command := range raw.Commands {
		if command.Enabled {
			info.Commands[command.Name] = true
		}
	}
	return info, nil
}

// HostName asks for the guest's host name.
func (a *Agent) HostName(ctx context.Context) (string, error) {
	var out struct {
		Name string `json:"host-name"`
	}
	err := a.Execute(ctx, "guest-get-host-name", nil, &out)
	return out.Name, err
}

// OSInfo is the guest's operating system, as in VMI.status.guestOSInfo.
type OSInfo struct {
	ID            string `json:"id"`
	Name          string `json:"name"`
	PrettyName    string `json:"pretty-name"`
	Version       string `json:"version"`
	VersionID     string `json:"version-id"`
	KernelRelease string `json:"kernel-release"`
	KernelVersion string `json:"kernel-version"`
	Machine       string `json:"machine"`
}

// OSInfo asks which system the guest runs.
func (a *Agent) OSInfo(ctx context.Context) (OSInfo, error) {
	var out OSInfo
	err := a.Execute(ctx, "guest-get-osinfo", nil, &out)
	return out, err
}

// Shutdown asks the guest's agent to power off; mode is powerdown, halt or reboot.
func (a *Agent) Shutdown(ctx context.Context, mode string) error {
	return a.Notify(ctx, "guest-shutdown", map[string]string{"mode": mode})
}

// Command is a program to run in the guest.
type Command struct {
	Path  string
	Args  []string
	Env   []string
	Stdin []byte
}

// Result of a program run in the guest.
type Result struct {
	ExitCode int
	// Signal that ended it; 0: it exited.
	Signal         int
	Stdout, Stderr []byte
	// Truncated: the agent kept only the first 16 MiB of the output.
	Truncated bool
}

// Exec runs a program in the guest and waits for its end. When ctx ends first
// the program goes on: the agent has no command to end it.
func (a *Agent) Exec(ctx context.Context, command Command) (Result, error) {
	args := map[string]any{"path": command.Path, "capture-output": true}
	if len(command.Args) > 0 {
		args["arg"] = command.Args
	}
	if len(command.Env) > 0 {
		args["env"] = command.Env
	}
	if len(command.Stdin) > 0 {
		args["input-data"] = base64.StdEncoding.EncodeToString(command.Stdin)
	}
	var started struct {
		PID int64 `json:"pid"`
	}
	if err := a.Execute(ctx, "guest-exec", args, &started); err != nil {
		return Result{}, err
	}
	// Ask soon at first, so that short programs feel short, then more rarely.
	const first, longest = 10 * time.Millisecond, 500 * time.Millisecond
	wait := first
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		result, exited, err := a.execStatus(ctx, started.PID)
		if err != nil || exited {
			return result, err
		}
		select {
		case <-ctx.Done():
			return Result{}, fmt.Errorf("guest program %s still runs: %w", command.Path, context.Cause(ctx))
		case <-timer.C:
		}
		wait = min(wait*2, longest)
		timer.Reset(wait)
	}
}

func (a *Agent) execStatus(ctx context.Context, pid int64) (result Result, exited bool, err error) {
	var raw struct {
		Exited       bool   `json:"exited"`
		ExitCode     int    `json:"exitcode"`
		Signal       int    `json:"signal"`
		Out          string `json:"out-data"`
		Err          string `json:"err-data"`
		OutTruncated bool   `json:"out-truncated"`
		ErrTruncated bool   `json:"err-truncated"`
	}
	if err := a.Execute(ctx, "guest-exec-status", map[string]int64{"pid": pid}, &raw); err != nil {
		return Result{}, false, err
	}
	stdout, outErr := base64.StdEncoding.DecodeString(raw.Out)
	stderr, errErr := base64.StdEncoding.DecodeString(raw.Err)
	if err := errors.Join(outErr, errErr); err != nil {
		return Result{}, false, fmt.Errorf("guest agent guest-exec-status: decode output: %w", err)
	}
	return Result{
		ExitCode: raw.ExitCode, Signal: raw.Signal, Stdout: stdout, Stderr: stderr,
		Truncated: raw.OutTruncated || raw.ErrTruncated,
	}, raw.Exited, nil
}
