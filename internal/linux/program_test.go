package linux

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestUnmapProgram(t *testing.T) {
	before := resident(t)
	if err := UnmapProgram(); err != nil {
		t.Fatal(err)
	}
	after := resident(t)
	if after >= before || before == 0 {
		t.Errorf("%d KiB of files are mapped, %d before", after, before)
	}
}

// resident gives the KiB of files this process has mapped (proc_pid_status(5)).
func resident(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "RssFile:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib
}

func TestReadOnlyMappings(t *testing.T) {
	for line, want := range map[string]bool{
		"00400000-00f98000 r-xp 00000000 08:01 123   /bin/weftd": true,
		"00f98000-01b5e000 r--p 00b98000 08:01 123   /bin/weftd": true,
		"01b5e000-01be9000 rw-p 0175d000 08:01 123   /bin/weftd": false,
		"00400000-00f98000 r-xp 00000000 08:01 123   /bin/other": false,
		"00400000-00f98000 r--s 00000000 08:01 123   /bin/weftd": false,
		"7ffd4811c000-7ffd4811e000 r-xp 00000000 00:00 0 [vdso]": false,
		"x-y r-xp 00000000 08:01 123   /bin/weftd":               false,
		"": false,
	} {
		if _, _, ok := readOnly(line, "/bin/weftd"); ok != want {
			t.Errorf("%q: %v, want %v", line, ok, want)
		}
	}
}
