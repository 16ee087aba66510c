package vmlab

import (
	"os"
	"strings"
	"testing"
	"time"
)

// Console follows the file a serial console is written to, by vmlab's own
// machines or by any other.
type Console struct {
	path  string
	ended <-chan struct{} // nil: unknown
}

// OpenConsole follows the file at path; it need not be there yet.
func OpenConsole(path string) *Console { return &Console{path: path} }

// Text is what the guest has printed so far.
func (c *Console) Text(t testing.TB) string {
	t.Helper()
	raw, err := os.ReadFile(c.path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(raw), "\r", "")
}

// Lines gives the whole lines with text in them.
func (c *Console) Lines(t testing.TB, text string) []string {
	t.Helper()
	var found []string
	all := c.Text(t)
	for line := range strings.Lines(all[:strings.LastIndexByte(all, '\n')+1]) {
		if strings.Contains(line, text) {
			found = append(found, strings.TrimSuffix(line, "\n"))
		}
	}
	return found
}

// Wait waits for a line with text in it and returns the first.
func (c *Console) Wait(t testing.TB, text string) string {
	t.Helper()
	return c.WaitCount(t, text, 1)[0]
}

// WaitCount waits until there are at least n lines with text in them.
func (c *Console) WaitCount(t testing.TB, text string, n int) []string {
	t.Helper()
	var lines []string
	Eventually(t, "console: "+text, func() bool {
		select {
		case <-c.ended:
			if lines = c.Lines(t, text); len(lines) < n {
				t.Fatalf("the machine ended before the console had %q", text)
			}
		default:
			lines = c.Lines(t, text)
		}
		return len(lines) >= n
	})
	return lines
}

// Eventually polls until holds is true, or fails the test after Patience.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	const every = 50 * time.Millisecond
	deadline := time.Now().Add(Patience)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", Patience, what)
		}
		time.Sleep(every)
	}
}
