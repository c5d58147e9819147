"""System calls that the `os` module of Python 3.11 lacks, and numbers of namespaces.

The number of a namespace is its kernel id (ioctl NS_GET_ID, part of its file handle too), which the
kernel does not reuse until the next boot. A kernel that gives no id identifies a namespace by its
inode, which may be reused at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import sys
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from registry.sync.interrupts import reraise_interrupt

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable

CLONE_NEWNS: Final = 0x00020000  # linux/sched.h
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
NS_GET_NSTYPE: Final = 0xB703  # linux/nsfs.h
NS_GET_ID: Final = 0x8008B70D
SO_NETNS_COOKIE: Final = 71  # asm-generic/socket.h
MS_BIND: Final = 0x1000  # linux/mount.h
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MS_SLAVE: Final = 0x80000
MS_SHARED: Final = 0x100000
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8
PR_SET_NO_NEW_PRIVS: Final = 38  # linux/prctl.h
P_PIDFD: Final = getattr(os, "P_PIDFD", 3)  # linux/wait.h; Python has it from glibc 2.36 on
PIDFD_GET_INFO: Final = 0xC040FF0B  # linux/pidfd.h, _IOWR(0xFF, 11, struct pidfd_info), 64 bytes
PIDFD_INFO_EXIT: Final = 8
AT_FDCWD: Final = -100  # linux/fcntl.h
AT_HANDLE_FID: Final = 0x200
AT_SYMLINK_FOLLOW: Final = 0x400
AT_EMPTY_PATH: Final = 0x1000
STATX_INO: Final = 0x100  # linux/stat.h
STATX_SIZE: Final = 0x200
_STATX: Final = struct.Struct("=32xQQ88xII112x")
"""struct statx: inode and size, major and minor number of the device."""
FILEID_NSFS: Final = 0xF1  # linux/exportfs.h
FD_NSFS_ROOT: Final = -10003  # linux/fcntl.h
IN_MODIFY: Final = 2  # linux/inotify.h
CAP_SYS_PTRACE: Final = 19  # linux/capability.h
CAP_SYS_ADMIN: Final = 21
_HANDLE: Final = struct.Struct("=IiQII")
"""struct file_handle of a namespace: size and type of the handle, then struct nsfs_file_handle:
number, type, inode."""
_NO_HANDLE: Final = _HANDLE.pack(16, 0, 0, 0, 0)

INITIAL_INODES: Final = range(0xEFFFFFF8, 0xF0000000)  # linux/nsfs.h, enum init_ns_ino
INITIAL_PID_NS: Final = 0xEFFFFFFC
INODES: Final = range(0xEFFFFFF8, 2**32)
"""Inodes of namespaces after the initial ones are assigned from the smallest free one."""
IDS_PER_CPU: Final = 4096
"""Kernel ids of namespaces that a CPU takes at a time."""
INITIAL_IDS: Final = 8
"""Maximum of the first ids of a CPU that initial namespaces may have."""
FD_PIDFS_ROOT: Final = -10002  # linux/fcntl.h
FILEID_KERNFS: Final = 0xFE  # linux/exportfs.h
_PIDFD_HANDLE: Final = struct.Struct("=IiQ")
"""struct file_handle of a pidfd: size and type of the handle, then the inode."""


def may_be_initial(number: int) -> bool:
    """Return whether the number of a namespace may be that of an initial namespace."""
    if number in INODES:
        return number in INITIAL_INODES
    return number % IDS_PER_CPU <= INITIAL_IDS


def recurs(number: int) -> bool:
    """Return whether the number of a namespace recurs on each boot, and so proves nothing."""
    return number in INODES or may_be_initial(number)


def namespace_number(fd: int) -> int | None:
    """Return the kernel id of the namespace open as *fd*; None if the kernel gives none."""
    try:
        number = fcntl.ioctl(fd, NS_GET_ID, bytes(8))
    except OSError as error:
        reraise_interrupt(error)
        return None
    return int.from_bytes(number, sys.byteorder)


def namespace_number_at(path: str) -> int | None:
    """Return the kernel id of the namespace at *path*; None if it is not visible or has none.

    Args:
        path: below /proc: other files may block when they are opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        reraise_interrupt(error)
        return None
    try:
        return namespace_number(fd)
    finally:
        os.close(fd)


class NamespaceHandle(NamedTuple):
    """Namespace at a path: its kernel id, its type (one of CLONE_NEW*), and its inode."""

    number: int
    type: int
    inode: int


def namespace_at(path: bytes, directory: int, flags: int) -> NamespaceHandle | None:
    """Return the namespace at *path*, without opening the file.

    None: there is no namespace, or the kernel (before Linux 6.18) or a seccomp filter refuses, or
    ctypes cannot be imported.

    Args:
        path: path without a NUL.
        directory: descriptor to which a relative *path* refers, or AT_FDCWD.
        flags: AT_SYMLINK_FOLLOW; AT_EMPTY_PATH with an empty *path*: *directory* itself.
    """
    buffer = bytearray(_NO_HANDLE)
    try:
        name_to_handle_at, address, mount_id = _name_to_handle_at()
    except OSError as error:
        reraise_interrupt(error)
        return None
    # A handle to compare, not to open: the file system need not prepare anything for it.
    if name_to_handle_at(directory, path, address(buffer), mount_id, flags | AT_HANDLE_FID):
        return None
    _, kind, *told = _HANDLE.unpack(buffer)
    return NamespaceHandle(*told) if kind == FILEID_NSFS else None


def namespace_exists(number: int, kind: int, inode: int) -> bool | None:
    """Return whether a namespace exists, mounted or not, with or without processes.

    None: unknown, before Linux 6.18, without CAP_SYS_ADMIN in the initial user namespace, or if
    ctypes cannot be imported.

    Args:
        number: kernel id of the namespace.
        kind: type of the namespace, one of CLONE_NEW*.
        inode: inode of its file.
    """
    try:
        _libc()
    except OSError as error:
        reraise_interrupt(error)
        return None
    import ctypes  # noqa: PLC0415

    handle = _HANDLE.pack(_HANDLE.size - 8, FILEID_NSFS, number, kind, inode)
    ctypes.set_errno(0)
    fd = _open_by_handle_at(FD_NSFS_ROOT, handle)
    if fd >= 0:
        os.close(fd)
        return True
    # ESTALE also means that the kernel hides the namespace from us.
    stale = ctypes.get_errno() == errno.ESTALE
    return False if stale and _is_privileged() else None


def _is_privileged() -> bool:
    """Return whether the calling thread has CAP_SYS_ADMIN in the initial user namespace."""
    try:
        with open("/proc/thread-self/uid_map", encoding="ascii") as file:
            initial = file.read().split() == ["0", "0", str(2**32 - 1)]
    except OSError as error:
        reraise_interrupt(error)
        return False
    return initial and has_capability(CAP_SYS_ADMIN)


def has_capability(number: int) -> bool:
    """Return whether the capability is in effect for the calling thread; False if unknown."""
    try:
        with open("/proc/thread-self/status", encoding="utf-8", errors="replace") as file:
            effective = next(line for line in file if line.startswith("CapEff:")).split()[1]
        return bool(int(effective, 16) >> number & 1)
    except (OSError, StopIteration, ValueError) as error:
        reraise_interrupt(error)
        return False


def pid_of_inode(inode: int) -> int:
    """Return the pid of the running process whose pidfd has *inode*; 0 if none is found.

    The result is also 0 before Linux 6.17, and for a process in another pid namespace.
    """
    fd = _open_by_handle_at(FD_PIDFS_ROOT, _PIDFD_HANDLE.pack(8, FILEID_KERNFS, inode))
    if fd < 0:
        return 0
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file.read().splitlines())
        return max(0, int(fields.get(b"Pid", b"0")))  # -1: it has ended
    except (OSError, ValueError) as error:
        reraise_interrupt(error)
        return 0
    finally:
        os.close(fd)


def _open_by_handle_at(root: int, handle: bytes) -> int:
    """Return a descriptor of the object *handle* in the file system *root*; -1 if there is none."""
    try:
        open_by_handle_at = getattr(_libc(), "open_by_handle_at", lambda *_: -1)
    except OSError as error:
        reraise_interrupt(error)
        return -1
    return int(open_by_handle_at(root, handle, os.O_RDONLY | os.O_CLOEXEC))


@cache
def _name_to_handle_at() -> tuple[Callable[..., int], Callable[[bytearray], object], object]:
    """Return name_to_handle_at(2), and two of its arguments.

    The arguments are a function that returns a pointer to a buffer, and a pointer to the mount id,
    which is not read. If libc lacks the call, the returned function always fails.
    """
    call = getattr(_libc(), "name_to_handle_at", lambda *_: -1)
    import ctypes  # noqa: PLC0415

    answer = ctypes.c_char * _HANDLE.size
    return call, answer.from_buffer, ctypes.byref(ctypes.c_int())


def wait_status(pidfd: int) -> int | None:
    """Return the wait status of a process that its parent has reaped.

    None while the process runs or is a zombie, and before Linux 6.15.
    """
    info = bytearray(PIDFD_INFO_EXIT.to_bytes(8, sys.byteorder).ljust(64, b"\0"))
    try:
        fcntl.ioctl(pidfd, PIDFD_GET_INFO, info)
    except OSError as error:
        reraise_interrupt(error)
        return None
    told = int.from_bytes(info[:8], sys.byteorder) & PIDFD_INFO_EXIT
    return int.from_bytes(info[60:], sys.byteorder) if told else None


def is_absent(pid: int) -> bool:
    """Return whether certainly no process, not even a zombie, has the pid; needs no /proc."""
    try:
        if pid > 0:  # kill(2) would address a process group, or all processes
            os.kill(pid, 0)
            return False
    except (ProcessLookupError, OverflowError) as error:
        reraise_interrupt(error)
    except OSError as error:  # another user's process has the pid, or a seccomp filter refuses
        reraise_interrupt(error)
        return False
    return True


def file_at(path: bytes, *, keep_times: bool) -> tuple[tuple[int, int] | None, int]:
    """Return device and inode of the file at *path*, through symlinks, and its bytes.

    The result is None and 0 if there is no file. Raises OSError if that is unknown.

    Args:
        path: path without a NUL.
        keep_times: do not read the times, unlike `os.stat`. From Linux 6.13 on, the kernel records
            a new time at the next write after the times were read, and the sync after that takes
            half as long again. The first such call imports ctypes, which takes 2 ms.
    """
    found = _file_without_times(path) if keep_times else None
    if found is not None:
        return found
    try:
        stat = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        reraise_interrupt(error)
        return None, 0
    return (stat.st_dev, stat.st_ino), stat.st_size


def _file_without_times(path: bytes) -> tuple[tuple[int, int], int] | None:
    """Return what `file_at` does, without reading the times of the file.

    None: there is no file, it cannot be observed, libc or the container lacks statx(2), or ctypes
    cannot be imported. A commit does not fail because no descriptor is left for an import.
    """
    buffer = bytearray(_STATX.size)
    try:
        statx, address = _statx()
    except OSError as error:
        reraise_interrupt(error)
        return None
    if statx(AT_FDCWD, path, 0, STATX_INO | STATX_SIZE, address(buffer)):
        return None
    inode, size, major, minor = _STATX.unpack(buffer)
    return (os.makedev(major, minor), inode), size


@cache
def _statx() -> tuple[Callable[..., int], Callable[[bytearray], object]]:
    """Return statx(2), or a function that fails, and a function that returns its buffer."""
    call = getattr(_libc(), "statx", lambda *_: -1)
    import ctypes  # noqa: PLC0415

    answer = ctypes.c_char * _STATX.size
    return call, answer.from_buffer


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces. Raises OSError."""
    _call("unshare", flags, path=None)


def set_no_new_privs() -> None:
    """Let no program that the calling thread, or a child of it, executes gain privileges."""
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, path=None)


def setns(fd: int, flags: int) -> None:
    """Move the calling thread into the namespace open as *fd*. Raises OSError."""
    _call("setns", fd, flags, path=None)


def mount(source: str | bytes, target: str | bytes, kind: str, flags: int) -> None:
    """Mount *source* at *target*. Raises OSError with the target as its file name."""
    _call("mount", *map(os.fsencode, (source, target, kind)), flags, None, path=target)


def umount(target: str | bytes, flags: int) -> None:
    """Unmount *target*, following symlinks. Raises OSError with the target as its file name.

    The path is resolved again. To unmount a mount that was inspected before, hold it by a
    descriptor (O_PATH) and pass the path of that descriptor in /proc/thread-self/fd.
    """
    _call("umount2", os.fsencode(target), flags, path=target)


def inotify_init() -> int:
    """Return a descriptor of a new inotify instance, which never blocks. Raises OSError."""
    import ctypes  # noqa: PLC0415

    fd = _libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(fd)


def inotify_add_watch(fd: int, path: bytes, mask: int) -> int:
    """Watch the file at *path*; return the number of the watch, negative if it is refused.

    A file that is watched keeps its number.
    """
    return int(_libc().inotify_add_watch(fd, path, mask))


def _call(name: str, *args: object, path: str | bytes | None) -> None:
    call = getattr(_libc(), name)
    import ctypes  # noqa: PLC0415 - only changes of namespaces need it

    if call(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


@cache
def _libc() -> ctypes.CDLL:
    """Return the C library.

    Raises:
        OSError: ctypes cannot be imported: no descriptor is left for it.
    """
    try:
        import ctypes  # noqa: PLC0415
    except ImportError as error:  # of its shared object
        reraise_interrupt(error)
        raise OSError(errno.EMFILE, f"import ctypes: {error}") from error
    libc = ctypes.CDLL(None, use_errno=True)
    text, number, flags = ctypes.c_char_p, ctypes.c_int, ctypes.c_ulong
    libc.unshare.argtypes = [number]
    libc.setns.argtypes = [number, number]
    libc.prctl.argtypes = [number, flags, flags, flags, flags]
    libc.mount.argtypes = [text, text, text, flags, ctypes.c_void_p]
    libc.umount2.argtypes = [text, number]
    libc.inotify_init1.argtypes = [number]
    libc.inotify_add_watch.argtypes = [number, text, ctypes.c_uint32]
    with contextlib.suppress(AttributeError):  # a libc from before 2018
        libc.name_to_handle_at.argtypes = [number, text, ctypes.c_void_p, ctypes.c_void_p, number]
        libc.open_by_handle_at.argtypes = [number, text, number]
        libc.statx.argtypes = [number, text, number, ctypes.c_uint, ctypes.c_void_p]
    return libc
