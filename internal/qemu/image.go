package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/weftnet/weft/internal/hint"
)

// ImageTool is qemu-img.
const ImageTool = "qemu-img"

// ImageInfo is what a disk image is.
type ImageInfo struct {
	Format Format
	// VirtualBytes is the size the guest sees.
	VirtualBytes int64
}

// InspectImage says what a disk image is. It refuses images that name other
// files, because an image comes from a stranger and could name any file of the
// host: a backing file or an external data file.
func InspectImage(ctx context.Context, path string) (ImageInfo, error) {
	// -U: an image in use is no obstacle, nothing is written.
	out, err := imageTool(ctx, "info", "-U", "--output=json", path)
	if err != nil {
		return ImageInfo{}, fmt.Errorf("inspect image %s: %w", path, err)
	}
	var info struct {
		Format   string `json:"format"`
		Size     int64  `json:"virtual-size"`
		Backing  string `json:"backing-filename"`
		Specific struct {
			Data struct {
				DataFile string `json:"data-file"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		return ImageInfo{}, fmt.Errorf("inspect image %s: decode: %w", path, err)
	}
	if other := info.Backing + info.Specific.Data.DataFile; other != "" {
		return ImageInfo{}, &hint.Error{
			Field: "image", Value: path, Problem: "the image refers to another file, " + other,
			Remedy: "make it self-contained: qemu-img convert -O qcow2 IMAGE NEW",
		}
	}
	switch format := Format(info.Format); format {
	case Raw, QCOW2:
		return ImageInfo{Format: format, VirtualBytes: info.Size}, nil
	}
	return ImageInfo{}, &hint.Error{
		Field: "image", Value: info.Format, Problem: "disk format of " + path + " is not supported",
		Remedy: "convert it: qemu-img convert -O qcow2 IMAGE NEW",
	}
}

// CreateDisk makes an empty qcow2 disk of that many bytes, for an emptyDisk.
// A file that is there already is kept as it is: the guest's data are in it.
func CreateDisk(ctx context.Context, path string, bytes int64, owner Owner) error {
	return create(path, owner, func(tmp string) error {
		_, err := imageTool(ctx, "create", "-q", "-f", "qcow2", tmp, strconv.FormatInt(bytes, 10))
		return err
	})
}

// CreateOverlay makes a qcow2 disk on top of base, which is never written; a
// containerDisk is such a base, and the overlay what the guest changes. A file
// that is there already is kept.
func CreateOverlay(ctx context.Context, path, base string, owner Owner) error {
	absolute, err := filepath.Abs(base)
	if err != nil {
		return fmt.Errorf("create overlay %s: %w", path, err)
	}
	info, err := InspectImage(ctx, absolute)
	if err != nil {
		return err
	}
	return create(path, owner, func(tmp string) error {
		// The format is written down: it is never guessed from what the guest wrote.
		_, err := imageTool(ctx, "create", "-q", "-f", "qcow2", "-F", string(info.Format), "-b", absolute, tmp)
		return err
	})
}

// CreateRawDisk makes a sparse raw disk of that many bytes, for a hostDisk of
// type DiskOrCreate. A file that is there already is kept.
func CreateRawDisk(path string, bytes int64, owner Owner) error {
	return create(path, owner, func(tmp string) error {
		file, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		return errors.Join(file.Truncate(bytes), file.Close())
	})
}

// Owner is the user QEMU runs as, who gets the files it writes.
type Owner struct{ UID, GID uint32 }

// create makes a file under a temporary name, gives it to its owner and then
// moves it into place, so that a crash never leaves half a disk.
func create(path string, owner Owner, write func(tmp string) error) error {
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("create %s: remove leftover: %w", path, err)
	}
	if err := errors.Join(write(tmp)); err != nil {
		_ = os.Remove(tmp) // the error is what matters, and the next try removes it too
		return fmt.Errorf("create %s: %w", path, err)
	}
	if err := give(tmp, owner); err != nil {
		_ = os.Remove(tmp) // as above
		return fmt.Errorf("create %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	return nil
}

func give(path string, owner Owner) error {
	return errors.Join(os.Chmod(path, 0o600), os.Chown(path, int(owner.UID), int(owner.GID)))
}

// imageTool runs qemu-img and gives its output, or what it complained of.
func imageTool(ctx context.Context, args ...string) ([]byte, error) {
	return tool(ctx, ImageTool, "qemu-utils", args...)
}

func tool(ctx context.Context, program, debianPackage string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return out, nil
	case errors.Is(err, exec.ErrNotFound):
		return nil, &hint.Error{Problem: program + " is not installed", Remedy: "install it (Debian: apt-get install " + debianPackage + ")", Err: err}
	case errors.As(err, &exit):
		return nil, fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(string(exit.Stderr)))
	}
	return nil, fmt.Errorf("%s: %w", program, err)
}
