package machine

import (
	"bytes"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// UDP sends a datagram from a Pod to ADDRESS:PORT until its echo comes back.
func (m *Machine) UDP(from, to, text string) {
	m.t.Helper()
	host, port := to[:strings.LastIndex(to, ":")], to[strings.LastIndex(to, ":")+1:]
	script := fmt.Sprintf(`exec 3<>/dev/udp/%s/%s; echo -n %q >&3; timeout 2 head -c %d <&3`, host, port, text, len(text))
	m.Eventually(from+" gets an answer from udp "+to, func() (string, error) {
		return m.Weft("exec", from, "--", "bash", "-c", script)
	})
}

// Helper is the path of guest/cmd/weft-guest built for this machine: its
// mcast-send and mcast-listen are what Debian has no small program for.
func (m *Machine) Helper() string {
	m.t.Helper()
	if err := helperOnce(); err != nil {
		m.t.Fatal(err)
	}
	return filepath.Join(binDir, "weft-guest")
}

var helperOnce = sync.OnceValue(func() error {
	cmd := exec.Command("go", "build", "-o", filepath.Join(binDir, "weft-guest"), "./guest/cmd/weft-guest")
	cmd.Dir = Tree()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build weft-guest: %w\n%s", err, out)
	}
	return nil
})

// Running is a command that goes on beside the test, until it ends.
type Running struct {
	m    *Machine
	what string
	end  func()
	in   io.Writer
	done chan struct{} // closed when it has ended

	mu  sync.Mutex // guards out
	out bytes.Buffer
}

// Write collects output; it implements io.Writer.
func (r *Running) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.Write(p)
}

// Text is what was printed so far.
func (r *Running) Text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out.String()
}

// Background starts weft with args and ends it with the test.
func (m *Machine) Background(what string, args ...string) *Running {
	m.t.Helper()
	return m.BackgroundIn(m.Name+"-node", what, append([]string{filepath.Join(binDir, "weft"), "--root", m.Root}, args...)...)
}

// BackgroundIn starts a command in a namespace in /run/netns and ends it with
// the test.
func (m *Machine) BackgroundIn(netns, what string, command ...string) *Running {
	m.t.Helper()
	r := &Running{m: m, what: what}
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + netns}, command...)...)
	cmd.Stdout, cmd.Stderr = r, r
	in, err := cmd.StdinPipe()
	if err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
	r.in, r.done = in, make(chan struct{})
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // with what weft starts
	if err := cmd.Start(); err != nil {
		m.t.Fatalf("%s: %v", what, err)
	}
	go func() {
		_ = cmd.Wait() // most are ended by us
		close(r.done)
	}()
	r.end = sync.OnceFunc(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) // it may have ended
		select {
		case <-r.done:
		case <-time.After(5 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-r.done
		}
	})
	m.t.Cleanup(r.end)
	return r
}

// End ends the command, so that it writes what it still holds.
func (r *Running) End() { r.end() }

// Type writes to the command's standard input.
func (r *Running) Type(text string) {
	r.m.t.Helper()
	if _, err := io.WriteString(r.in, text); err != nil {
		r.m.t.Errorf("%s: type %q: %v", r.what, text, err)
	}
}

// WaitEnd waits until the command has ended by itself.
func (r *Running) WaitEnd() {
	r.m.t.Helper()
	select {
	case <-r.done:
	case <-time.After(time.Minute):
		r.m.t.Errorf("%s does not end; printed:\n%s", r.what, r.Text())
	}
}

// Wait waits until text was printed.
func (r *Running) Wait(text string) {
	r.m.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !strings.Contains(r.Text(), text) {
		if time.Now().After(deadline) {
			r.m.t.Errorf("%s: no %q; printed:\n%s", r.what, text, r.Text())
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
