package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// seedRandom sees to it that no program waits for random numbers: a CPU of TCG
// without RDRAND and a machine without virtio-rng give the kernel so little to
// go by that getrandom blocks for minutes, and DHCPv6 with it. What it is fed
// instead can be guessed. That is right for a guest of tests, which keeps no
// secrets, and for no other.
func seedRandom() error {
	probe := make([]byte, 1)
	if _, err := unix.Getrandom(probe, unix.GRND_NONBLOCK); !errors.Is(err, unix.EAGAIN) {
		return err
	}
	// struct rand_pool_info (include/uapi/linux/random.h).
	pool := struct {
		bits, bytes int32
		data        [64]byte
	}{bits: 256, bytes: 64}
	binary.NativeEndian.PutUint64(pool.data[:], uint64(time.Now().UnixNano()))
	links, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("seed random numbers: %w", err)
	}
	rest := pool.data[8:]
	for _, link := range links {
		rest = rest[copy(rest, link.HardwareAddr):]
	}
	device, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("seed random numbers: %w", err)
	}
	defer device.Close() // the ioctl has done it
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&pool)))
	if errno != 0 {
		return fmt.Errorf("seed random numbers: %w", errno)
	}
	return nil
}
