package install

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// rivals collects what is told.
func (n *node) rivals() *[]string {
	var told []string
	n.Rival = func(problem string) { told = append(told, problem) }
	return &told
}

func TestOneThatComesBefore(t *testing.T) {
	for name, tt := range map[string]struct{ file, text, want string }{
		"Multus":        {"00-multus.conf", `{"cniVersion":"0.3.1","name":"multus","type":"multus-shim"}`, "delete Multus' DaemonSet"},
		"a primary":     {"00-first.conflist", bridge, "rename it so that it comes later, such as 10-00-first.conflist"},
		"one after":     {"05-cilium.conflist", `{"cniVersion":"0.3.1","name":"cilium","plugins":[{"type":"cilium-cni"}]}`, ""},
		"no JSON":       {"00-first.conf", `{"cniVersion"`, ""},
		"no plugin":     {"00-first.conflist", `{"cniVersion":"1.0.0","name":"x","plugins":[]}`, ""},
		"not read":      {"00-first.yaml", bridge, ""},
		"an empty file": {"00-first.conf", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			told := n.rivals()
			n.conf("10-primary.conflist", bridge)
			n.settle()
			n.conf(tt.file, tt.text)
			for range 5 {
				n.settle()
			}
			if tt.want == "" {
				if len(*told) > 0 {
					t.Errorf("told %q", *told)
				}
				return
			}
			if len(*told) != 1 || !strings.Contains((*told)[0], tt.want) || !strings.Contains((*told)[0], filepath.Join(n.ConfDir, tt.file)) {
				t.Errorf("told %q, want once %q", *told, tt.want)
			}
			if got := strings.Count(n.log.String(), "the runtime does not call weft"); got != 1 {
				t.Errorf("logged %d times:\n%s", got, n.log)
			}
			n.now = n.now.Add(remind)
			n.settle()
			if len(*told) != 2 {
				t.Errorf("after a while, told %q", *told)
			}
			n.remove(tt.file)
			n.settle()
			n.now = n.now.Add(over)
			n.settle()
			if !strings.Contains(n.log.String(), "the runtime calls weft again") {
				t.Errorf("its end is not logged:\n%s", n.log)
			}
		})
	}
}

// TestCiliumWantsToBeAlone does what Cilium does with cni.exclusive.
func TestCiliumWantsToBeAlone(t *testing.T) {
	n := newNode(t)
	told := n.rivals()
	ours := filepath.Join(n.ConfDir, ConfigFile)
	// What is left of a Cilium that was told better is no reason.
	if err := os.WriteFile(ours+ciliumSuffix, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.conf("05-cilium.conflist", `{"cniVersion":"0.3.1","name":"cilium","plugins":[{"type":"cilium-cni"}]}`)
	n.settle()
	n.settle()
	n.has("weft 0.3.1", follows("05-cilium.conflist"))
	if len(*told) > 0 {
		t.Errorf("an old file makes it tell %q", *told)
	}
	for range 3 {
		if err := os.Rename(ours, ours+ciliumSuffix); err != nil {
			t.Fatal(err)
		}
		n.settle()
		n.has("weft 0.3.1", follows("05-cilium.conflist")) // for when it ends
	}
	if len(*told) != 1 || !strings.Contains((*told)[0], "cni.exclusive=false") || !strings.Contains((*told)[0], ours) {
		t.Errorf("told %q", *told)
	}
	n.now = n.now.Add(over + time.Second)
	n.settle()
	if !strings.Contains(n.log.String(), "the runtime calls weft again") {
		t.Errorf("its end is not logged:\n%s", n.log)
	}
	if got := strings.Count(n.log.String(), "wrote the CNI configuration"); got > 2 {
		t.Errorf("writing it again is logged each time:\n%s", n.log)
	}
}
