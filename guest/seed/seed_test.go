package seed

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func prefix(text string) netip.Prefix { return netip.MustParsePrefix(text) }

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

func TestParse(t *testing.T) {
	tests := []struct {
		name, meta, user, network string
		want                      Seed
	}{
		{name: "nothing"},
		{name: "names", meta: "local-hostname: a\nhostname: b\n", want: Seed{Hostname: "a"}},
		{name: "hostname alone", meta: `{"hostname": "b"}`, want: Seed{Hostname: "b"}},
		{
			name: "user data wins", meta: "local-hostname: a", user: "#cloud-config\nfqdn: c.example\n",
			want: Seed{Hostname: "c"},
		},
		{name: "script", user: "\n#!/bin/sh\necho\n", want: Seed{Script: "#!/bin/sh\necho\n"}},
		{name: "unknown", user: "Content-Type: multipart/mixed\n", want: Seed{Ignored: []string{`user-data that starts with "Content-Type: multipart/mixed"`}}},
		{
			name: "cloud-config", user: `#cloud-config
bootcmd: [early]
runcmd:
- one | two
- [a, 1]
write_files:
- {path: /a, content: "x", permissions: "0600", append: true}
- {path: /b, encoding: b64, content: eA==}
ssh_authorized_keys: [k]
`,
			want: Seed{
				BootCommands: []Command{{"/bin/sh", "-c", "early"}},
				Commands:     []Command{{"/bin/sh", "-c", "one | two"}, {"a", "1"}},
				Files:        []File{{Path: "/a", Content: []byte("x"), Mode: "0600", Append: true}, {Path: "/b", Content: []byte("x")}},
				Ignored:      []string{"user-data key ssh_authorized_keys"},
			},
		},
		{
			name: "network version 2", network: `network:
  version: 2
  wifis: {}
  ethernets:
    eth0:
      dhcp4: true
      dhcp6: true
    second:
      match: {macaddress: "02:AA:00:00:00:01"}
      addresses: [10.0.0.2/24, "fd00::2/64"]
      gateway4: 10.0.0.1
      gateway6: fd00::1
      routes:
      - {to: 10.5.0.0/16, via: 10.0.0.9, metric: 5}
      - {to: 10.6.0.0/16}
      - {to: default, via: 10.0.0.3}
      mtu: 9000
      nameservers: {addresses: [1.1.1.1], search: [x]}
`,
			want: Seed{
				Ignored: []string{"network-config key wifis"},
				NICs: []NIC{{Name: "eth0", DHCP4: true, DHCP6: true}, {
					MAC: "02:aa:00:00:00:01", Addrs: []netip.Prefix{prefix("10.0.0.2/24"), prefix("fd00::2/64")},
					Routes: []Route{
						{Dst: prefix("0.0.0.0/0"), Via: addr("10.0.0.1")},
						{Dst: prefix("::/0"), Via: addr("fd00::1")},
						{Dst: prefix("10.5.0.0/16"), Via: addr("10.0.0.9"), Metric: 5},
						{Dst: prefix("10.6.0.0/16")},
						{Dst: prefix("0.0.0.0/0"), Via: addr("10.0.0.3")},
					},
					MTU: 9000, DNS: []string{"1.1.1.1"}, Search: []string{"x"},
				}},
			},
		},
		{
			name: "network version 1", network: `version: 1
config:
- type: physical
  name: eth0
  mac_address: "02:00:00:00:00:01"
  mtu: 1400
  subnets:
  - {type: dhcp}
  - {type: static, address: 10.0.0.2, netmask: 255.255.255.0, gateway: 10.0.0.1, dns_nameservers: 1.1.1.1 2.2.2.2}
  - type: static6
    address: fd00::2/64
    routes: [{network: "fd01::", netmask: 48, gateway: "fd00::9"}, {destination: 10.7.0.0/16, gateway: 10.0.0.9}]
- {type: nameserver, address: [3.3.3.3], search: [y.example]}
- {type: bond, name: bond0}
`,
			want: Seed{
				DNS: []string{"3.3.3.3"}, Search: []string{"y.example"}, Ignored: []string{"network-config type bond"},
				NICs: []NIC{{
					Name: "eth0", MAC: "02:00:00:00:00:01", MTU: 1400, DHCP4: true, DNS: []string{"1.1.1.1", "2.2.2.2"},
					Addrs: []netip.Prefix{prefix("10.0.0.2/24"), prefix("fd00::2/64")},
					Routes: []Route{
						{Dst: prefix("0.0.0.0/0"), Via: addr("10.0.0.1")},
						{Dst: prefix("fd01::/48"), Via: addr("fd00::9")},
						{Dst: prefix("10.7.0.0/16"), Via: addr("10.0.0.9")},
					},
				}},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse([]byte(tt.meta), []byte(tt.user), []byte(tt.network))
			if err != nil {
				t.Fatal(err)
			}
			opts := []cmp.Option{cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}), cmpopts.EquateEmpty()}
			if diff := cmp.Diff(tt.want, got, opts...); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	tests := []struct{ meta, user, network, want string }{
		{meta: "a: [", want: "meta-data"},
		{user: "#cloud-config\nruncmd: [{a: b}]", want: "runcmd[0]"},
		{user: "#cloud-config\nwrite_files: [{path: rel}]", want: "write_files[0].path"},
		{user: "#cloud-config\nwrite_files: [{path: /a, encoding: gzip}]", want: "write_files[0].encoding"},
		{user: "#cloud-config\nwrite_files: [{path: /a, encoding: b64, content: '!'}]", want: "write_files[0].content"},
		{network: "version: 3", want: "version: 3"},
		{network: "version: 2\nethernets: {e: {addresses: [x]}}", want: "ethernets.e.addresses[0]"},
		{network: "version: 2\nethernets: {e: {match: {macaddress: x}}}", want: "ethernets.e.match.macaddress"},
		{network: "version: 1\nconfig: [{type: physical, subnets: [{type: odd}]}]", want: "config[0].subnets[0].type"},
		{network: "version: 1\nconfig: [{type: physical, subnets: [{type: static, address: 1.2.3.4, netmask: 255.0.255.0}]}]", want: "subnets[0].address"},
	}
	for _, tt := range tests {
		_, err := Parse([]byte(tt.meta), []byte(tt.user), []byte(tt.network))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: got %v, want %q in it", tt, err, tt.want)
		}
	}
}

// FuzzParse: no volume stops the boot.
func FuzzParse(f *testing.F) {
	f.Add([]byte("local-hostname: a"), []byte("#cloud-config\nruncmd: [x, [y]]"), []byte("version: 2\nethernets: {e: {dhcp4: true}}"))
	f.Add([]byte("{}"), []byte("#!/bin/sh"), []byte("version: 1\nconfig: [{type: physical, subnets: [{type: static, address: 1.2.3.4, netmask: 24}]}]"))
	f.Fuzz(func(t *testing.T, meta, user, network []byte) {
		got, err := Parse(meta, user, network)
		if err != nil {
			return
		}
		for _, nic := range got.NICs {
			for _, p := range nic.Addrs {
				if !p.IsValid() {
					t.Errorf("invalid address of %+v", nic)
				}
			}
		}
	})
}
