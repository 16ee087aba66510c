package local

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadDNS(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	upstream := file("upstream", "nameserver 192.0.2.53\nnameserver 2001:db8::53\n")
	for _, tt := range []struct{ name, conf, want, search string }{
		{"plain", "nameserver 198.51.100.1\nsearch a.example b.example\n", "198.51.100.1", "a.example b.example"},
		{"stub", "nameserver 127.0.0.53\noptions edns0\nsearch lan\n", "192.0.2.53 2001:db8::53", "lan"},
		{"one real beside the stub", "nameserver 127.0.0.1\nnameserver 2001:db8::1\n", "2001:db8::1", ""},
		{"malformed", "nameserver\nnameserver nobody\n# nameserver 1.2.3.4\n", "192.0.2.53 2001:db8::53", ""},
	} {
		dns, err := readDNS(file("resolv.conf", tt.conf), upstream)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		var got []string
		for _, addr := range dns.Nameservers {
			got = append(got, addr.String())
		}
		if strings.Join(got, " ") != tt.want || strings.Join(dns.Search, " ") != tt.search {
			t.Errorf("%s: got %v, search %v", tt.name, got, dns.Search)
		}
	}
	if dns, err := readDNS(filepath.Join(dir, "none"), upstream); err != nil || len(dns.Nameservers) > 0 {
		t.Errorf("without a file: %v, %v", dns, err)
	}
}
