// Package dhcp serves one NIC of a virtual machine: DHCPv4 (RFC 2131), DHCPv6
// (RFC 8415) and router advertisements (package ra), each with the one answer
// the VM's network plan holds for that guest.
//
// [Reply4] and [Reply6] are pure: lease and request in, answer out. [Server]
// owns the socket of one NIC and the few things it remembers: counters and the
// latest transactions, for people who look for the reason a guest has no
// address. There is no lease database: a NIC has one address, the same as long
// as it exists, so nothing is to be remembered and an agent may be away or
// restarted at any time.
//
// What the guest is answered, by message and state (RFC 2131 section 4.3):
//
//	DISCOVER                        OFFER; ACK if it asks for rapid commit (RFC 4039)
//	REQUEST  selecting              ACK; silence if it took another server's offer
//	         init-reboot            ACK, NAK if it asks for another address
//	         renewing, rebinding    ACK, NAK if it holds another address
//	INFORM                          ACK without address and lease times
//	DECLINE, RELEASE                silence, told to the owner of the server
//	BOOTP, relayed, another MAC     silence, with the reason in the history
package dhcp
