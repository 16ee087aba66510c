package netattach

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/weftnet/weft/internal/hint"
)

// maxValue is how much of a bad value a hint shows, in bytes.
const maxValue = 80

// shown cuts text to what a person can read on one line.
func shown(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) <= maxValue {
		return text
	}
	return strings.ToValidUTF8(text[:maxValue], "") + "..."
}

// shownJSON is shown for a JSON value; a string comes without its quotes.
func shownJSON(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil && s != "" {
		return shown(s)
	}
	return shown(string(raw))
}

// jsonKind names what a JSON value is, for a person.
func jsonKind(raw json.RawMessage) string {
	trimmed := bytes.TrimLeft(raw, " \t\r\n")
	if len(trimmed) == 0 {
		return "nothing"
	}
	switch trimmed[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}

func isNull(raw json.RawMessage) bool { return string(bytes.TrimSpace(raw)) == "null" }

// syntax turns an error of encoding/json about doc into a hint that says where.
func syntax(field string, doc []byte, err error) error {
	h := &hint.Error{Field: field, Value: shown(string(doc)), Problem: "is not valid JSON", Remedy: "correct the JSON", Err: err}
	if bad, ok := errors.AsType[*json.SyntaxError](err); ok && bad.Offset > 0 && bad.Offset <= int64(len(doc)) {
		before := doc[:bad.Offset-1]
		line := 1 + bytes.Count(before, []byte("\n"))
		column := len(before) - bytes.LastIndexByte(before, '\n')
		h.Remedy = fmt.Sprintf("correct the JSON at line %d, column %d", line, column)
	}
	return h
}

// member is one key of an object with its value, as written.
type member struct {
	key   string
	value json.RawMessage
}

// members takes an object apart in order. encoding/json would let the last of
// two equal keys win in silence and take keys in any case; here the caller sees
// every key as it is written, and equal keys are an error.
func members(field string, raw json.RawMessage) ([]member, error) {
	if jsonKind(raw) != "an object" {
		return nil, &hint.Error{Field: field, Value: shownJSON(raw), Problem: "is " + jsonKind(raw) + " where an object is wanted", Remedy: "write { ... }"}
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.Token(); err != nil {
		return nil, syntax(field, raw, err)
	}
	var out []member
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, syntax(field, raw, err)
		}
		key, ok := tok.(string)
		if !ok {
			return nil, syntax(field, raw, fmt.Errorf("key %v is no string", tok))
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, syntax(field, raw, err)
		}
		if seen[key] {
			return nil, &hint.Error{Field: join(field, key), Value: shownJSON(value), Problem: "is given twice in the same object", Remedy: "keep one of the two"}
		}
		seen[key] = true
		out = append(out, member{key, value})
	}
	return out, nil
}

// document checks that doc is one JSON value with nothing behind it.
func document(field string, doc []byte) error {
	dec := json.NewDecoder(bytes.NewReader(doc))
	var value json.RawMessage
	if err := dec.Decode(&value); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return &hint.Error{Field: field, Value: shown(string(doc)), Problem: "is not valid JSON: it ends too early", Remedy: "close every brace, bracket and quote"}
		}
		return syntax(field, doc, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return &hint.Error{Field: field, Value: shown(string(doc)), Problem: "has text behind the end of its JSON value", Remedy: "write one JSON value and nothing else"}
	}
	return nil
}

func join(field, key string) string {
	if field == "" {
		return key
	}
	return field + "." + key
}

// text decodes a string.
func text(field string, raw json.RawMessage) (string, error) {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", &hint.Error{Field: field, Value: shownJSON(raw), Problem: "is " + jsonKind(raw) + " where a string is wanted", Remedy: `write it in double quotes`}
	}
	return s, nil
}

// texts decodes a list of strings.
func texts(field string, raw json.RawMessage) ([]string, error) {
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, &hint.Error{Field: field, Value: shownJSON(raw), Problem: "is " + jsonKind(raw) + " where a list of strings is wanted", Remedy: `write ["..."]`}
	}
	out := make([]string, 0, len(list))
	var errs []error
	for i, item := range list {
		s, err := text(fmt.Sprintf("%s[%d]", field, i), item)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if isNull(item) {
			errs = append(errs, &hint.Error{Field: fmt.Sprintf("%s[%d]", field, i), Value: "null", Problem: "is null where a string is wanted", Remedy: "leave the element out"})
			continue
		}
		out = append(out, s)
	}
	return out, errors.Join(errs...)
}

// whole decodes an integer from min to max.
func whole(field string, raw json.RawMessage, low, high int64) (int64, error) {
	var n int64
	if err := json.Unmarshal(raw, &n); err != nil {
		return 0, &hint.Error{Field: field, Value: shownJSON(raw), Problem: "is no whole number", Remedy: fmt.Sprintf("write a number from %d to %d without quotes", low, high)}
	}
	if n < low || n > high {
		return 0, &hint.Error{Field: field, Value: fmt.Sprint(n), Problem: "is out of range", Remedy: fmt.Sprintf("write a number from %d to %d", low, high)}
	}
	return n, nil
}
