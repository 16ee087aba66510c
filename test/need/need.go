// Package need says what a test cannot do without. Where that is missing the test
// is skipped, and fails in CI.
package need

import (
	"os"
	"testing"
)

// Root is for tests that make namespaces or mount file systems.
func Root(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		missing(tb, "needs root")
	}
}

func missing(tb testing.TB, what string) {
	tb.Helper()
	if os.Getenv("CI") != "" {
		tb.Fatal(what)
	}
	tb.Skip(what)
}
