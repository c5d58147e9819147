"""Files of a registry at their paths, inspected by `stat` alone.

The database is never opened here: any `close()` of it drops the locks that SQLite holds on it.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from typing import AnyStr, Final, NamedTuple

from registry.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ReadOnlyError,
    RegistryError,
    ResourceExhaustedError,
)
from registry.sync.interrupts import reraise_interrupt, suppress_os_errors

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of a file system without free bytes or inodes."""
NO_RESOURCES: Final = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of a process or host without threads, descriptors or memory."""


def resolve(path: str | os.PathLike[str]) -> str:
    """Return the real path of the database at *path*, which need not exist.

    Raises:
        InvalidArgumentError: *path* does not name a regular file.
        FailedPreconditionError: SQLite would keep a WAL elsewhere; or the path cannot be inspected.
        NotFoundError: a symlink leads to a file or directory that is missing.
    """
    text: object = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str) or text in {"", ":memory:"} or "\0" in text:
        raise _not_a_path(text)
    there = text
    try:
        there = os.path.join(os.getcwd(), text)
        real = os.path.realpath(there, strict=True)
        found = os.stat(real)
    except UnicodeEncodeError as error:
        raise _not_a_path(text) from error
    except FileNotFoundError as error:
        reraise_interrupt(error)
        if not os.path.isabs(there):
            doing = f"open registry {text!r}"
            raise refused(doing, text, "find the working directory", error) from error
        _require_no_dangling_symlink(there)
        return os.path.realpath(there)
    except OSError as error:
        reraise_interrupt(error)
        raise refused(f"open registry {there!r}", there, "inspect the path", error) from error
    _require_usable(real, found)
    return real


def _require_no_dangling_symlink(path: str) -> None:
    """Raise if a symlink on the way to *path*, at which no file is, leads to nothing.

    A registry would be created at its target, which may be on a disk that is not mounted yet.
    """
    link = path
    while not os.path.lexists(link):
        link = os.path.dirname(link)
    if os.path.islink(link) and not os.path.exists(link):
        raise NotFoundError(
            f"open registry {path!r}: {link!r} is a symlink to {os.path.realpath(link)!r}, where "
            "nothing is; mount the disk of its target, or remove the symlink",
            path=path,
        )


def _not_a_path(value: object) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"open registry {value!r}: it is not the path of a file; name a file",
        field="path",
        value=value,
    )


def _require_usable(real: str, found: os.stat_result) -> None:
    """Raise unless the file at *real*, with the stat result *found*, can be a registry."""
    if not stat.S_ISREG(found.st_mode):
        what = "not a regular file; name another file"
        if stat.S_ISDIR(found.st_mode):
            what = f"a directory; name a file in it, such as {os.path.join(real, 'registry.db')!r}"
        raise InvalidArgumentError(
            f"open registry {real!r}: it is {what}",
            field="path",
            value=real,
        )
    if found.st_nlink > 1:
        raise FailedPreconditionError(
            f"open registry {real!r}: the file has {found.st_nlink} names (hard links), and SQLite "
            "would keep a WAL for each; remove all names but one",
            path=real,
        )
    if _is_mounted_alone(real):
        raise FailedPreconditionError(
            f"open registry {real!r}: the file is a mount by itself, and its WAL would be "
            "elsewhere; mount its directory",
            path=real,
        )


def why_not_ours(path: str, found: os.stat_result) -> str:
    """Return why the file at *path* cannot be one of a registry, or "".

    Args:
        path: of a file beside a database.
        found: its stat result, of `lstat` or `fstat`.
    """
    if stat.S_ISLNK(found.st_mode):
        with suppress_os_errors():
            return f"is a symlink to {os.readlink(path)!r}"
        return "is a symlink"
    if not stat.S_ISREG(found.st_mode):
        return f"is {_NAMES.get(stat.S_IFMT(found.st_mode), 'not a regular file')}"
    return f"has {found.st_nlink} names (hard links)" if found.st_nlink > 1 else ""


_NAMES: Final = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _is_mounted_alone(path: str) -> bool:
    """Return whether the file at *path* is a mount point, as a file of the host in a container."""
    mounted = os.fsencode(path)
    for special in b"\\ \t\n":  # the kernel writes these as octal numbers
        mounted = mounted.replace(bytes([special]), b"\\%03o" % special)
    try:
        with open("/proc/self/mountinfo", "rb") as mounts:
            return any(line.split(b" ", 5)[4] == mounted for line in mounts)
    except OSError as error:
        reraise_interrupt(error)
        return False


def make_directories(directory: str) -> None:
    """Make *directory* and its missing parents, with mode 0700 under any umask."""
    try:
        make_missing(directory, 0o700)
    except OSError as error:
        reraise_interrupt(error)
        doing = f"open registry in {directory!r}"
        raise refused(doing, directory, "make the directory", error) from error


def make_missing(directory: AnyStr, mode: int) -> None:
    """Make *directory* and its missing parents, with *mode* under any umask.

    Raises:
        OSError: a directory cannot be made.
    """
    if os.path.isdir(directory):
        return
    make_missing(os.path.dirname(directory), mode)
    try:
        os.mkdir(directory, mode)
        if os.lstat(directory).st_mode & 0o777 != mode:
            os.chmod(directory, mode)
        sync_directory(os.path.dirname(directory))
    except FileExistsError as error:
        reraise_interrupt(error)


def sync_directory(directory: str | bytes) -> None:
    """Sync *directory*, if it may be opened, so that a new entry survives a power cut."""
    with suppress_os_errors():
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def create_file(path: str) -> None:
    """Make an empty file of mode 0600 unless one exists; SQLite would follow the umask."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        reraise_interrupt(error)
        return
    except OSError as error:
        reraise_interrupt(error)
        raise refused(f"open registry {path!r}", path, "create the file", error) from error
    # This close is harmless: SQLite has not opened the new file yet.
    os.fchmod(fd, 0o600)
    os.close(fd)


def give_to_owner(fd: int, database: str) -> None:
    """Give a file that was made beside *database* the mode 0600, and the owner of *database*.

    SQLite does the same with the WAL: otherwise a command that root runs would lock the shim out.
    """
    os.fchmod(fd, 0o600)  # the umask may have taken more
    if os.geteuid() == 0:
        try:
            owner = os.stat(database)
        except FileNotFoundError as error:
            reraise_interrupt(error)
        else:
            os.fchown(fd, owner.st_uid, owner.st_gid)


def refused(doing: str, path: str, what: str, error: OSError) -> RegistryError:
    """Return the error of this package for an error of the system.

    Args:
        doing: the operation and its object; they begin the message.
        path: the database.
        what: the step that the system refused.
        error: the system's error.
    """
    message = f"{doing}: {what}: {error.strerror}"
    operands = {"path": path, "errno": error.errno}
    if error.errno in NO_SPACE:
        return ResourceExhaustedError(f"{message}; {how_to_free(path)}", **operands)
    if error.errno in NO_RESOURCES:
        return ResourceExhaustedError(f"{message}; {_ADVICE[errno.EMFILE]}", **operands)
    if error.errno == errno.EROFS:
        return ReadOnlyError(f"{message}; open it with read_only=True", **operands)
    if error.errno == errno.ENOENT:
        return NotFoundError(f"{message}; is its disk mounted?", path=path)
    advice = _ADVICE.get(error.errno or 0, "run this as the user who owns it, or as root")
    return FailedPreconditionError(f"{message}; {advice}", **operands)


_ADVICE: Final = {
    errno.EMFILE: "raise the limit of threads, files or memory that it ran into",
    errno.ENAMETOOLONG: "use a shorter path",
    errno.ELOOP: "remove the symlink",
    errno.EISDIR: "move it away",
    errno.ENOTDIR: "move it away",
    errno.EINVAL: "move it away",
    errno.EIO: "read about the disk in the kernel's log",
}


def how_to_free(path: str) -> str:
    """Return the advice for the full file system of the database at *path*."""
    if free(os.path.dirname(path)).inodes < 1:
        return "remove some files, since no inode is free"
    return "free some space"


def inspect(
    path: str, doing: str = "open registry", *, follow: bool = True
) -> os.stat_result | None:
    """Return the stat result of the file at *path*; None: there is no file.

    Args:
        path: of a database, or of a file beside one.
        doing: operation and object, for messages.
        follow: follow a symlink.
    Raises:
        RegistryError: it is unknown whether there is a file, for example for want of memory.
    """
    try:
        return os.stat(path, follow_symlinks=follow)
    except (FileNotFoundError, NotADirectoryError) as error:
        reraise_interrupt(error)
        return None
    except OSError as error:
        reraise_interrupt(error)
        raise refused(doing, path, f"inspect {path!r}", error) from error


def identity(path: str, doing: str = "open registry") -> tuple[int, int] | None:
    """Return device and inode of the file at *path*; see `inspect`."""
    found = inspect(path, doing)
    return None if found is None else (found.st_dev, found.st_ino)


def size(path: str, doing: str = "open registry") -> int:
    """Return the bytes of the file at *path*, 0 if there is none; see `inspect`."""
    found = inspect(path, doing)
    return 0 if found is None else found.st_size


def estimated_size(path: str) -> int:
    """Return the bytes of the file at *path*; 0 if there is none, or if they are unknown."""
    try:
        return os.stat(path).st_size
    except OSError as error:
        reraise_interrupt(error)
        return 0


def on_read_only_file_system(path: str) -> bool:
    """Return whether the file at *path* is on a file system that is mounted read-only."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError as error:
        reraise_interrupt(error)
        return False


def stamp(path: str, doing: str) -> object:
    """Return a value that changes when the database at *path*, or its WAL, is written to."""
    found = inspect(path, doing)
    if found is None:
        return None
    wal = size(f"{path}-wal", doing)
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, wal)


class Free(NamedTuple):
    """Free space of a file system; infinite if it has, or reports, no limit."""

    bytes: float
    inodes: float


def free(directory: str) -> Free:
    """Return the space on the file system of *directory* that is free for users other than root."""
    try:
        found = os.statvfs(directory)
    except OSError as error:
        reraise_interrupt(error)
        return Free(math.inf, math.inf)
    return Free(
        found.f_bavail * found.f_frsize if found.f_blocks else math.inf,
        found.f_favail if found.f_files else math.inf,
    )
