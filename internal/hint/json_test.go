package hint_test

import (
	"encoding/json"
	"testing"

	"github.com/weftnet/weft/internal/hint"
)

func TestJSON(t *testing.T) {
	var doc struct {
		MTU   int      `json:"mtu"`
		Queue uint32   `json:"queue"`
		On    bool     `json:"on"`
		Name  string   `json:"name"`
		List  []string `json:"list"`
		Inner struct {
			MTU int `json:"mtu"`
		} `json:"inner"`
	}
	for text, want := range map[string]string{
		`{"mtu": "x"}`:            `at.mtu "string": has the wrong JSON type; write a whole number`,
		`{"queue": -1}`:           `at.queue "number -1": has the wrong JSON type; write a whole number that is not negative`,
		`{"on": 1}`:               `at.on "number": has the wrong JSON type; write true or false`,
		`{"name": 1}`:             `at.name "number": has the wrong JSON type; write a text in quotes`,
		`{"list": "x"}`:           `at.list "string": has the wrong JSON type; write a list`,
		`{"inner": 1}`:            `at.inner "number": has the wrong JSON type; write an object`,
		`{"inner": {"mtu": "x"}}`: `at.inner.mtu "string": has the wrong JSON type; write a whole number`,
		`[]`:                      `at "array": has the wrong JSON type; write an object`,
		`{`:                       `at: is not valid JSON: unexpected end of JSON input; correct the JSON`,
	} {
		if got := hint.JSON("at", json.Unmarshal([]byte(text), &doc)); got.Error() != want {
			t.Errorf("%s:\n got %s\nwant %s", text, got, want)
		}
	}
}
