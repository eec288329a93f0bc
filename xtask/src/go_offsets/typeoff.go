// typeoff GOROOT: offsets and sizes of the Go runtime's structures, computed by go/types from its sources for
// linux/amd64, as JSON {"struct": {"field.path": [offset, size], "size": [size, 8]}}. Nothing is built.
package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
)

// Nesting of fields that is followed: g.sched.sp, sudog.c.ptr.
const depth = 3

func main() {
	root := os.Args[1]
	build.Default.GOROOT = root
	build.Default.CgoEnabled = false
	build.Default.GOOS, build.Default.GOARCH = "linux", "amd64"
	build.Default.ToolTags = nil
	for _, experiment := range os.Args[2:] {
		build.Default.ToolTags = append(build.Default.ToolTags, "goexperiment."+experiment)
	}
	dir := filepath.Join(root, "src", "runtime")
	listed, err := build.ImportDir(dir, 0)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range listed.GoFiles {
		file, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, 0)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		files = append(files, file)
	}
	sizes := types.SizesFor("gc", "amd64")
	config := types.Config{
		Importer:         importer.ForCompiler(fset, "source", nil),
		Sizes:            sizes,
		IgnoreFuncBodies: true,
		// Declarations that need a newer language than this toolchain's do not matter unless a structure needs them,
		// and then its row is missing, which the caller notices.
		Error: func(error) {},
	}
	runtime, _ := config.Check("runtime", fset, files, nil)
	out := map[string]map[string][2]int64{}
	var walk func(t types.Type, prefix string, base int64, level int, fields map[string][2]int64)
	walk = func(t types.Type, prefix string, base int64, level int, fields map[string][2]int64) {
		structure, ok := t.Underlying().(*types.Struct)
		if !ok || level > depth {
			return
		}
		var vars []*types.Var
		for i := 0; i < structure.NumFields(); i++ {
			vars = append(vars, structure.Field(i))
		}
		offsets := sizes.Offsetsof(vars)
		for i, field := range vars {
			name := prefix + field.Name()
			fields[name] = [2]int64{base + offsets[i], sizes.Sizeof(field.Type())}
			walk(field.Type(), name+".", base+offsets[i], level+1, fields)
		}
	}
	scope := runtime.Scope()
	for _, name := range scope.Names() {
		object := scope.Lookup(name)
		_, isType := object.(*types.TypeName)
		// The structure of the variable `work` has no name of its own.
		if !isType && name != "work" {
			continue
		}
		if _, ok := object.Type().Underlying().(*types.Struct); !ok {
			continue
		}
		fields := map[string][2]int64{"size": {sizes.Sizeof(object.Type()), 8}}
		walk(object.Type(), "", 0, 1, fields)
		out[name] = fields
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
