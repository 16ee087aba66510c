package install

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// unfinishedPrefix marks files that get their name when they are whole; no
// runtime reads their ending.
const unfinishedPrefix = ".weft-install-"

// replace makes path a file with this content, whole at every moment and on
// disk afterwards, and says whether it was anything else before.
func replace(path string, content []byte, mode os.FileMode) (changed bool, err error) {
	if there, err := os.ReadFile(path); err == nil && bytes.Equal(there, content) {
		if info, err := os.Lstat(path); err == nil && info.Mode() == mode {
			return false, nil
		}
	}
	file, err := os.CreateTemp(filepath.Dir(path), unfinishedPrefix)
	if err != nil {
		return false, fmt.Errorf("install %s: %w", path, err)
	}
	_, err = file.Write(content)
	err = errors.Join(err, file.Chmod(mode), file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return false, errors.Join(fmt.Errorf("install %s: %w", path, err), os.Remove(file.Name()))
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return true, fmt.Errorf("install %s: %w", path, err)
	}
	return true, nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// sweep removes what was never finished.
func sweep(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, unfinishedPrefix+"*"))
	if err != nil {
		return fmt.Errorf("look for unfinished files: %w", err)
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove an unfinished file: %w", err)
		}
	}
	return nil
}
