package record

import (
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/netstate"
)

// TestEncode: a record has what encoding/json would write of it, whatever is set.
func TestEncode(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var box Sandbox
		fill(t, r, reflect.ValueOf(&box).Elem())
		got, err := encode(&box)
		if err != nil {
			t.Fatal(err)
		}
		want, err := json.Marshal(&box)
		if err != nil {
			t.Fatal(err)
		}
		var gotBox, wantBox Sandbox
		if err := json.Unmarshal(got, &gotBox); err != nil {
			t.Fatalf("%v: %s", err, got)
		}
		if err := json.Unmarshal(want, &wantBox); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(wantBox, gotBox, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Fatalf("-encoding/json +encode:\n%s", diff)
		}
		for _, c := range got {
			if c == '\n' || c == '\r' {
				t.Fatalf("more than one line: %q", got)
			}
		}
	}
}

// fill sets about half of all there is.
func fill(t *testing.T, r *rand.Rand, v reflect.Value) {
	t.Helper()
	texts := []string{"eth0", "a b", `quo"te\`, "new\nline", "ünicode", "<&>", "\x01"}
	prefixes := []string{"10.1.2.3/16", "fd00::5/64", "::ffff:10.0.0.1/128"}
	switch v.Interface().(type) {
	case json.RawMessage:
		v.SetBytes([]byte([]string{`{"a":1}`, "{\n \"b\": [true, \"x\"]\n}", `"text"`}[r.IntN(3)]))
		return
	case netip.Prefix:
		v.Set(reflect.ValueOf(netip.MustParsePrefix(prefixes[r.IntN(3)])))
		return
	case netip.Addr:
		v.Set(reflect.ValueOf(netip.MustParsePrefix(prefixes[r.IntN(3)]).Addr()))
		return
	case netattach.Selection:
		v.Set(reflect.ValueOf(netattach.Selection{Name: "blue", Namespace: "demo", MAC: "02:00:00:00:00:01", Interface: "x0"}))
		return
	case netattach.DeviceInfo:
		v.Set(reflect.ValueOf(netattach.DeviceInfo{Type: "pci", Version: "1.1.0"}))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(texts[r.IntN(len(texts))])
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(r.IntN(1000) - 10))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		v.SetUint(uint64(r.IntN(250)))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, r, v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), r.IntN(3), 3))
		for i := range v.Len() {
			fill(t, r, v.Index(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(t, r, v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		value := reflect.New(v.Type().Elem()).Elem()
		fill(t, r, value)
		v.SetMapIndex(reflect.ValueOf("key").Convert(v.Type().Key()), value)
	case reflect.Struct:
		for i := range v.NumField() {
			// What has no text form of its own for zero must be set.
			must := v.Type().Field(i).Type == reflect.TypeFor[json.RawMessage]() || v.Type() == reflect.TypeFor[Lease]()
			if must || r.IntN(2) == 0 {
				fill(t, r, v.Field(i))
			}
		}
	default:
		t.Fatalf("a field of type %s: say here how to fill it", v.Type())
	}
}

// BenchmarkEncode encodes the record of one network with the caches cold, as they
// are between two programs.
func BenchmarkEncode(b *testing.B) {
	alias := "weft:weft:attach/sb1/net1"
	box := &Sandbox{Version: Version, ID: "sb1", NetNS: "/proc/13838/fd/22", Pod: Pod{"demo", "a", "u"}, Attachments: []*Attachment{{
		Network: "demo/n1", Interface: "net1", Stage: Attached, Kind: Native, NativeMain: true, Alias: alias,
		Config:  json.RawMessage(`{"cniVersion":"1.0.0","name":"br0","plugins":[{"bridge":"br0","ipam":{"subnet":"10.70.0.0/16","type":"host-local"},"type":"bridge"}]}`),
		CNIArgs: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "demo"}, {"K8S_POD_NAME", "a"}},
		Plan: netstate.Plan{
			Alias: alias,
			Host: netstate.State{
				Links:   []netstate.Link{{Name: "br0", Kind: "bridge", Presence: netstate.Shared}, {Name: "weft62f56e0e1bc", Kind: "veth", Group: 42, Master: "br0", Up: true}},
				Sysctls: []netstate.Sysctl{{Path: "net/ipv6/conf/weft62f56e0e1bc/accept_ra", Value: "0"}},
			},
			Pod: netstate.State{
				Links: []netstate.Link{{Name: "net1", Kind: "veth", Group: 42, Up: true}},
				Addrs: []netstate.Addr{{Link: "net1", Prefix: netip.MustParsePrefix("10.70.0.3/16")}},
			},
		},
		Leases: []Lease{{Scope: "net:br0", Addr: netip.MustParseAddr("10.70.0.3"), Owner: "sb1/net1"}},
		Links:  []Link{{Side: "host", Name: "weft62f56e0e1bc", Index: 33, Kind: "veth", MAC: "02:00:00:00:00:02", MTU: 1500, Alias: alias}},
		Result: json.RawMessage(`{"cniVersion":"1.1.0","interfaces":[{"name":"net1","mac":"02:00:00:00:00:03","sandbox":"/proc/13838/fd/22"}],"ips":[{"interface":0,"address":"10.70.0.3/16"}],"dns":{}}`),
	}}}
	caches := make([]byte, 64<<20)
	for name, f := range map[string]func() ([]byte, error){"weft": func() ([]byte, error) { return encode(box) }, "encoding-json": func() ([]byte, error) { return json.Marshal(box) }} {
		b.Run(name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				for i := 0; i < len(caches); i += 64 {
					caches[i]++
				}
				start := time.Now()
				if _, err := f(); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "µs-median")
		})
	}
}
