// SPDX-License-Identifier: Apache-2.0

package fault_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"

	"nodeagent/internal/fault"
)

// Every code declared in codes.go has one entry with cause and remedy, and a section of
// the documentation.
func TestCatalogueIsComplete(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	declared := map[fault.Code]bool{}
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if ok {
			text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			declared[fault.Code(text)] = true
		}
		return true
	})
	for _, entry := range fault.Catalogue() {
		if !declared[entry.Code] {
			t.Errorf("catalogue lists %q twice, or no constant has it", entry.Code)
		}
		delete(declared, entry.Code)
		if entry.Cause == "" || entry.Remedy == "" {
			t.Errorf("entry of %q lacks cause or remedy", entry.Code)
		}
		if entry.Code.Section() == "" {
			t.Errorf("code %q has no section of docs/ (section.go)", entry.Code)
		}
	}
	for code := range declared {
		t.Errorf("code %q has no entry in the catalogue", code)
	}
}

func TestAsCollectsHintAndLogFromTheCause(t *testing.T) {
	t.Parallel()
	inner := fault.New(fault.KubeadmPreflight, "port 6443 is in use").WithHint("stop it").WithLog([]string{"[ERROR Port-6443]"})
	got := fault.As(fmt.Errorf("cannot make the node: %w", fault.Wrap(fault.KubeadmInitFailed, inner, "kubeadm init")))
	if got.Code != fault.KubeadmInitFailed || got.Hint != "stop it" || len(got.Log) != 1 {
		t.Errorf("As = %+v, want the outer code with the inner hint and log", got)
	}
	if want := "cannot make the node: kubeadm init: port 6443 is in use"; got.Message != want {
		t.Errorf("message = %q, want %q", got.Message, want)
	}
	if got := fault.As(errors.New("boom")); got.Code != fault.Internal || got.Hint == "" {
		t.Errorf("As(plain error) = %+v, want code internal with a remedy", got)
	}
}

// Of several problems all are said, and what to do about each, once.
func TestJoin(t *testing.T) {
	t.Parallel()
	got := fault.As(fault.Join(fault.InstallFailed, []error{
		nil, fault.New(fault.DiskTooSmall, "small").WithLog([]string{"line"}), errors.New("plain"), fault.New(fault.ISOInvalid, "bad"), fault.New(fault.ISOInvalid, "worse"),
	}))
	want := fault.Error{Code: fault.DiskTooSmall, Message: "small; plain; bad; worse",
		Hint: fault.DiskTooSmall.Remedy() + " " + fault.ISOInvalid.Remedy(), Log: []string{"line"}}
	if got.Code != want.Code || got.Message != want.Message || got.Hint != want.Hint || len(got.Log) != 1 {
		t.Errorf("Join = %+v, want %+v", got, want)
	}
	if got := fault.As(fault.Join(fault.InstallFailed, []error{errors.New("plain")})); got.Code != fault.InstallFailed || got.Hint != fault.InstallFailed.Remedy() {
		t.Errorf("Join of a problem without a code = %+v", got)
	}
}
