"""Network namespaces: made, entered, removed, and looked at without touching them.

A namespace at a path is a mount of it onto a file, as `ip netns` and containerd make it. The path
is only a name: what it names is known by boot and kernel number (`NetNSIdentity`).

1. A look changes nothing. From another mount namespace a living one looks like an empty file, and
   whoever removes that file destroys it where it lives.
2. What is removed is held. umount(2) follows symlinks and a path may lead elsewhere a moment later,
   so the directory and the entry in it are opened once, and the namespace is compared and unmounted
   through that descriptor.
3. Everything runs in threads of its own, never in a forked child: a child would have the caller's
   SQLite connections. In a thread, /proc/thread-self is the right one, not /proc/self.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import stat
import threading
import uuid
from collections import Counter
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from registry import kernel, mounts, threads
from registry.errors import ClosedNetNSError, NetNSError
from registry.interrupts import reraise_interrupt, suppress_os_errors
from registry.kernel import Vantage
from registry.values import check_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

log = logging.getLogger("registry")

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
        """Return whether both are one namespace, as far as can be told (see `by_inode_only`).

        A boot id that differs proves nothing by itself: containers of LXC and nspawn show another
        one. Number and inode that are both the same outweigh it. An inode alone does not, since
        every boot hands out the same ones.
        """
        if self.by_inode_only(other):
            return self.inode == other.inode and not self._of_other_boot(other.boot_id)
        if self.number != other.number:
            return False
        return self.inode == other.inode or not self._of_other_boot(other.boot_id)

    def by_inode_only(self, other: NetNSIdentity) -> bool:
        """Whether only the inode can tell the two apart, which the kernel may use again."""
        return self.number is None or other.number is None

    def is_elsewhere(self, vantage: Vantage) -> bool:
        """Return whether it may still be mounted in the mount namespace in which it was seen.

        False where that is the one of *vantage*, and where the namespace is known to be gone.
        """
        if self.mount_ns in {None, vantage.mount_ns}:
            return False
        exists = None
        if self.number is not None:
            exists = kernel.namespace_exists(self.number, kernel.CLONE_NEWNET, self.inode)
        # A reboot ends every mount namespace; that the namespace exists contradicts a reboot.
        return exists is True if self._of_other_boot(vantage.boot_id) else exists is not False

    def was_seen_elsewhere(self, vantage: Vantage) -> bool:
        """Return whether it was seen, on this boot, in another mount namespace than *vantage*."""
        here = self.mount_ns in {None, vantage.mount_ns}
        return not (here or self._of_other_boot(vantage.boot_id))

    def _of_other_boot(self, boot_id: str) -> bool:
        return bool(self.boot_id and boot_id) and self.boot_id != boot_id


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

    A path is stored as text. By the encoding of the locale (`os.fsencode`) the same text would name
    another file in a process of another locale, and a living namespace would be taken for closed.

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


def _look_held(fd: int, path: str, vantage: Vantage) -> NetNSSight:
    """Return what is held by the descriptor *fd*, which may be opened with O_PATH.

    Raises:
        OSError: it cannot be seen.
    """
    found = kernel.namespace_at(b"", fd, kernel.AT_EMPTY_PATH)
    if found is not None:
        return _sight(path, vantage, found.type, found.number, found.inode)
    # All namespaces lie in one file system. So a file beneath a mount is known without a further
    # descriptor, for want of which a removal would stop half-way.
    if os.fstat(fd).st_dev != os.stat("/proc/thread-self/ns/net").st_dev:
        return NetNSSight(path, Presence.NOT_A_NAMESPACE)
    opened = os.open(_path_of(fd), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return _look_into(opened, path, vantage)
    finally:
        os.close(opened)


def _path_of(fd: int) -> str:
    """Return the path that leads to exactly what is open as *fd*, wherever that was moved."""
    return f"/proc/thread-self/fd/{fd}"


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
        if times and kernel.namespace_number_at("/proc/thread-self/ns/net") is None:
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


_THROUGH_PROCESS: Final = re.compile(r"/proc/([0-9]+)/([^/]+)/")

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
        return _absent(path)
    seen = _of_system(error)
    return NetNSSight(path, Presence.UNSEEN, None, seen.errno or 0, f": {seen.strerror}")


def _absent(path: str) -> NetNSSight:
    """Return what a look saw that found nothing at *path*.

    /proc/PID/ns/net ends with the process, but hidepid= hides a living one. Any other path through
    a process, /proc/PID/root/... say, leads to what may outlive the process.
    """
    through = _THROUGH_PROCESS.match(path)
    if through is None:
        return NetNSSight(path, Presence.ABSENT)
    pid, way = through.groups()
    if way == "ns":
        closed = os.path.lexists(f"/proc/{pid}") or kernel.is_absent(int(pid))
        why = f": process {pid} is hidden from us"
    else:
        closed = os.path.exists(f"/proc/{pid}/{way}")
        why = f": process {pid}, through which it leads, is gone or hidden from us"
    if closed:
        return NetNSSight(path, Presence.ABSENT)
    return NetNSSight(path, Presence.UNSEEN, None, errno.ESRCH, why)


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
            path: absolute, UTF-8 in every locale; nothing may be there. None: a fresh name in
                /run/netns, which no registry takes for its own.
        Raises:
            InvalidArgumentError: *path* is no absolute path.
            NetNSError: with `.errno`; nothing of it is left.
        """
        target = f"{BASE_DIR}/sr-{uuid.uuid4()}" if path is None else path
        doing = f"create network namespace {target!r}"
        check_path(doing, "path", target)
        made: list[NetNSIdentity] = []
        try:
            threads.run(lambda: made.append(_make(target)))
            return cls(target, made[0])
        except BaseException as error:
            for identity in made:
                with contextlib.suppress(NetNSError):
                    remove(target, identity)
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
            NetNSError: with `.errno`; it cannot be seen, or, EXDEV, not from here, another mount
                namespace.
        """
        vantage = Vantage.here()
        doing = f"look at network namespace {self.path!r}"
        return not is_at(self.identity, look(self.path, vantage), vantage, doing)

    def do(self, fn: Callable[[], T]) -> T:
        """Run *fn* inside, in a thread of its own, and return its result or raise its exception.

        Raises:
            ClosedNetNSError: the namespace is no longer at its path.
            NetNSError: with `.errno`; it cannot be entered, or, EXDEV, not from here, another mount
                namespace.
        """
        doing = f"enter network namespace {self.path!r}"

        def inside() -> T:
            vantage = Vantage.here()
            with _opened(self.path, vantage) as (sight, fd):
                if not is_at(self.identity, sight, vantage, doing):
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

        Another namespace at the path is left alone, and so is anything but an empty file. So is the
        namespace of a process (/proc/PID/ns/net), which lasts as long as the process.

        Raises:
            NetNSError: with `.errno`, see `remove`.
        """
        remove(self.path, self.identity)


def is_at(identity: NetNSIdentity | None, sight: NetNSSight, vantage: Vantage, doing: str) -> bool:
    """Return whether *sight* is of the namespace *identity*, or of any namespace if that is None.

    Raises:
        NetNSError: with `.errno`; it cannot be told: nothing can be seen, or, EXDEV, the namespace
            was recorded in another mount namespace and may still be at the path there.
    """
    if sight.presence is Presence.UNSEEN:
        raise NetNSError(f"{doing}: {sight.detail}", path=sight.path, errno=sight.errno)
    if identity is None or (sight.identity is not None and identity.same_as(sight.identity)):
        return sight.identity is not None
    if identity.is_elsewhere(vantage):
        ours = vantage.mount_ns or "unknown"
        another = ", another one" if sight.identity is not None else ""
        raise NetNSError(
            f"{doing}: it was recorded in mount namespace {identity.mount_ns}, and in ours "
            f"({ours}) {sight.detail}{another}; do it in that mount namespace, `nsenter --mount "
            "--target PID` enters it",
            path=sight.path,
            errno=errno.EXDEV,
        )
    return False


# Removing.


def remove(path: str, identity: NetNSIdentity | None, *, own: bool = False) -> None:
    """Remove the namespace at *path*, and the empty file that it is mounted on; or that file alone.

    Nothing is removed through a symlink. The namespace of a process, /proc/PID/ns/net, lasts as
    long as the process: there is nothing to remove. An empty file is left where another mount
    namespace is seen to have another namespace mounted on it.

    Args:
        path: absolute.
        identity: which namespace it must be, any other is left alone; None: it was not recorded.
        own: whether *path* carries the registry's own name. What is at such a path is the
            registry's, also where *identity* is None; at any other it may be a stranger's.
    Raises:
        NetNSError: with `.errno`: EXDEV: it was recorded in another mount namespace, or another one
            has it mounted; EEXIST: it was not recorded which one it is, and *path* is not the
            registry's own; ELOOP: a symlink leads to it; or what the kernel said.
    """
    doing = f"remove network namespace {path!r}"
    removal = _Removal(path, identity, own, Vantage.here(), doing)
    try:
        name = encode(path)
        with contextlib.ExitStack() as stack:
            try:
                directory = stack.enter_context(_locked(os.path.dirname(name)))
            except (FileNotFoundError, NotADirectoryError) as error:
                reraise_interrupt(error)
                removal.is_wanted(_absent(path))
            else:
                removal.run(directory, os.path.basename(name))
    except (OSError, ValueError) as error:
        reraise_interrupt(error)
        raise _failed(doing, path, error) from error


class _Removal(NamedTuple):
    """Removal of one namespace, with the arguments of `remove`."""

    path: str
    identity: NetNSIdentity | None
    own: bool
    vantage: Vantage
    doing: str

    def run(self, directory: int, name: bytes) -> None:
        """Remove it from the entry *name* of the open *directory*."""
        if _is_of_process(directory, name):
            log.info("%s: nothing to remove, it lasts as long as its process", self.doing)
            return
        unmounted = self._unmount(directory, name)
        self._unlink(directory, name, unmounted=unmounted)

    def is_wanted(self, sight: NetNSSight) -> bool:
        """Return whether *sight* is of the namespace to be removed.

        Raises:
            NetNSError: it cannot be told.
        """
        if self.identity is None and not self.own and sight.identity is not None:
            raise self._error(
                f"{sight.detail}, but it was not recorded which one is the sandbox's; if it is "
                f"this one, remove it by NetNS.load({self.path!r}).remove()",
                errno.EEXIST,
            )
        return is_at(self.identity, sight, self.vantage, self.doing)

    def _error(self, why: str, code: int) -> NetNSError:
        return NetNSError(f"{self.doing}: {why}", path=self.path, errno=code)

    def _unmount(self, directory: int, name: bytes) -> bool:
        """Unmount it as often as it is mounted there, and return whether it was."""
        unmounted = refused = False
        while True:
            with _held(directory, name) as fd:
                sight = self._look(fd)
                if unmounted and self.identity is not None:
                    # What lay beneath; the mount namespace no longer matters.
                    there = sight.identity
                    wanted = there is not None and self.identity.same_as(there)
                else:
                    wanted = self.is_wanted(sight)
                if not wanted:
                    return unmounted
                try:
                    # The mount that is held, whatever the path leads to by now.
                    kernel.umount(_path_of(fd), kernel.MNT_DETACH)
                except OSError as error:
                    reraise_interrupt(error)
                    # EINVAL: another process has unmounted it meanwhile; or else again.
                    if error.errno != errno.EINVAL or refused:
                        raise
                    refused = True
                else:
                    unmounted, refused = True, False

    def _look(self, fd: int) -> NetNSSight:
        """Return what is at the held entry *fd*, a symlink not followed.

        Raises:
            NetNSError: a symlink leads to the namespace to be removed.
        """
        if fd < 0:
            return NetNSSight(self.path, Presence.ABSENT)
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            return _look_held(fd, self.path, self.vantage)
        if self.identity is not None and self.is_wanted(look(self.path, self.vantage)):
            raise self._error(
                "a symlink leads to it, and nothing is unmounted through one; remove the namespace "
                "by the path at which it is mounted, then the symlink",
                errno.ELOOP,
            )
        return NetNSSight(self.path, Presence.NOT_A_NAMESPACE)

    def _unlink(self, directory: int, name: bytes, *, unmounted: bool) -> None:
        """Remove the entry if it is an empty file on which nothing is mounted.

        Args:
            directory: open.
            name: of the entry.
            unmounted: whether the namespace to be removed was mounted on it.
        """
        with _held(directory, name) as fd:
            if self._look(fd).presence is not Presence.NOT_A_NAMESPACE or not _is_empty(fd):
                return
            if not (unmounted or self._may_unlink(fd)):
                return
            try:
                there = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if os.path.samestat(there, os.fstat(fd)):
                    os.unlink(name, dir_fd=directory)
            except FileNotFoundError as error:
                reraise_interrupt(error)

    def _may_unlink(self, fd: int) -> bool:
        """Return whether the empty file *fd* is no stranger's mount point, as far as can be seen.

        Raises:
            NetNSError: it cannot be told.
        """
        if self.identity is None and not self.own:
            raise self._error(
                "an empty file is there, on which another mount namespace may have a network "
                "namespace mounted; remove it by hand if it is left over",
                errno.EEXIST,
            )
        elsewhere = self.identity is not None and self.identity.was_seen_elsewhere(self.vantage)
        if elsewhere and not self.own:
            return False
        for point in mounts.points_elsewhere(fd):
            if self.identity is None:
                raise self._error(
                    f"another mount namespace has something mounted on it, at {point!r}; remove it "
                    "there if it is this sandbox's",
                    errno.EXDEV,
                )
            if not self.is_wanted(look(point, self.vantage)):
                return False
        return True


def _is_of_process(directory: int, name: bytes) -> bool:
    """Return whether the entry is that of a process's namespace, /proc/PID/ns/net."""
    try:
        return os.readlink(name, dir_fd=directory).startswith(b"net:[")
    except OSError as error:
        reraise_interrupt(error)
        return False


def _is_empty(fd: int) -> bool:
    """Return whether *fd* is of an empty regular file."""
    found = os.fstat(fd)
    return stat.S_ISREG(found.st_mode) and found.st_size == 0


@contextmanager
def _held(directory: int, name: bytes) -> Iterator[int]:
    """Lend a descriptor of the entry *name* of the open *directory*; -1 where there is none.

    It is of the entry itself: a symlink is not followed. Of a mount point it is what is mounted on
    top.
    """
    fd = -1
    try:
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError as error:
            reraise_interrupt(error)
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)


@contextmanager
def _locked(directory: bytes) -> Iterator[int]:
    """Lend *directory*, opened, under the lock by which `ip netns` too changes it."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


# Making.


def _make(path: str) -> NetNSIdentity:
    """Make a namespace, in the calling thread, mount it at *path*, and return which it is.

    Raises:
        OSError: nothing of it is left.
    """
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415 - 144 ms that only this needs

    kernel.unshare(kernel.CLONE_NEWNET)
    try:
        with IPRoute() as netlink:
            netlink.link("set", index=1, state="up")
    except NetlinkError as error:
        raise OSError(error.code, f"loopback: {os.strerror(error.code)}") from error
    identity = _own_identity(path)
    name = encode(path)
    directory = os.path.dirname(name)
    os.makedirs(directory, 0o755, exist_ok=True)
    with _locked(directory):
        _share(directory)
        # Opened again: the descriptor from before lies beneath the mount that it has become.
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _mount(fd, os.path.basename(name))
        finally:
            os.close(fd)
    return identity


def _own_identity(path: str) -> NetNSIdentity:
    """Return which network namespace the calling thread is in, which does nothing else."""
    _this_thread.roams = True
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        identity = _look_into(fd, path, Vantage.here()).identity
    finally:
        os.close(fd)
    assert identity is not None
    return identity


def _mount(directory: int, name: bytes) -> None:
    """Make the file *name* in the open *directory*, and mount the thread's namespace on it."""
    flags = os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(name, flags, 0o444, dir_fd=directory)
    try:
        kernel.mount("/proc/thread-self/ns/net", _path_of(fd), "none", kernel.MS_BIND)
    except BaseException:
        with suppress_os_errors():
            there = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if os.path.samestat(there, os.fstat(fd)):
                os.unlink(name, dir_fd=directory)
        raise
    finally:
        os.close(fd)


def _share(directory: bytes) -> None:
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


def _closed(verb: str, path: str, why: str) -> ClosedNetNSError:
    return ClosedNetNSError(f"{verb} network namespace {path!r}: it is closed, {why}", path=path)


def _failed(doing: str, path: str, error: OSError | ValueError) -> NetNSError:
    seen = _of_system(error)
    named = f": {seen.filename!r}" if str(seen.filename).startswith("/proc/") else ""
    return NetNSError(f"{doing}: {seen.strerror}{named}", path=path, errno=seen.errno or 0)


def _of_system(error: OSError | ValueError) -> OSError:
    """Return *error* as an OSError; a ValueError says that a path has what no path can, a NUL."""
    return error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))
