// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// SumsFile is the manifest in a binaries ISO's root: the sha256 sum of every other
// file of the ISO, in the format of coreutils' sha256sum, so that `sha256sum -c
// SHA256SUMS` checks it too.
const SumsFile = "SHA256SUMS"

// No binaries ISO comes near these.
const (
	maxSumsBytes = 1 << 20
	maxISOFiles  = 5000 // files and folders
	maxNamed     = 10   // files named in one message
)

type sum = [sha256.Size]byte

// parseSums reads a manifest. A name is relative to the ISO's root, slash-separated,
// and may begin with ./, as `find` writes it. All wrong lines are named at once.
func parseSums(text []byte) (map[string]sum, error) {
	sums := map[string]sum{}
	var wrong []string
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		name, digest, err := parseSum(strings.TrimSuffix(line, "\n"))
		if _, twice := sums[name]; err == nil && twice {
			err = fmt.Errorf("%q comes twice", name)
		}
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("line %d: %v", number, err))
			continue
		}
		sums[name] = digest
	}
	if len(text) == 0 {
		wrong = append(wrong, "it is empty")
	}
	if len(wrong) > 0 {
		return nil, fmt.Errorf("cannot use %s: %s", SumsFile, listed(wrong))
	}
	return sums, nil
}

// parseSum reads a line: 64 hexadecimal digits, a blank, a blank or a *, the name. A
// backslash before all of it says that the name has escapes.
func parseSum(line string) (name string, digest sum, err error) {
	line, escaped := strings.CutPrefix(line, `\`)
	const digits = 2 * sha256.Size
	if len(line) < digits+2 || line[digits] != ' ' || (line[digits+1] != ' ' && line[digits+1] != '*') {
		return "", sum{}, errors.New("want the sum, two blanks and the file's name, as sha256sum writes them")
	}
	if _, err := hex.Decode(digest[:], []byte(line[:digits])); err != nil {
		return "", sum{}, fmt.Errorf("%.70q is no sha256 sum", line[:digits])
	}
	name = line[digits+2:]
	if strings.HasSuffix(name, "\r") {
		return "", sum{}, errors.New("it ends in CR LF, want LF")
	}
	if escaped {
		if name, err = unescape(name); err != nil {
			return "", sum{}, err
		}
	}
	name = strings.TrimPrefix(name, "./")
	if !fs.ValidPath(name) || name == "." || name == SumsFile {
		return "", sum{}, fmt.Errorf("%.200q is no name of another file on the ISO", name)
	}
	return name, digest, nil
}

// unescape and escape are what sha256sum does with names.
func unescape(name string) (string, error) {
	var plain strings.Builder
	for rest := name; rest != ""; {
		before, after, found := strings.Cut(rest, `\`)
		plain.WriteString(before)
		if !found {
			break
		}
		character, known := map[byte]byte{'\\': '\\', 'n': '\n', 'r': '\r'}[(after + " ")[0]]
		if !known {
			return "", fmt.Errorf("%.200q has an unknown escape", name)
		}
		plain.WriteByte(character)
		rest = after[1:]
	}
	return plain.String(), nil
}

func escape(name string) string {
	return strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`).Replace(name)
}

// formatSums writes a manifest, sorted by name.
func formatSums(sums map[string]sum) []byte {
	var text bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		if plain := escape(name); plain != name {
			fmt.Fprintf(&text, "\\%x  %s\n", sums[name], plain)
		} else {
			fmt.Fprintf(&text, "%x  %s\n", sums[name], name)
		}
	}
	return text.Bytes()
}

// readSums reads the manifest of an ISO, nil where it has none, and compares the
// names in it with the files that are there. Errors are fault.ISOChecksum.
func readSums(files fs.FS) (map[string]sum, error) {
	text, err := readBounded(files, SumsFile, maxSumsBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, withCode(fault.ISOChecksum, err, "cannot use %s", SumsFile)
	}
	sums, err := parseSums(text)
	if err != nil {
		return nil, fault.New(fault.ISOChecksum, "%v", err)
	}
	found, err := isoNames(files)
	if err != nil {
		return nil, withCode(fault.ISOChecksum, err, "cannot compare %s with the files", SumsFile)
	}
	if err := compareSums(sums, found); err != nil {
		return nil, err
	}
	return sums, nil
}

// compareSums compares the names in a manifest with the files that are there. The error
// is fault.ISOChecksum.
func compareSums[F any](sums map[string]sum, found map[string]F) error {
	var missing, unlisted, problems []string
	for name := range sums {
		if _, ok := found[name]; !ok {
			missing = append(missing, fmt.Sprintf("%q", name))
		}
	}
	for name := range found {
		if _, ok := sums[name]; !ok && name != SumsFile {
			unlisted = append(unlisted, fmt.Sprintf("%q", name))
		}
	}
	slices.Sort(missing)
	slices.Sort(unlisted)
	if len(missing) > 0 {
		problems = append(problems, SumsFile+" lists files that are not there: "+listed(missing))
	}
	if len(unlisted) > 0 {
		problems = append(problems, SumsFile+" does not list "+listed(unlisted))
	}
	if len(problems) > 0 {
		return fault.New(fault.ISOChecksum, "%s", strings.Join(problems, "; "))
	}
	return nil
}

// listed names some of many.
func listed(names []string) string {
	if more := len(names) - maxNamed; more > 0 {
		return strings.Join(names[:maxNamed], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(names, ", ")
}

// isoNames returns all regular files of an ISO. Anything else than files and
// folders is an error: an ISO's content has no use for it, and what becomes of a
// link on an ISO depends on the builder's options.
func isoNames(files fs.FS) (map[string]fs.DirEntry, error) {
	found := map[string]fs.DirEntry{}
	var other []string
	seen := 0
	err := fs.WalkDir(files, ".", func(name string, entry fs.DirEntry, err error) error {
		if seen++; seen > maxISOFiles {
			return fmt.Errorf("there are more than %d files and folders", maxISOFiles)
		}
		switch {
		case err != nil:
			return err
		case entry.Type().IsRegular():
			found[name] = entry
		case !entry.IsDir():
			other = append(other, fmt.Sprintf("%q", name))
		}
		return nil
	})
	if err == nil && len(other) > 0 {
		err = fmt.Errorf("neither files nor folders: %s", listed(other))
	}
	return found, err
}

// WriteManifest writes SumsFile into a folder that is to become a binaries ISO, in
// place of one that is there, and says of how many files and bytes. It reads every
// file, and ends early with ctx. A folder without k8s/ and docker/, or one with links
// in it, is refused; nothing is written then.
func WriteManifest(ctx context.Context, h *host.Host, folder string) (count int, bytes int64, err error) {
	root, err := os.OpenRoot(h.Path(folder))
	if err != nil {
		return 0, 0, err
	}
	defer root.Close()
	files := root.FS()
	top, err := fs.ReadDir(files, ".")
	if err != nil {
		return 0, 0, err
	}
	if !hasFolder(top, "k8s") || !hasFolder(top, "docker") {
		return 0, 0, fault.New(fault.ISOIncomplete, "%s is no content of a binaries ISO: it has no folders k8s and docker", folder)
	}
	found, err := isoNames(files)
	if err != nil {
		return 0, 0, fault.Wrap(fault.ISOInvalid, err, "cannot list the files of %s", folder)
	}
	delete(found, SumsFile)
	sums := map[string]sum{}
	for name := range found {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		digest, size, err := hashFile(files, name)
		if err != nil {
			return 0, 0, fmt.Errorf("cannot read %s: %w", filepath.Join(folder, name), err)
		}
		sums[name] = digest
		bytes += size
	}
	text := formatSums(sums)
	if len(text) > maxSumsBytes {
		return 0, 0, fault.New(fault.ISOInvalid, "cannot write %s: it would be larger than %d bytes", SumsFile, maxSumsBytes)
	}
	_, err = h.WriteFile(filepath.Join(folder, SumsFile), text, 0o644)
	return len(sums), bytes, err
}

func hashFile(files fs.FS, name string) (digest sum, size int64, err error) {
	file, err := files.Open(name)
	if err != nil {
		return sum{}, 0, err
	}
	defer file.Close()
	hash := sha256.New()
	size, err = io.Copy(hash, file)
	return sum(hash.Sum(nil)), size, err
}
