package record

import (
	"os"
	"path/filepath"
	"testing"
)

// TestJournal: records keep their name until some are lost.
func TestJournal(t *testing.T) {
	dir := t.TempDir()
	disk, run := filepath.Join(dir, "disk"), filepath.Join(dir, "run")
	name := func() string {
		t.Helper()
		s, err := Open(disk, run)
		if err != nil {
			t.Fatal(err)
		}
		name, err := s.Journal()
		if err != nil || name == "" {
			t.Fatal(name, err)
		}
		return name
	}
	first := name()
	if again := name(); again != first {
		t.Errorf("the same records are %s and %s", first, again)
	}
	if err := os.WriteFile(filepath.Join(run, "x"+damagedSuffix), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	second := name()
	if err := os.Remove(filepath.Join(run, journalName)); err != nil {
		t.Fatal(err)
	}
	third := name()
	if err := os.RemoveAll(disk); err != nil {
		t.Fatal(err)
	}
	if fourth := name(); second == first || third == second || fourth == third {
		t.Errorf("names: %s, %s with a damaged one, %s without what lay in run, %s without the disk's", first, second, third, fourth)
	}
}
