package nodeagent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/instance"
	"github.com/weftnet/weft/test/kubelab"
)

// thin has the runtime call weft-cni-thin instead, with the agent's records.
func (l *lab) thin() {
	l.t.Helper()
	kubeconfig, err := l.proxy.Kubeconfig(l.c.Kubeconfig())
	if err != nil {
		l.t.Fatal(err)
	}
	in, err := instance.New(l.dir)
	if err != nil {
		l.t.Fatal(err)
	}
	l.plugin = fmt.Sprintf(`"type":"weft-cni-thin","instance":%q,"stateDir":%q,"runDir":%q,"kubeconfig":%q`, in.Tag, in.State, in.Run, kubeconfig)
}

// TestThinIsLikeTheAgent: the same Pod attached by either has the same
// network-status and the same record, but for what is made up for each sandbox.
func TestThinIsLikeTheAgent(t *testing.T) {
	l := runningLab(t)
	l.nad("primary2", `{"cniVersion":"1.0.0","type":"bridge","bridge":"second0","isDefaultGateway":true,"ipam":{"type":"host-local","subnet":"10.65.0.0/24"}}`)
	agents := l.plugin
	for _, annotations := range []map[string]string{
		{},
		{netattach.NetworksAnnotation: `[{"name":"blue","ips":["10.62.0.9"],"mac":"02:00:00:00:00:99","interface":"x0"},{"name":"tuned"}]`},
		{netattach.NetworksAnnotation: "blue", netattach.DefaultNetworkAnnotation: l.ns + "/primary2"},
	} {
		for _, told := range []bool{true, false} {
			var statuses, records []string
			for _, thin := range []bool{false, true} {
				if thin {
					l.kill()
					l.thin()
				} else if l.agent == nil {
					l.plugin = agents
					l.start()
				}
				p := l.podWith(annotations)
				p.sandbox(told)
				if err := p.add(); err != nil {
					t.Fatalf("ADD, thin %v: %v", thin, err)
				}
				interfaces := []string{}
				for name := range p.addresses() {
					if name != "lo" {
						interfaces = append(interfaces, name)
					}
				}
				slices.Sort(interfaces)
				p.agrees(interfaces...)
				p.check()
				status, err := p.statusText()
				if err != nil {
					t.Fatal(err)
				}
				statuses, records = append(statuses, p.plain(status)), append(records, p.plain(p.record()))
				p.end()
				l.nothingLeft()
			}
			if statuses[0] != statuses[1] {
				t.Errorf("network-status by the agent and by the thin plugin:\n%s\n%s", statuses[0], statuses[1])
			}
			if records[0] != records[1] {
				t.Errorf("record by the agent and by the thin plugin:\n%s\n%s", records[0], records[1])
			}
		}
	}
}

// record gives the last line of the sandbox's, indented.
func (p *pod) record() string {
	p.t.Helper()
	files, err := filepath.Glob(p.dir + "/*/" + p.now.ContainerID + ".json") // on the disk
	if err == nil && len(files) == 0 {
		files, err = filepath.Glob(p.dir + "/run/*/" + p.now.ContainerID + ".json")
	}
	if err != nil || len(files) != 1 {
		p.t.Fatalf("records: %v (%v)", files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		p.t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	var record any
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &record); err != nil {
		p.t.Fatal(err)
	}
	out, err := json.MarshalIndent(record, "", " ")
	if err != nil {
		p.t.Fatal(err)
	}
	return string(out)
}

var madeUp = regexp.MustCompile(`(?i)([0-9a-f]{2}:){5}[0-9a-f]{2}|"(index|Index|group|since)": [0-9]+|pod[0-9a-f]{8,}|weft[0-9a-f]{8,}|fe80::[0-9a-f:]+`)

// plain takes out of a text what belongs to this one sandbox.
func (p *pod) plain(text string) string {
	text = strings.NewReplacer(p.now.NetNS, "NETNS", p.now.ContainerID, "SANDBOX", p.uid, "UID", p.key.Name, "POD").Replace(text)
	return madeUp.ReplaceAllString(text, "MADE-UP")
}

// TestThinAsksLittle: a GET for each network, one for the Pod if the runtime does
// not tell of it, one PATCH, one event; and CHECK and DEL ask nothing.
func TestThinAsksLittle(t *testing.T) {
	l := thinLab(t)
	for told, want := range map[bool][]string{
		true:  {"GET blue", "GET tuned", "PATCH POD", "POST events"},
		false: {"GET POD", "GET blue", "GET tuned", "PATCH POD", "POST events"},
	} {
		p := l.pod("blue,tuned,blue")
		p.sandbox(told)
		l.proxy.Take()
		if err := p.add(); err != nil {
			t.Fatal(err)
		}
		p.check()
		p.end()
		var got []string
		for _, r := range l.proxy.Take() {
			if r.Agent == "weft-cni-thin" {
				got = append(got, r.Method+" "+strings.Replace(filepath.Base(r.Path), p.key.Name, "POD", 1))
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("told of annotations %v: it asked %v, want %v", told, got, want)
		}
		l.nothingLeft()
	}
}

// TestThinAtOnce: calls take turns at the records and not at the API server,
// which takes a second for each answer.
func TestThinAtOnce(t *testing.T) {
	l := thinLab(t)
	const count = 8
	var mu sync.Mutex
	var now, most int
	l.proxy.Spoil(func(r *http.Request) kubelab.Fault {
		if r.UserAgent() != "weft-cni-thin" || r.Method != http.MethodGet {
			return kubelab.Fault{}
		}
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		time.AfterFunc(time.Second, func() {
			mu.Lock()
			now--
			mu.Unlock()
		})
		return kubelab.Fault{Delay: time.Second}
	})
	defer l.nothing()
	var all []*pod
	for range count {
		p := l.pod(mixed)
		p.sandbox(true)
		all = append(all, p)
	}
	var group sync.WaitGroup
	for _, p := range all {
		group.Go(func() {
			if err := p.add(); err != nil {
				t.Errorf("ADD: %v", err)
			}
		})
	}
	group.Wait()
	given := map[string]bool{}
	for _, p := range all {
		p.agrees("eth0", "net1", "net2")
		for name, address := range p.addresses() {
			if name != "lo" && given[address] {
				t.Errorf("%s is given twice", address)
			}
			given[address] = true
		}
	}
	if most <= 2 { // of the two questions of one call
		t.Errorf("at most %d questions at once: calls wait for each other's", most)
	}
	for _, p := range all {
		group.Go(p.end)
	}
	group.Wait()
	l.nothingLeft()
}

func TestThinAPIFaults(t *testing.T) {
	l := thinLab(t)
	l.eachFault(func(tt apiFault) {
		l.everything(tt.fault)
		p := l.pod("blue")
		p.sandbox(false)
		if p.asks(tt) {
			p.del() // asks nobody
		}
		l.writes(tt.fault)
		if err := p.add(); err != nil {
			l.t.Errorf("ADD where network-status cannot be written: %v", err)
		}
		if interfaces := len(p.addresses()); interfaces != 3 {
			l.t.Errorf("the Pod has %v", p.addresses())
		}
		p.end()
	})
}

func TestThinRefuses(t *testing.T) {
	l := thinLab(t)
	for networks, words := range map[string][]string{
		"nowhere":       {"there is no NetworkAttachmentDefinition " + l.ns + "/nowhere", "create it"},
		"other/blue":    {"isolated by namespace", "globalNamespaces"},
		"default/tuned": {"default/tuned", "one of that name is in namespace", l.ns},
		`[{"name":"blue","ipam-claim-reference":"c"}]`: {"ipam-claim-reference", "cannot be kept by the thin plugin", "run the node agent"},
	} {
		p := l.pod(networks)
		p.sandbox(true)
		code(t, p.add(), types.ErrInvalidNetworkConfig, words...)
		p.end()
	}
	l.nothingLeft()
}

// TestThinKilled kills the thin plugin before each step of an ADD, and of a DEL:
// the runtime's next call finishes it, or GC does.
func TestThinKilled(t *testing.T) {
	l := thinLab(t)
	for _, verb := range []string{"ADD", "DEL"} {
		t.Run(verb, func(t *testing.T) {
			l.t = t
			l.steps(func(env string) bool {
				name, step, _ := strings.Cut(env, "=")
				p := l.pod(mixed)
				p.sandbox(true)
				failing := func(call func() error) error {
					t.Setenv(name, step)
					defer func() { _ = os.Unsetenv(name) }() // it is set
					return call()
				}
				var killed error
				if verb == "ADD" {
					killed = failing(p.add)
				}
				if err := p.add(); err != nil {
					t.Fatal(err)
				}
				p.whole()
				if verb == "DEL" {
					killed = failing(func() error {
						return p.call(func() error { return p.runtime.DelNetworkList(t.Context(), p.list(), p.now) })
					})
				}
				p.end()
				l.nothingLeft()
				return killed != nil
			})
		})
	}
}
