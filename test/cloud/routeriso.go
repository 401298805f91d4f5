// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"fmt"
	"html"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// ServeISO has the router serve the files of a binaries ISO that is unpacked in dir, as
// CloudStack's cks_iso.sh has it, or no longer when dir is "".
func (r *Router) ServeISO(dir string) { r.metadata.setISO(dir) }

func (m *metadata) setISO(dir string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.iso = dir
}

const isoPath = "/cks-iso/"

// serveISO serves files and lists folders like the router's Apache, whose mod_autoindex
// has Debian's IndexOptions FancyIndexing and HTMLTable.
func serveISO(w http.ResponseWriter, r *http.Request, dir string) {
	// Cleaned as an absolute path it does not lead out of the folder.
	name := filepath.Join(dir, path.Clean("/"+strings.TrimPrefix(r.URL.Path, isoPath)))
	info, err := os.Stat(name)
	switch {
	case err != nil:
		http.NotFound(w, r)
		return
	case !info.IsDir():
		http.ServeFile(w, r, name)
		return
	case !strings.HasSuffix(r.URL.Path, "/"):
		http.Redirect(w, r, r.URL.Path+"/", http.StatusMovedPermanently)
		return
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	w.Header().Set("Content-Type", "text/html;charset=UTF-8")
	title := html.EscapeString("Index of " + strings.TrimSuffix(r.URL.Path, "/"))
	fmt.Fprintf(w, `<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">
<html>
 <head>
  <title>%s</title>
 </head>
 <body>
<h1>%s</h1>
  <table>
   <tr><th valign="top"><img src="/icons/blank.gif" alt="[ICO]"></th><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th><th><a href="?C=S;O=A">Size</a></th><th><a href="?C=D;O=A">Description</a></th></tr>
   <tr><th colspan="5"><hr></th></tr>
<tr><td valign="top"><img src="/icons/back.gif" alt="[PARENTDIR]"></td><td><a href="%s">Parent Directory</a></td><td>&nbsp;</td><td align="right">  - </td><td>&nbsp;</td></tr>
`, title, title, html.EscapeString(path.Dir(strings.TrimSuffix(r.URL.Path, "/"))))
	for _, entry := range entries {
		shown := entry.Name()
		if entry.IsDir() {
			shown += "/"
		}
		// With ./ before a name that has a colon, as Apache writes it.
		link := (&url.URL{Path: shown}).String()
		fmt.Fprintf(w, `<tr><td valign="top"><img src="/icons/unknown.gif" alt="[   ]"></td><td><a href="%s">%s</a></td><td align="right">2026-09-11 07:03  </td><td align="right">  - </td><td>&nbsp;</td></tr>`+"\n",
			html.EscapeString(link), html.EscapeString(shown))
	}
	fmt.Fprint(w, `   <tr><th colspan="5"><hr></th></tr>
</table>
<address>Apache/2.4.66 (Debian) Server at 10.1.1.1 Port 80</address>
</body></html>
`)
}
