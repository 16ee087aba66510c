package record

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// journalName is a file in both directories with a random name of what lies there.
const journalName = "journal"

// Journal names these records: another name says that some of those of before are
// lost, with a directory or because they are damaged.
func (s *Store) Journal() (string, error) {
	sum := sha256.New()
	for _, dir := range []string{s.dir, s.run} {
		name, err := nameOf(filepath.Join(dir, journalName))
		if err != nil {
			return "", fmt.Errorf("name records: %w", err)
		}
		_, _ = sum.Write(name) // never fails (hash.Hash)
	}
	damaged, err := s.Damaged()
	if err != nil {
		return "", err
	}
	slices.Sort(damaged)
	for _, path := range damaged {
		_, _ = sum.Write([]byte(path + "\n"))
	}
	return hex.EncodeToString(sum.Sum(nil)[:16]), nil
}

// nameOf reads a name, or makes one.
func nameOf(path string) ([]byte, error) {
	name, err := os.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) && (err != nil || len(name) > 0) {
		return name, err
	}
	var unique [16]byte
	_, _ = rand.Read(unique[:]) // never fails (crypto/rand)
	name = []byte(hex.EncodeToString(unique[:]) + "\n")
	return name, os.WriteFile(path, name, 0o600)
}
