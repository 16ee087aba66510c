package record

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Kept is the directory of addresses that outlast attachments, as those of an
// IPAMClaim do: a file for each owner, named by a hash of it and written like a
// Durable record. Its methods may be called from many goroutines, for one owner
// by one at a time.
type Kept struct{ dir string }

type kept struct {
	Owner  string  `json:"owner"`
	Leases []Lease `json:"leases"`
}

// OpenKept makes the directory if need be and removes half-written files: nobody
// else may write there.
func OpenKept(dir string) (*Kept, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of kept addresses: %w", err)
	}
	half, err := filepath.Glob(filepath.Join(dir, "*"+tmpSuffix))
	if err != nil {
		return nil, fmt.Errorf("list kept addresses: %w", err)
	}
	for _, path := range half {
		if err := remove(path); err != nil {
			return nil, err
		}
	}
	return &Kept{dir}, nil
}

func (k *Kept) path(owner string) string {
	sum := sha256.Sum256([]byte(owner))
	return filepath.Join(k.dir, hex.EncodeToString(sum[:16])+suffix)
}

// Save writes what an owner has, all of it, to the disk.
func (k *Kept) Save(owner string, leases []Lease) error {
	data, err := json.Marshal(kept{owner, leases})
	if err != nil {
		return fmt.Errorf("encode addresses of %s: %w", owner, err)
	}
	path := k.path(owner)
	if err := writeFile(path+tmpSuffix, append(data, '\n'), true); err != nil {
		return err
	}
	if err := os.Rename(path+tmpSuffix, path); err != nil {
		return errors.Join(fmt.Errorf("write addresses of %s: %w", owner, err), remove(path+tmpSuffix))
	}
	return syncDir(k.dir)
}

// Remove forgets an owner.
func (k *Kept) Remove(owner string) error {
	if err := remove(k.path(owner)); err != nil {
		return err
	}
	return syncDir(k.dir)
}

// List gives all leases. Files that cannot be read are in the error; the others
// count nevertheless.
func (k *Kept) List() ([]Lease, error) {
	files, err := filepath.Glob(filepath.Join(k.dir, "*"+suffix))
	if err != nil {
		return nil, fmt.Errorf("list kept addresses: %w", err)
	}
	var all []Lease
	var errs []error
	for _, path := range files {
		data, err := os.ReadFile(path)
		var one kept
		if err == nil {
			err = json.Unmarshal(data, &one)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("read kept addresses in %s: %w", path, err))
			continue
		}
		all = append(all, one.Leases...)
	}
	return all, errors.Join(errs...)
}

// leavingPrefix marks the owner of an address in a file that tells that a sandbox does
// not have it any more, and is to be taken off its holders in the cluster.
const leavingPrefix = "leaving:"

// Leaving gives what such a file says of an address of owner; without an owner it is
// the file's own.
func Leaving(sandbox, owner string) string { return leavingPrefix + sandbox + "/" + owner }

// ParseLeaving is the inverse of Leaving.
func ParseLeaving(text string) (sandbox, owner string, ok bool) {
	rest, ok := strings.CutPrefix(text, leavingPrefix)
	sandbox, owner, _ = strings.Cut(rest, "/")
	return sandbox, owner, ok
}
