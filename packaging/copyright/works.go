// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// work is what one set of licence files is for: a module, or a folder in a module
// that has files of its own.
type work struct {
	name     string // k8s.io/cri-api@v0.37.2, klauspost/compress@v1.20.0/internal/snapref
	inModule bool   // it is not the module but a folder of it
	licences []licence
	holders  []string // copyright statements
	comment  string   // what the files say besides
}

// findWorks reads the licence files of what is linked, sorted by name, folders in
// modules last: the last pattern that fits a file counts.
func findWorks(packages []linked) ([]work, error) {
	type place struct{ module, top, folder string }
	sources := map[place][]string{}
	for _, p := range packages {
		top := p.Module.Dir
		at := place{p.Module.Path + "@" + p.Module.Version, top, top}
		if top == "" {
			return nil, fmt.Errorf("cannot name the licence of %s: it is not in the module cache", at.module)
		}
		if _, found := sources[at]; !found {
			sources[at] = nil // also if all its packages have licences of their own
		}
		// Folders of Go itself have licences of what only other builds link.
		for folder := p.Dir; len(folder) > len(top) && !p.Standard; folder = filepath.Dir(folder) {
			if len(licenceFiles(folder)) > 0 {
				at.folder = folder
				break
			}
		}
		for _, name := range slices.Concat(p.GoFiles, p.CgoFiles, p.SFiles) {
			sources[at] = append(sources[at], filepath.Join(p.Dir, name))
		}
	}
	var works []work
	for at, files := range sources {
		w := work{name: at.module + strings.TrimPrefix(at.folder, at.top), inModule: at.folder != at.top}
		folder := at.folder
		if strings.HasPrefix(w.name, "std@") && len(licenceFiles(folder)) == 0 {
			folder = filepath.Join(folder, "src/vendor/golang.org/x/net") // Debian's golang has no other copy of it
		}
		if err := w.read(folder, files); err != nil {
			return nil, fmt.Errorf("cannot name the licence of %s: %w", w.name, err)
		}
		works = append(works, w)
	}
	slices.SortFunc(works, func(a, b work) int {
		if a.inModule != b.inModule {
			return map[bool]int{false: -1, true: 1}[a.inModule]
		}
		return cmp.Compare(a.name, b.name)
	})
	return works, nil
}

// licenceFiles lists the files of a folder that say what may be done with it.
func licenceFiles(folder string) (names []string) {
	entries, _ := os.ReadDir(folder)
	for _, entry := range entries {
		// LICENSE.docs and the like are of what is not linked.
		if licenceFile.MatchString(entry.Name()) && !entry.IsDir() {
			names = append(names, entry.Name())
		}
	}
	return names
}

var licenceFile = regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying|notice)([-_.](apache|mit|bsd|isc|mpl|[0-9])[-_.0-9a-z]*)?(\.txt|\.md)?$`)

// read reads the licence files of a folder, and who wrote the source files.
func (w *work) read(folder string, sources []string) error {
	var statements, comments []string
	for _, name := range licenceFiles(folder) {
		data, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			return err
		}
		text := strings.ReplaceAll(string(data), "\r\n", "\n")
		if !utf8.ValidString(text) {
			return fmt.Errorf("%s is not UTF-8", name)
		}
		statements = append(statements, statementsIn(text)...)
		if strings.HasPrefix(strings.ToLower(name), "notice") {
			comments = append(comments, name+" says:\n\n"+strings.Trim(text, "\n"))
			continue
		}
		licences, rest, err := recognise(text)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		w.licences = append(w.licences, licences...)
		if rest != "" {
			comments = append(comments, name+" says, with the licences' texts left out:\n\n"+rest)
		}
	}
	if len(w.licences) == 0 {
		return errors.New("it has no file LICENSE, COPYING or the like")
	}
	w.comment = strings.Join(comments, "\n\n")
	var further []string
	for _, path := range sources {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		further = append(further, statementsIn(string(text))...)
	}
	if w.holders = holders(statements, further); len(w.holders) == 0 {
		path, _, _ := strings.Cut(w.name, "@")
		w.holders = []string{"the authors of " + path}
	}
	return nil
}
