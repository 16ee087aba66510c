package vmlab

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// answer is what QMP and the guest agent send.
type answer struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class, Desc string
	} `json:"error"`
	Event string `json:"event"`
}

// QMP runs one command and returns its answer.
func (m *Machine) QMP(t testing.TB, command string, args any) json.RawMessage {
	t.Helper()
	conn := m.dial(t, "qmp")
	defer conn.Close() // answered by then
	in := bufio.NewReader(conn)
	if _, err := in.ReadString('\n'); err != nil {
		t.Fatalf("QMP greeting: %v", err)
	}
	if _, err := ask(conn, in, "qmp_capabilities", nil); err != nil {
		t.Fatal(err)
	}
	result, err := ask(conn, in, command, args)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// Agent runs one command of the guest agent and returns its answer.
func (m *Machine) Agent(t testing.TB, command string, args any) json.RawMessage {
	t.Helper()
	conn := m.dial(t, "agent")
	defer conn.Close() // answered by then
	in := bufio.NewReader(conn)
	// What was sent before the agent listens stays in the port: the answer to
	// this sync tells old answers from new (docs/interop/qemu-ga.rst).
	id := time.Now().UnixNano() & (1<<53 - 1)
	for {
		result, err := ask(conn, in, "guest-sync", map[string]any{"id": id})
		if err != nil {
			t.Fatal(err)
		}
		if string(result) == fmt.Sprint(id) {
			break
		}
	}
	result, err := ask(conn, in, command, args)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// Exec runs a shell line in the guest and returns what it printed; a line that
// fails fails the test.
func (m *Machine) Exec(t testing.TB, line string) string {
	t.Helper()
	var started struct {
		PID int `json:"pid"`
	}
	decode(t, m.Agent(t, "guest-exec", map[string]any{
		"path": "/bin/sh", "arg": []string{"-c", line}, "capture-output": true,
	}), &started)
	var status struct {
		Exited   bool   `json:"exited"`
		ExitCode int    `json:"exitcode"`
		Out      string `json:"out-data"`
		Err      string `json:"err-data"`
	}
	Eventually(t, "guest: "+line, func() bool {
		decode(t, m.Agent(t, "guest-exec-status", map[string]any{"pid": started.PID}), &status)
		return status.Exited
	})
	out, outErr := base64.StdEncoding.DecodeString(status.Out)
	problems, problemsErr := base64.StdEncoding.DecodeString(status.Err)
	if outErr != nil || problemsErr != nil {
		t.Fatalf("guest: %s: output is no base64", line)
	}
	if status.ExitCode != 0 {
		t.Fatalf("guest: %s: exit %d: %s%s", line, status.ExitCode, out, problems)
	}
	return strings.TrimSpace(string(out))
}

func decode(t testing.TB, raw json.RawMessage, into any) {
	t.Helper()
	if err := json.Unmarshal(raw, into); err != nil {
		t.Fatalf("answer %s: %v", raw, err)
	}
}

// dial connects to a socket of the machine, once it is there.
func (m *Machine) dial(t testing.TB, name string) net.Conn {
	t.Helper()
	var conn net.Conn
	Eventually(t, name+" socket", func() bool {
		select {
		case <-m.done:
			t.Fatalf("QEMU has ended: %s", m.stderr())
		default:
		}
		var err error
		conn, err = net.Dial("unix", m.path(name))
		return err == nil
	})
	if err := conn.SetDeadline(time.Now().Add(Patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// ask sends a command and reads until its answer, past events.
func ask(conn net.Conn, in *bufio.Reader, command string, args any) (json.RawMessage, error) {
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	raw, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(append(raw, '\n')); err != nil {
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return nil, fmt.Errorf("%s: %w", command, err)
		}
		var got answer
		if err := json.Unmarshal(line, &got); err != nil {
			return nil, fmt.Errorf("%s: answer %s: %w", command, line, err)
		}
		if got.Event != "" {
			continue
		}
		if got.Error != nil {
			return nil, fmt.Errorf("%s: %s: %s", command, got.Error.Class, got.Error.Desc)
		}
		return got.Return, nil
	}
}
