package cniwire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	var wire bytes.Buffer
	want := Request{Command: "ADD", ContainerID: "a", NetNS: "/n", IfName: "eth0", Args: "A=1;B=2", Path: "/bin", Config: json.RawMessage(`{"name":"x"}`)}
	for range 2 { // one behind the other
		if err := Write(&wire, want); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		var got Request
		if err := Read(&wire, &got); err != nil {
			t.Fatal(err)
		}
		a, _ := json.Marshal(want) //nolint:errchkjson // plain values
		b, _ := json.Marshal(got)  //nolint:errchkjson // plain values
		if !bytes.Equal(a, b) {
			t.Errorf("got %s, want %s", b, a)
		}
	}
	if wire.Len() > 0 {
		t.Errorf("%d bytes are left", wire.Len())
	}
}

func TestReadRefuses(t *testing.T) {
	head := func(n uint32) string { return string(binary.BigEndian.AppendUint32(nil, n)) }
	for name, text := range map[string]string{
		"nothing": "", "half a length": "\x00\x00", "too long": head(MaxSize + 1), "cut off": head(10) + `{"a"`, "no JSON": head(3) + "abc",
	} {
		var got Request
		if err := Read(strings.NewReader(text), &got); err == nil {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	if err := Write(io.Discard, strings.Repeat("x", MaxSize)); err == nil {
		t.Error("a document that is too long is sent")
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		var request Request
		_ = Read(bytes.NewReader(data), &request) // must not panic
	})
}
