package ra

import (
	"time"
)

// Timing of RFC 4861 section 10, and of ours where it leaves the choice.
const (
	// MinDelayBetweenRAs is the shortest time between two multicast
	// advertisements (MIN_DELAY_BETWEEN_RAS).
	MinDelayBetweenRAs = 3 * time.Second
	// maxInitial advertisements follow each other faster at first
	// (MAX_INITIAL_RTR_ADVERTISEMENTS), at most initialInterval apart
	// (MAX_INITIAL_RTR_ADVERT_INTERVAL).
	maxInitial      = 3
	initialInterval = 16 * time.Second
	// Interval is the mean time between unsolicited advertisements later on:
	// between MinRtrAdvInterval 200 s and MaxRtrAdvInterval 600 s the shortest, as
	// there is one listener and a lost one costs us nothing.
	Interval = 200 * time.Second
)

// Answer is how a solicitation is met.
type Answer string

// Answers to a solicitation.
const (
	// Unicast: at once, to the asker alone, as often as it asks: a guest's kernel
	// and its network manager both do, within milliseconds, and who is not
	// answered tries again only after 4 s. RFC 4861 section 6.2.6 delays answers
	// by up to half a second so that the routers of a shared link do not answer
	// all at once; on a TAP there is one router and one host, and the delay would
	// only add to every boot.
	Unicast Answer = "unicast"
	// Multicast: with the next multicast advertisement, now due as early as the
	// rate limit allows. For askers that have no address yet.
	Multicast Answer = "multicast"
)

// Schedule decides when multicast advertisements are due. The zero value is
// due at once. It is not safe for concurrent use.
type Schedule struct {
	// Next is when the next multicast advertisement is due.
	Next time.Time

	lastMulticast time.Time
	sent          int
}

// Solicited takes note of a valid solicitation at now; hasAddress tells whether
// it came from an address that can be answered.
func (s *Schedule) Solicited(now time.Time, hasAddress bool) Answer {
	if hasAddress {
		return Unicast
	}
	s.hasten(now)
	return Multicast
}

// Changed makes a multicast advertisement due, as its contents changed, and
// starts the faster initial phase again (RFC 4861 section 6.2.4).
func (s *Schedule) Changed(now time.Time) {
	s.sent = 0
	s.hasten(now)
}

func (s *Schedule) hasten(now time.Time) {
	due := s.lastMulticast.Add(MinDelayBetweenRAs)
	if due.Before(now) {
		due = now
	}
	if due.Before(s.Next) {
		s.Next = due
	}
}

// Sent takes note of a multicast advertisement at now and sets when the next is
// due. jitter, from 0 to 1, spreads the intervals of many NICs: 3/4 to 5/4 of
// the mean.
func (s *Schedule) Sent(now time.Time, jitter float64) {
	s.lastMulticast = now
	s.sent++
	interval := Interval*3/4 + time.Duration(jitter*float64(Interval/2))
	if s.sent < maxInitial {
		interval = min(interval, initialInterval)
	}
	s.Next = now.Add(interval)
}
