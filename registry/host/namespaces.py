"""Observation of the network namespaces at paths, without side effects.

A namespace at a path is mounted on a file, as `ip netns` and containerd do. The path is only a
name: the namespace is identified by boot and kernel number (`NetNSIdentity`).

In another mount namespace an existing namespace looks like an empty file, and removing that file
destroys the namespace. Therefore an observation changes nothing, and its result is UNSEEN if it is
uncertain.
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

    Return False if that is the mount namespace of *context*, or if the network namespace is known
    to be gone.
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
    """Return *path* in UTF-8, whatever the locale.

    A path is stored as text. In the encoding of the locale (`os.fsencode`) the same text would name
    another file in a process of another locale, and an open namespace would seem closed.

    Raises:
        ValueError: *path* has a NUL or a lone surrogate.
    """
    if "\0" in path:
        raise ValueError("embedded null byte")
    return path.encode()


def observe(path: str, context: HostContext, *, follow: bool = True) -> NetNSObservation:
    """Observe *path*, without side effects; an error of the system is part of the result.

    Args:
        path: path of the namespace.
        context: host context of the observation.
        follow: follow a symlink as the last component; if False, it is not a namespace.
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
    """Observe the object of the descriptor *fd*, which may be opened with O_PATH.

    Raises:
        OSError: the object cannot be observed.
    """
    found = kernel.namespace_at(b"", fd, kernel.AT_EMPTY_PATH)
    if found is not None:
        return _observation(path, context, found.type, found.number, found.inode)
    # All namespaces lie in one file system, so a file beneath a mount is recognised without another
    # descriptor: a removal must not fail half-way if no descriptor is left.
    if os.fstat(fd).st_dev != os.stat("/proc/thread-self/ns/net").st_dev:
        return NetNSObservation(path, Presence.NOT_A_NAMESPACE)
    opened = os.open(path_of(fd), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return _observe_fd(opened, path, context)
    finally:
        os.close(opened)


def may_be_at(path: str) -> bool:
    """Return whether *path* leads into the file system of all namespaces.

    One system call suffices if nothing is at the path. Return False if it cannot be observed.
    """
    try:
        # access() raises no exception if nothing is at the path; each write calls this.
        if _access_works() and not os.access(encode(path), os.F_OK, effective_ids=True):
            return False
        device = os.stat(encode(path)).st_dev
    except (OSError, ValueError) as error:
        reraise_interrupt(error)
        return False
    return _namespace_device() in {device, None}


@functools.cache
def _access_works() -> bool:
    """Return False if a seccomp filter refuses faccessat2(2): access() then finds no file."""
    return os.access("/", os.F_OK, effective_ids=True)


@functools.cache
def _namespace_device() -> int | None:
    """Return the device number of all namespaces, fixed while the kernel runs; None: unknown."""
    try:
        return os.stat("/proc/thread-self/ns/net").st_dev
    except OSError as error:
        reraise_interrupt(error)
        return None


def path_of(fd: int) -> str:
    """Return a path that refers to the open object *fd*, even if it was moved."""
    return f"/proc/thread-self/fd/{fd}"


class Observer:
    """Observer of many paths, which observes each path once."""

    def __init__(self, paths: Iterable[str], context: HostContext) -> None:
        """Prepare for *paths*, in which a path occurs as often as it will be observed.

        If the kernel gives the number of a namespace only inside it, all are observed now, in one
        thread that enters them one after the other: one thread for each takes ten times as long.
        """
        self._context: Final = context
        times = Counter(paths)
        self._shared: Final = {path for path, count in times.items() if count > 1}
        """Paths whose observations are kept. The others, which are many, are observed only once."""
        self._seen: Final[dict[str, NetNSObservation]] = {}
        if times and kernel.namespace_number_at("/proc/thread-self/ns/net") is None:
            with contextlib.suppress(threads.NoThreadError):
                self._seen.update(threads.run(lambda: self._roam(times)))

    def _roam(self, paths: Iterable[str]) -> dict[str, NetNSObservation]:
        _this_thread.roams = True
        return {path: observe(path, self._context) for path in paths}

    def observe(self, path: str) -> NetNSObservation:
        """Observe *path*; see the function `observe`."""
        observed = self._seen.get(path)
        if observed is None:
            observed = observe(path, self._context)
            if path in self._shared:
                self._seen[path] = observed
        return observed


_THROUGH_PROCESS: Final = r"/proc/([0-9]+)/([^/]+)/"

_this_thread: Final = threading.local()
"""`roams`: the thread may enter any network namespace, since it has no other work."""


@contextmanager
def opened(
    path: str, context: HostContext, *, follow: bool = True
) -> Iterator[tuple[NetNSObservation, int]]:
    """Lend the observation of *path* and a descriptor of the file; -1 if it is not a namespace."""
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
    """Return a descriptor of the file at *path*; -1 if it is not a regular file.

    Opening a FIFO blocks, and opening a device has side effects.
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
    """Return the observation of *path*, at which no file was found.

    /proc/PID/ns/net ends with the process, but hidepid= hides a running process. Any other path
    through a process, such as /proc/PID/root/..., leads to files that may outlive the process.
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
    """Return the cookie of a socket inside; None if the kernel or the permission lacks it."""

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
    """Return the network namespace of the calling thread, which has no other work."""
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
        NetNSError: with `.errno`, if that is uncertain: the path cannot be observed, or, EXDEV, the
            namespace was recorded in another mount namespace and may still be at the path there.
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
    """Return *error* as an OSError; a ValueError is raised for a NUL in a path."""
    return error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error))
