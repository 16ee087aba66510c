package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/hint"
)

// Two directories, made with mode 0700: one on a disk for the Durable ones, and one
// below /run, which a power loss clears like the kernel state that the others
// tell of. In both:
//
//	<sandboxID>.json            one sandbox, all of its attachments, as one line;
//	                            the last line that has an end counts; 0600
//	<sandboxID>.json.tmp        being written; leftovers go at Open
//	<sandboxID>.json.damaged    could not be read: set aside for a person, kept
//	                            (.damaged.2 and so on, if there was one)
//
// and on the disk:
//
//	lock                        empty; a lock on one byte of it for each sandbox
//	                            somebody works on
//
// A sandbox's file is made by writing .tmp and renaming it, so that a reader sees
// nothing or the whole; a Durable one with fsync of file and directory. It changes
// by a line that is added: a writer that dies in its middle leaves one without an
// end, and the line before it counts. What a Durable one must not lose with the
// power is saved like a new one instead. A sandbox that becomes Durable has a file
// in both for a moment: that on the disk counts.
const (
	suffix        = ".json"
	tmpSuffix     = suffix + ".tmp"
	damagedSuffix = suffix + ".damaged"
	lockName      = "lock"
)

// maxID bounds a sandbox id so that every name made of it is a file name
// (NAME_MAX is 255 bytes, include/uapi/linux/limits.h).
const maxID = 200

// validID says whether CNI allows id as a container id (CNI specification 1.1,
// section 2): ^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$. By hand, for it is asked several
// times in each call, and a regexp's tables are seldom in the caches by then.
func validID(id string) bool {
	for i := range len(id) {
		switch c := id[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '_' || c == '.' || c == '-'):
		default:
			return false
		}
	}
	return id != ""
}

// ErrNotFound says that there is no record of that sandbox.
var ErrNotFound = errors.New("no record of this sandbox")

// DamagedError says that a record could not be read.
type DamagedError struct {
	ID string
	// Path is where it lies now: set aside, unless somebody works on the sandbox.
	Path string
	Err  error
}

// Error names the file.
func (e *DamagedError) Error() string {
	return fmt.Sprintf("record of sandbox %s is damaged and lies in %s: %v", e.ID, e.Path, e.Err)
}

// Unwrap gives the cause.
func (e *DamagedError) Unwrap() error { return e.Err }

// Store is the directory of records. Its methods may be called from many
// goroutines and processes; whoever changes a sandbox holds its Lock.
type Store struct {
	dir, run string
	lockFile *os.File
	// mu guards working: the sandboxes somebody in this process works on, each
	// with a channel that closes when that ends.
	mu      sync.Mutex
	working map[string]chan struct{}
}

// Open makes the directories if need be and removes half-written files. dir
// outlasts a power loss, run need not: it is best below /run.
func Open(dir, run string) (*Store, error) {
	if filepath.Clean(dir) == filepath.Clean(run) {
		return nil, &hint.Error{Field: "record directory", Value: dir, Problem: "cannot hold both what outlasts a power loss and what does not", Remedy: "use two directories"}
	}
	for _, d := range []string{dir, run} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make record directory: %w", err)
		}
	}
	lockFile, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of records: %w", err)
	}
	s := &Store{dir: dir, run: run, lockFile: lockFile, working: map[string]chan struct{}{}}
	names, err := s.names(tmpSuffix)
	if err != nil {
		return nil, err
	}
	for _, id := range names {
		// A writer in another process holds the lock while its file is there.
		unlock, err := s.tryLock(id)
		if errors.Is(err, errBusy) {
			continue
		}
		if err != nil {
			return nil, err
		}
		err = errors.Join(remove(filepath.Join(dir, id+tmpSuffix)), remove(filepath.Join(run, id+tmpSuffix)))
		unlock()
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

func checkID(id string) error {
	if len(id) > maxID || !validID(id) {
		return &hint.Error{Field: "sandbox id", Value: id, Problem: "is no container id", Remedy: fmt.Sprintf("use letters, digits, '_', '.' and '-', a letter or digit first, at most %d", maxID)}
	}
	return nil
}

// Path is where the record of a sandbox lies or would be made.
func (s *Store) Path(id string, durable bool) string {
	if durable {
		return filepath.Join(s.dir, id+suffix)
	}
	return filepath.Join(s.run, id+suffix)
}

// Load reads one record. The error is ErrNotFound if there is none, and a
// *DamagedError if it could not be read. The file is then set aside, unless
// somebody works on the sandbox: who does may have written a new one by now.
func (s *Store) Load(id string) (*Sandbox, error) {
	sandbox, err := s.load(id)
	if _, ok := errors.AsType[*DamagedError](err); !ok {
		return sandbox, err
	}
	leave, _ := s.tryEnter(id)
	if leave == nil {
		return nil, err
	}
	defer leave()
	release, busy := s.tryLock(id)
	if busy != nil {
		return nil, err
	}
	defer release()
	return s.LoadLocked(id)
}

// LoadLocked is Load for who holds the sandbox's Lock.
func (s *Store) LoadLocked(id string) (*Sandbox, error) {
	sandbox, err := s.load(id)
	if damaged, ok := errors.AsType[*DamagedError](err); ok {
		return nil, setAside(id, damaged.Path, damaged.Err)
	}
	return sandbox, err
}

// load reads one record and leaves its file where it is.
func (s *Store) load(id string) (*Sandbox, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	path, data, err := s.read(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("sandbox %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	sandbox, err := decode(id, lastLine(data))
	if err == nil {
		sandbox.Durable = path == s.Path(id, true) // so that no other is made beside it
		return sandbox, nil
	}
	if version, ok := errors.AsType[*versionError](err); ok {
		return nil, &hint.Error{Field: path, Value: fmt.Sprint(version.got), Problem: fmt.Sprintf("is a record of another version than %d", Version), Remedy: "run the weft that wrote it, or delete the sandbox with it first"}
	}
	return nil, &DamagedError{ID: id, Path: path, Err: err}
}

// read finds a record's file. In this order it misses none that moves to the disk
// meanwhile.
func (s *Store) read(id string) (path string, data []byte, err error) {
	data, err = os.ReadFile(s.Path(id, false))
	onDisk, diskErr := os.ReadFile(s.Path(id, true))
	if !errors.Is(diskErr, fs.ErrNotExist) {
		return s.Path(id, true), onDisk, diskErr
	}
	return s.Path(id, false), data, err
}

type versionError struct{ got int }

func (e *versionError) Error() string { return fmt.Sprintf("version %d, want %d", e.got, Version) }

func decode(id string, data []byte) (*Sandbox, error) {
	if len(data) == 0 {
		return nil, errors.New("the file is empty")
	}
	var sandbox Sandbox
	err := json.Unmarshal(data, &sandbox)
	version := sandbox.Version
	if err != nil { // a newer one may look otherwise
		var head struct {
			Version int `json:"version"`
		}
		if json.Unmarshal(data, &head) == nil {
			version = head.Version
		}
	}
	switch {
	case version > Version:
		return nil, &versionError{version}
	case err != nil:
		return nil, err
	case version != Version || sandbox.ID != id:
		return nil, fmt.Errorf("it is of version %d and of sandbox %q", version, sandbox.ID)
	}
	if slices.Contains(sandbox.Attachments, nil) {
		return nil, errors.New("an attachment is null")
	}
	return &sandbox, nil
}

// setAside renames what cannot be read, so that it is neither lost nor in the way.
func setAside(id, path string, cause error) error {
	damaged := strings.TrimSuffix(path, suffix) + damagedSuffix
	target := damaged
	for n := 2; ; n++ {
		// link(2) and not rename(2): it never writes over an earlier one.
		err := os.Link(path, target)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) {
			return errors.Join(fmt.Errorf("set damaged record aside: %w", err), cause)
		}
		target = fmt.Sprintf("%s.%d", damaged, n)
	}
	if err := remove(path); err != nil {
		return errors.Join(err, cause)
	}
	return &DamagedError{ID: id, Path: target, Err: cause}
}

// Save writes one record, whole or not at all. When it returns, a Durable one is on
// the disk.
func (s *Store) Save(sandbox *Sandbox) error { return s.save(sandbox, sandbox.Durable) }

// Note is Save for a change that may be lost with the power, though the record must
// not: a reboot undoes what it tells of, whatever became of it.
func (s *Store) Note(sandbox *Sandbox) error { return s.save(sandbox, false) }

func (s *Store) save(sandbox *Sandbox, sync bool) error {
	if err := checkID(sandbox.ID); err != nil {
		return err
	}
	sandbox.Version = Version
	data, err := encode(sandbox)
	if err != nil {
		return fmt.Errorf("encode record of sandbox %s: %w", sandbox.ID, err)
	}
	path := s.Path(sandbox.ID, sandbox.Durable)
	if !sync {
		added, err := addLine(path, data)
		if added || err != nil {
			return err
		}
	}
	tmp := strings.TrimSuffix(path, suffix) + tmpSuffix
	if err := writeFile(tmp, append(data, '\n'), sandbox.Durable); err != nil {
		return err
	}
	if err := unix.Rename(tmp, path); err != nil { // os.Rename looks for a directory first
		return errors.Join(&os.LinkError{Op: "write record: rename", Old: tmp, New: path, Err: err}, remove(tmp))
	}
	if !sandbox.Durable {
		return nil
	}
	if err := syncDir(s.dir); err != nil {
		return err
	}
	return remove(s.Path(sandbox.ID, false)) // from before it became so
}

// maxFile is how long a file may become by lines that are added.
const maxFile = 64 << 10

// addLine adds a line to a file. false: it did not, because there is no file or
// it would become too long.
func addLine(path string, line []byte) (added bool, err error) {
	file, err := openFile(path, unix.O_WRONLY|unix.O_APPEND)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, unwritten(path, err)
	}
	// Part of a line, if that is all that was written, has no end.
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return false, fmt.Errorf("write record: %w", err)
	}
	if info.Size()+int64(len(line)) > maxFile {
		return false, nil
	}
	// The end in front is that of a line whose writer died.
	text := slices.Concat([]byte{'\n'}, line, []byte{'\n'})
	if _, err := file.Write(text); err != nil {
		// What got in must not be taken for a line when the next one is added.
		return false, unwritten(path, errors.Join(err, file.Truncate(info.Size())))
	}
	return true, nil
}

// unwritten says what to do about a record that could not be written.
func unwritten(path string, err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) && !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("write record: %w", err)
	}
	return &hint.Error{
		Field: "record", Value: path, Problem: "cannot be written", Err: err,
		Remedy: "free space on the filesystem of " + filepath.Dir(path) + "; nothing was changed, and what asked for it may try again",
	}
}

// lastLine gives the last line of data that has an end; all of it if none has.
func lastLine(data []byte) []byte {
	end := bytes.LastIndexByte(data, '\n')
	if end < 0 {
		return data
	}
	lines := bytes.TrimRight(data[:end], "\n")
	return lines[bytes.LastIndexByte(lines, '\n')+1:]
}

func writeFile(path string, data []byte, durable bool) (err error) {
	file, err := openFile(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC)
	if err != nil {
		return unwritten(path, err)
	}
	defer func() {
		if closeErr := file.Close(); closeErr != nil && err == nil {
			err = unwritten(path, closeErr)
		}
		if err != nil {
			err = errors.Join(err, remove(path))
		}
	}()
	if _, err := file.Write(data); err != nil {
		return unwritten(path, err)
	}
	if !durable {
		return nil
	}
	if err := file.Sync(); err != nil {
		return unwritten(path, err)
	}
	return nil
}

// openFile is os.OpenFile without the runtime's poller, which cannot wait for a
// file on a disk and takes five system calls to find that out.
func openFile(path string, mode int) (*os.File, error) {
	for {
		fd, err := unix.Open(path, mode|unix.O_CLOEXEC, 0o600)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case !errors.Is(err, unix.EINTR):
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync record directory: %w", err)
	}
	defer dir.Close() // opened for reading only: nothing to lose
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("sync record directory: %w", err)
	}
	return nil
}

// Delete removes the record of a sandbox; one that is gone already is success.
func (s *Store) Delete(id string, durable bool) error {
	if err := checkID(id); err != nil {
		return err
	}
	// That which may be behind the other goes first.
	if err := remove(s.Path(id, false)); err != nil || !durable {
		return err
	}
	if err := remove(s.Path(id, true)); err != nil {
		return err
	}
	return syncDir(s.dir)
}

// remove takes ENOENT as success: somebody was faster.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record: %w", err)
	}
	return nil
}

// IDs lists the sandboxes that have a record, sorted.
func (s *Store) IDs() ([]string, error) { return s.names(suffix) }

func (s *Store) names(suffix string) ([]string, error) {
	files, err := s.files()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, path := range files {
		if id, ok := strings.CutSuffix(filepath.Base(path), suffix); ok && checkID(id) == nil {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// files lists the files of both directories.
func (s *Store) files() ([]string, error) {
	var out []string
	for _, dir := range []string{s.dir, s.run} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("list records: %w", err)
		}
		for _, entry := range entries {
			if entry.Type().IsRegular() {
				out = append(out, filepath.Join(dir, entry.Name()))
			}
		}
	}
	return out, nil
}

// List reads all records. Those that could not be read are in the error, each
// by its own; the rest is there nevertheless.
func (s *Store) List() ([]*Sandbox, error) {
	ids, err := s.IDs()
	if err != nil {
		return nil, err
	}
	var out []*Sandbox
	var errs []error
	for _, id := range ids {
		sandbox, err := s.Load(id)
		if errors.Is(err, ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, sandbox)
	}
	return out, errors.Join(errs...)
}

// Damaged lists the files that were set aside, those on the disk first.
func (s *Store) Damaged() ([]string, error) {
	files, err := s.files()
	return slices.DeleteFunc(files, func(path string) bool {
		return !strings.Contains(filepath.Base(path), damagedSuffix) || strings.HasSuffix(path, suffix)
	}), err
}

// BootID gives the id of the running boot of the machine whose root directory this
// process has at root; empty: its own. What is recorded from inside a container and
// from outside must bear the same one.
func BootID(root string) (string, error) {
	const file = "/proc/sys/kernel/random/boot_id"
	data, err := os.ReadFile(filepath.Join(root, file))
	if errors.Is(err, os.ErrNotExist) {
		data, err = os.ReadFile(file) // a root without /proc
	}
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
