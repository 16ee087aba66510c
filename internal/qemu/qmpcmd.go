package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/weftnet/weft/internal/netstate"
)

// Status is QEMU's run state.
type Status struct {
	// Status is running, paused, prelaunch, shutdown, internal-error, ...
	Status  string `json:"status"`
	Running bool   `json:"running"`
}

// Status asks whether the machine runs.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.Execute(ctx, "query-status", nil, &s)
	return s, err
}

// Cont lets a stopped machine run.
func (c *Client) Cont(ctx context.Context) error { return c.Execute(ctx, "cont", nil, nil) }

// Stop freezes a running machine.
func (c *Client) Stop(ctx context.Context) error { return c.Execute(ctx, "stop", nil, nil) }

// Powerdown presses the ACPI power button.
func (c *Client) Powerdown(ctx context.Context) error {
	return c.Execute(ctx, "system_powerdown", nil, nil)
}

// Reset presses the reset button.
func (c *Client) Reset(ctx context.Context) error { return c.Execute(ctx, "system_reset", nil, nil) }

// Quit ends QEMU at once. That the connection ends before the answer is success.
func (c *Client) Quit(ctx context.Context) error {
	err := c.Execute(ctx, "quit", nil, nil)
	if errors.Is(err, ErrClosed) {
		return nil
	}
	return err
}

// SetLink puts in or pulls out the cable of the device with this id (DeviceID).
// QEMU cannot be asked for it: whoever wants it so sets it again after
// re-connecting, which the guest does not notice if nothing changes.
func (c *Client) SetLink(ctx context.Context, id string, up bool) error {
	return c.Execute(ctx, "set_link", map[string]any{"name": id, "up": up}, nil)
}

// AgentOpen says whether a program in the guest has the agent's channel open.
// Commands sent while it is closed wait in a buffer and reach an agent that
// starts much later, so ask before speaking to it.
func (c *Client) AgentOpen(ctx context.Context) (bool, error) {
	var chardevs []struct {
		Label string `json:"label"`
		Open  bool   `json:"frontend-open"`
	}
	if err := c.Execute(ctx, "query-chardev", nil, &chardevs); err != nil {
		return false, err
	}
	for _, chardev := range chardevs {
		if chardev.Label == idAgent {
			return chardev.Open, nil
		}
	}
	return false, nil
}

// NICFacts is what the running machine has of one NIC: the source "domain".
type NICFacts struct {
	// Network is the NIC's logical name.
	Network string
	// MAC is the one the device was made with.
	MAC netstate.MAC
	// MACInUse is the one the guest has set; empty if the model does not tell
	// (only virtio does).
	MACInUse netstate.MAC
	// Bus, Slot and Function are where the guest sees it. Bus 0 is the root bus;
	// root port k is bus k+1 once firmware has numbered the buses, before that 0.
	Bus, Slot, Function int
	// PCIID is vendor:device in hexadecimal, such as 1af4:1041.
	PCIID string
	// MulticastTable lists the groups the guest listens to, where told.
	MulticastTable []netstate.MAC
}

type pciDevice struct {
	QdevID   string `json:"qdev_id"`
	Bus      int    `json:"bus"`
	Slot     int    `json:"slot"`
	Function int    `json:"function"`
	ID       struct {
		Vendor int `json:"vendor"`
		Device int `json:"device"`
	} `json:"id"`
	Class struct {
		Class int `json:"class"`
	} `json:"class_info"`
	Bridge *struct {
		Devices []pciDevice `json:"devices"`
	} `json:"pci_bridge"`
}

// pciClassEthernet is base class 02, subclass 00 (PCI Code and ID Assignment 1.11).
const pciClassEthernet = 0x0200

// NICs lists the NICs the machine has now, whichever way they came.
func (c *Client) NICs(ctx context.Context) ([]NICFacts, error) {
	var buses []struct {
		Devices []pciDevice `json:"devices"`
	}
	if err := c.Execute(ctx, "query-pci", nil, &buses); err != nil {
		return nil, err
	}
	filters, err := c.rxFilters(ctx)
	if err != nil {
		return nil, err
	}
	var nics []NICFacts
	for _, bus := range buses {
		for _, device := range ethernet(bus.Devices) {
			nic := NICFacts{
				Network: strings.TrimPrefix(device.QdevID, "ua-"),
				Bus:     device.Bus, Slot: device.Slot, Function: device.Function,
				PCIID: fmt.Sprintf("%04x:%04x", device.ID.Vendor, device.ID.Device),
			}
			if nic.MAC, err = c.deviceMAC(ctx, device.QdevID); err != nil {
				return nil, err
			}
			if filter, told := filters[device.QdevID]; told {
				nic.MACInUse, nic.MulticastTable = filter.MAC, filter.Multicast
			}
			nics = append(nics, nic)
		}
	}
	return nics, nil
}

// ethernet gives the network controllers with an id of ours, behind bridges too.
func ethernet(devices []pciDevice) []pciDevice {
	var found []pciDevice
	for _, device := range devices {
		if device.Class.Class == pciClassEthernet && strings.HasPrefix(device.QdevID, "ua-") {
			found = append(found, device)
		}
		if device.Bridge != nil {
			found = append(found, ethernet(device.Bridge.Devices)...)
		}
	}
	return found
}

type rxFilter struct {
	Name      string         `json:"name"`
	MAC       netstate.MAC   `json:"main-mac"`
	Multicast []netstate.MAC `json:"multicast-table"`
}

func (c *Client) rxFilters(ctx context.Context) (map[string]rxFilter, error) {
	var list []rxFilter
	err := c.Execute(ctx, "query-rx-filter", nil, &list)
	var refused *CommandError
	if err != nil && !errors.As(err, &refused) {
		return nil, err
	}
	// A refusal says that no NIC of this machine has such a filter.
	filters := map[string]rxFilter{}
	for _, filter := range list {
		filters[filter.Name] = filter
	}
	return filters, nil
}

func (c *Client) deviceMAC(ctx context.Context, id string) (netstate.MAC, error) {
	var text string
	args := map[string]string{"path": "/machine/peripheral/" + id, "property": "mac"}
	err := c.Execute(ctx, "qom-get", args, &text)
	var refused *CommandError
	if errors.As(err, &refused) {
		return "", nil // unplugged between the two questions
	}
	if err != nil {
		return "", err
	}
	mac, err := netstate.ParseMAC(text)
	if err != nil {
		return "", fmt.Errorf("QMP qom-get %s: %w", id, err)
	}
	return mac, nil
}

// ShutdownReason reads a SHUTDOWN event: why QEMU says it ends (guest-shutdown,
// guest-panic, host-qmp-quit, host-signal, ...) and whether the guest wanted it.
func ShutdownReason(e Event) (reason string, guest bool) {
	var data struct {
		Guest  bool   `json:"guest"`
		Reason string `json:"reason"`
	}
	if e.Name != "SHUTDOWN" || json.Unmarshal(e.Data, &data) != nil {
		return "", false
	}
	return data.Reason, data.Guest
}
