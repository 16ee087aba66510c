// Package imports holds table.txt, which says who may import what, against the
// real direct imports of every package and against ARCHITECTURE.md, which
// quotes it. Test files are free, as are the modules bench and tools.
package imports

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/weftnet/weft"

var update = flag.Bool("update", false, "copy table.txt into ARCHITECTURE.md")

// layers in their order: a package imports its own layer and those before it.
var layers = []string{"pure", "effect", "composition", "program", "harness"}

// row is one package of the table.
type row struct {
	path, layer string
	imports     []string
}

// table is what table.txt says.
type table struct {
	rows    []row
	modules map[string][]string // module → packages that may use it
	barred  []string            // standard packages and names pure packages do without
}

// pkg is what go list says of a package.
type pkg struct {
	Dir, ImportPath  string
	GoFiles, Imports []string
	Standard         bool
}

func TestTable(t *testing.T) {
	text, err := os.ReadFile("table.txt")
	if err != nil {
		t.Fatal(err)
	}
	tab, err := parseTable(string(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range check(tab, listPackages(t)) {
		t.Error(problem)
	}
}

// TestQuoted: ARCHITECTURE.md shows the table as it is.
func TestQuoted(t *testing.T) {
	text, err := os.ReadFile("table.txt")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "```text\n# packages:", "```\n"
	before, rest, found := strings.Cut(string(doc), begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatal("ARCHITECTURE.md has no ```text block that begins with \"# packages:\"")
	}
	want := before + "```text\n" + string(text) + end + after
	if want == string(doc) {
		return
	}
	if !*update {
		t.Fatal("ARCHITECTURE.md does not quote test/imports/table.txt as it is now; go test ./test/imports -update copies it there")
	}
	if err := os.WriteFile("../../ARCHITECTURE.md", []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

func listPackages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=Dir,ImportPath,GoFiles,Imports", "./...")
	cmd.Dir = "../.."
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return pkgs
		}
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		p.ImportPath = strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		if len(p.GoFiles) > 0 { // a folder of tests alone has none
			pkgs = append(pkgs, p)
		}
	}
}

// parseTable reads the three blocks of table.txt, each under its "# " heading.
func parseTable(text string) (*table, error) {
	tab := &table{modules: map[string][]string{}}
	block := ""
	for i, line := range strings.Split(text, "\n") {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0:
		case fields[0] == "#":
			block = strings.TrimSuffix(fields[1], ":")
		case block == "packages" && len(fields) >= 2:
			r := row{path: fields[0], layer: fields[1]}
			for _, name := range fields[2:] {
				r.imports = append(r.imports, fullName(name))
			}
			tab.rows = append(tab.rows, r)
		case block == "modules" && len(fields) >= 2:
			for _, name := range fields[1:] {
				tab.modules[fields[0]] = append(tab.modules[fields[0]], fullName(name))
			}
		case block == "pure":
			tab.barred = append(tab.barred, fields...)
		default:
			return nil, fmt.Errorf("table.txt:%d: cannot read %q", i+1, line)
		}
	}
	if len(tab.rows) == 0 || len(tab.modules) == 0 || len(tab.barred) == 0 {
		return nil, errors.New("table.txt: a block is missing or empty: packages, modules, pure")
	}
	return tab, nil
}

// fullName gives the path of a package, which the table writes without
// "internal/".
func fullName(name string) string {
	for _, top := range []string{"api/", "cmd/", "guest/", "test/", "internal/"} {
		if strings.HasPrefix(name, top) {
			return name
		}
	}
	return "internal/" + name
}

// check gives every way in which the packages differ from the table.
func check(tab *table, pkgs []pkg) []string {
	var problems []string
	report := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }

	place := map[string]int{}
	for i, r := range tab.rows {
		place[r.path] = i
		rank := slices.Index(layers, r.layer)
		if rank < 0 {
			report("%s: unknown layer %q", r.path, r.layer)
		}
		if i > 0 && rank < slices.Index(layers, tab.rows[i-1].layer) {
			report("%s: a %s package stands below %s, which is %s", r.path, r.layer, tab.rows[i-1].path, tab.rows[i-1].layer)
		}
		for _, name := range r.imports {
			if at, ok := place[name]; !ok || at == i {
				report("%s: may import %s, which does not stand above it: imports run one way", r.path, name)
			}
		}
	}
	used := map[string]map[string]bool{} // module → users
	seen := map[string]bool{}
	for _, p := range pkgs {
		seen[p.ImportPath] = true
		i, ok := place[p.ImportPath]
		if !ok {
			report("%s: not in the table; give it a row and a layer", p.ImportPath)
			continue
		}
		problems = append(problems, checkPackage(tab, tab.rows[i], p, used)...)
	}
	for _, r := range tab.rows {
		if !seen[r.path] {
			report("%s: in the table, but there is no such package", r.path)
		}
	}
	for mod, users := range tab.modules {
		for _, user := range users {
			if !used[mod][user] {
				report("%s: %s does not use it; take it off the list", mod, user)
			}
		}
	}
	slices.Sort(problems)
	return problems
}

func checkPackage(tab *table, r row, p pkg, used map[string]map[string]bool) []string {
	var problems []string
	real := map[string]bool{}
	for _, path := range p.Imports {
		if own, ok := strings.CutPrefix(path, module+"/"); ok {
			real[own] = true
			if !slices.Contains(r.imports, own) {
				problems = append(problems, fmt.Sprintf("%s: imports %s; the table does not allow it", p.ImportPath, own))
			}
			continue
		}
		if standard(path) {
			if r.layer == "pure" && slices.Contains(tab.barred, path) {
				problems = append(problems, fmt.Sprintf("%s: is pure and imports %s", p.ImportPath, path))
			}
			continue
		}
		mod := moduleOf(tab, path)
		if mod == "" || !slices.Contains(tab.modules[mod], p.ImportPath) {
			problems = append(problems, fmt.Sprintf("%s: imports %s; no line of the modules block allows it", p.ImportPath, path))
			continue
		}
		if used[mod] == nil {
			used[mod] = map[string]bool{}
		}
		used[mod][p.ImportPath] = true
	}
	for _, name := range r.imports {
		if !real[name] {
			problems = append(problems, fmt.Sprintf("%s: the table lets it import %s, which it does not; take it out", p.ImportPath, name))
		}
	}
	if r.layer == "pure" {
		problems = append(problems, impureNames(tab, p)...)
	}
	return problems
}

// standard reports whether path is of the standard library: no dot in its
// first element.
func standard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

// moduleOf gives the longest line of the modules block that covers path.
func moduleOf(tab *table, path string) string {
	best := ""
	for mod := range tab.modules {
		if (path == mod || strings.HasPrefix(path, mod+"/")) && len(mod) > len(best) {
			best = mod
		}
	}
	return best
}

// impureNames finds uses of names such as time.Now in a pure package.
func impureNames(tab *table, p pkg) []string {
	var problems []string
	files := token.NewFileSet()
	for _, name := range p.GoFiles {
		file, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, 0)
		if err != nil {
			return append(problems, fmt.Sprintf("%s: %v", p.ImportPath, err))
		}
		local := map[string]string{} // name in this file → import path
		for _, spec := range file.Imports {
			path := strings.Trim(spec.Path.Value, `"`)
			local[path[strings.LastIndex(path, "/")+1:]] = path
			if spec.Name != nil {
				local[spec.Name.Name] = path
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && x.Obj == nil && slices.Contains(tab.barred, local[x.Name]+"."+sel.Sel.Name) {
				problems = append(problems, fmt.Sprintf("%s: is pure and uses %s.%s (%s)", p.ImportPath, local[x.Name], sel.Sel.Name, files.Position(sel.Pos())))
			}
			return true
		})
	}
	return problems
}

// TestCheckFinds: each kind of offence is reported.
func TestCheckFinds(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.go"), []byte("package a\nimport clock \"time\"\nvar T = clock.Now()\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tab, err := parseTable(`
# packages
internal/a  pure
internal/b  pure    a
internal/c  effect  b
internal/x  effect  y
internal/w  pure
internal/gone pure
# modules
example.org/m  c b
# pure packages use none of these
os  time.Now
`)
	if err != nil {
		t.Fatal(err)
	}
	got := check(tab, []pkg{
		{ImportPath: "internal/a", Dir: dir, GoFiles: []string{"a.go"}, Imports: []string{"os", "time", module + "/internal/b"}},
		{ImportPath: "internal/b"},
		{ImportPath: "internal/c", Imports: []string{"os", "example.org/m/sub", "example.org/other", module + "/internal/b"}},
		{ImportPath: "internal/x"},
		{ImportPath: "internal/w"},
		{ImportPath: "internal/new"},
	})
	want := []string{
		"internal/a: imports internal/b; the table does not allow it",
		"internal/a: is pure and imports os",
		"internal/a: is pure and uses time.Now",
		"internal/b: the table lets it import internal/a, which it does not",
		"internal/c: imports example.org/other; no line",
		"internal/gone: in the table, but there is no such package",
		"internal/new: not in the table",
		"internal/w: a pure package stands below internal/x, which is effect",
		"internal/x: may import internal/y, which does not stand above it",
		"internal/x: the table lets it import internal/y, which it does not",
		"example.org/m: internal/b does not use it",
	}
	for _, text := range want {
		if !slices.ContainsFunc(got, func(problem string) bool { return strings.HasPrefix(problem, text) }) {
			t.Errorf("not found: %s", text)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %d problems, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
}
