package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/launcher"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/store"
)

func (a *app) execCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "exec POD|vmi/NAME -- COMMAND...",
		Short: "Run a program of the host in a Pod's network namespace, or one in a guest through its agent",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if guest, ok := vmName(args[0]); ok {
				return a.execGuest(cmd.Context(), guest, args[1:])
			}
			return a.execPod(cmd.Context(), strings.TrimPrefix(args[0], "pod/"), args[1:])
		},
	}
}

func vmName(arg string) (string, bool) {
	for _, prefix := range []string{"vmi/", "vm/"} {
		if name, ok := strings.CutPrefix(arg, prefix); ok {
			return name, true
		}
	}
	return "", false
}

// execPod needs no agent: the namespace stands by itself.
func (a *app) execPod(ctx context.Context, pod string, command []string) error {
	if err := requireRoot(); err != nil {
		return err
	}
	in, err := a.instance()
	if err != nil {
		return err
	}
	path := in.NetNS(a.namespace, pod)
	if _, err := os.Stat(path); err != nil {
		return &hint.Error{Field: "pod", Value: a.namespace + "/" + pod, Problem: "has no network namespace", Remedy: "weft get pod -A shows what there is; a VM's guest is vmi/" + pod}
	}
	program, err := exec.LookPath(command[0])
	if err != nil {
		return &hint.Error{Field: "COMMAND", Value: command[0], Problem: "is no program of this machine", Err: err, Remedy: "install it, or give its path"}
	}
	child := exec.CommandContext(ctx, program, command[1:]...) //nolint:gosec // running what the user names is the job
	child.Stdin, child.Stdout, child.Stderr = a.in, a.out, a.errOut
	var waitErr error
	if err := linux.InNS(path, func() error {
		if err := child.Start(); err != nil {
			return fmt.Errorf("start %s: %w", program, err)
		}
		waitErr = child.Wait()
		return nil
	}); err != nil {
		return err
	}
	var exit *exec.ExitError
	if errors.As(waitErr, &exit) {
		return exitError(exit.ExitCode())
	}
	return waitErr
}

func (a *app) execGuest(ctx context.Context, name string, command []string) error {
	client, _, err := a.client(ctx)
	if err != nil {
		return err
	}
	reply, err := client.Exec(ctx, store.Key{Namespace: a.namespace, Name: name}, command)
	if err != nil {
		return err
	}
	if _, err := io.Copy(a.out, bytes.NewReader(reply.Stdout)); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	if _, err := io.Copy(a.errOut, bytes.NewReader(reply.Stderr)); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	if reply.ExitCode != 0 {
		return exitError(reply.ExitCode)
	}
	return nil
}

// consoleEscape ends a console session: Ctrl-], as virtctl and telnet have it.
const consoleEscape = 0x1d

func (a *app) consoleCommand() *cobra.Command {
	return &cobra.Command{
		Use: "console VM", Short: "Attach to the serial console of a VM (Ctrl-] ends)", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.console(cmd.Context(), args[0]) },
	}
}

func (a *app) console(ctx context.Context, name string) error {
	if err := requireRoot(); err != nil {
		return err
	}
	in, err := a.instance()
	if err != nil {
		return err
	}
	// No agent is needed: the launcher is found by its directory.
	process, err := launcher.Adopt(ctx, in.VMDir(a.namespace, name))
	if err != nil {
		return &hint.Error{Field: "vmi", Value: name, Problem: "no machine of that name runs", Err: err, Remedy: "weft get vmi -A shows what there is; -n names the namespace"}
	}
	defer process.Close() // held for the session only
	conn, err := process.Console(ctx)
	if err != nil {
		return &hint.Error{Field: "vmi", Value: name, Problem: "its console cannot be reached", Err: err, Remedy: "weft get vmi " + name + " shows whether the machine runs; one session at a time"}
	}
	defer conn.Close() // the session is over
	if in, ok := a.in.(*os.File); ok && term.IsTerminal(int(in.Fd())) {
		state, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return fmt.Errorf("set terminal raw: %w", err)
		}
		defer func() { _ = term.Restore(int(in.Fd()), state) }() // nothing else can be done about it
		fmt.Fprintf(a.errOut, "console of %s, Ctrl-] ends\r\n", name)
	}
	ended := make(chan error, 2)
	go func() { _, err := io.Copy(a.out, conn); ended <- err }()
	go func() { ended <- copyUntilEscape(conn, a.in) }()
	for {
		select {
		case err := <-ended:
			if errors.Is(err, errInputEnded) {
				continue // a pipe is at its end; its answer is still to come
			}
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// errInputEnded says that there is nothing more to type.
var errInputEnded = errors.New("input ended")

// copyUntilEscape copies what is typed until Ctrl-] or the input's end.
func copyUntilEscape(to io.Writer, from io.Reader) error {
	buf := make([]byte, 1024)
	for {
		n, err := from.Read(buf)
		if i := bytes.IndexByte(buf[:n], consoleEscape); i >= 0 {
			_, werr := to.Write(buf[:i])
			return werr
		}
		if _, werr := to.Write(buf[:n]); werr != nil {
			return fmt.Errorf("write to console: %w", werr)
		}
		if errors.Is(err, io.EOF) {
			return errInputEnded
		}
		if err != nil {
			return fmt.Errorf("read input: %w", err)
		}
	}
}

func (a *app) logsCommand() *cobra.Command {
	var follow, machine bool
	cmd := &cobra.Command{
		Use: "logs VM", Short: "Print what a VM wrote on its serial console", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := a.instance()
			if err != nil {
				return err
			}
			file := launcher.SerialLog
			if machine {
				file = launcher.Log
			}
			return a.logs(cmd.Context(), file(in.VMDir(a.namespace, args[0])), follow)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on as it grows")
	cmd.Flags().BoolVar(&machine, "machine", false, "what QEMU and the launcher said instead")
	return cmd
}

func (a *app) logs(ctx context.Context, path string, follow bool) error {
	f, err := os.Open(path)
	if err != nil {
		return &hint.Error{Field: "log", Value: path, Problem: "cannot be read", Err: errors.Unwrap(err), Remedy: "weft get vmi -A shows what VMs there are"}
	}
	defer f.Close() // read only
	for {
		if _, err := io.Copy(a.out, f); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (a *app) vmCommand() *cobra.Command {
	vm := group("vm", "Look at or act on one virtual machine")
	vm.AddCommand(&cobra.Command{
		Use: "domxml VM", Short: "Print the machine as libvirt domain XML", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := a.client(cmd.Context())
			if err != nil {
				return err
			}
			text, err := client.DomainXML(cmd.Context(), store.Key{Namespace: a.namespace, Name: args[0]})
			if err != nil {
				return err
			}
			a.printf("%s\n", strings.TrimSpace(text))
			return nil
		},
	})
	for action, short := range map[string]string{
		"start": "Start a stopped VirtualMachine", "stop": "Shut a VirtualMachine down; it stays down", "restart": "Shut a VM down cleanly and start it again",
	} {
		vm.AddCommand(&cobra.Command{
			Use: action + " VM", Short: short, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				client, _, err := a.client(cmd.Context())
				if err != nil {
					return err
				}
				return client.VMAction(cmd.Context(), store.Key{Namespace: a.namespace, Name: args[0]}, action)
			},
		})
	}
	return vm
}
