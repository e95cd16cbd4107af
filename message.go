package kumquat

import (
	"strconv"
	"strings"

	"github.com/kumquat-mq/kumquat/driver"
)

// Message is one message: what the sender gives and what the queue adds. A zero field means its default and costs nothing.
type Message = driver.Message

// MaxPriority is the highest priority. There are 32,768, as Linux has for mq_send.
const MaxPriority = driver.MaxPriority

// Names for common priorities, one in each band: Critical is 25–31, High 15–24, Normal 5–14, Low 0–4. The zero value of
// Message.Priority is 0, in Low. Any number from 0 to MaxPriority is allowed.
const (
	Critical = 28
	High     = 20
	Normal   = 10
	Low      = 2
)

// ParsePriority reads a priority: the name of a band (critical, high, normal, low; in any case) or a number from 0 to MaxPriority.
// Anything else is ErrInvalid.
func ParsePriority(s string) (int, error) {
	switch strings.ToLower(s) {
	case "critical":
		return Critical, nil
	case "high":
		return High, nil
	case "normal":
		return Normal, nil
	case "low":
		return Low, nil
	}
	p, err := strconv.Atoi(s)
	if err != nil || p < 0 || p > MaxPriority {
		return 0, &Error{Op: "parse priority", Err: invalid("%q is not critical, high, normal, low or a number from 0 to %d", s, MaxPriority)}
	}
	return p, nil
}

// BandOf returns the name of the band that priority p lies in: critical, high, normal or low. It is empty for those outside all
// bands (below 0, above 31).
func BandOf(p int) string {
	switch {
	case p < 0 || p > 31:
		return ""
	case p >= 25:
		return "critical"
	case p >= 15:
		return "high"
	case p >= 5:
		return "normal"
	}
	return "low"
}

func checkPriority(p int) error {
	if uint(p) > MaxPriority {
		return invalid("priority %d is not from 0 to %d", p, MaxPriority)
	}
	return nil
}

// checkMessage brings m into the form that drivers expect.
func checkMessage(m *Message) error {
	if uint(m.Priority) > MaxPriority {
		return checkPriority(m.Priority)
	}
	if m.Type <= 0 {
		if m.Type < 0 {
			return invalid("type %d is below 1", m.Type)
		}
		m.Type = 1
	}
	return nil
}
