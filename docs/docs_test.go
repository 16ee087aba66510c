// Package docs has what people read. What it says of tests is held here.
package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDifferences: every line of the pages about other programs, and of the cases of
// addresses, names tests that there are.
func TestDifferences(t *testing.T) {
	for page, least := range map[string]int{"multus-differences.md": 40, "whereabouts-differences.md": 30, "ipam-cases.md": 29} {
		t.Run(page, func(t *testing.T) { differences(t, page, least) })
	}
}

func differences(t *testing.T, page string, least int) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	place := regexp.MustCompile("`([a-z0-9/-]+)` (Test[A-Za-z0-9]+(?:, Test[A-Za-z0-9]+)*)")
	lines := 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 3 || strings.Contains(cells[0], "---") || strings.TrimSpace(cells[2]) == "test" {
			continue
		}
		lines++
		found := place.FindAllStringSubmatch(cells[2], -1)
		if len(found) == 0 {
			t.Errorf("no test is named:%s", line)
		}
		for _, match := range found {
			for name := range strings.SplitSeq(match[2], ", ") {
				if !hasTest(t, match[1], name) {
					t.Errorf("%s has no %s", match[1], name)
				}
			}
		}
	}
	if lines < least {
		t.Errorf("found %d lines only: has the form of the tables changed?", lines)
	}
}

// hasTest says whether a folder has a test of that name.
func hasTest(t *testing.T, folder, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "\nfunc "+name+"(t *testing.T)") {
			return true
		}
	}
	return false
}
