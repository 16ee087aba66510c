package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/netstate"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}`

type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        json.RawMessage `json:"id"`
}

// pipe is a connection whose other end is a function: the peer.
func pipe(t *testing.T, peer func(net.Conn, *bufio.Scanner)) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer theirs.Close()
		peer(theirs, bufio.NewScanner(theirs))
	})
	t.Cleanup(func() {
		ours.Close()
		wg.Wait()
	})
	return ours
}

// monitor is a QMP peer: answer gives the lines for each command after the
// handshake; %s in them is the command's id.
func monitor(t *testing.T, answer func(request) []string) *Client {
	t.Helper()
	conn := pipe(t, func(conn net.Conn, lines *bufio.Scanner) {
		fmt.Fprintln(conn, greeting)
		for lines.Scan() {
			var r request
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				t.Errorf("command %q: %v", lines.Text(), err)
				return
			}
			reply := []string{`{"return": {}, "id": %s}`}
			if r.Execute != "qmp_capabilities" {
				reply = answer(r)
			}
			for _, line := range reply {
				if line == "hang up" {
					return
				}
				fmt.Fprintln(conn, strings.ReplaceAll(line, "%s", string(r.ID)))
			}
		}
	})
	client, err := NewClient(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func TestQMP(t *testing.T) {
	client := monitor(t, func(r request) []string {
		switch r.Execute {
		case "query-status":
			return []string{
				`{"event": "RESET", "data": {"guest": true}, "timestamp": {"seconds": 5, "microseconds": 7}}`,
				`{"return": {"running": false, "status": "wrong"}, "id": 4711}`, // nobody's
				`{"return": {"running": true, "status": "running"}, "id": %s}`,
				`{"return": {"running": true, "status": "twice"}, "id": %s}`,
			}
		case "set_link":
			return []string{`{"error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}, "id": %s}`}
		case "cont":
			return nil // no answer
		}
		return []string{"hang up"}
	})
	if client.Version != (Version{7, 2, 22}) {
		t.Errorf("version %v", client.Version)
	}
	for range 2 {
		got, err := client.Status(t.Context())
		if err != nil || got != (Status{"running", true}) {
			t.Errorf("status %+v, %v", got, err)
		}
		event := <-client.Events()
		if event.Name != "RESET" || !event.Time.Equal(time.Unix(5, 7000)) || string(event.Data) != `{"guest": true}` {
			t.Errorf("event %+v", event)
		}
	}
	var refused *CommandError
	if err := client.SetLink(t.Context(), "x", false); !errors.As(err, &refused) || refused.Class != "DeviceNotFound" || refused.Command != "set_link" {
		t.Errorf("refusal: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := client.Cont(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
	if _, err := client.Status(t.Context()); err != nil {
		t.Errorf("after an elapsed deadline: %v", err)
	}
	if err := client.Powerdown(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("hang-up: %v", err)
	}
	<-client.Done()
	if err := client.Powerdown(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after the hang-up: %v", err)
	}
	if err := client.Quit(t.Context()); err != nil {
		t.Errorf("quit of what has ended: %v", err)
	}
}

// TestQMPConcurrent mixes up answers: each caller gets its own.
func TestQMPConcurrent(t *testing.T) {
	var mu sync.Mutex
	var held []string
	client := monitor(t, func(r request) []string {
		mu.Lock()
		defer mu.Unlock()
		line := fmt.Sprintf(`{"return": %s, "id": %s}`, r.Arguments, r.ID)
		if held = append(held, line); len(held) < 8 {
			return nil
		}
		all := held
		held = nil
		for i, j := 0, len(all)-1; i < j; i, j = i+1, j-1 {
			all[i], all[j] = all[j], all[i]
		}
		return all
	})
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			var got map[string]int
			if err := client.Execute(t.Context(), "echo", map[string]int{"n": i}, &got); err != nil || got["n"] != i {
				t.Errorf("caller %d: %v, %v", i, got, err)
			}
		})
	}
	wg.Wait()
}

// TestQMPEventsNobodyReads must not hold up answers, and loses the oldest.
func TestQMPEventsNobodyReads(t *testing.T) {
	const sent = maxEvents + 10
	client := monitor(t, func(request) []string {
		var lines []string
		for i := range sent {
			lines = append(lines, fmt.Sprintf(`{"event": "E%d", "timestamp": {"seconds": 1, "microseconds": 0}}`, i))
		}
		return append(lines, `{"return": {}, "id": %s}`)
	})
	if err := client.Cont(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := client.Lost(); got != 10 {
		t.Errorf("lost %d, want 10", got)
	}
	if event := <-client.Events(); event.Name != "E10" {
		t.Errorf("first event left is %s, want E10", event.Name)
	}
}

func TestQMPBadPeers(t *testing.T) {
	say := func(lines ...string) func(net.Conn, *bufio.Scanner) {
		return func(conn net.Conn, in *bufio.Scanner) {
			for _, line := range lines {
				fmt.Fprintln(conn, line)
			}
			in.Scan()
		}
	}
	for name, peer := range map[string]func(net.Conn, *bufio.Scanner){
		"hangs up":       func(net.Conn, *bufio.Scanner) {},
		"no greeting":    say(`{"return": {}}`),
		"nonsense":       say(`HTTP/1.1 400 Bad Request`),
		"nonsense later": say(greeting, `what?`),
		"empty object":   say(greeting, `{}`),
		"refuses":        say(greeting, `{"error": {"class": "CommandNotFound", "desc": "no"}, "id": 1}`),
		"line without end": func(conn net.Conn, _ *bufio.Scanner) {
			junk := []byte(strings.Repeat("x", 1<<16))
			for {
				if _, err := conn.Write(junk); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			client, err := NewClient(ctx, pipe(t, peer))
			if err == nil {
				client.Close()
				t.Fatal("accepted")
			}
			if ctx.Err() != nil {
				t.Errorf("found out only by the deadline: %v", err)
			}
		})
	}
	t.Run("silent", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := NewClient(ctx, pipe(t, func(_ net.Conn, in *bufio.Scanner) { in.Scan() }))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

// oneLine is text as it is on the wire.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

func TestNICs(t *testing.T) {
	client := monitor(t, func(r request) []string {
		switch r.Execute {
		case "query-pci":
			return []string{oneLine(`{"return": [{"bus": 0, "devices": [
				{"bus": 0, "slot": 0, "function": 0, "qdev_id": "", "id": {"vendor": 32902, "device": 10688}, "class_info": {"class": 1536}},
				{"bus": 0, "slot": 10, "function": 0, "qdev_id": "ua-fixed", "id": {"vendor": 6900, "device": 4161}, "class_info": {"class": 512}},
				{"bus": 0, "slot": 16, "function": 0, "qdev_id": "rp0", "id": {"vendor": 6966, "device": 12}, "class_info": {"class": 1540},
				 "pci_bridge": {"bus": {"number": 0}, "devices": [
				  {"bus": 1, "slot": 0, "function": 0, "qdev_id": "ua-e1000", "id": {"vendor": 32902, "device": 4307}, "class_info": {"class": 512}}]}},
				{"bus": 0, "slot": 17, "function": 0, "qdev_id": "rp8", "id": {"vendor": 6966, "device": 12}, "class_info": {"class": 1540}, "pci_bridge": {"bus": {}}}
			]}], "id": %s}`)}
		case "query-rx-filter":
			return []string{`{"return": [{"name": "ua-fixed", "main-mac": "02:00:00:00:00:99", "multicast-table": ["33:33:00:00:00:01"]}], "id": %s}`}
		case "qom-get":
			if strings.Contains(string(r.Arguments), "ua-fixed") {
				return []string{`{"return": "02:00:00:00:00:01", "id": %s}`}
			}
			return []string{`{"error": {"class": "DeviceNotFound", "desc": "gone"}, "id": %s}`}
		case "query-chardev":
			return []string{`{"return": [{"label": "agent", "frontend-open": true, "filename": "x"}, {"label": "qmp", "frontend-open": true}], "id": %s}`}
		}
		return []string{"hang up"}
	})
	got, err := client.NICs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []NICFacts{
		{
			Network: "fixed", MAC: "02:00:00:00:00:01", MACInUse: "02:00:00:00:00:99", Slot: 10, PCIID: "1af4:1041",
			MulticastTable: []netstate.MAC{"33:33:00:00:00:01"},
		},
		{Network: "e1000", Bus: 1, PCIID: "8086:10d3"}, // unplugged meanwhile: no MAC
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("NICs (-want +got):\n%s", diff)
	}
	open, err := client.AgentOpen(t.Context())
	if err != nil || !open {
		t.Errorf("agent open %t, %v", open, err)
	}
}

func FuzzDecodeMessage(f *testing.F) {
	for _, seed := range []string{
		greeting, `{"return": {}, "id": 1}`, `{"error": {"class": "GenericError", "desc": "x"}, "id": "a"}`,
		`{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}, "timestamp": {"seconds": 1, "microseconds": 2}}`,
		`{"return": null}`, `{}`, `[]`, `{"QMP": null}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decodeMessage(line)
		if err != nil {
			return
		}
		if m.QMP == nil && m.Return == nil && m.Error == nil && m.Event == "" {
			t.Errorf("%q is no message", line)
		}
		// What was accepted can be handed out.
		c := &Client{events: make(chan Event, 1), pending: map[uint64]chan message{1: make(chan message, 1)}}
		c.dispatch(m)
		c.dispatch(m)
		ShutdownReason(Event{Name: m.Event, Data: m.Data})
	})
}

func TestShutdownReason(t *testing.T) {
	reason, guest := ShutdownReason(Event{Name: "SHUTDOWN", Data: json.RawMessage(`{"guest": true, "reason": "guest-shutdown"}`)})
	if reason != "guest-shutdown" || !guest {
		t.Errorf("got %q, %t", reason, guest)
	}
	for _, e := range []Event{{}, {Name: "SHUTDOWN"}, {Name: "SHUTDOWN", Data: json.RawMessage(`[]`)}, {Name: "RESET", Data: json.RawMessage(`{"reason":"x"}`)}} {
		if reason, _ := ShutdownReason(e); reason != "" {
			t.Errorf("%+v: %q", e, reason)
		}
	}
}
