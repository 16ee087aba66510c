package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/cniwire"
)

// queueDel leaves a DEL where the agent finds it when it is back, on disk before
// the runtime is told that all is well. A DEL twice is one file.
func queueDel(dir string, args *skel.CmdArgs) error {
	sum := sha256.Sum256([]byte(args.ContainerID + "/" + args.IfName))
	body, err := json.Marshal(cniwire.Request{
		Command: "DEL", ContainerID: args.ContainerID, NetNS: args.Netns, IfName: args.IfName,
		Args: args.Args, Path: args.Path, Config: args.StdinData,
	})
	if err == nil {
		err = writeDurably(dir, hex.EncodeToString(sum[:16])+".json", body)
	}
	if err != nil {
		return types.NewError(types.ErrTryAgainLater, "weft's agent is away, and the DEL cannot be kept for it", err.Error()+"; see that files can be written in "+dir+", and that weft-node runs on this machine")
	}
	return nil
}

// writeDurably writes a file so that it is there whole or not at all, whatever
// dies when.
func writeDurably(dir, name string, body []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	file, err := os.CreateTemp(dir, "tmp-")
	if err != nil {
		return err
	}
	_, err = file.Write(body)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	parent, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}

// handOver becomes the thin program, which reads the same environment and, anew,
// the same configuration.
func handOver(program string, stdin []byte, cause error) error {
	err := feed(stdin)
	if err == nil {
		err = unix.Exec(program, []string{program}, os.Environ())
	}
	return types.NewError(types.ErrTryAgainLater, "weft's agent is away", cause.Error()+"; "+program+", which does without, cannot be run: "+err.Error())
}

// feed makes data what is read from standard input next.
func feed(data []byte) error {
	fd, err := unix.MemfdCreate("config", 0)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), "config")
	defer file.Close()
	if _, err := file.WriteAt(data, 0); err != nil {
		return err
	}
	return unix.Dup3(fd, 0, 0)
}
