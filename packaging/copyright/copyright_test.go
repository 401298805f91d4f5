// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden file anew")

// text is a licence's, of testdata or of Debian.
func text(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join("testdata", name)
	if slices.Contains(common, name) {
		path = filepath.Join("/usr/share/common-licenses", name)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestRecognise(t *testing.T) {
	t.Parallel()
	const holder = "Copyright (c) 2020 A. Holder. All rights reserved.\n\n"
	expat, bsd3 := text(t, "Expat"), text(t, "BSD-3-clause")
	apache := text(t, "Apache-2.0")
	for _, test := range []struct{ name, file, want, rest string }{
		{"Expat", holder + expat, "Expat", ""},
		{"Expat with a title", "# The MIT License (MIT)\n\n" + holder + expat, "Expat", ""},
		{"Expat in one line", holder + strings.Join(strings.Fields(expat), " "), "Expat", ""},
		{"BSD-2", holder + text(t, "BSD-2-clause"), "BSD-2-clause", ""},
		{"BSD-3", "BSD 3-Clause License\n\n" + holder + bsd3, "BSD-3-clause", ""},
		{"BSD-3 of a company", holder + strings.Replace(bsd3, "the copyright holder nor", "Firm, Inc. nor", 1), "BSD-3-clause", ""},
		{"ISC", "ISC License\n\n" + holder + text(t, "ISC"), "ISC", ""},
		{"Apache", apache, "Apache-2.0 Apache-2.0", ""},
		{"Apache without the appendix", apache[:strings.Index(apache, "END OF TERMS")], "Apache-2.0", ""},
		{"MPL", text(t, "MPL-2.0"), "MPL-2.0", ""},
		{"two", "Files: a/*\n\n" + expat + "\nFiles: b/*\n\n" + bsd3, "BSD-3-clause Expat", "Files: a/*\n\n[Expat]\n\nFiles: b/*\n\n[BSD-3-clause]"},
		{"a name besides", "The Library\n\n" + expat, "Expat", "The Library\n\n[Expat]"},
	} {
		licences, rest, err := recognise(test.file)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		var names []string
		for _, l := range licences {
			names = append(names, l.name)
		}
		if got := strings.Join(names, " "); got != test.want || rest != test.rest {
			t.Errorf("%s: %q, rest %q, want %q, rest %q", test.name, got, rest, test.want, test.rest)
		}
	}
	for _, test := range []struct{ name, file, want string }{
		{"empty", "", "its text is not known"},
		{"another", "Do what you like.\n", "its text is not known"},
		{"a clause more", strings.Replace(expat, "THE SOFTWARE IS", "The Software shall be used for Good, not Evil.\n\nTHE SOFTWARE IS", 1),
			`"Permission is hereby granted, free of charge, to any person obtaining a copy" on is none of those known (its fingerprint is `},
		{"a clause that was changed", strings.Replace(apache, "a perpetual", "a temporary", 1), "is none of those known"},
		{"a condition besides", expat + "\nThe Software must not be sold: permission for that is not given.\n", "besides: \"The Software must not be sold"},
	} {
		if _, _, err := recognise(test.file); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q in it", test.name, err, test.want)
		}
	}
}

func TestHolders(t *testing.T) {
	t.Parallel()
	licence := `The above copyright notice and this permission notice shall be included.
Copyright [yyyy] [name of copyright owner]
Copyright {yyyy} {name of copyright owner}
   Copyright (c) 2012, Anna Author <a@example.org>
All rights reserved.
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE
`
	source := `// Copyright 2020 anna author <a@example.org>. All rights reserved.
// Copyright 2016 The gRPC Authors
 * Copyright 2014, 2018 gRPC authors.
# SPDX-FileCopyrightText: Copyright The Moby Authors
// Portions Copyright © 1999-2001 Bell
// Copyright (C) 1993 by Sun Microsystems, Inc. All rights reserved.
// Copyright 2025
// Copyright notices are kept.
`
	want := []string{"Copyright (c) 2012, Anna Author <a@example.org>", "Copyright 1993 Sun Microsystems, Inc", "Copyright 1999-2001 Bell",
		"Copyright 2014-2018 The gRPC Authors", "Copyright The Moby Authors"}
	if got := holders(statementsIn(licence), statementsIn(source)); !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

// cache makes a module cache: the files of each module by name.
func cache(t *testing.T, modules map[string]map[string]string) (packages []linked) {
	t.Helper()
	top := t.TempDir()
	for module, files := range modules {
		var p linked
		p.Module.Path, p.Module.Version, _ = strings.Cut(module, "@")
		p.Module.Dir = filepath.Join(top, module)
		p.Standard = p.Module.Path == "std"
		folders := map[string][]string{}
		for name, text := range files {
			path := filepath.Join(p.Module.Dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(name, ".go") {
				folders[filepath.Dir(path)] = append(folders[filepath.Dir(path)], filepath.Base(path))
			}
		}
		for folder, names := range folders {
			p.Dir, p.GoFiles = folder, names
			packages = append(packages, p)
		}
	}
	return packages
}

func TestCopyright(t *testing.T) {
	t.Parallel()
	expat, bsd3, apache := text(t, "Expat"), text(t, "BSD-3-clause"), text(t, "Apache-2.0")
	anna := "Copyright 2020 Anna\n\n"
	google := anna + strings.Replace(bsd3, "the copyright holder nor", "Google Inc. nor", 1)
	modules := map[string]map[string]string{
		"example.org/expat@v1.0.0":        {"LICENSE": anna + expat, "a.go": "package a\n"},
		"example.org/another/v2@v2.0.0":   {"license.md": anna + strings.ToUpper(expat), "a.go": "// Copyright 2021 Anna\npackage a\n"},
		"example.org/bsd@v0.1.0":          {"COPYING": anna + bsd3, "a.go": "package a\n"},
		"example.org/google@v0.1.0":       {"LICENSE.txt": google, "a.go": "package a\n", "third/LICENSE": anna + expat, "third/deep/a.go": "// Copyright 2019 Berta\n"},
		"example.org/apache@v1.0.0":       {"LICENSE": apache, "NOTICE": "Apache Thing\n\nMade by people.\n", "a.go": "package a\n"},
		"example.org/apache-named@v1.0.0": {"LICENSE": apache, "a.go": "// Copyright 2018 Carla\npackage a\n"},
		"example.org/both@v1.0.0":         {"LICENSE-MIT": anna + expat, "LICENSE-APACHE": apache, "LICENSE.docs": "CC", "a.go": "package a\n"},
		"example.org/folder@v1.0.0":       {"LICENSE": anna + expat, "only/LICENSE": anna + text(t, "ISC"), "only/a.go": "package a\n"},
		// Debian's packages of Go have no LICENSE at the top.
		"std@go1.26.6": {"src/vendor/golang.org/x/net/LICENSE": google, "src/crypto/internal/boring/LICENSE": "not linked", "src/crypto/internal/boring/a.go": ""},
	}
	works, err := findWorks(cache(t, modules))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := write(&out, works); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/copyright.golden"
	if *update {
		if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}

// A module whose licence nobody knows must not be shipped by accident.
func TestErrorsNameTheModule(t *testing.T) {
	t.Parallel()
	const module = "cannot name the licence of example.org/x@v1.0.0"
	for name, test := range map[string]struct {
		files map[string]string
		want  string
	}{
		"no file":       {map[string]string{"a.go": "package a\n", "README": "free"}, module + ": it has no file LICENSE"},
		"only a notice": {map[string]string{"a.go": "package a\n", "NOTICE": "It is mine."}, module + ": it has no file LICENSE"},
		"unknown":       {map[string]string{"a.go": "package a\n", "LICENSE": "Do what you like."}, module + ": LICENSE: its text is not known"},
		"not text":      {map[string]string{"a.go": "package a\n", "COPYING": "\xff\xfe"}, module + ": COPYING is not UTF-8"},
		"in a folder": {map[string]string{"LICENSE": text(t, "Expat"), "b/a.go": "package a\n", "b/LICENSE": "x"},
			module + "/b: LICENSE: its text is not known"},
	} {
		if _, err := findWorks(cache(t, map[string]map[string]string{"example.org/x@v1.0.0": test.files})); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", name, err, test.want)
		}
	}
	packages := cache(t, map[string]map[string]string{"example.org/x@v1.0.0": {"a.go": "package a\n"}})
	packages[0].Module.Dir = ""
	if _, err := findWorks(packages); err == nil || err.Error() != module+": it is not in the module cache" {
		t.Errorf("without a folder: error %v", err)
	}
}

// The program's own copyright file, for both architectures.
func TestProgram(t *testing.T) {
	t.Parallel()
	for _, arch := range []string{"amd64", "arm64"} {
		packages, err := listLinked(arch, "../../cmd/nodeagent")
		if err != nil {
			t.Fatal(err)
		}
		works, err := findWorks(packages)
		if err != nil {
			t.Fatal(err)
		}
		var first, second bytes.Buffer
		if err := errors.Join(write(&first, works), run([]string{arch, "../../cmd/nodeagent"}, &second)); err != nil {
			t.Fatal(err)
		}
		if first.String() != second.String() {
			t.Errorf("%s: two runs differ", arch)
		}
		for _, p := range packages {
			if want := "\n " + p.Module.Path + "@" + p.Module.Version + "/*\n"; strings.Count(first.String(), want) != 1 {
				t.Errorf("%s: %q is not there once", arch, want)
			}
		}
		checkParagraphs(t, first.String())
	}
	if err := run([]string{"amd64"}, nil); err == nil || !strings.HasPrefix(err.Error(), "usage: ") {
		t.Errorf("without a program: %v", err)
	}
	if _, err := listLinked("amd64", "./nothing"); err == nil || !strings.HasPrefix(err.Error(), "cannot list what ./nothing links for amd64: go list: ") {
		t.Errorf("of a program that is none: %v", err)
	}
}

// checkParagraphs checks that what is granted has a text and no text is left over.
func checkParagraphs(t *testing.T, file string) {
	granted, texts := map[string]bool{}, map[string]bool{}
	for paragraph := range strings.SplitSeq(file, "\n\n") {
		_, rest, found := strings.Cut("\n"+paragraph, "\nLicense: ")
		names, _, _ := strings.Cut(rest, "\n")
		switch {
		case strings.HasPrefix(paragraph, "License: "):
			texts[names] = true
		case found && strings.HasPrefix(paragraph, "Files:") && strings.Contains(paragraph, "\nCopyright:"):
			for name := range strings.SplitSeq(names, " and ") {
				granted[name] = true
			}
		case !strings.HasPrefix(paragraph, "Format: "):
			t.Errorf("a paragraph is incomplete:\n%s", paragraph)
		}
	}
	for name := range granted {
		if !texts[name] {
			t.Errorf("%s has no text", name)
		}
	}
	if len(texts) != len(granted) {
		t.Errorf("texts of %v, granted %v", texts, granted)
	}
}
