"""Network namespaces: made, entered, removed, and looked at without touching them.

A namespace at a path is a mount of it onto a file, as `ip netns` and containerd make it. The path
is only a name: what it names is known by boot and kernel number (`NetNSIdentity`).

1. A look changes nothing. From another mount namespace a living one looks like an empty file, and
   whoever removes that file destroys it where it lives.
2. Everything runs in threads of its own, never in a forked child: a child would have the caller's
   SQLite connections. In a thread, /proc/thread-self is the right one, not /proc/self.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import fcntl
import os
import socket
import stat
import threading
import uuid
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeVar

from registry import kernel
from registry.errors import ClosedNetNSError, NetNSError
from registry.kernel import Vantage
from registry.values import check_path

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

BASE_DIR: Final = "/run/netns"


@dataclass(frozen=True, slots=True)
class NetNSIdentity:
    """Which network namespace it is, on one host for all time."""

    boot_id: str
    number: int | None
    """Kernel id (NS_GET_ID, or the same number as SO_NETNS_COOKIE); None where neither is had."""
    inode: int
    mount_ns: int | None
    """The mount namespace in which it was seen."""

    def same_as(self, other: NetNSIdentity) -> bool:
        """Whether both are one namespace, as far as can be told (see `by_inode_only`)."""
        if self.boot_id and other.boot_id and self.boot_id != other.boot_id:
            return False
        if self.by_inode_only(other):
            return self.inode == other.inode
        return self.number == other.number

    def by_inode_only(self, other: NetNSIdentity) -> bool:
        """Whether only the inode can tell the two apart, which the kernel may use again."""
        return self.number is None or other.number is None


class Presence(Enum):
    """What is at a path."""

    OPEN = "a network namespace"
    ABSENT = "nothing"
    NOT_A_NAMESPACE = "no namespace"
    OTHER_TYPE = "a namespace that is not one of the network"
    UNSEEN = "not to be seen"


@dataclass(frozen=True, slots=True)
class NetNSSight:
    """What a look at a path saw; *identity* only where a network namespace is."""

    presence: Presence
    identity: NetNSIdentity | None = None
    detail: str = ""
    errno: int = 0


def look(path: str, vantage: Vantage) -> NetNSSight:
    """Return what is at *path*, with no side effect and without raising for what is found.

    Only a regular file is opened: opening a fifo blocks, and opening a device acts.
    """
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return NetNSSight(Presence.ABSENT, detail=f"nothing is at {path!r}")
    except OSError as error:
        return _unseen(path, error)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return NetNSSight(Presence.NOT_A_NAMESPACE, detail=f"{path!r} is no namespace")
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(f"/proc/self/fd/{handle}", flags)
    except OSError as error:
        return _unseen(path, error)
    finally:
        os.close(handle)
    try:
        return _look_into(fd, path, vantage)
    except OSError as error:
        return _unseen(path, error)
    finally:
        os.close(fd)


def _look_into(fd: int, path: str, vantage: Vantage) -> NetNSSight:
    try:
        kind = fcntl.ioctl(fd, kernel.NS_GET_NSTYPE)
    except OSError as error:
        if error.errno not in {errno.ENOTTY, errno.EINVAL}:
            raise
        return NetNSSight(Presence.NOT_A_NAMESPACE, detail=f"{path!r} is no namespace")
    if kind != kernel.CLONE_NEWNET:
        return NetNSSight(
            Presence.OTHER_TYPE, detail=f"{path!r} is a namespace of type {kind:#x}, not net"
        )
    number = kernel.namespace_number(fd)
    identity = NetNSIdentity(
        boot_id=vantage.boot_id,
        number=_cookie(fd) if number is None else number,
        inode=os.fstat(fd).st_ino,
        mount_ns=vantage.mount_ns,
    )
    return NetNSSight(Presence.OPEN, identity, f"{path!r} is a network namespace")


def _unseen(path: str, error: OSError) -> NetNSSight:
    detail = f"{path!r} cannot be seen: {error.strerror}"
    return NetNSSight(Presence.UNSEEN, detail=detail, errno=error.errno or 0)


def _cookie(fd: int) -> int | None:
    """Return the cookie of a socket made inside; None where the kernel or a right is missing."""

    def inside() -> int:
        kernel.setns(fd, kernel.CLONE_NEWNET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            option = probe.getsockopt(socket.SOL_SOCKET, kernel.SO_NETNS_COOKIE, 8)
        return int.from_bytes(option, "little")

    try:
        return _in_thread(inside)
    except OSError:
        return None


def _in_thread(fn: Callable[[], T]) -> T:
    """Run *fn* in a thread that ends with it, and return its result or raise its exception.

    An interrupt of the caller waits until the thread has ended: what it does is half done before.
    """
    context = contextvars.copy_context()
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(context.run(fn))
        except BaseException as error:  # noqa: BLE001 - it is raised where it belongs
            failures.append(error)

    thread = threading.Thread(target=run, name="registry-netns")
    thread.start()
    interrupt: BaseException | None = None
    while thread.is_alive():
        try:
            thread.join()
        except BaseException as error:  # noqa: BLE001
            interrupt = error
    if interrupt is not None:
        raise interrupt
    if failures:
        raise failures[0]
    return results[0]


class NetNS:
    """A network namespace at a path.

    Source: containerd pkg/netns, NetNS; differs: it knows which namespace it stands for.
    """

    def __init__(self, path: str, identity: NetNSIdentity) -> None:
        """Stand for the namespace *identity* at *path*; use `create` or `load`."""
        self.path: Final = path
        self.identity: Final = identity

    def __repr__(self) -> str:
        """Show the path and the kernel's number."""
        return f"NetNS({self.path!r}, number={self.identity.number})"

    @classmethod
    def create(cls, path: str | None = None) -> NetNS:
        """Make a new network namespace, with its loopback up, at *path*.

        Args:
            path: absolute; nothing may be there. None: a fresh name in /run/netns, which no
                registry takes for its own.
        Raises:
            InvalidArgumentError: *path* is no absolute path.
            NetNSError: with `.errno`; nothing of it is left.
        """
        target = f"{BASE_DIR}/sr-{uuid.uuid4()}" if path is None else path
        doing = f"create network namespace {target!r}"
        check_path(doing, "path", target)
        try:
            _share(os.path.dirname(target))
            fd = os.open(target, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
            os.close(fd)
            try:
                _in_thread(lambda: _populate(target))
                return cls._seen(target)
            except BaseException:
                _undo(target)
                raise
        except OSError as error:
            raise _failed(doing, target, error) from error

    @classmethod
    def load(cls, path: str) -> NetNS:
        """Return the network namespace that is at *path*.

        Raises:
            ClosedNetNSError: none is there.
            NetNSError: with `.errno`; it cannot be seen.
        """
        check_path(f"load network namespace {path!r}", "path", path)
        return cls._seen(path)

    @classmethod
    def _seen(cls, path: str) -> NetNS:
        sight = look(path, Vantage.here())
        if sight.presence is Presence.UNSEEN:
            message = f"load network namespace {path!r}: {sight.detail}"
            raise NetNSError(message, path=path, errno=sight.errno)
        if sight.identity is None:
            raise _closed("load", path, sight.detail)
        return cls(path, sight.identity)

    @property
    def closed(self) -> bool:
        """Whether the namespace is no longer at its path; another one in its place is not it.

        Raises:
            NetNSError: with `.errno`; it cannot be seen.
        """
        return not self._at_its_path("look at")

    def _at_its_path(self, verb: str) -> bool:
        sight = look(self.path, Vantage.here())
        if sight.presence is Presence.UNSEEN:
            message = f"{verb} network namespace {self.path!r}: {sight.detail}"
            raise NetNSError(message, path=self.path, errno=sight.errno)
        return sight.identity is not None and sight.identity.same_as(self.identity)

    def do(self, fn: Callable[[], T]) -> T:
        """Run *fn* inside, in a thread of its own, and return its result or raise its exception.

        Raises:
            ClosedNetNSError: the namespace is no longer at its path.
            NetNSError: with `.errno`; it cannot be entered.
        """
        if not self._at_its_path("enter"):
            raise _closed("enter", self.path, "it was removed")

        def inside() -> T:
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    kernel.setns(fd, kernel.CLONE_NEWNET)
                finally:
                    os.close(fd)
            except OSError as error:
                raise _failed(f"enter network namespace {self.path!r}", self.path, error) from error
            return fn()

        return _in_thread(inside)

    def remove(self) -> None:
        """Unmount the namespace and remove its file; a second time does nothing.

        Another namespace at the path is left alone, and so is anything but an empty file.

        Raises:
            NetNSError: with `.errno`.
        """
        sight = look(self.path, Vantage.here())
        if sight.identity is not None and not sight.identity.same_as(self.identity):
            return
        try:
            if sight.identity is not None:
                kernel.umount(self.path, kernel.MNT_DETACH)
            _unlink_empty(self.path)
        except OSError as error:
            doing = f"remove network namespace {self.path!r}"
            raise _failed(doing, self.path, error) from error


def _share(directory: str) -> None:
    """Make *directory* a shared mount onto itself, as `ip netns` does, and wait for it if it does.

    Otherwise the next `ip netns add` does so, copies the mounts that are there, and removing ours
    ends in EBUSY.
    """
    os.makedirs(directory, 0o755, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            kernel.mount("", directory, "none", kernel.MS_SHARED | kernel.MS_REC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            kernel.mount(directory, directory, "none", kernel.MS_BIND | kernel.MS_REC)
            kernel.mount("", directory, "none", kernel.MS_SHARED | kernel.MS_REC)
    finally:
        os.close(fd)


def _populate(path: str) -> None:
    """Make the namespace, in the calling thread, and mount it onto the file at *path*."""
    from pyroute2 import IPRoute  # noqa: PLC0415 - 144 ms that only a creation needs

    kernel.unshare(kernel.CLONE_NEWNET)
    with IPRoute() as netlink:
        netlink.link("set", index=1, state="up")
    kernel.mount("/proc/thread-self/ns/net", path, "none", kernel.MS_BIND)


def _undo(path: str) -> None:
    with contextlib.suppress(OSError):
        kernel.umount(path, kernel.MNT_DETACH)
    with contextlib.suppress(OSError):
        os.unlink(path)


def _unlink_empty(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISREG(found.st_mode) and found.st_size == 0:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _closed(verb: str, path: str, why: str) -> ClosedNetNSError:
    return ClosedNetNSError(f"{verb} network namespace {path!r}: it is closed, {why}", path=path)


def _failed(doing: str, path: str, error: OSError) -> NetNSError:
    return NetNSError(f"{doing}: {error.strerror}", path=path, errno=error.errno or 0)
