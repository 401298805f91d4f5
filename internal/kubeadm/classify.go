// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"regexp"
	"slices"
	"strings"

	"nodeagent/internal/fault"
)

// retry is what nodeagent itself may do about a failure.
type retry int

const (
	retryOnce      retry = iota // clear up and try once more: nobody knows better
	retryNever                  // an operator, or other userdata, must come first
	retryReachable              // when the API server answers
	retryBackOff                // after a while, longer each time: another node is in the way, or the cluster is not ready
	retryUnchecked              // without the check that failed
	retryClock                  // when this machine's clock has been set
)

// class is what a failure of kubeadm means.
type class struct {
	code   fault.Code
	cause  string // in one sentence, without a full stop
	remedy string // "" is the catalogue's
	retry  retry
}

// rule recognises one class. All patterns that it has must match.
type rule struct {
	verb    string                // init, join or "" for both
	cause   func() *regexp.Regexp // of kubeadm's last word
	warning func() *regexp.Regexp // of any warning
	// says is the class's cause: ${name} is a group of the pattern of cause, or
	// of warning's where there is none.
	says   string
	code   fault.Code
	remedy string
	retry  retry
}

// classify says what the failure of `kubeadm init` or `kubeadm join` means, by what
// it printed. What no rule knows has the verb's own code and kubeadm's last word.
func classify(verb string, o *kubeadmOutput) class {
	if len(o.preflight) > 0 {
		return classifyPreflight(o)
	}
	cause := o.lastWord()
	text := cause
	if text == "" {
		text = o.where() // kubeadm of before 1.33 does not always say what its last word is
	}
	for _, r := range rules {
		if r.verb != "" && r.verb != verb {
			continue
		}
		if says, ok := r.match(text, o.warnings); ok {
			return class{code: r.code, cause: says, remedy: r.remedy, retry: r.retry}
		}
	}
	general := class{code: fault.KubeadmInitFailed, cause: cause, retry: retryOnce}
	switch verb {
	case "join":
		general.code = fault.KubeadmJoinFailed
	case "upgrade":
		general.code = fault.UpgradeFailed
	}
	return general
}

// match returns the rule's sentence when it fits.
func (r rule) match(cause string, warnings []string) (says string, ok bool) {
	matched, text := r.cause, cause
	if r.warning != nil {
		i := slices.IndexFunc(warnings, r.warning().MatchString)
		if i < 0 {
			return "", false
		}
		if matched == nil {
			matched, text = r.warning, warnings[i]
		}
	}
	found := matched().FindStringSubmatchIndex(text)
	if found == nil {
		return "", false
	}
	return string(matched().ExpandString(nil, r.says, text, found)), true
}

// finding recognises a failed preflight check.
type finding struct {
	check  func() *regexp.Regexp
	code   fault.Code
	remedy string
	retry  retry
}

// classifyPreflight names all failed checks. They have a class of their own when
// all are of one kind.
func classifyPreflight(o *kubeadmOutput) class {
	checks := slices.Clone(o.preflight)
	for _, warning := range o.warnings {
		// Since kubeadm 1.31 or so this is no check any more.
		if found := runtimeWarning().FindStringSubmatch(warning); found != nil {
			checks = append(checks, "CRI: "+found[1])
			break
		}
	}
	result := class{code: fault.KubeadmPreflight, retry: retryNever}
	for _, f := range findings {
		if !slices.ContainsFunc(checks, func(check string) bool { return !f.check().MatchString(check) }) {
			result = class{code: f.code, remedy: f.remedy, retry: f.retry}
			break
		}
	}
	for i, check := range checks {
		checks[i] = shorten(check)
	}
	result.cause = "this machine is not fit: " + strings.Join(slices.Compact(checks), "; ")
	return result
}

// shorten takes out of a check what kubeadm and containerd say several times.
func shorten(check string) string {
	if found := pulledImage().FindStringSubmatch(check); found != nil {
		return "ImagePull: " + found[1] + " is not there and cannot be pulled"
	}
	return check
}
