// SPDX-License-Identifier: Apache-2.0

// A trial of the online path inside a VM; not part of the project.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"nodeagent/internal/growpart"
	"nodeagent/internal/host"
)

func stat() string {
	b, _ := os.ReadFile("/sys/block/vda/stat")
	f := strings.Fields(string(b))
	return fmt.Sprintf("writes=%s sectors=%s flush=%s", f[4], f[6], f[len(f)-2])
}

func run(o growpart.Options) growpart.Result {
	before := stat()
	t := time.Now()
	r, err := growpart.Grow(context.Background(), host.New(), "/", o)
	fmt.Printf("TRIAL %+v\nTRIAL   err=%v warning=%v in %v; %s -> %s\n", r, err, r.Warning, time.Since(t), before, stat())
	return r
}

func sh(name string, args ...string) {
	out, err := exec.Command(name, args...).CombinedOutput()
	fmt.Printf("TRIAL $ %s %v: %v\nTRIAL %s\n", name, args, err, strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", "\nTRIAL "))
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "once" {
		var n int64
		fmt.Sscan(os.Args[2], &n)
		_, err := growpart.Grow(context.Background(), host.New(), "/", growpart.Options{RequestedBytes: n})
		if err != nil {
			fmt.Println("TRIAL once:", err)
			os.Exit(1)
		}
		return
	}
	sh("uname", "-r")
	sh("sfdisk", "-d", "/dev/vda")
	run(growpart.Options{DryRun: true})
	// without CAP_SYS_RESOURCE
	sh("setpriv", "--bounding-set", "-sys_resource", "--inh-caps", "-all", os.Args[0], "once", fmt.Sprint(int64(3)<<30))
	sh("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-all", os.Args[0], "once", fmt.Sprint(int64(3100)<<20))
	run(growpart.Options{RequestedBytes: 3 << 30})
	failures := 0
	t := time.Now()
	size := int64(3) << 30
	n := 0
	for ; size < 8<<30; size += 16 << 20 {
		n++
		r, err := growpart.Grow(context.Background(), host.New(), "/", growpart.Options{RequestedBytes: size})
		if err != nil {
			failures++
			fmt.Println("TRIAL loop", size, err, r.Note)
		}
		// killed at any moment
		if n%2 == 0 {
			c := exec.Command(os.Args[0], "once", fmt.Sprint(size+8<<20))
			c.Start()
			time.Sleep(time.Duration(n*137%9000) * time.Microsecond)
			c.Process.Kill()
			c.Wait()
		}
	}
	fmt.Printf("TRIAL loop: %d grows, %d failures in %v\n", n, failures, time.Since(t))
	run(growpart.Options{RequestedBytes: size})
	run(growpart.Options{})
	run(growpart.Options{})
	sh("sfdisk", "--verify", "/dev/vda")
	sh("sfdisk", "-d", "/dev/vda")
	sh("lsblk", "-b", "-o", "NAME,SIZE,PARTUUID,MOUNTPOINT", "/dev/vda")
	sh("df", "-B1", "/")
	sh("swapon", "--show")
	sh("sh", "-c", "dmesg | grep -iE 'ext4|vda' | tail -5")
	sh("udevadm", "settle")
	sh("ls", "-l", "/dev/disk/by-uuid")
}
