// SPDX-License-Identifier: Apache-2.0

//go:build dqlite && !nodqlite

package fleet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("network namespaces need root")
		}
		t.Skip("network namespaces need root")
	}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if output, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, output)
	}
}

// D1, D4: three control nodes in namespaces of their own; processes are killed and a cable
// is pulled at random under load. What was acknowledged is there in the end.
func TestPartitionsAndKills(t *testing.T) {
	needRoot(t)
	unique := fmt.Sprintf("nf%d", os.Getpid()%10000)
	bridge := unique + "b"
	ip(t, "link", "add", bridge, "type", "bridge")
	t.Cleanup(func() { ip(t, "link", "delete", bridge) })
	ip(t, "address", "add", "10.213.7.1/24", "dev", bridge)
	ip(t, "link", "set", bridge, "up")
	var nodes []nodeProcess
	var processes []*exec.Cmd
	var servers []string
	namespace := func(i int) string { return fmt.Sprintf("%sn%d", unique, i) }
	cable := func(i int) string { return fmt.Sprintf("%sv%d", unique, i) }
	for i := range 3 {
		address := fmt.Sprintf("10.213.7.%d", i+10)
		ip(t, "netns", "add", namespace(i))
		t.Cleanup(func() { ip(t, "netns", "delete", namespace(i)) })
		ip(t, "link", "add", cable(i), "type", "veth", "peer", "name", "eth0", "netns", namespace(i))
		ip(t, "link", "set", cable(i), "master", bridge, "up")
		ip(t, "-n", namespace(i), "address", "add", address+"/24", "dev", "eth0")
		ip(t, "-n", namespace(i), "link", "set", "eth0", "up")
		ip(t, "-n", namespace(i), "link", "set", "lo", "up")
		node := nodeProcess{Dir: t.TempDir(), Address: address + ":6445", EveryMS: 500}
		if i > 0 {
			node.Peers = servers[:1]
		}
		nodes, servers = append(nodes, node), append(servers, node.Address)
		processes = append(processes, node.start(t, namespace(i)))
	}
	acked := 0
	events := testEvents(0, 400)
	r := &Reporter{Keys: mustKeys(t, token, certificateKey), Servers: servers,
		State: func() (State, []Event, error) { return testState("w1", "b1"), events[:acked+1], nil }}
	report := func(what string) {
		t.Helper()
		eventually(t, what, r.Once)
		acked++
	}
	report("the first report")
	client := r.Keys.client(protocolJoin)
	threeMembers := func(ctx context.Context) error {
		if len(r.servers) < 3 {
			return errors.New("not three")
		}
		var answer joinAnswer
		for _, server := range servers { // with a quorum, each of them
			if err := call(ctx, client, server, "/v1/join", joinRequest{}, &answer); err != nil || !answer.Quorum {
				return fmt.Errorf("%s: %+v %w", server, answer, err)
			}
		}
		return nil
	}
	eventually(t, "three members", threeMembers)
	for round := range 6 {
		i := rand.IntN(3)
		if round%2 == 0 {
			kill(processes[i])
			report(fmt.Sprintf("round %d: %d is killed", round, i))
			processes[i] = nodes[i].start(t, namespace(i))
		} else {
			ip(t, "link", "set", cable(i), "down")
			report(fmt.Sprintf("round %d: %d is cut off", round, i))
			ip(t, "link", "set", cable(i), "up")
		}
		for range 5 {
			report("reports go on")
		}
		eventually(t, "all are back", threeMembers)
	}
	for _, process := range processes {
		kill(process)
	}
	for i := range 3 {
		_ = os.Remove(nodes[i].countFile())
		processes[i] = nodes[i].start(t, namespace(i))
	}
	eventually(t, "all are back after a power cut", threeMembers)
	for _, node := range nodes {
		eventually(t, "what is there", func(context.Context) error {
			data, err := os.ReadFile(node.countFile())
			if err == nil && strings.TrimSpace(string(data)) != fmt.Sprint(acked) {
				t.Fatalf("%s of %d acknowledged events are there", data, acked)
			}
			return err
		})
	}
}
