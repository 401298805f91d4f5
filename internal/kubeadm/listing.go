// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"strings"
	"unicode"

	"golang.org/x/net/html"
)

// No folder of a binaries ISO comes near these.
const (
	maxListing = 4 << 20 // bytes of a folder's listing
	maxTag     = 64 << 10
	maxName    = 200 // bytes of a file's name
)

// parseListing reads the names in a web server's listing of a folder, as Apache's
// mod_autoindex writes it in each of its forms, and nginx and others theirs: a name is
// what a link to a relative path of one part leads to. All other links (columns to
// sort by, the folder above, other places) are passed over. Folders are those whose
// link ends in a slash.
func parseListing(from io.Reader) (files, folders map[string]bool, err error) {
	files, folders = map[string]bool{}, map[string]bool{}
	limited := &io.LimitedReader{R: from, N: maxListing}
	tokens := html.NewTokenizer(limited)
	tokens.SetMaxBuf(maxTag)
	for {
		kind := tokens.Next()
		if kind == html.ErrorToken {
			err := tokens.Err()
			switch {
			case limited.N == 0:
				return nil, nil, fmt.Errorf("the listing is larger than %d bytes", maxListing)
			case errors.Is(err, io.EOF):
				return files, folders, nil
			}
			return nil, nil, err
		}
		if tag, more := tokens.TagName(); kind == html.EndTagToken || string(tag) != "a" || !more {
			continue
		}
		name, folder := strings.CutSuffix(linkedName(tokens), "/")
		switch {
		case !isEntry(name):
		case len(files)+len(folders) >= maxISOFiles:
			return nil, nil, fmt.Errorf("the listing has more than %d names", maxISOFiles)
		case folder:
			folders[name] = true
		default:
			files[name] = true
		}
	}
}

// linkedName returns what the current tag links to, when it is beside the page.
func linkedName(tokens *html.Tokenizer) string {
	for {
		key, value, more := tokens.TagAttr()
		if string(key) == "href" {
			link, err := url.Parse(string(value))
			if err != nil || link.Scheme != "" || link.Host != "" || link.RawQuery != "" || link.ForceQuery || link.Fragment != "" {
				return ""
			}
			return strings.TrimPrefix(link.Path, "./") // before a name with a colon
		}
		if !more {
			return ""
		}
	}
}

// isEntry says whether a name is that of a visible file in a folder.
func isEntry(name string) bool {
	return fs.ValidPath(name) && !strings.ContainsAny(name, "/\\") && !strings.HasPrefix(name, ".") && len(name) <= maxName &&
		!strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) })
}
