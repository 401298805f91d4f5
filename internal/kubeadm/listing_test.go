// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"fmt"
	"html"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"
)

// listings are the forms in which web servers list a folder.
var listings = map[string]func(names []string) string{
	"apache, fancy, table": func(names []string) string { // of Debian's IndexOptions: the router's
		rows := ""
		for _, name := range names {
			rows += fmt.Sprintf(`<tr><td valign="top"><img src="/icons/unknown.gif" alt="[   ]"></td><td><a href="%s">%s</a></td><td align="right">2026-09-11 07:03  </td><td align="right">694K</td><td>&nbsp;</td></tr>`+"\n",
				link(name), html.EscapeString(name))
		}
		return apachePage(`<table>
<tr><th valign="top"><img src="/icons/blank.gif" alt="[ICO]"></th><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th><th><a href="?C=S;O=A">Size</a></th><th><a href="?C=D;O=A">Description</a></th></tr>
<tr><th colspan="5"><hr></th></tr>
<tr><td valign="top"><img src="/icons/back.gif" alt="[PARENTDIR]"></td><td><a href="/">Parent Directory</a></td><td>&nbsp;</td><td align="right">  - </td><td>&nbsp;</td></tr>
` + rows + `<tr><th colspan="5"><hr></th></tr>
</table>
<address>Apache/2.4.66 (Debian) Server at 10.1.1.1 Port 80</address>
`)
	},
	"apache, fancy, pre": func(names []string) string {
		rows := ""
		for _, name := range names {
			rows += fmt.Sprintf(`<img src="/icons/unknown.gif" alt="[   ]"> <a href="%s">%s</a> 2026-09-11 07:03  694K`+"\n", link(name), html.EscapeString(name))
		}
		return apachePage(`<pre><img src="/icons/blank.gif" alt="Icon "> <a href="?C=N;O=D">Name</a> <a href="?C=M;O=A">Last modified</a> <a href="?C=S;O=A">Size</a>  <hr><img src="/icons/back.gif" alt="[PARENTDIR]"> <a href="/">Parent Directory</a>   -
` + rows + "<hr></pre>\n")
	},
	"apache, plain": func(names []string) string {
		rows := `<li><a href="/"> Parent Directory</a></li>` + "\n"
		for _, name := range names {
			rows += fmt.Sprintf("<li><a href=\"%s\"> %s</a></li>\n", link(name), html.EscapeString(name))
		}
		return apachePage("<ul>" + rows + "</ul>\n")
	},
	"nginx": func(names []string) string {
		rows := ""
		for _, name := range names {
			folder := strings.HasSuffix(name, "/")
			escaped := strings.ReplaceAll(url.QueryEscape(strings.TrimSuffix(name, "/")), "+", "%20")
			if folder {
				escaped += "/"
			}
			rows += fmt.Sprintf("<a href=\"%s\">%.50s</a>  11-Sep-2026 07:03  710000\r\n", escaped, html.EscapeString(name))
		}
		return "<html>\r\n<head><title>Index of /cks-iso/</title></head>\r\n<body>\r\n<h1>Index of /cks-iso/</h1><hr><pre><a href=\"../\">../</a>\r\n" + rows + "</pre><hr></body>\r\n</html>\r\n"
	},
}

func apachePage(body string) string {
	return `<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">
<html>
 <head>
  <title>Index of /cks-iso</title>
 </head>
 <body>
<h1>Index of /cks-iso</h1>
` + body + "</body></html>\n"
}

// link is how Apache writes a name: with ./ where a colon could be taken for the end of
// a scheme (ap_os_escape_path), and as HTML.
func link(name string) string {
	return html.EscapeString((&url.URL{Path: name}).String())
}

func TestParseListing(t *testing.T) {
	t.Parallel()
	for form, page := range listings {
		files, folders, err := parseListing(strings.NewReader(page([]string{"k8s/", "docker/", "pause:3.10.tar", "a&b c.yaml", "SHA256SUMS"})))
		if err != nil || !maps.Equal(folders, map[string]bool{"k8s": true, "docker": true}) ||
			!maps.Equal(files, map[string]bool{"pause:3.10.tar": true, "a&b c.yaml": true, "SHA256SUMS": true}) {
			t.Errorf("%s: files %v, folders %v, %v", form, files, folders, err)
		}
	}
}

// Nothing but a plain name beside the page is taken.
func TestParseHostileListing(t *testing.T) {
	t.Parallel()
	page := ""
	for _, name := range []string{"../x", "..", "../", "./", ".", "/etc/passwd", "//example.com/x", "http://example.com/x", "file:x", "a/b", "a%2Fb", "a%5Cb", "%2e%2e",
		"%2e%2e/", ".hidden", "x%00y", "x%0Ay", "x%1b[2J", "x%FFy", "x?y", "x?", "x#y", "%zz", "x//", strings.Repeat("x", maxName+1), "javascript:x", "././x", "x/../y"} {
		page += fmt.Sprintf("<a href=\"%s\">x</a>\n", name)
	}
	page += `<!-- <a href="commented">x</a> --><script>"<a href='scripted'>"</script><link href="linked"></a href="ended"><A class=x HREF=unquoted>x</A>`
	files, folders, err := parseListing(strings.NewReader(page))
	if err != nil || len(folders) > 0 || !maps.Equal(files, map[string]bool{"unquoted": true}) {
		t.Errorf("files %v, folders %v, %v; want one", slices.Collect(maps.Keys(files)), folders, err)
	}
	many := strings.Builder{}
	for i := range maxISOFiles + 1 {
		fmt.Fprintf(&many, "<a href=%d>", i)
	}
	for want, page := range map[string]string{
		"more than 5000 names":      many.String(),
		"larger than 4194304 bytes": strings.Repeat("<a href=x>", maxListing/10+1),
		"max buffer exceeded":       "<a href=\"" + strings.Repeat("x", 2*maxTag),
	} {
		if _, _, err := parseListing(strings.NewReader(page)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func FuzzParseListing(f *testing.F) {
	for _, page := range listings {
		f.Add([]byte(page([]string{"k8s/", "pause:3.10.tar"})))
	}
	f.Add([]byte(`<a href="..%2F..">`))
	f.Fuzz(func(t *testing.T, data []byte) {
		files, folders, err := parseListing(strings.NewReader(string(data)))
		if err != nil && (files != nil || folders != nil) {
			t.Errorf("names %v, %v with %v", files, folders, err)
		}
		for _, names := range []map[string]bool{files, folders} {
			for name := range names {
				if path.Join("/folder", name) != "/folder/"+name || name == "" || strings.ContainsAny(name, "/\\\x00\n\x1b") {
					t.Errorf("name %q", name)
				}
			}
		}
	})
}
