package vmnet

// AssignSlots gives every NIC its root port: those in existing keep theirs, the
// others get the lowest free one in the order given (spec order at first
// start). The result holds exactly the NICs given, so the slot of one that is
// gone becomes free. The
// machine has root ports beyond the highest slot (qemu.RootPortsFor).
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
