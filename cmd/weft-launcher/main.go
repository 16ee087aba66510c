// Command weft-launcher runs the QEMU of one virtual machine: weftd starts it
// as root in the Pod's network namespace, it becomes an unprivileged user and
// stays until the machine ends.
package main

import (
	"fmt"
	"os"

	"github.com/weftnet/weft/internal/launcher"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintf(os.Stderr, "usage: %s SPEC.json\n", launcher.Program)
		os.Exit(2)
	}
	if err := launcher.Main(os.Args[1]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", launcher.Program, err)
		os.Exit(1)
	}
}
