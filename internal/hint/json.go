package hint

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
)

// JSON makes a hint of an error of encoding/json about the value at field;
// empty: the whole document.
func JSON(field string, err error) error {
	wrong, ok := errors.AsType[*json.UnmarshalTypeError](err)
	if !ok {
		return &Error{Field: field, Problem: "is not valid JSON", Remedy: "correct the JSON", Err: err}
	}
	return &Error{
		Field: strings.Trim(field+"."+wrong.Field, "."), Value: wrong.Value, Problem: "has the wrong JSON type",
		Remedy: "write " + jsonKind(wrong.Type.Kind()),
	}
}

func jsonKind(kind reflect.Kind) string {
	switch kind {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a text in quotes"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number that is not negative"
	default:
		return "a whole number"
	}
}
