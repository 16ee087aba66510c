package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/instance"
	"github.com/weftnet/weft/internal/local"
	"github.com/weftnet/weft/internal/store"
)

// agentStart bounds how long an agent may take to open its socket.
const agentStart = 20 * time.Second

func (a *app) upCommand() *cobra.Command {
	var files []string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "up -f FILE [-f ...]",
		Short: "Start the agent if none runs, apply, wait until everything is ready, print what each NIC has",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.up(cmd.Context(), files, timeout)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "YAML or JSON file, directory, or - for the standard input")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "give up waiting after this time and say what is not ready and why")
	return cmd
}

func (a *app) up(ctx context.Context, files []string, timeout time.Duration) error {
	if err := requireRoot(); err != nil {
		return err
	}
	objects, readErr := a.readManifests(files)
	in, err := a.instance()
	if err != nil {
		return err
	}
	if err := a.ensureAgent(ctx, in); err != nil {
		return errors.Join(readErr, err)
	}
	client, _, err := a.client(ctx)
	if err != nil {
		return errors.Join(readErr, err)
	}
	waiter := newWaiter(client, a.errOut, objects, len(files) == 0)
	if err := waiter.before(ctx); err != nil {
		return errors.Join(readErr, err)
	}
	errs := []error{readErr}
	if len(objects) > 0 {
		results, err := client.Apply(ctx, objects)
		if err != nil {
			return errors.Join(readErr, err)
		}
		errs = append(errs, a.printResults(results))
	}
	waited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	errs = append(errs, waiter.wait(waited, timeout))
	errs = append(errs, a.printNICTable(ctx, client, "", store.Key{}))
	return errors.Join(errs...)
}

// printResults prints a line per object and joins the refusals.
func (a *app) printResults(results []local.Result) error {
	var errs []error
	for _, r := range results {
		for _, warning := range r.Warnings {
			fmt.Fprintf(a.errOut, "warning: %s %s: %s\n", strings.ToLower(r.Kind), r.Key, warning) // nowhere left to report to
		}
		if r.Error != "" {
			errs = append(errs, eachLine(strings.ToLower(r.Kind)+" "+r.Key.String()+": ", r.Error))
			continue
		}
		a.printf("%s %s %s\n", strings.ToLower(r.Kind), r.Key, r.Action)
		for _, kept := range r.Kept {
			a.printf("  kept %s\n", kept)
		}
	}
	return errors.Join(errs...)
}

// eachLine makes an error of every line of text: each tells a problem of its own.
func eachLine(prefix, text string) error {
	var errs []error
	for line := range strings.SplitSeq(text, "\n") {
		errs = append(errs, errors.New(prefix+line))
	}
	return errors.Join(errs...)
}

// ensureAgent starts weftd unless one answers.
func (a *app) ensureAgent(ctx context.Context, in instance.Instance) error {
	client := local.NewClient(in)
	if _, err := client.Info(ctx); !errors.Is(err, local.ErrNoAgent) {
		return err
	}
	program, err := agentProgram()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(in.State, 0o755); err != nil {
		return &hint.Error{Field: "--root", Value: in.State, Problem: "cannot be made", Err: err, Remedy: "choose a directory on a writable disk"}
	}
	logFile, err := os.OpenFile(in.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open agent log: %w", err)
	}
	defer logFile.Close() // the agent has its own descriptor
	start, err := logFile.Seek(0, 2)
	if err != nil {
		return fmt.Errorf("open agent log: %w", err)
	}
	var args []string
	if in.Tag != instance.DefaultTag {
		args = []string{"--root", in.State}
	}
	agent := exec.Command(program, args...) //nolint:gosec // our own binary
	agent.Stdout, agent.Stderr = logFile, logFile
	agent.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := agent.Start(); err != nil {
		return fmt.Errorf("start agent %s: %w", program, err)
	}
	exited := make(chan error, 1)
	go func() { exited <- agent.Wait() }()
	return waitForAgent(ctx, client, in, exited, start)
}

func waitForAgent(ctx context.Context, client *local.Client, in instance.Instance, exited <-chan error, logStart int64) error {
	deadline := time.After(agentStart)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-exited:
			return fmt.Errorf("the agent ended at once; its log %s says:\n%s", in.LogFile(), tailOf(in.LogFile(), logStart))
		case <-deadline:
			return &hint.Error{Field: in.Socket(), Problem: fmt.Sprintf("the agent does not answer after %s", agentStart), Remedy: "read " + in.LogFile()}
		case <-tick.C:
			if _, err := client.Info(ctx); err == nil {
				return nil
			}
		}
	}
}

// agentProgram finds weftd beside this program, else in PATH.
func agentProgram() (string, error) {
	self, err := os.Executable()
	if err == nil {
		beside := filepath.Join(filepath.Dir(self), "weftd")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	found, err := exec.LookPath("weftd")
	if err != nil {
		return "", &hint.Error{Field: "weftd", Problem: "the agent's program is neither beside weft nor in PATH", Remedy: "run make build and use bin/weft"}
	}
	return found, nil
}

// tailOf gives the end of a log from offset on, at most 4 KiB.
func tailOf(path string, offset int64) string {
	content, err := os.ReadFile(path)
	if err != nil || int64(len(content)) <= offset {
		return "(nothing)"
	}
	content = content[offset:]
	const most = 4096
	if len(content) > most {
		content = content[len(content)-most:]
	}
	return strings.TrimSpace(string(content))
}
