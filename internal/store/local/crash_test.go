package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/storetest"
)

// crashEnv names the file that a copy of this test binary writes until killed.
const crashEnv = "WEFT_LOCAL_CRASH_WRITER"

func TestMain(m *testing.M) {
	if path := os.Getenv(crashEnv); path != "" {
		if err := writeUntilKilled(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// writeUntilKilled prints a line after each write that was acknowledged:
// "put NAME REVISION" or "deleted NAME". Every fourth object owns the three after it.
func writeUntilKilled(path string) error {
	s, err := Open(path, Options{NoSync: true, LockTimeout: 10 * time.Second})
	if err != nil {
		return err
	}
	ctx := context.Background()
	_, at, err := s.List(ctx, storetest.Widget, store.Selector{})
	if err != nil {
		return err
	}
	var owner *store.Object
	for i := 0; ; i++ {
		obj := widget(fmt.Sprintf("from-%s-%d", at, i))
		if i%4 != 0 {
			obj.SetOwnerReferences([]metav1.OwnerReference{{
				APIVersion: owner.GetAPIVersion(), Kind: owner.GetKind(), Name: owner.GetName(), UID: owner.GetUID(),
			}})
		}
		made, err := s.Create(ctx, obj)
		if err != nil {
			return err
		}
		fmt.Printf("put %s %s\n", made.GetName(), made.GetResourceVersion())
		if i%4 == 0 {
			owner = made
		}
		made.Object["spec"] = map[string]any{"n": int64(i), "pad": strings.Repeat("x", i%4000)}
		made, err = s.Update(ctx, made)
		if err != nil {
			return err
		}
		fmt.Printf("put %s %s\n", made.GetName(), made.GetResourceVersion())
		if i%8 == 7 { // the owned go with it, at some time
			if err := s.Delete(ctx, storetest.Widget, store.KeyOf(owner), store.Precondition{}); err != nil {
				return err
			}
			fmt.Printf("deleted %s\n", owner.GetName())
		}
	}
}

// acknowledged is what the killed writers said they had done.
type acknowledged struct {
	put     map[string]string // name → revision
	deleted map[string]bool
}

// runWriter lets a writer make some acknowledged writes and kills it.
func (a *acknowledged) runWriter(t *testing.T, path string, writes int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for n := 0; lines.Scan(); n++ {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) == 3 && words[0] == "put":
			a.put[words[1]] = words[2]
		case len(words) == 2 && words[0] == "deleted":
			a.deleted[words[1]] = true
		default:
			t.Fatalf("writer said %q", lines.Text())
		}
		if n == writes {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Fatalf("writer ended with %v, want a kill", err)
	}
}

// TestKill9 kills a writer again and again: what it had acknowledged is there,
// revisions never go back, the indexes are whole, and the objects whose owner
// was deleted just before the kill are collected by the next process.
func TestKill9(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	acks := acknowledged{put: map[string]string{}, deleted: map[string]bool{}}
	rounds := 8
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		acks.runWriter(t, path, 40+37*round)
		s, err := Open(path, Options{NoSync: true})
		if err != nil {
			t.Fatalf("round %d: Open: %v", round, err)
		}
		checkIndexes(t, s.db)
		stored := waitCollected(t, s)
		for name, obj := range stored {
			if acks.deleted[name] {
				t.Errorf("%s was deleted and is there", name)
			}
			if at, ok := acks.put[name]; ok && revisionNumber(t, obj.GetResourceVersion()) < revisionNumber(t, at) {
				t.Errorf("%s: stored at revision %s, acknowledged at %s", name, obj.GetResourceVersion(), at)
			}
		}
		for name := range acks.put {
			if stored[name] == nil && !mayBeGone(acks, name) {
				t.Errorf("round %d: acknowledged %s is lost", round, name)
			}
		}
		checkIndexes(t, s.db)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// mayBeGone reports whether the owner of name, or name itself, was deleted or
// may have been: the writer can be killed between a deletion and its line.
func mayBeGone(acks acknowledged, name string) bool {
	at := strings.LastIndexByte(name, '-')
	var i int
	if _, err := fmt.Sscan(name[at+1:], &i); err != nil {
		return false
	}
	if i%8 < 4 {
		return false // its owner is never deleted
	}
	owner := i - i%4
	if acks.deleted[fmt.Sprintf("%s-%d", name[:at], owner)] {
		return true
	}
	last := acks.put[fmt.Sprintf("%s-%d", name[:at], owner+3)] // written just before the deletion
	return last != "" && acks.put[fmt.Sprintf("%s-%d", name[:at], owner+4)] == ""
}

// waitCollected waits until no stored object lacks its owner.
func waitCollected(t *testing.T, s *Store) map[string]*store.Object {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		objs, _, err := s.List(t.Context(), storetest.Widget, store.Selector{})
		if err != nil {
			t.Fatal(err)
		}
		stored, uids := map[string]*store.Object{}, map[string]bool{}
		for _, obj := range objs {
			stored[obj.GetName()] = obj
			uids[string(obj.GetUID())] = true
		}
		orphan := errors.New("none")
		for _, obj := range objs {
			for _, owner := range obj.GetOwnerReferences() {
				if !uids[string(owner.UID)] {
					orphan = fmt.Errorf("%s lacks its owner %s", obj.GetName(), owner.Name)
				}
			}
		}
		if orphan.Error() == "none" {
			return stored
		}
		if time.Now().After(end) {
			t.Fatalf("not collected: %v", orphan)
		}
	}
}

func revisionNumber(t *testing.T, text string) (n uint64) {
	t.Helper()
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatalf("revision %q: %v", text, err)
	}
	return n
}

// TestCascadeAfterCrash drops the collector's work, as a crash right after the
// owner's deletion does, and leaves it to the next process.
func TestCascadeAfterCrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := open(t, path, Options{NoSync: true})
	owner := create(t, s, widget("owner"))
	const owned = 3*collectBatch + 1
	for i := range owned {
		obj := widget(fmt.Sprint("owned-", i))
		obj.SetOwnerReferences([]metav1.OwnerReference{{
			APIVersion: owner.GetAPIVersion(), Kind: owner.GetKind(), Name: owner.GetName(), UID: owner.GetUID(),
		}})
		create(t, s, obj)
	}
	err := s.commit(func(tx *txn) error {
		err := tx.delete(kindOf(storetest.Widget), store.KeyOf(owner), store.Precondition{}, metav1.Now())
		tx.orphans = nil // nobody tells the collector
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if objs, _, err := s.List(t.Context(), storetest.Widget, store.Selector{}); err != nil || len(objs) != owned {
		t.Fatalf("before the restart: got %d objects, error %v, want %d", len(objs), err, owned)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, Options{NoSync: true})
	if left := waitCollected(t, s); len(left) != 0 {
		t.Errorf("after the restart: %d objects left, want none", len(left))
	}
	checkIndexes(t, s.db)
}
