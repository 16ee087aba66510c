// Command mkimage writes files of this machine as an OCI archive with one
// image: how the small guest and container disks are packed.
//
//	mkimage -o OUT.tar NAME /PATH/IN/IMAGE=FILE ...
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/weftnet/weft/internal/image"
)

func main() {
	out := flag.String("o", "", "archive to write")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out string, args []string) error {
	if out == "" || len(args) < 2 {
		return errors.New("want: mkimage -o OUT.tar NAME /PATH/IN/IMAGE=FILE for each file")
	}
	files := map[string]string{}
	for _, arg := range args[1:] {
		inside, source, ok := strings.Cut(arg, "=")
		if !ok {
			return fmt.Errorf("%q: want /PATH/IN/IMAGE=FILE", arg)
		}
		files[inside] = source
	}
	return image.BuildArchive(ctx, out, args[0], files)
}
