package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	cni "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/dataplane"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/test/need"
)

// networks are definitions by name, all in one namespace.
type networks map[string]string

func (n networks) Definition(_ context.Context, namespace, name string) (*netattach.NetworkAttachmentDefinition, error) {
	conf, ok := n[name]
	if !ok {
		return nil, nil
	}
	return &netattach.NetworkAttachmentDefinition{Namespace: namespace, Name: name, Config: conf}, nil
}

func (n networks) Namespaces(context.Context, string) ([]string, error) { return nil, nil }

// newEngine makes what weftd attaches with, records on disk included.
func newEngine(tb testing.TB, host *linux.NS, nads networks) *chain.Engine {
	tb.Helper()
	plane, err := dataplane.New(dataplane.Config{Instance: "bench", HostNS: host.Path()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := plane.Close(); err != nil {
			tb.Error(err)
		}
	})
	records, err := record.Open(tb.TempDir(), runDir(tb))
	if err != nil {
		tb.Fatal(err)
	}
	engine, err := chain.New(context.Background(), chain.Options{
		Instance: "bench", Machine: "m", Records: records, Dataplane: plane, Host: plane.Host(), Addresses: ipam.NewMemory(),
		Networks: nads, HostNS: host.Path(),
	})
	if err != nil {
		tb.Fatal(err)
	}
	if err := engine.Restore(context.Background()); err != nil {
		tb.Fatal(err)
	}
	return engine
}

// TestEngineSameAsReference: the whole engine, with the config as the Pod's
// default network, answers ADD as the reference plugin does and makes the same.
// (DEL differs: the engine removes a bridge nobody uses any more.)
func TestEngineSameAsReference(t *testing.T) {
	need.Root(t)
	dir := reference(t)
	for _, c := range sameCases {
		if strings.Contains(c.conf, "runtimeConfig") {
			continue // comes from the annotation, not from the config
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			theirs, ours := c.place(t), c.place(t)
			add := call{command: "ADD", sandbox: "sb1", netns: theirs.pod.Path(), ifName: "net1", args: c.args, conf: c.config(t.TempDir())}
			raw, err := add.exec(ctx, theirs.host, dir)
			if err != nil {
				t.Fatal(err)
			}
			engine := newEngine(t, ours.host, nil)
			before := ours.state(t, nil)
			box, err := engine.Add(ctx, chain.Request{
				ID: "sb1", NetNS: ours.pod.Path(), IfName: "net1", Pod: record.Pod{Namespace: "demo", Name: "a", UID: "u"},
				Default: &chain.DefaultNetwork{Config: c.config("/unused")}, CNIArgs: splitArgs(c.args),
			})
			if err != nil {
				t.Fatal(err)
			}
			own := resultAs10(t, box)
			c.compare(t, "after ADD",
				func() []string {
					return append(cniResult(t, raw, theirs.pod.Path(), c.keep...), theirs.state(t, c.keep)...)
				},
				func() []string {
					return append(cniResult(t, own, ours.pod.Path(), c.keep...), ours.state(t, c.keep)...)
				})
			if err := engine.Check(ctx, "sb1"); err != nil {
				t.Errorf("CHECK after ADD: %v", err)
			}
			if err := engine.Del(ctx, "sb1"); err != nil {
				t.Fatal(err)
			}
			if len(c.prepare) > 0 {
				return // a bridge that was there before stays, and has lost its ports
			}
			after := forwardingOff(ours.state(t, nil))
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("left behind (-before +after):\n%s", diff)
			}
		})
	}
}

// forwardingOff writes forwarding as it was: once on it stays on, because
// others may have come to count on it.
func forwardingOff(lines []string) []string {
	for i, line := range lines {
		if strings.Contains(line, "forward") {
			lines[i] = strings.Replace(line, "= 1", "= 0", 1)
		}
	}
	return lines
}

func splitArgs(text string) [][2]string {
	var out [][2]string
	for pair := range strings.SplitSeq(text, ";") {
		if key, value, ok := strings.Cut(pair, "="); ok {
			out = append(out, [2]string{key, value})
		}
	}
	return out
}

// resultAs10 gives the recorded result as CNI 1.0.0, which the config asks for.
func resultAs10(t *testing.T, box *record.Sandbox) []byte {
	t.Helper()
	result, err := chain.Result(box.Attachments[0])
	if err != nil {
		t.Fatal(err)
	}
	older, err := result.GetAsVersion("1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	of10 := older.(*cni.Result)
	for _, i := range of10.Interfaces {
		// Known difference: weft tells the MTU (new in CNI 1.1, and what
		// network-status shows), the reference leaves it out.
		i.Mtu = 0
	}
	raw, err := json.Marshal(of10)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// annotation asks for n networks.
func annotation(n int) string {
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("net-%d", i))
	}
	return strings.Join(names, ",")
}

// runDir is a directory where weftd has its own for what need not outlast a
// reboot: in memory, if the machine is like others.
func runDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/run", "weft-bench-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return dir
}
