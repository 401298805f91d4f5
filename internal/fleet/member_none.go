// SPDX-License-Identifier: Apache-2.0

//go:build !dqlite || nodqlite

package fleet

func openMember(memberOptions) (member, error) { return nil, ErrNoDatabase }

func temporary(error) bool { return false }
