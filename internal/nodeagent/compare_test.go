package nodeagent

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

func TestCompare(t *testing.T) {
	have := func(text string) []*record.Attachment {
		list := []*record.Attachment{{Interface: "eth0", Network: "primary", Default: true}, {Interface: "net9", Network: "everywhere"}}
		for _, part := range strings.Fields(text) {
			part, broken := strings.CutSuffix(part, "!")
			stage := record.Attached
			if broken {
				stage = record.Failed
			}
			network, name, _ := strings.Cut(part, "@")
			selection := &netattach.Selection{}
			if !strings.HasPrefix(name, "net") {
				selection.Interface = name
			}
			list = append(list, &record.Attachment{Network: "ns/" + network, Interface: netstate.IfName(name), Stage: stage, Selection: selection})
		}
		return list
	}
	for _, tt := range []struct{ name, annotation, have, want string }{
		{"nothing", "", "", "+[] -[]"},
		{"as it is", "a,b@x", "a@net1 b@x", "+[] -[]"},
		{"one more", "a,b", "a@net1", "+[ns/b] -[]"},
		{"one less", "b", "a@net1 b@net2", "+[] -[net1]"},
		{"the same twice", "a,a", "a@net1", "+[ns/a] -[]"},
		{"the same once less", "a", "a@net1 a@net2", "+[] -[net2]"},
		{"another order", "b,a", "a@net1 b@net2", "+[] -[]"},
		{"another interface", "a@y", "a@x", "+[ns/a] -[x]"},
		{"another network of that name", "b@x", "a@x", "+[ns/b] -[x]"},
		{"all off", "", "a@net1 b@x", "+[] -[net1 x]"},
		{"one that could not be rolled back", "a,b@x", "a@net1! b@x!", "+[ns/a ns/b] -[net1 x]"},
		{"one that was attached again beside it", "a", "a@net1! a@net2", "+[] -[net1]"},
		{"one that could not be taken off", "", "a@net1!", "+[] -[net1]"},
		{"a named one is not an unnamed one", "a", "a@x", "+[ns/a] -[x]"},
	} {
		wanted, err := netattach.ParseNetworks(tt.annotation, "ns")
		if err != nil {
			t.Fatal(err)
		}
		attach, detach := compare(wanted, have(tt.have))
		var names []string
		for _, s := range attach {
			names = append(names, s.FullName())
		}
		if got := fmt.Sprintf("+%v -%v", names, detach); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
