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
import errno
import fcntl
import os
import socket
import stat
import threading
import uuid
from collections import Counter
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from registry import kernel, threads
from registry.errors import ClosedNetNSError, NetNSError
from registry.interrupts import reraise_interrupt, suppress_os_errors
from registry.kernel import Vantage
from registry.values import check_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

BASE_DIR: Final = "/run/netns"


class NetNSIdentity(NamedTuple):
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
    """What is at a path, and how that is said."""

    OPEN = "{!r} is a network namespace"
    ABSENT = "nothing is at {!r}"
    NOT_A_NAMESPACE = "{!r} is no namespace"
    OTHER_TYPE = "{!r} is a namespace of type"
    UNSEEN = "{!r} cannot be seen"


class NetNSSight(NamedTuple):
    """What a look at a path saw; *identity* only where a network namespace is."""

    path: str
    presence: Presence
    identity: NetNSIdentity | None = None
    errno: int = 0
    more: str = ""
    """What is known beside: which type, or why nothing can be seen."""

    @property
    def detail(self) -> str:
        """What was seen, for messages; not in advance, since of most nobody asks."""
        return self.presence.value.format(self.path) + self.more


def own_path(directory: str, registry_id: str) -> str:
    """Return a fresh path in *directory* that carries the registry's own name."""
    return os.path.join(directory, f"sr-{registry_id}-{uuid.uuid4()}")


def is_own_path(path: str, registry_id: str) -> bool:
    """Return whether *path* carries the registry's own name, as `own_path` returns it."""
    return os.path.basename(path).startswith(f"sr-{registry_id}-")


def encode(path: str) -> bytes:
    """Return the bytes that name the file at *path*: UTF-8, whatever the locale.

    A path is stored as text. Encoded by the locale, the same text would name another file in a
    process of another locale.

    Raises:
        ValueError: *path* has a NUL or a lone surrogate.
    """
    if "\0" in path:
        raise ValueError("embedded null byte")
    return path.encode()


def look(path: str, vantage: Vantage, *, follow: bool = True) -> NetNSSight:
    """Return what is at *path*, with no side effect and without raising for what is found.

    Args:
        path: of the namespace.
        vantage: from where the look is made.
        follow: whether a symlink as the last component is followed; else it is no namespace.
    """
    flags = kernel.AT_SYMLINK_FOLLOW if follow else 0
    try:
        found = kernel.namespace_at(encode(path), kernel.AT_FDCWD, flags)
    except ValueError as error:
        reraise_interrupt(error)
        return _unseen(path, error)
    if found is not None:
        return _sight(path, vantage, found.type, found.number, found.inode)
    with _opened(path, vantage, follow=follow) as (sight, _):
        return sight


class Looker:
    """Looks at each of many paths once."""

    def __init__(self, paths: Iterable[str], vantage: Vantage) -> None:
        """Note which paths may be asked for, each as often as it may be.

        Where the kernel tells namespaces apart only from inside, all are looked at now, in a thread
        that enters one after the other: a thread for each would take ten times as long.
        """
        self._vantage: Final = vantage
        times = Counter(paths)
        self._shared: Final = {path for path, count in times.items() if count > 1}
        """Of the others nothing is kept: they are many, and asked for once."""
        self._seen: Final[dict[str, NetNSSight]] = {}
        if times and not _kernel_has_numbers():
            with contextlib.suppress(threads.NoThreadError):
                self._seen.update(threads.run(lambda: self._roam(times)))

    def _roam(self, paths: Iterable[str]) -> dict[str, NetNSSight]:
        _this_thread.roams = True
        return {path: look(path, self._vantage) for path in paths}

    def look(self, path: str) -> NetNSSight:
        """Return what is at *path*, as `look`."""
        sight = self._seen.get(path)
        if sight is None:
            sight = look(path, self._vantage)
            if path in self._shared:
                self._seen[path] = sight
        return sight


def _kernel_has_numbers() -> bool:
    try:
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:  # no /proc
        reraise_interrupt(error)
        return False
    try:
        return kernel.namespace_number(fd) is not None
    finally:
        os.close(fd)


_this_thread: Final = threading.local()
"""`roams`: the thread may enter any network namespace, since nothing else is done in it."""


@contextmanager
def _opened(
    path: str, vantage: Vantage, *, follow: bool = True
) -> Iterator[tuple[NetNSSight, int]]:
    """Lend what is at *path* and a descriptor of it, -1 where it is no namespace."""
    fd = -1
    try:
        try:
            fd = _open(encode(path), follow=follow)
            if fd < 0:
                sight = NetNSSight(path, Presence.NOT_A_NAMESPACE)
            else:
                sight = _look_into(fd, path, vantage)
        except (OSError, ValueError) as error:
            reraise_interrupt(error)
            sight = _unseen(path, error)
        yield sight, fd
    finally:
        if fd >= 0:
            os.close(fd)


def _open(path: bytes, *, follow: bool) -> int:
    """Return a descriptor of the file at *path*; -1 for what is no regular file.

    Opening a fifo blocks, and opening a device acts.
    """
    if not stat.S_ISREG(os.stat(path, follow_symlinks=follow).st_mode):
        return -1
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    return os.open(path, flags | (0 if follow else os.O_NOFOLLOW))


def _unseen(path: str, error: OSError | ValueError) -> NetNSSight:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return NetNSSight(path, Presence.ABSENT)
    # A damaged record may have what no path can hold, a NUL.
    seen = error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))
    return NetNSSight(path, Presence.UNSEEN, None, seen.errno or 0, f": {seen.strerror}")


def _look_into(fd: int, path: str, vantage: Vantage) -> NetNSSight:
    try:
        kind = fcntl.ioctl(fd, kernel.NS_GET_NSTYPE)
    except OSError as error:
        reraise_interrupt(error)
        if error.errno not in {errno.ENOTTY, errno.EINVAL}:
            raise
        return NetNSSight(path, Presence.NOT_A_NAMESPACE)
    number = kernel.namespace_number(fd)
    if number is None and kind == kernel.CLONE_NEWNET:
        number = _cookie(fd)
    return _sight(path, vantage, kind, number, os.fstat(fd).st_ino)


def _sight(path: str, vantage: Vantage, kind: int, number: int | None, inode: int) -> NetNSSight:
    if kind != kernel.CLONE_NEWNET:
        return NetNSSight(path, Presence.OTHER_TYPE, more=f" {kind:#x}, not net")
    identity = NetNSIdentity(vantage.boot_id, number, inode, vantage.mount_ns)
    return NetNSSight(path, Presence.OPEN, identity)


def _cookie(fd: int) -> int | None:
    """Return the cookie of a socket made inside; None where the kernel or a right is missing."""

    def inside() -> int:
        kernel.setns(fd, kernel.CLONE_NEWNET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            option = probe.getsockopt(socket.SOL_SOCKET, kernel.SO_NETNS_COOKIE, 8)
        return int.from_bytes(option, "little")

    try:
        return inside() if getattr(_this_thread, "roams", False) else threads.run(inside)
    except OSError as error:  # which threads.NoThreadError is too
        reraise_interrupt(error)
        return None


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

        Its directory is made if it is missing, and becomes a shared mount onto itself, which stays:
        so does `ip netns`, which could not be used beside us otherwise.

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
        made: list[str] = []
        try:
            threads.run(lambda: _make(target, made))
            return cls._seen(target)
        except BaseException as error:
            for left in made:
                _undo(left)
            if isinstance(error, OSError):
                reraise_interrupt(error)
                raise _failed(doing, target, error) from error
            raise

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
        sight = look(self.path, Vantage.here())
        doing = f"look at network namespace {self.path!r}"
        return not _is_at(self.path, self.identity, sight, doing)

    def do(self, fn: Callable[[], T]) -> T:
        """Run *fn* inside, in a thread of its own, and return its result or raise its exception.

        Raises:
            ClosedNetNSError: the namespace is no longer at its path.
            NetNSError: with `.errno`; it cannot be entered.
        """
        doing = f"enter network namespace {self.path!r}"

        def inside() -> T:
            with _opened(self.path, Vantage.here()) as (sight, fd):
                if not _is_at(self.path, self.identity, sight, doing):
                    raise _closed("enter", self.path, "it was removed")
                try:
                    kernel.setns(fd, kernel.CLONE_NEWNET)
                except OSError as error:
                    reraise_interrupt(error)
                    raise _failed(doing, self.path, error) from error
            return fn()

        try:
            return threads.run(inside)
        except threads.NoThreadError as error:
            raise _failed(doing, self.path, error) from error

    def remove(self) -> None:
        """Unmount the namespace and remove its file; a second time does nothing.

        Another namespace at the path is left alone, and so is anything but an empty file.

        Raises:
            NetNSError: with `.errno`.
        """
        remove(self.path, self.identity)


def remove(path: str, identity: NetNSIdentity | None) -> None:
    """Remove the namespace at *path*, and the empty file that it is mounted on; or that file alone.

    Args:
        path: absolute.
        identity: which one it must be, any other is left alone; None: whichever is there.
    Raises:
        NetNSError: with `.errno`.
    """
    doing = f"remove network namespace {path!r}"
    try:
        with _locked(os.path.dirname(path)):
            vantage = Vantage.here()
            while _is_at(path, identity, sight := look(path, vantage), doing):
                kernel.umount(path, kernel.MNT_DETACH)
            if sight.presence is Presence.NOT_A_NAMESPACE:
                _unlink_empty(path)
    except FileNotFoundError as error:
        reraise_interrupt(error)
        return  # its directory is gone
    except ValueError as error:
        reraise_interrupt(error)
        raise _failed(doing, path, OSError(errno.EINVAL, str(error))) from error
    except OSError as error:
        reraise_interrupt(error)
        raise _failed(doing, path, error) from error


def _is_at(path: str, identity: NetNSIdentity | None, sight: NetNSSight, doing: str) -> bool:
    """Whether the *sight* at *path* is of the namespace *identity*, or of any if that is None.

    Raises:
        NetNSError: with `.errno`; nothing was to be seen.
    """
    if sight.presence is Presence.UNSEEN:
        raise NetNSError(f"{doing}: {sight.detail}", path=path, errno=sight.errno)
    if sight.identity is None:
        return False
    return identity is None or sight.identity.same_as(identity)


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Hold the lock by which `ip netns` too keeps others from changing *directory* meanwhile."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _make(path: str, made: list[str]) -> None:
    """Make a namespace, in the calling thread, and mount it at *path*, which is put into *made*."""
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415 - 144 ms that only this needs

    kernel.unshare(kernel.CLONE_NEWNET)
    try:
        with IPRoute() as netlink:
            netlink.link("set", index=1, state="up")
    except NetlinkError as error:
        raise OSError(error.code, f"loopback: {os.strerror(error.code)}") from error
    directory = os.path.dirname(path)
    os.makedirs(directory, 0o755, exist_ok=True)
    with _locked(directory):
        _share(directory)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        made.append(path)
        kernel.mount("/proc/thread-self/ns/net", path, "none", kernel.MS_BIND)


def _share(directory: str) -> None:
    """Make *directory* a shared mount onto itself, as `ip netns` does.

    Otherwise the next `ip netns add` does so, copies the mounts that are there, and removing ours
    ends in EBUSY.
    """
    try:
        kernel.mount("", directory, "none", kernel.MS_SHARED | kernel.MS_REC)
    except OSError as error:
        reraise_interrupt(error)
        if error.errno != errno.EINVAL:
            raise
        kernel.mount(directory, directory, "none", kernel.MS_BIND | kernel.MS_REC)
        kernel.mount("", directory, "none", kernel.MS_SHARED | kernel.MS_REC)


def _undo(path: str) -> None:
    with suppress_os_errors():
        kernel.umount(path, kernel.MNT_DETACH)
    with suppress_os_errors():
        os.unlink(path)


def _unlink_empty(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError as error:
        reraise_interrupt(error)
        return
    if stat.S_ISREG(found.st_mode) and found.st_size == 0:
        try:
            os.unlink(path)
        except FileNotFoundError as error:
            reraise_interrupt(error)


def _closed(verb: str, path: str, why: str) -> ClosedNetNSError:
    return ClosedNetNSError(f"{verb} network namespace {path!r}: it is closed, {why}", path=path)


def _failed(doing: str, path: str, error: OSError) -> NetNSError:
    return NetNSError(f"{doing}: {error.strerror}", path=path, errno=error.errno or 0)
