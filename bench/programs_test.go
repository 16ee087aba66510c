package bench

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// multusDir gives the directory of Multus: multus (thin), multus-shim and
// multus-daemon (thick), at the version multus/go.mod names. A cold build takes
// two minutes.
var multusDir = sync.OnceValues(func() (string, error) {
	var from []string
	for _, name := range []string{"multus/go.mod", "multus/go.sum"} {
		text, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		from = append(from, string(text))
	}
	return cached("multus", from, func(dir string) error {
		return build("multus", os.Environ(), "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/", "tool")
	})
})

// programs are directories of what takes part.
type programs struct {
	plugins, multus, weft string
}

// buildPrograms builds all, or ends the test.
func buildPrograms(tb testing.TB) programs {
	tb.Helper()
	p := programs{plugins: reference(tb), weft: filepath.Join(tb.TempDir(), "bin")}
	var err error
	if p.multus, err = multusDir(); err != nil {
		tb.Fatal(err)
	}
	// As they are released, of the tree as it is.
	err = build("..", os.Environ(), "build", "-trimpath", "-ldflags=-s -w", "-o", p.weft+"/", "./cmd/weft-cni", "./cmd/weft-cni-thin", "./cmd/weft-node")
	if err != nil {
		tb.Fatal(err)
	}
	return p
}
