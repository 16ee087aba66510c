package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weftnet/weft/internal/netstate"
)

// guest is an agent's peer; before is what it says before each sync's answer.
func guest(t *testing.T, before string, answer func(request) string) *Agent {
	t.Helper()
	agent := NewAgent(pipe(t, func(conn net.Conn, lines *bufio.Scanner) {
		for lines.Scan() {
			var r request
			if err := json.Unmarshal(bytes.TrimLeft(lines.Bytes(), "\xff"), &r); err != nil {
				t.Errorf("command %q: %v", lines.Text(), err)
				return
			}
			if r.Execute == "guest-sync-delimited" {
				var args struct{ ID int64 }
				if err := json.Unmarshal(r.Arguments, &args); err != nil {
					t.Error(err)
				}
				fmt.Fprintf(conn, "%s\xff{\"return\": %d}\n", before, args.ID)
				continue
			}
			if text := answer(r); text != "" {
				fmt.Fprint(conn, text)
			}
		}
	}))
	return agent
}

func TestAgentCommands(t *testing.T) {
	polls := 0
	// Garbage, half an old answer, the answer to an old sync.
	agent := guest(t, "{\"retur\xff\xff{\"return\": 17}\n\xffnonsense\n", func(r request) string {
		switch r.Execute {
		case "guest-network-get-interfaces":
			return oneLine(`{"return": [
				{"name": "lo", "hardware-address": "00:00:00:00:00:00", "ip-addresses": [{"ip-address": "127.0.0.1", "ip-address-type": "ipv4", "prefix": 8}]},
				{"name": "eth0", "hardware-address": "02:00:00:00:00:01", "statistics": {"rx-bytes": 1}, "ip-addresses": [
					{"ip-address": "10.0.2.2", "ip-address-type": "ipv4", "prefix": 24},
					{"ip-address": "fe80::1%eth0", "ip-address-type": "ipv6", "prefix": 64},
					{"ip-address": "nonsense", "prefix": 1}, {"ip-address": "10.0.0.1", "prefix": 99}]},
				{"name": "tun0"}]}`) + "\n"
		case "guest-info":
			return `{"return": {"version": "7.2.22", "supported_commands": [{"name": "guest-exec", "enabled": true}, {"name": "guest-ping", "enabled": false}]}}` + "\n"
		case "guest-get-host-name":
			return `{"return": {"host-name": "vm1"}}` + "\n"
		case "guest-get-osinfo":
			return `{"return": {"id": "debian", "pretty-name": "Debian", "kernel-release": "6.1.0"}}` + "\n"
		case "guest-exec":
			var args struct {
				Path  string
				Arg   []string
				Input string `json:"input-data"`
			}
			if err := json.Unmarshal(r.Arguments, &args); err != nil || args.Path != "cat" || len(args.Arg) != 1 || args.Input != "aGk=" {
				t.Errorf("guest-exec %s, %v", r.Arguments, err)
			}
			return `{"return": {"pid": 42}}` + "\n"
		case "guest-exec-status":
			if polls++; polls < 3 {
				return `{"return": {"exited": false}}` + "\n"
			}
			return fmt.Sprintf(`{"return": {"exited": true, "exitcode": 3, "out-data": "%s", "err-truncated": true}}`+"\n", base64.StdEncoding.EncodeToString([]byte("hi")))
		case "guest-shutdown":
			return ""
		}
		return `{"error": {"class": "CommandNotFound", "desc": "no such"}}` + "\n"
	})
	ctx := t.Context()
	links, err := agent.NetworkInterfaces(ctx)
	if err != nil {
		t.Fatal(err)
	}
	prefix := netip.MustParsePrefix
	want := []GuestLink{
		{Name: "lo", MAC: "00:00:00:00:00:00", Addrs: []netip.Prefix{prefix("127.0.0.1/8")}},
		{Name: "eth0", MAC: "02:00:00:00:00:01", Addrs: []netip.Prefix{prefix("10.0.2.2/24"), prefix("fe80::1/64")}},
		{Name: "tun0"},
	}
	if diff := cmp.Diff(want, links, cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateComparable(netstate.MAC(""))); diff != "" {
		t.Errorf("links (-want +got):\n%s", diff)
	}
	info, err := agent.Info(ctx)
	if err != nil || info.Version != "7.2.22" || !info.Commands["guest-exec"] || info.Commands["guest-ping"] {
		t.Errorf("info %+v, %v", info, err)
	}
	if name, err := agent.HostName(ctx); err != nil || name != "vm1" {
		t.Errorf("host name %q, %v", name, err)
	}
	if osInfo, err := agent.OSInfo(ctx); err != nil || osInfo.ID != "debian" || osInfo.KernelRelease != "6.1.0" {
		t.Errorf("OS %+v, %v", osInfo, err)
	}
	result, err := agent.Exec(ctx, Command{Path: "cat", Args: []string{"-"}, Stdin: []byte("hi")})
	if err != nil || result.ExitCode != 3 || string(result.Stdout) != "hi" || !result.Truncated || polls != 3 {
		t.Errorf("exec %+v after %d polls, %v", result, polls, err)
	}
	var refused *AgentError
	if err := agent.Execute(ctx, "guest-nothing", nil, nil); !errors.As(err, &refused) || refused.Class != "CommandNotFound" {
		t.Errorf("refusal: %v", err)
	}
	if err := agent.Shutdown(ctx, "reboot"); err != nil {
		t.Error(err)
	}
	if name, err := agent.HostName(ctx); err != nil || name != "vm1" {
		t.Errorf("after a command without an answer: %q, %v", name, err)
	}
}

// TestAgentResync gives up a command; its late answer must not be taken for
// the next one's.
func TestAgentResync(t *testing.T) {
	// The late answer comes before the sync's, as it does from a real agent.
	agent := guest(t, `{"return": {"host-name": "wrong"}}`+"\n", func(r request) string {
		if r.Execute == "slow" {
			return ""
		}
		return `{"return": {"host-name": "right"}}` + "\n"
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := agent.Execute(ctx, "slow", nil, nil)
	if !errors.Is(err, ErrAgentSilent) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	if name, err := agent.HostName(t.Context()); err != nil || name != "right" {
		t.Errorf("got %q, %v", name, err)
	}
	canceled, cancelNow := context.WithCancel(t.Context())
	cancelNow()
	if err := agent.Execute(canceled, "guest-ping", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := agent.HostName(t.Context()); err != nil {
		t.Errorf("after a cancelled one: %v", err)
	}
}

func TestAgentBadAnswers(t *testing.T) {
	for name, text := range map[string]string{
		"nonsense": "HTTP/1.1 200\n", "nothing in it": "{}\n", "wrong shape": `{"return": 7}` + "\n",
		"array": "[]\n",
	} {
		t.Run(name, func(t *testing.T) {
			bad := true
			agent := guest(t, "", func(request) string {
				if bad {
					return text
				}
				return `{"return": {"host-name": "ok"}}` + "\n"
			})
			if _, err := agent.HostName(t.Context()); err == nil {
				t.Fatal("accepted")
			}
			bad = false
			if name, err := agent.HostName(t.Context()); err != nil || name != "ok" {
				t.Errorf("the next command: %q, %v", name, err)
			}
		})
	}
	t.Run("line without end", func(t *testing.T) {
		huge := strings.Repeat("x", maxAgentLine+1<<16)
		agent := guest(t, "", func(request) string { return huge })
		if _, err := agent.HostName(t.Context()); err == nil || errors.Is(err, ErrAgentSilent) {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	for _, seed := range []string{`{"return": {}}`, `{"return": 5}`, `{"error": {"class": "x", "desc": "y"}}`, "\xff{}", `{"return": null}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		got, err := decodeAnswer(line)
		if err == nil && got.Return == nil && got.Error == nil {
			t.Errorf("%q is no answer", line)
		}
	})
}
