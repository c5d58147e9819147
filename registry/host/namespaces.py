"""Network namespaces at paths: which one is there, found out without side effects.

A namespace at a path is a mount of it onto a file, as `ip netns` and containerd make it. The path
is only a name: the namespace is identified by boot and kernel number (`NetNSIdentity`).

From another mount namespace a living one looks like an empty file, and removing that file destroys
the namespace where it lives. So an observation changes nothing, and what cannot be seen is UNSEEN.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import stat
import threading
from collections import Counter
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from registry.errors import NetNSError
from registry.host import kernel
from registry.host.context import HostContext
from registry.model.identity import NetNSIdentity
from registry.sync import threads
from registry.sync.interrupts import reraise_interrupt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def is_elsewhere(identity: NetNSIdentity, context: HostContext) -> bool:
    """Return whether *identity* may still be mounted in the mount namespace that was recorded.

    False if that is the mount namespace of *context*, and if the network namespace is known to be
    gone.
    """
    if identity.mount_ns in {None, context.mount_ns}:
        return False
    exists = None
    if identity.number is not None:
        exists = kernel.namespace_exists(identity.number, kernel.CLONE_NEWNET, identity.inode)
    # A reboot ends every mount namespace. A network namespace that exists contradicts a reboot.
    is_other_boot = identity.is_of_other_boot(context.boot_id)
    return exists is True if is_other_boot else exists is not False


def was_observed_elsewhere(identity: NetNSIdentity, context: HostContext) -> bool:
    """Return whether *identity* was observed, on this boot, in another mount namespace."""
    here = identity.mount_ns in {None, context.mount_ns}
    return not (here or identity.is_of_other_boot(context.boot_id))


class Presence(Enum):
    """Kind of object at a path, with its text for messages."""

    OPEN = "{!r} is a network namespace"
    ABSENT = "nothing is at {!r}"
    NOT_A_NAMESPACE = "{!r} is no namespace"
    OTHER_TYPE = "{!r} is a namespace of type"
    UNSEEN = "{!r} cannot be seen"


class NetNSObservation(NamedTuple):
    """Observation of a path; *identity* is None unless a network namespace is there."""

    path: str
    presence: Presence
    identity: NetNSIdentity | None = None
    errno: int = 0
    more: str = ""
    """Further text: the type of the namespace, or why the path cannot be observed."""

    @property
    def detail(self) -> str:
        """Text of the observation for messages, formatted on demand: few are ever shown."""
        return self.presence.value.format(self.path) + self.more


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


def observe(path: str, context: HostContext, *, follow: bool = True) -> NetNSObservation:
    """Return what is at *path*, with no side effect and without raising for what is found.

    Args:
        path: of the namespace.
        context: host context of the observation.
        follow: whether a symlink as the last component is followed; else it is no namespace.
    """
    flags = kernel.AT_SYMLINK_FOLLOW if follow else 0
    try:
        found = kernel.namespace_at(encode(path), kernel.AT_FDCWD, flags)
    except ValueError as error:
        reraise_interrupt(error)
        return _unseen(path, error)
    if found is not None:
        return _observation(path, context, found.type, found.number, found.inode)
    with opened(path, context, follow=follow) as (observed, _):
        return observed


def observe_held(fd: int, path: str, context: HostContext) -> NetNSObservation:
    """Return what is held by the descriptor *fd*, which may be opened with O_PATH.

    Raises:
        OSError: it cannot be seen.
    """
    found = kernel.namespace_at(b"", fd, kernel.AT_EMPTY_PATH)
    if found is not None:
        return _observation(path, context, found.type, found.number, found.inode)
    # All namespaces lie in one file system. So a file beneath a mount is known without a further
    # descriptor; without one that is free, a removal would stop half-way.
    if os.fstat(fd).st_dev != os.stat("/proc/thread-self/ns/net").st_dev:
        return NetNSObservation(path, Presence.NOT_A_NAMESPACE)
    opened = os.open(path_of(fd), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return _observe_fd(opened, path, context)
    finally:
        os.close(opened)


def may_be_at(path: str) -> bool:
    """Return whether *path* leads into the file system of all namespaces.

    It takes one system call where nothing is at the path. False where it cannot be observed.
    """
    try:
        # Without an exception where nothing is at the path: it is asked after each write.
        if not os.access(encode(path), os.F_OK, effective_ids=True):
            return False
        device = os.stat(encode(path)).st_dev
    except (OSError, ValueError) as error:
        reraise_interrupt(error)
        return False
    return _namespace_device() in {device, None}


@functools.cache
def _namespace_device() -> int | None:
    """Return the device number of all namespaces, fixed while the kernel runs; None: unknown."""
    try:
        return os.stat("/proc/thread-self/ns/net").st_dev
    except OSError as error:
        reraise_interrupt(error)
        return None


def path_of(fd: int) -> str:
    """Return the path that leads to exactly what is open as *fd*, wherever that was moved."""
    return f"/proc/thread-self/fd/{fd}"


class Observer:
    """Looks at each of many paths once."""

    def __init__(self, paths: Iterable[str], context: HostContext) -> None:
        """Note which paths may be asked for, each as often as it may be.

        Where the kernel tells namespaces apart only from inside, all are looked at now, in a thread
        that enters one after the other: a thread for each would take ten times as long.
        """
        self._context: Final = context
        times = Counter(paths)
        self._shared: Final = {path for path, count in times.items() if count > 1}
        """Of the others nothing is kept: they are many, and asked for once."""
        self._seen: Final[dict[str, NetNSObservation]] = {}
        if times and kernel.namespace_number_at("/proc/thread-self/ns/net") is None:
            with contextlib.suppress(threads.NoThreadError):
                self._seen.update(threads.run(lambda: self._roam(times)))

    def _roam(self, paths: Iterable[str]) -> dict[str, NetNSObservation]:
        _this_thread.roams = True
        return {path: observe(path, self._context) for path in paths}

    def observe(self, path: str) -> NetNSObservation:
        """Return what is at *path*, as `look`."""
        observed = self._seen.get(path)
        if observed is None:
            observed = observe(path, self._context)
            if path in self._shared:
                self._seen[path] = observed
        return observed


_THROUGH_PROCESS: Final = r"/proc/([0-9]+)/([^/]+)/"

_this_thread: Final = threading.local()
"""`roams`: the thread may enter any network namespace, since nothing else is done in it."""


@contextmanager
def opened(
    path: str, context: HostContext, *, follow: bool = True
) -> Iterator[tuple[NetNSObservation, int]]:
    """Lend what is at *path* and a descriptor of it, -1 where it is no namespace."""
    fd = -1
    try:
        try:
            fd = _open(encode(path), follow=follow)
            if fd < 0:
                observed = NetNSObservation(path, Presence.NOT_A_NAMESPACE)
            else:
                observed = _observe_fd(fd, path, context)
        except (OSError, ValueError) as error:
            reraise_interrupt(error)
            observed = _unseen(path, error)
        yield observed, fd
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


def _unseen(path: str, error: OSError | ValueError) -> NetNSObservation:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return absent(path)
    seen = _of_system(error)
    return NetNSObservation(path, Presence.UNSEEN, None, seen.errno or 0, f": {seen.strerror}")


def absent(path: str) -> NetNSObservation:
    """Return what a look saw that found nothing at *path*.

    /proc/PID/ns/net ends with the process, but hidepid= hides a living one. Any other path through
    a process, /proc/PID/root/... say, leads to what may outlive the process.
    """
    through = re.match(_THROUGH_PROCESS, path)
    if through is None:
        return NetNSObservation(path, Presence.ABSENT)
    pid, way = through.groups()
    if way == "ns":
        closed = os.path.lexists(f"/proc/{pid}") or kernel.is_absent(int(pid))
        why = f": process {pid} is hidden from us"
    else:
        closed = os.path.exists(f"/proc/{pid}/{way}")
        why = f": process {pid}, through which it leads, is gone or hidden from us"
    if closed:
        return NetNSObservation(path, Presence.ABSENT)
    return NetNSObservation(path, Presence.UNSEEN, None, errno.ESRCH, why)


def _observe_fd(fd: int, path: str, context: HostContext) -> NetNSObservation:
    try:
        kind = fcntl.ioctl(fd, kernel.NS_GET_NSTYPE)
    except OSError as error:
        reraise_interrupt(error)
        if error.errno not in {errno.ENOTTY, errno.EINVAL}:
            raise
        return NetNSObservation(path, Presence.NOT_A_NAMESPACE)
    number = kernel.namespace_number(fd)
    if number is None and kind == kernel.CLONE_NEWNET:
        number = _cookie(fd)
    return _observation(path, context, kind, number, os.fstat(fd).st_ino)


def _observation(
    path: str, context: HostContext, kind: int, number: int | None, inode: int
) -> NetNSObservation:
    if kind != kernel.CLONE_NEWNET:
        return NetNSObservation(path, Presence.OTHER_TYPE, more=f" {kind:#x}, not net")
    identity = NetNSIdentity(context.boot_id, number, inode, context.mount_ns)
    return NetNSObservation(path, Presence.OPEN, identity)


def _cookie(fd: int) -> int | None:
    """Return the cookie of a socket made inside; None where the kernel or a right is missing."""

    def inside() -> int:
        import socket  # noqa: PLC0415 - 6 ms that only a kernel before Linux 6.18 makes necessary

        kernel.setns(fd, kernel.CLONE_NEWNET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            option = probe.getsockopt(socket.SOL_SOCKET, kernel.SO_NETNS_COOKIE, 8)
        return int.from_bytes(option, "little")

    try:
        return inside() if getattr(_this_thread, "roams", False) else threads.run(inside)
    except (OSError, ImportError) as error:  # threads.NoThreadError is an OSError too
        reraise_interrupt(error)
        return None


def own_identity(path: str) -> NetNSIdentity:
    """Return which network namespace the calling thread is in, which does nothing else."""
    _this_thread.roams = True
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        identity = _observe_fd(fd, path, HostContext.current()).identity
    finally:
        os.close(fd)
    assert identity is not None
    return identity


def is_at(
    identity: NetNSIdentity | None, observed: NetNSObservation, context: HostContext, doing: str
) -> bool:
    """Return whether *observed* is of the namespace *identity*; None: of any namespace.

    Raises:
        NetNSError: with `.errno`; it cannot be told: nothing can be seen, or, EXDEV, the namespace
            was recorded in another mount namespace and may still be at the path there.
    """
    if observed.presence is Presence.UNSEEN:
        raise NetNSError(f"{doing}: {observed.detail}", path=observed.path, errno=observed.errno)
    if identity is None or (observed.identity is not None and identity.same_as(observed.identity)):
        return observed.identity is not None
    if is_elsewhere(identity, context):
        ours = context.mount_ns or "unknown"
        another = ", another one" if observed.identity is not None else ""
        raise NetNSError(
            f"{doing}: it was recorded in mount namespace {identity.mount_ns}, and in ours "
            f"({ours}) {observed.detail}{another}; do it in that mount namespace, `nsenter --mount "
            "--target PID` enters it",
            path=observed.path,
            errno=errno.EXDEV,
        )
    return False


def failed(doing: str, path: str, error: OSError | ValueError) -> NetNSError:
    """Return the error of a call that begins its messages with *doing*, caused by *error*."""
    seen = _of_system(error)
    named = f": {seen.filename!r}" if str(seen.filename).startswith("/proc/") else ""
    return NetNSError(f"{doing}: {seen.strerror}{named}", path=path, errno=seen.errno or 0)


def _of_system(error: OSError | ValueError) -> OSError:
    """Return *error* as an OSError; a ValueError says that a path has what no path can, a NUL."""
    return error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))
