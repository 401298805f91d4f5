// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"nodeagent/internal/host"
)

// disk is a whole disk, or a file with the content of one.
type disk interface {
	io.ReaderAt
	// WriteAt writes whole sectors.
	io.WriterAt
	// Sync returns when all that was written is on the medium.
	Sync() error
	// Size returns the size in bytes.
	Size() int64
	// SectorSize returns the size of a logical sector in bytes.
	SectorSize() int
	// Lock takes the disk's lock, which udev and partitioning tools respect
	// (https://systemd.io/BLOCK_DEVICE_LOCKING), and keeps it until Close.
	Lock(ctx context.Context) error
	// ResizePartition tells the kernel a partition's new size. Start and size are
	// bytes. The kernel has no partitions of a file.
	ResizePartition(number int, start, size int64) error
	Close() error
}

// linux is the machine this program runs on.
type linux struct{}

func (linux) openPartition(device string) (partitionReader, error) {
	file, err := os.Open(device)
	return file, host.Explain(err, unix.CAP_DAC_OVERRIDE)
}

// openDisk looks at what the name stands for before it opens it: opening a pipe
// would wait for its other end.
func (linux) openDisk(name string) (disk, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	d := &blockDisk{device: name}
	switch info.Mode().Type() {
	case 0:
		d.file = true
	case os.ModeDevice:
	default:
		return nil, errors.New("it is neither a disk nor a file with the content of one")
	}
	if d.reader, err = d.open(os.O_RDONLY); err != nil {
		return nil, err
	}
	if err := d.measure(); err != nil {
		return nil, errors.Join(err, d.reader.Close())
	}
	return d, nil
}

// blockDisk is a block device, or a file with the content of one.
//
// A device is read and written past the page cache (O_DIRECT): the cache works in
// blocks of up to 4096 bytes, so that writing one sector through it would write
// old copies of the sectors around it as well, and those can belong to the
// mounted file system. A file has no such readers, and not every file system
// allows O_DIRECT.
//
// It is opened for writing by the first write only, since udev probes a disk
// anew whenever a writer closes it. A kernel built without
// CONFIG_BLK_DEV_WRITE_MOUNTED allows that: it protects the partition that is
// mounted, not the disk around it (bdev_may_open in the kernel's block/bdev.c
// looks at the one device opened).
type blockDisk struct {
	device string
	file   bool
	reader *os.File // holds the lock
	writer *os.File
	size   int64
	sector int
}

func (d *blockDisk) open(mode int) (*os.File, error) {
	if !d.file {
		mode |= unix.O_DIRECT
	}
	file, err := os.OpenFile(d.device, mode|unix.O_CLOEXEC, 0)
	return file, host.Explain(err, unix.CAP_DAC_OVERRIDE)
}

func (d *blockDisk) measure() error {
	if d.file {
		info, err := d.reader.Stat()
		if err != nil {
			return err
		}
		// As a loop device of the file would have it.
		d.sector = mbrSize
		d.size = info.Size() / mbrSize * mbrSize
		return nil
	}
	return d.ioctl(func(fd uintptr) error {
		var err error
		if d.sector, err = unix.IoctlGetInt(int(fd), unix.BLKSSZGET); err != nil {
			return os.NewSyscallError("BLKSSZGET", err)
		}
		if d.sector < mbrSize || d.sector > 1<<16 || d.sector&(d.sector-1) != 0 {
			return fmt.Errorf("sectors of %d bytes are not supported", d.sector)
		}
		var size uint64
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); errno != 0 {
			return os.NewSyscallError("BLKGETSIZE64", errno)
		}
		d.size = int64(size)
		return nil
	})
}

// ioctl calls do with the descriptor, which stays valid meanwhile even if the
// disk is closed.
func (d *blockDisk) ioctl(do func(fd uintptr) error) error {
	conn, err := d.reader.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := conn.Control(func(fd uintptr) { failed = do(fd) }); err != nil {
		return err
	}
	return failed
}

func (d *blockDisk) Size() int64     { return d.size }
func (d *blockDisk) SectorSize() int { return d.sector }

// ReadAt reads any range through a buffer of whole sectors.
func (d *blockDisk) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 || offset+int64(len(p)) > d.size {
		return 0, io.ErrUnexpectedEOF
	}
	sector := int64(d.sector)
	first := offset / sector * sector
	last := (offset + int64(len(p)) + sector - 1) / sector * sector
	buffer := aligned(int(last - first))
	if _, err := d.reader.ReadAt(buffer, first); err != nil {
		return 0, err
	}
	return copy(p, buffer[offset-first:]), nil
}

// WriteAt writes whole sectors.
func (d *blockDisk) WriteAt(p []byte, offset int64) (int, error) {
	if offset%int64(d.sector) != 0 || len(p)%d.sector != 0 {
		return 0, fmt.Errorf("a write of %d bytes at %d is not one of whole sectors", len(p), offset)
	}
	if d.writer == nil {
		file, err := d.open(os.O_RDWR)
		if err != nil {
			return 0, err
		}
		d.writer = file
	}
	buffer := aligned(len(p))
	copy(buffer, p)
	return d.writer.WriteAt(buffer, offset)
}

// aligned returns memory the kernel can use for direct transfers with any disk.
func aligned(size int) []byte {
	const page = 4096
	buffer := make([]byte, size+page)
	skip := (page - int(uintptr(unsafe.Pointer(&buffer[0]))%page)) % page
	return buffer[skip : skip+size : skip+size]
}

func (d *blockDisk) Sync() error {
	if d.writer == nil {
		return nil
	}
	return d.writer.Sync()
}

// Lock waits in a goroutine of its own, since flock(2) knows no deadline. When
// ctx ends first that goroutine ends with the lock's present holder: its
// descriptor is closed by then, which gives the lock back.
func (d *blockDisk) Lock(ctx context.Context) error {
	got := make(chan error, 1)
	go func() {
		got <- d.ioctl(func(fd uintptr) error {
			for {
				err := unix.Flock(int(fd), unix.LOCK_EX)
				if !errors.Is(err, unix.EINTR) {
					return os.NewSyscallError("flock", err)
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
			}
		})
	}()
	select {
	case err := <-got:
		return err
	case <-ctx.Done():
		return fmt.Errorf("another program holds the lock: %w", ctx.Err())
	}
}

// ResizePartition implements disk by BLKPG_RESIZE_PARTITION, which works on a
// mounted partition, unlike reading the whole table again (BLKRRPART).
func (d *blockDisk) ResizePartition(number int, start, size int64) error {
	if d.file {
		return nil
	}
	partition := unix.BlkpgPartition{Start: start, Length: size, Pno: int32(number)}
	arg := unix.BlkpgIoctlArg{Op: unix.BLKPG_RESIZE_PARTITION, Datalen: int32(unsafe.Sizeof(partition)), Data: (*byte)(unsafe.Pointer(&partition))}
	return d.ioctl(func(fd uintptr) error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.BLKPG, uintptr(unsafe.Pointer(&arg)))
		switch errno {
		case 0:
			return nil
		case unix.EBUSY:
			return os.NewSyscallError("BLKPG_RESIZE_PARTITION", errors.New("the kernel has another partition there"))
		}
		return host.Explain(os.NewSyscallError("BLKPG_RESIZE_PARTITION", errno), unix.CAP_SYS_ADMIN)
	})
}

// Close closes the writer before it gives the lock back, so that udev finds the
// disk as it stays.
func (d *blockDisk) Close() error {
	var err error
	if d.writer != nil {
		err = d.writer.Close()
	}
	return errors.Join(err, d.reader.Close())
}
