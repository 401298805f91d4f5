// SPDX-License-Identifier: Apache-2.0

package redact_test

import (
	"bytes"
	"encoding/base64"
	"io"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"nodeagent/internal/redact"
)

const (
	token    = "abcdef.0123456789abcdef"
	certKey  = "e6a2eb8581237ab72a4f494f30285ec12a9694d750b9785706a83bfcbbbd2204"
	password = `p"a&s s'1%/Ü`
)

// What looks like a secret goes, wherever it stands; what an operator needs stays.
func TestByForm(t *testing.T) {
	t.Parallel()
	key := "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
	for _, test := range []struct{ name, text, want string }{
		{"bootstrap token", "joining with " + token + ".", "joining with [redacted]."},
		{"flag", "kubeadm join 10.0.0.1:6443 --token " + token + " --certificate-key " + certKey + " --v 5",
			"kubeadm join 10.0.0.1:6443 --token [redacted] --certificate-key [redacted] --v 5"},
		{"flag with =", "--certificate-key=" + certKey + " --token-ttl=24h", "--certificate-key=[redacted] --token-ttl=24h"},
		{"arguments as JSON", `["kubeadm","--certificate-key","` + certKey + `","--v=5"]`, `["kubeadm","--certificate-key",[redacted],"--v=5"]`},
		{"the CA's hash is public", "--discovery-token-ca-cert-hash sha256:" + certKey, "--discovery-token-ca-cert-hash sha256:" + certKey},
		{"boot args", "type=cksnode vmpassword=a;b&c,d authorized_key=c3NoLXJzYQ== name=n1 userdata=I2Nsb3Vk eth0ip=10.1.1.2",
			"type=cksnode vmpassword=[redacted] authorized_key=[redacted] name=n1 userdata=[redacted] eth0ip=10.1.1.2"},
		{"quoted", `password="a b \" c" user="x"`, `password=[redacted] user="x"`},
		{"shell", `PASSWORD='a b' && run`, `PASSWORD=[redacted] && run`},
		{"escaped JSON", `msg="{\"token\":\"hunter2 x\",\"n\":1}"`, `msg="{\"token\":[redacted],\"n\":1}"`},
		{"YAML", "user: x\npassword: correct horse battery # it is\nport: 1", "user: x\npassword: [redacted]\nport: 1"},
		{"YAML block", "a:\n  - password: |\n      one\n      two\n    port: 1", "a:\n  - password: [redacted]\n      [redacted]\n      [redacted]\n    port: 1"},
		{"kubeconfig", "users:\n- user:\n    client-key-data: LS0tLS1CRUdJTg==\n    client-certificate-data: YQ==\n", "users:\n- user:\n    client-key-data: [redacted]\n    client-certificate-data: YQ==\n"},
		{"Secret", "apiVersion: v1\ndata:\n  user: YWRtaW4=\n  k: aHVudGVyMg==\nkind: Secret\nstringData:\n  pin: 1 2 3\ntype: Opaque",
			"apiVersion: v1\ndata:\n  user: [redacted]\n  k: [redacted]\nkind: Secret\nstringData:\n  [redacted]\ntype: Opaque"},
		{"Secret as JSON", `{"kind":"Secret","data":{"user":"YWRtaW4=","k":"eA=="},"type":"Opaque"}`, `{"kind":"Secret","data":{[redacted]},"type":"Opaque"}`},
		{"header", `Authorization: Basic dXNlcjpwYXNz`, "Authorization: [redacted]"},
		{"header in a log", `request headers="Authorization: Bearer abcdefgh" status=401`, `request headers="Authorization: [redacted]`},
		{"bearer", "sent Bearer abcdefgh.ijkl to x", "sent Bearer [redacted] to x"},
		{"JWT", "got eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlIn0.c2ln from api", "got [redacted] from api"},
		{"URL", "pull https://bob:s3cr3t@registry.example/v2/ failed", "pull https://bob:[redacted]@registry.example/v2/ failed"},
		{"registry auth", `auth = "dXNlcjpwYXNz"`, "auth = [redacted]"},
		{"password hash", "root:$6$salt$abcdefghijkl.:19000:0", "root:[redacted]:19000:0"},
		{"PEM", "a\n-----BEGIN RSA PRIVATE KEY-----\n" + key + "\nshort=\n-----END RSA PRIVATE KEY-----\nb", "a\n[redacted]\n[redacted]\n[redacted]\n[redacted]\nb"},
		{"PEM in one line", `k="-----BEGIN PRIVATE KEY-----\n` + key + `\n-----END PRIVATE KEY-----" x`, `k="[redacted]" x`},
		{"the end of a PEM", key + "\nc2hvcnQ=\n-----END PRIVATE KEY-----\nb", "[redacted]\n[redacted]\n-----END PRIVATE KEY-----\nb"},
		{"wrapped base64 in a log", "Nov 1 n1 x[1]: " + key + "\nNov 1 n1 x[1]: dGFpbA==\nNov 1 n1 x[1]: over", "Nov 1 n1 x[1]: [redacted]\nNov 1 n1 x[1]: [redacted]\nNov 1 n1 x[1]: over"},
		{"what stays", "I1120 kubelet: pulled sha256:" + certKey + " for pod kube-system/kube-controller-manager-n1 at /var/lib/kubelet/pods/2f1b8c8e-0000-4000-8000-00000000c051/volumes",
			"I1120 kubelet: pulled sha256:" + certKey + " for pod kube-system/kube-controller-manager-n1 at /var/lib/kubelet/pods/2f1b8c8e-0000-4000-8000-00000000c051/volumes"},
		{"VPN of a router", `got {'preshared_key': 'hunter2', psk: hunter2` + "\n" + `1.2.3.4 : PSK "hunter 2" # x` + "\nPSK=hunter2 PSK 0sabc PSK is set",
			`got {'preshared_key': [redacted], psk: [redacted]` + "\n" + `1.2.3.4 : PSK [redacted] # x` + "\nPSK=[redacted] PSK [redacted] PSK is set"},
		{"variable of a pod as Go prints it", "Env:[]EnvVar{EnvVar{Name:DB_URL,Value:a, b,ValueFrom:nil,},EnvVar{Name:E,Value:,ValueFrom:nil,},EnvVar{Name:X,Value:hunter2",
			"Env:[]EnvVar{EnvVar{Name:DB_URL,Value:[redacted],ValueFrom:nil,},EnvVar{Name:E,Value:,ValueFrom:nil,},EnvVar{Name:X,Value:[redacted]"},
		{"variable of a pod", "env:\n- name: X_PASSWORD\n  value: hunter2\n- name: LEVEL\n  value: debug\n", "env:\n- name: X_PASSWORD\n  value: [redacted]\n- name: LEVEL\n  value: debug\n"},
		{"variable of a pod in a line", "env: [{name: X_PASSWORD, value: hunter 2}, {name: LEVEL, value: debug}]", "env: [{name: X_PASSWORD, value: [redacted]}, {name: LEVEL, value: debug}]"},
		{"variable of a pod as JSON", `[{"name":"X_PASSWORD","value":"hunter2"},{"name":"LEVEL","value":"debug"}]`, `[{"name":"X_PASSWORD","value":[redacted]},{"name":"LEVEL","value":"debug"}]`},
		{"variable of a pod as JSON in lines", "{\n  \"name\": \"X_PASSWORD\",\n  \"value\": \"hunter2\"\n}", "{\n  \"name\": \"X_PASSWORD\",\n  \"value\": [redacted]\n}"},
		{"certificate key of kubeadm", "[upload-certs] Using certificate key:\n" + certKey + "\nx\nimage " + certKey, "[upload-certs] Using certificate key:\n[redacted]\nx\nimage " + certKey},
		{"list", `X-Token = ["a1b2", "c3d4"]` + "\nn = 1", "X-Token = [redacted]\nn = 1"},
		{"list in lines", "X-Token = [\n  \"a1b2\",\n  \"c]d4\",\n]\nn = 1", "X-Token = [redacted]\n  [redacted]\n  [redacted]\n[redacted]\nn = 1"},
		{"no list", `{"tokens":[],"n":1} password: [redacted] n=1`, `{"tokens":[],"n":1} password: [redacted] n=1`},
		{"Secret as JSON in lines", "{\n  \"data\": {\n    \"user\": \"YWRtaW4=\",\n    \"pin\": \"MTIz\"\n  },\n  \"type\": \"Opaque\"\n}", "{\n  \"data\": {\n    \"user\": [redacted]\n    \"pin\": [redacted]\n  },\n  \"type\": \"Opaque\"\n}"},
		{"token in a URL", "https://a1b2c3@git.example/x", "https://[redacted]@git.example/x"},
		{"Vault", "secret_id=a1b2 role_id=c3", "secret_id=[redacted] role_id=c3"},
		{"no values", "token: \"\"\nautomountServiceAccountToken: false\n--tls-private-key-file=/etc/kubernetes/pki/apiserver.key --client-key=/etc/x.key",
			"token: \"\"\nautomountServiceAccountToken: false\n--tls-private-key-file=/etc/kubernetes/pki/apiserver.key --client-key=/etc/x.key"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := redact.New(nil).String(test.text); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

// A known secret is found in every form it is written in.
func TestKnown(t *testing.T) {
	t.Parallel()
	rules := redact.New([]string{password, "first line\nsecond line\n", "ab", "true"})
	for name, text := range map[string]string{
		"raw":           "got " + password + " there",
		"JSON":          `{"x":"p\"a\u0026s s'1%/Ü"}`,
		"quoted":        `x="p\"a&s s'1%/Ü"`,
		"shell":         `'p"a&s s'\''1%/Ü'`,
		"query":         url.QueryEscape(password),
		"path":          "/" + url.PathEscape(password),
		"base64":        base64.StdEncoding.EncodeToString([]byte(password)),
		"user:password": base64.StdEncoding.EncodeToString([]byte("bob:" + password)),
		"inside":        base64.URLEncoding.EncodeToString([]byte("some text " + password + " and more")),
		"inside, 1":     base64.StdEncoding.EncodeToString([]byte("x" + password + "y")),
	} {
		got := rules.String("a " + text + " z")
		if !strings.Contains(got, "[redacted]") || !strings.HasPrefix(got, "a ") || !strings.HasSuffix(got, " z") {
			t.Errorf("%s: %q", name, got)
		}
		for _, part := range []string{`s s'1%`, text} {
			if strings.Contains(got, part) {
				t.Errorf("%s: %q still holds %q", name, got, part)
			}
		}
	}
	if got := rules.String("second line, ab, true"); got != "[redacted], ab, true" {
		t.Errorf("got %q", got)
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	got := redact.Find("[plugins.auth]\nusername = \"bob\"\npassword = \"hunter 2\"\ntoken: abc123\nbootargs vmpassword=xyz vncport=5900\n--certificate-key \"" + certKey + "\"\npassphrase: 'it''s'\n")
	if got := redact.Find("X-Token = [\"a1b2\",\n \"c3d4\"]\n: PSK \"hunter2\"\n"); !slices.Contains(got, "a1b2") || !slices.Contains(got, "c3d4") || !slices.Contains(got, "hunter2") {
		t.Errorf("found %q", got)
	}
	if want := []string{"abc123", certKey, "hunter 2", "it", "it''s", "it's", "xyz"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// The text is a stream: where it is cut makes no difference, and a line without end
// takes no memory.
func TestStream(t *testing.T) {
	t.Parallel()
	text := "x --token " + token + "\n-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\npassword: a\n  b\nlast " + password
	rules := redact.New([]string{password})
	want := rules.String(text)
	for _, cut := range []io.Reader{iotest.OneByteReader(strings.NewReader(text)), iotest.HalfReader(strings.NewReader(text))} {
		var out bytes.Buffer
		w := rules.Writer(&out)
		if _, err := io.Copy(w, cut); err != nil || w.Close() != nil || out.String() != want {
			t.Errorf("cut in pieces: %v\n%s\nwant\n%s", err, out.String(), want)
		}
	}
	// The secret is where the line is cut off.
	long := strings.Repeat("word ", 13105) + password + password + strings.Repeat("x", 1<<20)
	got := rules.String(long + "\nnext")
	if len(got) > 70_000 || strings.Contains(got, `p"a`) || !strings.HasSuffix(got, "bytes of this line left out]\nnext") {
		t.Errorf("%d bytes, ...%q", len(got), got[max(0, len(got)-80):])
	}
}

// A line that is nothing but keys takes no time to speak of, and loses its end at most.
func TestHostileLine(t *testing.T) {
	t.Parallel()
	for _, piece := range []string{`token="`, "--token ", `"data":{`, "-----BEGIN PRIVATE KEY----- ", "a=", "eyJ.", "://a:b@", "token=[", "PSK \"", "EnvVar{Name:a,Value:", "name: token, value: "} {
		line := "first " + strings.Repeat(piece, 60_000/len(piece)) + "hunter22\n" + "next"
		if got := redact.New([]string{"hunter22"}).String(line); !strings.HasPrefix(got, "first") || strings.Contains(got, "hunter22") || !strings.Contains(got, "\n") {
			t.Errorf("%q: %.100q", piece, got)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestWriteFails(t *testing.T) {
	t.Parallel()
	w := redact.New(nil).Writer(full{})
	if _, err := io.WriteString(w, "a\nb"); err != io.ErrShortWrite || w.Close() != io.ErrShortWrite {
		t.Errorf("error %v; want the writer's", err)
	}
}

// Whatever surrounds it and wherever the text is cut, a known secret never comes out,
// nor its base64, and no line is lost.
func FuzzKnown(f *testing.F) {
	f.Add("a ", " z\n", []byte("12345678"), 3)
	f.Add("-----BEGIN PRIVATE KEY-----\n", "=\n-----END PRIVATE KEY-----\n", []byte("abcdefgh"), 40)
	f.Add("data:\n  x: ", "\n", []byte("hunter22"), 9)
	f.Add("{\"password\":\"\\", "\"", []byte("hunter22"), 9)
	f.Add("token: >\n  ", "\n x", []byte("hunter22"), 1)
	const alphabet = "GHJKLMNPQRSTUVWXYZ0123456789/+=&%\"'\\"
	f.Fuzz(func(t *testing.T, before, after string, raw []byte, cut int) {
		if len(raw) < 6 || len(raw) > 200 || len(before)+len(after) > 1<<18 {
			return
		}
		known := make([]byte, len(raw))
		for i, b := range raw {
			known[i] = alphabet[int(b)%len(alphabet)]
		}
		text := before + string(known) + after + base64.StdEncoding.EncodeToString([]byte(before+string(known)))
		rules := redact.New([]string{string(known)})
		got := rules.String(text)
		if strings.Contains(got, string(known)) {
			t.Errorf("%q comes out: %q", known, got)
		}
		for word := range strings.FieldsFuncSeq(got, func(r rune) bool { return strings.ContainsRune(" \n\"'", r) }) {
			if decoded, err := base64.StdEncoding.DecodeString(word); err == nil && bytes.Contains(decoded, known) {
				t.Errorf("%q comes out in base64: %q", known, got)
			}
		}
		if strings.Count(got, "\n") != strings.Count(text, "\n") {
			t.Errorf("lines were lost: %q of %q", got, text)
		}
		var out bytes.Buffer
		w := rules.Writer(&out)
		cut = min(max(cut, 0), len(text))
		io.WriteString(w, text[:cut])
		io.WriteString(w, text[cut:])
		if w.Close() != nil || out.String() != got {
			t.Errorf("cut at %d: %q, whole: %q", cut, out.String(), got)
		}
	})
}
