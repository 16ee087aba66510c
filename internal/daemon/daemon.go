// Package daemon is the frame of the programs that run until they are told to end.
package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/weftnet/weft/internal/version"
)

// Main parses the command line, runs the program until SIGINT or SIGTERM, and gives
// the code to exit with. The flags --log-level and --version are added to those of
// flags, whose name is the program's.
func Main(flags *flag.FlagSet, run func(ctx context.Context, log *slog.Logger) error) int {
	if err := start(flags, os.Args[1:], run); err != nil {
		fmt.Fprintln(os.Stderr, flags.Name()+": "+err.Error())
		return 1
	}
	return 0
}

func start(flags *flag.FlagSet, args []string, run func(ctx context.Context, log *slog.Logger) error) error {
	var level slog.Level // info
	flags.TextVar(&level, "log-level", level, "debug, info, warn or error")
	showVersion := flags.Bool("version", false, "print the version")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *showVersion {
		fmt.Println(flags.Name() + " " + version.Text)
		return nil
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
}
