package main

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// escape makes text that others wrote safe and readable on a terminal: control and format characters (which move the cursor,
// set colours or turn the direction of writing) and bytes that are no UTF-8 are shown as \n, \x1b, \u202e.
func escape(s string) string {
	for _, r := range s {
		if r == utf8.RuneError || !strconv.IsPrint(r) {
			return string(appendEscaped(make([]byte, 0, len(s)+16), s))
		}
	}
	return s
}

func appendEscaped(b []byte, s string) []byte {
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			const hex = "0123456789abcdef"
			b = append(b, '\\', 'x', hex[s[i]>>4], hex[s[i]&15])
		case strconv.IsPrint(r):
			b = append(b, s[i:i+n]...)
		default:
			quoted := strconv.AppendQuoteRune(nil, r)
			b = append(b, quoted[1:len(quoted)-1]...)
		}
		i += n
	}
	return b
}

// shorten cuts s, which is escaped already, to at most width characters.
func shorten(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n >= width-1 {
			break
		}
		b.WriteRune(r)
		n++
	}
	return b.String() + "…"
}
