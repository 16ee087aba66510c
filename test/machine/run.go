package machine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// Run runs weft with that standard input and gives what it prints and its exit
// code.
func (m *Machine) Run(stdin string, args ...string) (stdout, stderr string, code int) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := m.program(ctx, "weft", args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatalf("weft %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// Start starts one of weft's programs that goes on by itself, and gives the
// lines it prints. stop ends it as Ctrl-C does and gives how it ended; the end
// of the test stops it, too.
func (m *Machine) Start(program string, args ...string) (lines <-chan string, stop func() error) {
	m.t.Helper()
	cmd := m.program(context.Background(), program, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		m.t.Fatalf("start %s: %v", program, err)
	}
	const most = 10000 // a reader that has stopped must not hold the program up
	read, ended := make(chan string, most), make(chan struct{})
	go func() {
		defer close(ended)
		defer close(read)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			read <- scanner.Text()
		}
	}()
	stop = sync.OnceValue(func() error {
		_ = cmd.Process.Signal(syscall.SIGINT) // it may have ended by itself
		<-ended
		return cmd.Wait()
	})
	m.t.Cleanup(func() { _ = stop() }) // a test that minds how it ends calls it
	return read, stop
}

// StartAgent starts the agent with flags of the test's own, as `weft up` would
// without them. It ends with weft down.
func (m *Machine) StartAgent(flags ...string) {
	m.t.Helper()
	log, err := os.Create(filepath.Join(m.Root, "weftd.log"))
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close() // the agent has its own descriptor
	cmd := m.program(context.Background(), "weftd", flags...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		m.t.Fatalf("start weftd: %v", err)
	}
	go func() { _ = cmd.Wait() }() // how it ended stands in its log
	m.Eventually("agent answers", func() (string, error) {
		out, err := m.Weft("version")
		if err == nil && strings.Contains(out, "none runs") {
			err = errors.New("no agent yet")
		}
		return out, err
	})
}

// Program is the path of one of weft's programs.
func (m *Machine) Program(name string) string { return filepath.Join(binDir, name) }

// program is a call of one of weft's programs for this instance.
func (m *Machine) program(ctx context.Context, name string, args ...string) *exec.Cmd {
	full := append([]string{"--net=/run/netns/" + m.Name + "-node", m.Program(name), "--root", m.Root}, args...)
	return exec.CommandContext(ctx, "nsenter", full...)
}
