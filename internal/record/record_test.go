package record

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/nft"
	"github.com/weftnet/weft/test/need"
)

var equal = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.EquateEmpty(),
	cmpopts.IgnoreFields(netattach.Selection{}, "Field"),
}

func open(t *testing.T) *Store {
	t.Helper()
	dir := t.TempDir()
	s, err := Open(filepath.Join(dir, "disk"), filepath.Join(dir, "run"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// full is a sandbox in which every field is set.
func full(id string) *Sandbox {
	on := true
	return &Sandbox{
		Version: Version, ID: id, NetNS: "/run/netns/x", Pod: Pod{Namespace: "demo", Name: "a", UID: "u"}, BootID: "b",
		Attachments: []*Attachment{{
			Network: "demo/blue", Interface: "net1", Stage: Intent, Reason: "because", Kind: Foreign, Default: true,
			Config: json.RawMessage(`{"name":"blue","plugins":[{"type":"bridge"}]}`),
			Selection: &netattach.Selection{
				Name: "blue", Namespace: "demo", IPs: []netattach.IPRequest{{Addr: netip.MustParseAddr("10.0.0.5"), Bits: -1}},
				DefaultRoute: []netip.Addr{}, CNIArgs: map[string]json.RawMessage{"k": json.RawMessage(`1`)},
			},
			CNIArgs: [][2]string{{"IgnoreUnknown", "1"}}, CapabilityArgs: map[string]json.RawMessage{"ips": json.RawMessage(`["10.0.0.5"]`)},
			NativeMain: true, IPAM: "dhcp", Alias: "weft:i:o",
			Plan: netstate.Plan{
				Host: netstate.State{Links: []netstate.Link{{Name: "br0", Kind: netstate.KindBridge, Presence: netstate.Shared, Promisc: &on, Bridge: &netstate.Bridge{STP: &on}}}},
				Pod: netstate.State{
					Addrs: []netstate.Addr{{Link: "net1", Prefix: netip.MustParsePrefix("10.0.0.5/24")}}, Routes: []netstate.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Link: "net1"}},
					Tables: []nft.Table{{Family: nft.IP, Name: "t", Chains: []nft.Chain{{Name: "c", Rules: []nft.Rule{"accept"}}}}},
				},
			},
			Masquerade: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")},
			Leases:     []Lease{{Scope: "s", Addr: netip.MustParseAddr("10.0.0.5"), Owner: "o"}},
			Links:      []Link{{Side: netstate.Pod, Name: "net1", Index: 7, MAC: "02:00:00:00:00:01", MTU: 1500, Alias: "weft:i:o", Kind: netstate.KindVeth, Up: true, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.5/24")}}},
			ByPlugins:  []string{"ip link set net1 mtu 1400"},
			Result:     json.RawMessage(`{"cniVersion":"1.1.0"}`), Moved: []netip.Prefix{netip.MustParsePrefix("10.0.0.5/24")},
		}},
	}
}

func TestSaveLoad(t *testing.T) {
	s := open(t)
	for _, durable := range []bool{false, true} {
		want := full(fmt.Sprint("sandbox-", durable))
		want.Durable = durable
		if err := s.Save(want); err != nil {
			t.Fatal(err)
		}
		got, err := s.Load(want.ID)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got, want, equal); diff != "" {
			t.Errorf("got -, want +:\n%s", diff)
		}
		if got.Attachments[0].Selection.DefaultRoute == nil {
			t.Error("an empty default-route became an absent one")
		}
	}
	if info, err := os.Stat(s.Path("sandbox-true", true)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	ids, err := s.IDs()
	if diff := cmp.Diff(ids, []string{"sandbox-false", "sandbox-true"}); err != nil || diff != "" {
		t.Errorf("ids: %v %s", err, diff)
	}
	for _, id := range ids {
		if err := s.Delete(id, id == "sandbox-true"); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(id, false); err != nil {
			t.Errorf("second delete: %v", err)
		}
		if _, err := s.Load(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("load after delete: %v", err)
		}
	}
	if left := files(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// files lists everything under the directories but directories.
func files(t *testing.T, s *Store) []string {
	t.Helper()
	var out []string
	for _, dir := range []string{s.dir, s.run} {
		err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
			if err == nil && !entry.IsDir() && entry.Name() != lockName {
				out = append(out, strings.TrimPrefix(path, dir+"/"))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestBecomesDurable: a sandbox that outlives the power from now on moves to the
// disk, and what is left of a death in the middle of that does not count.
func TestBecomesDurable(t *testing.T) {
	s := open(t)
	sandbox := full("x")
	if err := s.Save(sandbox); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(s.Path("x", false))
	if err != nil {
		t.Fatal(err)
	}
	sandbox.Durable, sandbox.NetNS = true, "/run/netns/y"
	if err := s.Save(sandbox); err != nil {
		t.Fatal(err)
	}
	if left := files(t, s); !slices.Equal(left, []string{"x.json"}) {
		t.Errorf("files: %v", left)
	}
	for _, died := range []bool{false, true} {
		if died {
			if err := os.WriteFile(s.Path("x", false), old, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := s.Load("x"); err != nil || !got.Durable || got.NetNS != "/run/netns/y" {
			t.Errorf("died %v: %+v, %v", died, got, err)
		}
		if ids, err := s.IDs(); err != nil || !slices.Equal(ids, []string{"x"}) {
			t.Errorf("died %v: %v, %v", died, ids, err)
		}
	}
	if err := s.Delete("x", true); err != nil {
		t.Fatal(err)
	}
	if left := files(t, s); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestIDs(t *testing.T) {
	s := open(t)
	for _, id := range []string{"", "../x", "a/b", ".hidden", strings.Repeat("a", 201), "a b"} {
		if err := s.Save(&Sandbox{ID: id}); err == nil {
			t.Errorf("saved %q", id)
		} else if _, ok := errors.AsType[*hint.Error](err); !ok {
			t.Errorf("%q: %v is no hint", id, err)
		}
		if _, err := s.Load(id); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("load %q: %v", id, err)
		}
	}
}

func TestDamaged(t *testing.T) {
	whole, err := json.Marshal(full("x"))
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.ReplaceAll(whole, []byte(`"id":"x"`), []byte(`"id":"y"`))
	tests := map[string][]byte{
		"empty": nil, "half": whole[:len(whole)/2], "nearly whole": whole[:len(whole)-1], "zeros": make([]byte, 4096), "another sandbox": other,
		"null": []byte("null"), "list": []byte("[]"), "null attachment": []byte(`{"version":1,"id":"x","attachments":[null]}`), "wrong type": []byte(`{"version":1,"id":"x","attachments":{}}`),
	}
	for name, content := range tests {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			if err := s.Save(full("good")); err != nil {
				t.Fatal(err)
			}
			for i, wantPath := range []string{"x.json.damaged", "x.json.damaged.2"} {
				if err := os.WriteFile(s.Path("x", false), content, 0o600); err != nil {
					t.Fatal(err)
				}
				list, err := s.List()
				damaged, ok := errors.AsType[*DamagedError](err)
				if !ok {
					t.Fatalf("round %d: got %v, want a DamagedError", i, err)
				}
				if damaged.Path != filepath.Join(s.run, wantPath) || damaged.ID != "x" {
					t.Errorf("got %s of %s, want %s", damaged.Path, damaged.ID, wantPath)
				}
				if len(list) != 1 || list[0].ID != "good" {
					t.Errorf("the others: got %v", list)
				}
				kept, err := os.ReadFile(damaged.Path)
				if err != nil || !bytes.Equal(kept, content) {
					t.Errorf("set aside: %q, %v", kept, err)
				}
				if _, err := s.Load("x"); !errors.Is(err, ErrNotFound) {
					t.Errorf("afterwards: %v", err)
				}
			}
			if paths, err := s.Damaged(); err != nil || len(paths) != 2 {
				t.Errorf("damaged: %v, %v", paths, err)
			}
		})
	}
}

// TestDamagedIsHisWhoWorksOnIt: whoever just reads does not set aside what
// somebody else, here or in another process, is about to write anew.
func TestDamagedIsHisWhoWorksOnIt(t *testing.T) {
	for name, byOther := range map[string]bool{"same process": false, "another process": true} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			owner := s
			if byOther {
				var err error
				if owner, err = Open(s.dir, s.run); err != nil {
					t.Fatal(err)
				}
			}
			path := s.Path("x", false)
			if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			unlock, err := owner.Lock(t.Context(), "x")
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Load("x")
			if damaged, ok := errors.AsType[*DamagedError](err); !ok || damaged.Path != path {
				t.Errorf("while it is worked on: %v", err)
			}
			_, err = owner.LoadLocked("x")
			if damaged, ok := errors.AsType[*DamagedError](err); !ok || damaged.Path != filepath.Join(s.run, "x.json.damaged") {
				t.Errorf("by who works on it: %v", err)
			}
			unlock()
			if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = s.Load("x")
			if damaged, ok := errors.AsType[*DamagedError](err); !ok || damaged.Path != filepath.Join(s.run, "x.json.damaged.2") {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func TestNewerVersionIsLeftAlone(t *testing.T) {
	s := open(t)
	content := []byte(`{"version":99,"id":"x","attachments":"something else"}`)
	if err := os.WriteFile(s.Path("x", false), content, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.Load("x")
	if _, ok := errors.AsType[*hint.Error](err); !ok {
		t.Errorf("got %v, want a hint", err)
	}
	if got, err := os.ReadFile(s.Path("x", false)); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the file: %q, %v", got, err)
	}
}

func TestOpenRemovesHalfWritten(t *testing.T) {
	s := open(t)
	if err := s.Save(full("x")); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"x", "y"} {
		if err := os.WriteFile(filepath.Join(s.run, id+tmpSuffix), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	unlock, err := s.Lock(t.Context(), "y") // its writer is at work
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.dir, s.run); err != nil {
		t.Fatal(err)
	}
	unlock()
	if diff := cmp.Diff(files(t, s), []string{"x.json", "y.json.tmp"}); diff != "" {
		t.Errorf("got -, want +:\n%s", diff)
	}
	if got, err := s.Load("x"); err != nil || got.ID != "x" {
		t.Errorf("the record: %v, %v", got, err)
	}
}

func TestSaveFailsWhole(t *testing.T) {
	s := open(t)
	if err := s.Save(full("x")); err != nil {
		t.Fatal(err)
	}
	// A directory in the way of the temporary file: not even root writes it.
	if err := os.Mkdir(filepath.Join(s.dir, "x"+tmpSuffix), 0o700); err != nil {
		t.Fatal(err)
	}
	changed := full("x")
	changed.NetNS, changed.Durable = "/elsewhere", true
	if err := s.Save(changed); err == nil {
		t.Fatal("saved over a directory")
	}
	got, err := s.Load("x")
	if err != nil || got.NetNS != "/run/netns/x" {
		t.Errorf("the old record: %v, %v", got, err)
	}
}

func TestLockExcludes(t *testing.T) {
	s := open(t)
	const workers, rounds = 8, 50
	counter := 0
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range rounds {
				unlock, err := s.Lock(t.Context(), "x")
				if err != nil {
					t.Error(err)
					return
				}
				counter++ // the race detector and the sum watch
				unlock()
			}
		})
	}
	wg.Wait()
	if counter != workers*rounds {
		t.Errorf("got %d, want %d", counter, workers*rounds)
	}
	if left := files(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestLockWaitsAndGivesUp(t *testing.T) {
	s := open(t)
	unlock, err := s.Lock(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	other, err := s.Lock(t.Context(), "y")
	if err != nil {
		t.Fatalf("another sandbox: %v", err)
	}
	other()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Lock(ctx, "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("held: got %v", err)
	}
	unlock()
	unlock, err = s.Lock(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// lockChild, set, makes this test program a process that holds a lock until its
// input ends; it names the directory.
const lockChild = "WEFT_TEST_LOCK_CHILD"

func TestMain(m *testing.M) {
	dir := os.Getenv(lockChild)
	if dir == "" {
		os.Exit(m.Run())
	}
	s, err := Open(dir, filepath.Join(dir, "run"))
	if err == nil {
		_, err = s.Lock(context.Background(), "x")
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Print("held\n")
	_, _ = os.Stdin.Read(make([]byte, 1)) // ends with the test, or is killed
}

// TestLockExcludesProcesses has another process hold a lock, and kills it.
func TestLockExcludesProcesses(t *testing.T) {
	s := open(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), lockChild+"="+s.dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 5)
	if _, err := io.ReadFull(out, said); err != nil || string(said) != "held\n" {
		t.Fatalf("the other process said %q, %v", said, err)
	}
	if _, err := s.tryLock("x"); !errors.Is(err, errBusy) {
		t.Errorf("while another process holds it: %v", err)
	}
	unlock, err := s.Lock(t.Context(), "y")
	if err != nil {
		t.Fatalf("another sandbox: %v", err)
	}
	unlock()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if unlock, err = s.Lock(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	unlock()
}

// TestLockExcludesStores: two stores on one directory are as two processes.
func TestLockExcludesStores(t *testing.T) {
	s := open(t)
	other, err := Open(s.dir, s.run)
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := s.Lock(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.tryLock("x"); !errors.Is(err, errBusy) {
		t.Errorf("while the other store holds it: %v", err)
	}
	unlock()
	if unlock, err = other.tryLock("x"); err != nil {
		t.Fatal(err)
	}
	unlock()
}

// TestSaveChanges: the last one saved or noted counts, nothing is left beside it,
// and a file that many have changed stays small.
func TestSaveChanges(t *testing.T) {
	for _, durable := range []bool{false, true} {
		s := open(t)
		for n := range 100 {
			box := full("x")
			box.NetNS, box.Durable = fmt.Sprintf("/%d", n), durable
			write := s.Note
			if n%40 == 0 {
				write = s.Save
			}
			if err := write(box); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Load("x"); err != nil || got.NetNS != box.NetNS {
				t.Errorf("durable %v: got %v, %v, want the one of %s", durable, got, err, box.NetNS)
			}
			if left := files(t, s); !slices.Equal(left, []string{"x.json"}) {
				t.Errorf("durable %v: got %v, want the record alone", durable, left)
			}
			if info, err := os.Stat(s.Path("x", durable)); err != nil || info.Size() > maxFile {
				t.Errorf("durable %v: got %v, %v, want at most %d bytes", durable, info, err, maxFile)
			}
		}
	}
}

// TestWriterDies cuts a change short at every byte: the record before it counts,
// and the next change does. What the power loses may be there as zeros.
func TestWriterDies(t *testing.T) {
	for _, durable := range []bool{false, true} {
		for _, zeros := range []bool{false, true} {
			t.Run(fmt.Sprintf("durable %v, zeros %v", durable, zeros), func(t *testing.T) { writerDies(t, durable, zeros) })
		}
	}
}

func writerDies(t *testing.T, durable, zeros bool) {
	s := open(t)
	noted := func(netns string) []byte {
		box := full("x")
		box.NetNS, box.Durable = netns, durable
		if err := s.Note(box); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(s.Path("x", durable))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	loaded := func() string {
		box, err := s.Load("x")
		if err != nil {
			return err.Error()
		}
		return box.NetNS
	}
	first := len(noted("/first"))
	both := noted("/second")
	if len(both) < 2*first {
		t.Fatalf("%d bytes are not the change and what was before it, which has %d", len(both), first)
	}
	for n := first; n <= len(both); n++ {
		left := slices.Clone(both[:n])
		if zeros {
			left = append(left, make([]byte, len(both)-n)...)
		}
		if err := os.WriteFile(s.Path("x", durable), left, 0o600); err != nil {
			t.Fatal(err)
		}
		want := "/first"
		if n == len(both) {
			want = "/second"
		}
		if got := loaded(); got != want {
			t.Fatalf("cut to %d of %d bytes: got %s, want %s", n, len(both), got, want)
		}
		noted("/third")
		if got := loaded(); got != "/third" {
			t.Fatalf("noted after a cut to %d bytes: got %s", n, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	whole, err := json.Marshal(full("x"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte(`{"version":1,"id":"x","attachments":[null]}`))
	f.Add([]byte(`{"version":1,"id":"x","attachments":[{"selection":{"name":"a","ips":[1]}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		sandbox, err := decode("x", data)
		if err != nil {
			return
		}
		again, err := json.Marshal(sandbox)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode("x", again); err != nil {
			t.Errorf("our own text %s: %v", again, err)
		}
	})
}

// TestFullDisk: a line of which only the beginning got in is not taken for the
// record when the next one is added.
func TestFullDisk(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // the store has its lock open
	s, err := Open(filepath.Join(dir, "disk"), filepath.Join(dir, "run"))
	if err != nil {
		t.Fatal(err)
	}
	want := full("x")
	if err := s.Save(want); err != nil {
		t.Fatal(err)
	}
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	if _, err := filler.Write(make([]byte, 64<<10)); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	changed := full("x")
	changed.NetNS = "/" + strings.Repeat("long", 5000)
	for round := range 3 { // each with room for a few bytes more
		info, err := filler.Stat()
		if err == nil && round > 0 {
			err = filler.Truncate(info.Size() - int64(os.Getpagesize()))
		}
		if err != nil {
			t.Fatal(err)
		}
		err = s.Save(changed)
		if h, ok := errors.AsType[*hint.Error](err); !ok || !errors.Is(err, unix.ENOSPC) || !strings.Contains(h.Remedy, "free space") {
			t.Fatalf("save on a full disk: %v", err)
		}
		if got, err := s.Load("x"); err != nil || got.NetNS != want.NetNS {
			t.Fatalf("after a failed save: %+v, %v", got, err)
		}
	}
	changed.Durable = true
	if err := s.Save(changed); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("save durably on a full disk: %v", err)
	}
	if diff := cmp.Diff(files(t, s), []string{"x.json"}); diff != "" {
		t.Errorf("files: got -, want +:\n%s", diff)
	}
	if err := s.Delete("x", true); err != nil {
		t.Errorf("delete on a full disk: %v", err)
	}
}
