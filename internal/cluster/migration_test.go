package cluster

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/weftnet/weft/internal/store"
	takeover "github.com/weftnet/weft/internal/whereabouts"
	"github.com/weftnet/weft/test/machine"
)

// TestDisagreementsAreTold by events of the ConfigMap, each once, whoever leads.
func TestDisagreementsAreTold(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.whereabouts()
	for _, wish := range []string{TakeOver, HandBack, TakeOver} {
		stop := c.besides(walled{c.Store, heals}, wish)
		<-c.given(wishes[wish])
		stop()
	}
	list, _, err := c.List(context.Background(), eventKind, store.Selector{Namespace: "weft"})
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	for _, obj := range list {
		of, _ := obj.Object["involvedObject"].(map[string]any)
		message, _ := obj.Object["message"].(string)
		if obj.Object["reason"] == "AddressDisagreement" && of["kind"] == "ConfigMap" && of["name"] == takeover.ConfigMap && strings.Contains(message, "10.0.0.3 is held by a/gone, and there is no such Pod") {
			told++
		}
	}
	if told != 1 {
		t.Errorf("it is told %d times, by %d events", told, len(list))
	}
}

// guide is docs/whereabouts-migration.md: the values it has people give, and the commands.
func guide(t testing.TB) (values []string, commands []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(machine.Tree(), "docs", "whereabouts-migration.md"))
	if err != nil {
		t.Fatal(err)
	}
	var block []string
	for line := range strings.Lines(string(text)) {
		code, is := strings.CutPrefix(strings.TrimRight(line, "\n"), "    ")
		switch code = strings.TrimPrefix(code, "    "); {
		case is && strings.HasPrefix(strings.TrimSpace(code), "kubectl "):
			commands = append(commands, strings.TrimSpace(code))
		case is && strings.TrimSpace(code) != "":
			block = append(block, code)
		case len(block) > 0:
			values, block = append(values, strings.Join(block, "\n")), nil
		}
	}
	for _, quoted := range regexp.MustCompile("`(kubectl [^`]+)`").FindAllStringSubmatch(string(text), -1) {
		commands = append(commands, quoted[1])
	}
	return values, commands
}

// TestMigrationGuide: what the guide has people write is what the chart and the controller
// take, and the policies it names are there.
func TestMigrationGuide(t *testing.T) {
	texts, commands := guide(t)
	var modes []string
	for _, text := range texts {
		var given struct {
			Whereabouts struct {
				Mode      string `json:"mode"`
				Namespace string `json:"namespace"`
				Mirror    bool   `json:"mirror"`
			} `json:"whereabouts"`
		}
		if err := yaml.UnmarshalStrict([]byte(text), &given); err != nil {
			t.Errorf("%v in\n%s", err, text)
		}
		modes = append(modes, given.Whereabouts.Mode)
	}
	slices.Sort(modes)
	if want := slices.Sorted(maps.Keys(wishes)); !slices.Equal(modes, want) {
		t.Errorf("the modes of the guide are %q, those that there are %q", modes, want)
	}
	if len(commands) < 6 {
		t.Errorf("commands: %q", commands)
	}
	read := func(path string) string {
		text, err := os.ReadFile(filepath.Join(machine.Tree(), path))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	page, manifest := read("docs/whereabouts-migration.md"), read("deploy/weft.yaml")
	for _, name := range []string{"weft-whereabouts", "weft-giving", "weft-reservations"} {
		if !strings.Contains(page, "`"+name+"`") || !strings.Contains(manifest, "kind: ValidatingAdmissionPolicy\nmetadata:\n  name: "+name+"\n") {
			t.Errorf("no policy %s", name)
		}
	}
	if !strings.Contains(page, "--imported-for") || !strings.Contains(read("cmd/weft-controller/main.go"), `"imported-for"`) {
		t.Error("no flag --imported-for")
	}
}

// guided runs the guide's commands that only look.
func (l *lab) guided() {
	l.t.Helper()
	_, commands := guide(l.t)
	ran := 0
	for _, command := range commands {
		command, _, _ = strings.Cut(command, " | ")
		args := strings.Fields(strings.NewReplacer(`'`, "", `{"\n"}`, "").Replace(strings.TrimPrefix(command, "kubectl ")))
		if !slices.Contains(args, "get") {
			continue
		}
		ran++
		l.kubectl("", args...)
	}
	if ran < 5 {
		l.t.Errorf("%d commands only, of %q", ran, commands)
	}
}
