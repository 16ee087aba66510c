package vmnet

// AssignSlots gives every NIC its root port: those in existing keep theirs, the
// others get the lowest free one in the order given (spec order at first
// start). The result holds exactly the NICs given, so the slot of one that is
// gone becomes free.
func AssignSlots(existing map[string]int, networks []string) map[string]int {
	slots := make(map[string]int, len(networks))
	taken := make(map[int]bool, len(networks))
	for _, network := range networks {
		slot, ok := existing[network]
		if !ok || slot < 0 || taken[slot] {
			continue
		}
		slots[network] = slot
		taken[slot] = true
	}
	free := 0
	for _, network := range networks {
		if _, ok := slots[network]; ok {
			continue
		}
		for taken[free] {
			free++
		}
		slots[network] = free
		taken[free] = true
	}
	return slots
}

// RootPorts is the number of PCIe root ports a machine with these slots starts
// with, a multiple of eight (the functions of one PCI device) with room for
// eight NICs beyond the highest slot at least; qemu.RootPortsFor gives the same
// from a machine's NICs. Ask once, at the first start: it must not change while
// the machine lives, migrations included.
func RootPorts(slots map[string]int) int {
	const step, limit = 8, 32
	highest := -1
	for _, slot := range slots {
		highest = max(highest, slot)
	}
	return min((highest+1+step+step-1)/step*step, limit)
}
