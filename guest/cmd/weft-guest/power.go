package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// From the kernel's include/uapi/linux/input.h and input-event-codes.h.
const (
	inputEventBytes = 24 // struct input_event on 64 bit: time 16, type 2, code 2, value 4
	evKey           = 1
	keyPower        = 116
)

// watchPowerButton turns the machine off when a power button is pressed.
func watchPowerButton() {
	devices, err := filepath.Glob("/dev/input/event*")
	if err != nil || len(devices) == 0 {
		say("no power button")
		return
	}
	for _, device := range devices {
		go watchKeys(device)
	}
}

func watchKeys(device string) {
	f, err := os.Open(device)
	if err != nil {
		say("%v", err)
		return
	}
	defer f.Close() // only read
	event := make([]byte, inputEventBytes)
	for {
		if _, err := io.ReadFull(f, event); err != nil {
			return // the device is gone
		}
		kind, code := binary.NativeEndian.Uint16(event[16:]), binary.NativeEndian.Uint16(event[18:])
		if kind == evKey && code == keyPower && binary.NativeEndian.Uint32(event[20:]) == 1 {
			say("power button")
			if err := powerOff(false); err != nil {
				say("%v", err)
			}
		}
	}
}

// powerOff ends every process, writes disks back and turns the machine off or
// starts it anew.
func powerOff(restart bool) error {
	what, command := "off", unix.LINUX_REBOOT_CMD_POWER_OFF
	if restart {
		what, command = "restart", unix.LINUX_REBOOT_CMD_RESTART
	}
	// kill -1 spares the caller and the first process; another weft-guest, which
	// may have called us, goes like the rest.
	console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
	if err == nil {
		fmt.Fprintf(console, "weft-guest: power %s\n", what)
	}
	if err := unix.Kill(-1, unix.SIGTERM); err != nil {
		say("end processes: %v", err)
	}
	const grace = 100 * time.Millisecond
	time.Sleep(grace)
	unix.Sync()
	for _, point := range diskMounts() {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			say("unmount %s: %v", point, err)
		}
	}
	unix.Sync()
	if err := unix.Reboot(command); err != nil {
		return fmt.Errorf("power %s: %w", what, err)
	}
	return nil
}

// diskMounts gives where block devices are mounted, the last first.
func diskMounts() []string {
	raw, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return nil
	}
	var points []string
	for line := range strings.Lines(string(raw)) {
		words := strings.Fields(line)
		if len(words) > 1 && strings.HasPrefix(words[0], "/dev/") {
			points = append([]string{words[1]}, points...)
		}
	}
	return points
}
