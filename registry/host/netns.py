"""Creation, use and removal of network namespaces.

1. A removal holds the object that it removes. umount(2) follows symlinks, and a path may refer to
   another object a moment later. Therefore the directory and the entry in it are opened once, and
   the namespace is compared and unmounted through that descriptor.
2. Functions inside a namespace run in threads of their own, never in a forked child: a child would
   have the caller's SQLite connections. A thread uses /proc/thread-self, not /proc/self.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from registry.errors import ClosedNetNSError, NetNSError
from registry.host import kernel, mounts
from registry.host.context import HostContext
from registry.host.directory_lock import locked
from registry.host.namespaces import (
    NetNSObservation,
    Presence,
    absent,
    encode,
    failed,
    is_at,
    observe,
    observe_held,
    opened,
    own_identity,
    path_of,
    was_observed_elsewhere,
)
from registry.host.paths import make_missing
from registry.model.identity import NetNSIdentity
from registry.model.validation import check_path
from registry.sync import threads
from registry.sync.imports import late_import
from registry.sync.interrupts import reraise_interrupt, suppress_os_errors
from registry.visible import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

log = logging.getLogger("registry")

BASE_DIR: Final = "/run/netns"
_DIGITS: Final = frozenset("0123456789abcdef")


def is_registry_id(text: str) -> bool:
    """Return whether *text* can be the id of a registry, which is a part of paths."""
    return len(text) == 32 and set(text) <= _DIGITS  # noqa: PLR2004 - as the schema says


def own_path(directory: str, registry_id: str) -> str:
    """Return a new path in *directory* that carries the registry's own name."""
    return os.path.join(directory, f"sr-{registry_id}-{_random_uuid()}")


def _random_uuid() -> str:
    """Return a UUID of version 4 (RFC 9562); importing `uuid` takes 6 ms."""
    number = bytearray(os.urandom(16))
    number[6] = number[6] & 0x0F | 0x40
    number[8] = number[8] & 0x3F | 0x80
    text = number.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def is_own_path(path: str, registry_id: str) -> bool:
    """Return whether *path* carries the registry's own name, as `own_path` returns it."""
    return os.path.basename(path).startswith(f"sr-{registry_id}-")


class NetNS:
    """A network namespace at a path.

    Source: containerd pkg/netns, NetNS; differs: it has the identity of its namespace.
    """

    def __init__(self, path: str, identity: NetNSIdentity) -> None:
        """Refer to the namespace *identity* at *path*; use `create` or `load` instead."""
        self.path: Final = path
        self.identity: Final = identity

    def __repr__(self) -> str:
        """Show the path and the kernel's number."""
        return visible(f"NetNS({self.path!r}, number={self.identity.number})")

    @classmethod
    def create(cls, path: str | None = None) -> NetNS:
        """Create a network namespace, with its loopback device up, at *path*.

        The directory is created if it is missing, and becomes a permanent shared mount onto itself:
        `ip netns` does the same, and would fail beside this package otherwise.

        Args:
            path: absolute, UTF-8 in every locale; no file may be there. None: a new name in
                /run/netns, which no registry recognises as its own.
        Raises:
            InvalidArgumentError: *path* is not an absolute path.
            NetNSError: with `.errno`; no part of the namespace is left.
            ResourceExhaustedError: no descriptor or memory is left to import pyroute2.
        """
        target = f"{BASE_DIR}/sr-{_random_uuid()}" if path is None else path
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
                raise failed(doing, target, error) from error
            raise

    @classmethod
    def load(cls, path: str) -> NetNS:
        """Return the network namespace that is at *path*.

        Raises:
            ClosedNetNSError: there is no network namespace.
            NetNSError: with `.errno`; the path cannot be observed.
        """
        check_path(f"load network namespace {path!r}", "path", path)
        observed = observe(path, HostContext.current())
        if observed.presence is Presence.UNSEEN:
            message = f"load network namespace {path!r}: {observed.detail}"
            raise NetNSError(message, path=path, errno=observed.errno)
        if observed.identity is None:
            raise _closed("load", path, observed.detail)
        return cls(path, observed.identity)

    @property
    def closed(self) -> bool:
        """Return whether the namespace is no longer at its path; another one there does not count.

        Raises:
            NetNSError: with `.errno`; the path cannot be observed, or, EXDEV, the namespace was
                recorded in another mount namespace.
        """
        context = HostContext.current()
        doing = f"inspect network namespace {self.path!r}"
        return not is_at(self.identity, observe(self.path, context), context, doing)

    def do(self, fn: Callable[[], T]) -> T:
        """Run *fn* inside, in a thread of its own, and return its result or raise its exception.

        Raises:
            ClosedNetNSError: the namespace is no longer at its path.
            NetNSError: with `.errno`; the namespace cannot be entered, or, EXDEV, it was recorded
                in another mount namespace.
        """
        doing = f"enter network namespace {self.path!r}"

        def inside() -> T:
            context = HostContext.current()
            with opened(self.path, context) as (observed, fd):
                if not is_at(self.identity, observed, context, doing):
                    raise _closed("enter", self.path, "it was removed")
                try:
                    kernel.setns(fd, kernel.CLONE_NEWNET)
                except OSError as error:
                    reraise_interrupt(error)
                    raise failed(doing, self.path, error) from error
            return fn()

        try:
            return threads.run(inside)
        except threads.NoThreadError as error:
            raise failed(doing, self.path, error) from error

    def remove(self) -> None:
        """Unmount the namespace and remove its file; idempotent.

        Another namespace at the path is not removed, nor a file that is not empty, nor the
        namespace of a process (/proc/PID/ns/net), which exists as long as the process.

        Raises:
            NetNSError: with `.errno`, see `remove`.
        """
        remove(self.path, self.identity)


# Removing.


def remove(path: str, identity: NetNSIdentity | None, *, own: bool = False) -> None:
    """Remove the namespace at *path* and the empty file that it is mounted on, or only that file.

    Nothing is removed through a symlink. The namespace of a process, /proc/PID/ns/net, is not
    removed: it exists as long as the process. An empty file stays if another mount namespace is
    seen to have another namespace mounted on it.

    Args:
        path: absolute path.
        identity: identity of the namespace to remove; None: it was not recorded.
        own: *path* carries the registry's own name. An object at such a path belongs to the
            registry, even if *identity* is None; at another path it may belong to another program.
    Raises:
        NetNSError: with `.errno`. EXDEV: the namespace was recorded in another mount namespace, or
            is mounted in another one. EEXIST: the identity was not recorded, and *path* is not the
            registry's own. ELOOP: a symlink leads to the namespace. Else the error of the kernel.
    """
    doing = f"remove network namespace {path!r}"
    removal = _Removal(path, identity, own, HostContext.current(), doing)
    try:
        name = encode(path)
        with contextlib.ExitStack() as stack:
            try:
                directory = stack.enter_context(locked(os.path.dirname(name)))
            except (FileNotFoundError, NotADirectoryError) as error:
                reraise_interrupt(error)
                removal.is_wanted(absent(path))
            else:
                removal.run(directory, os.path.basename(name))
    except (OSError, ValueError) as error:
        reraise_interrupt(error)
        raise failed(doing, path, error) from error


class _Removal(NamedTuple):
    """Removal of one namespace, with the arguments of `remove`."""

    path: str
    identity: NetNSIdentity | None
    own: bool
    context: HostContext
    doing: str

    def run(self, directory: int, name: bytes) -> None:
        """Remove the namespace from the entry *name* of the open *directory*."""
        if _is_of_process(directory, name):
            log.info(
                "%s: nothing to remove, it lasts as long as its process",
                self.doing,
                extra={"event": "netns_of_process", "netns_path": self.path},
            )
            return
        unmounted = self._unmount(directory, name)
        self._unlink(directory, name, unmounted=unmounted)

    def is_wanted(self, observed: NetNSObservation) -> bool:
        """Return whether *observed* is of the namespace to be removed.

        Raises:
            NetNSError: that is uncertain.
        """
        if self.identity is None and not self.own and observed.identity is not None:
            raise self._error(
                f"{observed.detail}, but it was not recorded which one is the sandbox's; if it is "
                f"this one, remove it by NetNS.load({self.path!r}).remove()",
                errno.EEXIST,
            )
        return is_at(self.identity, observed, self.context, self.doing)

    def _error(self, why: str, code: int) -> NetNSError:
        return NetNSError(f"{self.doing}: {why}", path=self.path, errno=code)

    def _unmount(self, directory: int, name: bytes) -> bool:
        """Unmount the namespace as often as it is mounted, and return whether it was mounted."""
        unmounted = refused = False
        while True:
            with _held(directory, name) as fd:
                observed = self._observe(fd)
                if unmounted and self.identity is not None:
                    # The object beneath the mount: its mount namespace no longer matters.
                    there = observed.identity
                    wanted = there is not None and self.identity.same_as(there)
                else:
                    wanted = self.is_wanted(observed)
                if not wanted:
                    return unmounted
                try:
                    # The mount that is held, even if the path refers to another object now.
                    kernel.umount(path_of(fd), kernel.MNT_DETACH)
                except OSError as error:
                    reraise_interrupt(error)
                    # EINVAL: another process has unmounted it in the meantime; observe again.
                    if error.errno != errno.EINVAL or refused:
                        raise
                    refused = True
                else:
                    unmounted, refused = True, False

    def _observe(self, fd: int) -> NetNSObservation:
        """Observe the held entry *fd*, without following a symlink.

        Raises:
            NetNSError: a symlink leads to the namespace to be removed.
        """
        if fd < 0:
            return NetNSObservation(self.path, Presence.ABSENT)
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            return observe_held(fd, self.path, self.context)
        if self.identity is not None and self.is_wanted(observe(self.path, self.context)):
            raise self._error(
                "a symlink leads to it, and nothing is unmounted through one; remove the namespace "
                "by the path at which it is mounted, then the symlink",
                errno.ELOOP,
            )
        return NetNSObservation(self.path, Presence.NOT_A_NAMESPACE)

    def _unlink(self, directory: int, name: bytes, *, unmounted: bool) -> None:
        """Remove the entry if it is an empty file on which nothing is mounted.

        Args:
            directory: descriptor of the directory.
            name: name of the entry.
            unmounted: the namespace to be removed was mounted on the entry.
        """
        with _held(directory, name) as fd:
            if self._observe(fd).presence is not Presence.NOT_A_NAMESPACE or not _is_empty(fd):
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
        """Return whether no process shows another namespace that is mounted on the empty file *fd*.

        Raises:
            NetNSError: with `.errno`; EEXIST or EXDEV: the file may be the mount point of a
                namespace in another mount namespace.
        """
        if self.identity is None and not self.own:
            raise self._error(
                "an empty file is there, on which another mount namespace may have a network "
                "namespace mounted; remove it by hand if it is left over",
                errno.EEXIST,
            )
        elsewhere = self.identity is not None and was_observed_elsewhere(
            self.identity, self.context
        )
        if elsewhere and not self.own:
            return False
        for mount in mounts.elsewhere(fd):
            if not self._is_mount_of_ours(mount):
                if self.own:
                    raise self._mounted_elsewhere(mount)
                return False
        return True

    def _is_mount_of_ours(self, mount: mounts.Elsewhere) -> bool:
        """Return whether *mount* is one of the namespace to be removed."""
        if self.identity is None or mount.net_inode != self.identity.inode:
            return False
        observed = observe(mount.path, self.context)
        # If another mount covers it, only the inode identifies it.
        covered = observed.presence in {Presence.ABSENT, Presence.NOT_A_NAMESPACE}
        return covered or self.is_wanted(observed)

    def _mounted_elsewhere(self, mount: mounts.Elsewhere) -> NetNSError:
        """Return the error for a file of the registry's own name that is a mount point elsewhere.

        No other program uses such a name, so without an error the file would stay for ever.
        """
        what = "something" if self.identity is None else "something else"
        return self._error(
            f"another mount namespace has {what} mounted on its file, at {mount.path!r}; unmount "
            "it there if it is left over, then retry",
            errno.EXDEV,
        )


def _is_of_process(directory: int, name: bytes) -> bool:
    """Return whether the entry is /proc/PID/ns/net, the namespace of a process."""
    try:
        return os.readlink(name, dir_fd=directory).startswith(b"net:[")
    except OSError as error:
        reraise_interrupt(error)
        return False


def _is_empty(fd: int) -> bool:
    """Return whether *fd* refers to an empty regular file."""
    found = os.fstat(fd)
    return stat.S_ISREG(found.st_mode) and found.st_size == 0


@contextmanager
def _held(directory: int, name: bytes) -> Iterator[int]:
    """Lend a descriptor of the entry *name* of the open *directory*; -1 if there is no entry.

    A symlink is not followed. For a mount point, the descriptor refers to the topmost mount.
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


# Creating.


def _make(path: str) -> NetNSIdentity:
    """Create a namespace in the calling thread, mount it at *path*, and return its identity.

    Raises:
        OSError, ResourceExhaustedError: no part of the namespace is left.
    """
    with late_import("pyroute2"):
        from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415 - 144 ms that only this needs

    kernel.unshare(kernel.CLONE_NEWNET)
    try:
        with IPRoute() as netlink:
            netlink.link("set", index=1, state="up")
    except NetlinkError as error:
        raise OSError(error.code, f"loopback: {os.strerror(error.code)}") from error
    identity = own_identity(path)
    name = encode(path)
    directory = os.path.dirname(name)
    make_missing(directory, 0o755)
    with locked(directory):
        _share(directory)
        # Opened again: the earlier descriptor refers to the directory beneath the new mount.
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _mount(fd, os.path.basename(name))
        finally:
            os.close(fd)
    return identity


def _mount(directory: int, name: bytes) -> None:
    """Create the file *name* in the open *directory*, and mount the thread's namespace on it."""
    flags = os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(name, flags, 0o444, dir_fd=directory)
    try:
        kernel.mount("/proc/thread-self/ns/net", path_of(fd), "none", kernel.MS_BIND)
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

    Otherwise the next `ip netns add` does so and copies the existing mounts; removing ours then
    fails with EBUSY.
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
