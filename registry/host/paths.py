"""The files themselves, without opening the database: `stat` is fine, a stray `close()` is not."""

from __future__ import annotations

import errno
import math
import os
import stat
from typing import Final, NamedTuple

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
"""Of a file system without free bytes or inodes."""
NO_RESOURCES: Final = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Of a process or host without threads, descriptors or memory."""


def resolve(path: str | os.PathLike[str]) -> str:
    """Return the real path of the database at *path*, where there may be none.

    Raises:
        RegistryError: with what is wrong with the path, and what to do.
    """
    text: object = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str) or text in {"", ":memory:"} or "\0" in text:
        raise InvalidArgumentError(
            f"open registry {text!r}: it is no path of a file", field="path", value=text
        )
    try:
        real = os.path.realpath(text)
        found = os.stat(real)
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"open registry {text!r}: it is no path of a file", field="path", value=text
        ) from error
    except FileNotFoundError as error:
        reraise_interrupt(error)
    except OSError as error:
        reraise_interrupt(error)
        raise refused(f"open registry {real!r}", real, "look at it", error) from error
    else:
        _require_usable(real, found)
    return real


def _require_usable(real: str, found: os.stat_result) -> None:
    """Raise unless what is *found* at a path is, or can be made, a registry that is whole."""
    if not stat.S_ISREG(found.st_mode):
        what = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise InvalidArgumentError(
            f"open registry {real!r}: it is {what}; name a file in it, such as "
            f"{os.path.join(real, 'registry.db')!r}",
            field="path",
            value=real,
        )
    if found.st_nlink > 1:
        raise FailedPreconditionError(
            f"open registry {real!r}: it has {found.st_nlink} names (hard links), and SQLite "
            "would keep a log for each; leave it one",
            path=real,
        )
    if _is_mounted_alone(real):
        raise FailedPreconditionError(
            f"open registry {real!r}: it is mounted by itself, and its log is elsewhere; "
            "mount its directory",
            path=real,
        )


def _is_mounted_alone(path: str) -> bool:
    """Whether the file at *path* is a mount, as containers have single files of their host."""
    mounted = os.fsencode(path)
    for special in b"\\ \t\n":  # as the kernel writes them, octal
        mounted = mounted.replace(bytes([special]), b"\\%03o" % special)
    try:
        with open("/proc/self/mountinfo", "rb") as mounts:
            return any(line.split(b" ", 5)[4] == mounted for line in mounts)
    except OSError as error:
        reraise_interrupt(error)
        return False


def make_directories(directory: str) -> None:
    """Make *directory* and what is missing above it, with mode 0700 under any umask."""
    if os.path.isdir(directory):
        return
    make_directories(os.path.dirname(directory))
    try:
        os.mkdir(directory, 0o700)
        os.chmod(directory, 0o700)
        _sync(os.path.dirname(directory))
    except FileExistsError as error:
        reraise_interrupt(error)
    except OSError as error:
        reraise_interrupt(error)
        doing = "open registry"
        raise refused(doing, directory, f"make directory {directory!r}", error) from error


def _sync(directory: str) -> None:
    """Have a new entry of *directory* survive a power cut, where it may be opened for that."""
    with suppress_os_errors():
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def create_file(path: str) -> None:
    """Make an empty file of mode 0600 if there is none; SQLite would follow the umask."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        reraise_interrupt(error)
        return
    except OSError as error:
        reraise_interrupt(error)
        raise refused(f"open registry {path!r}", path, "create the file", error) from error
    # The only close of the file that is not SQLite's: it has not seen the file yet.
    os.fchmod(fd, 0o600)
    os.close(fd)


def give_to_owner(fd: int, database: str) -> None:
    """Give a file that was made beside *database* the mode 0600, and the owner of *database*.

    As SQLite does with the log: else a look of root would lock the shim out.
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
    """Return the error of this package for one of the system's.

    Args:
        doing: what was being done and to which object; it begins the message.
        path: the database.
        what: was refused.
        error: by the system.
    """
    message = f"{doing}: {what}: {error.strerror}"
    operands = {"path": path, "errno": error.errno}
    if error.errno in NO_SPACE:
        return ResourceExhaustedError(f"{message}; {how_to_free(path)}", **operands)
    if error.errno in NO_RESOURCES:
        return ResourceExhaustedError(f"{message}; {_ADVICE[errno.EMFILE]}", **operands)
    if error.errno == errno.EROFS:
        return ReadOnlyError(f"{message}; open it with read_only=True", path=path)
    if error.errno == errno.ENOENT:
        return NotFoundError(f"{message}; is its disk mounted?", path=path)
    advice = _ADVICE.get(error.errno or 0, "may this user do so?")
    return FailedPreconditionError(f"{message}; {advice}", path=path)


_ADVICE: Final = {
    errno.EMFILE: "raise the limit of threads, files or memory that it ran into",
    errno.ENAMETOOLONG: "use a shorter path",
    errno.ELOOP: "remove the symlink",
    errno.EISDIR: "move that away",
    errno.ENOTDIR: "move that away",
    errno.EINVAL: "move that away",
    errno.EIO: "see what the kernel's log says of the disk",
}


def how_to_free(path: str) -> str:
    """Return the advice for the file system of the database at *path*, which has no room."""
    if free(os.path.dirname(path)).inodes < 1:
        return "remove some files, no inode is free"
    return "free some space"


def identity(path: str) -> tuple[int, int] | None:
    """Return device and inode of the file at *path*; None when there is none."""
    try:
        found = os.stat(path)
    except OSError as error:
        reraise_interrupt(error)
        return None
    return (found.st_dev, found.st_ino)


def on_read_only_file_system(path: str) -> bool:
    """Whether nobody can write the file at *path*."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError as error:
        reraise_interrupt(error)
        return False


def stamp(path: str) -> object:
    """Return what is another thing once the database at *path*, or its log, has been written to."""
    try:
        found = os.stat(path)
    except OSError as error:
        reraise_interrupt(error)
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, size(f"{path}-wal"))


class Free(NamedTuple):
    """Free space of a file system; infinite where it has no limit, or does not report one."""

    bytes: float
    inodes: float


def free(directory: str) -> Free:
    """Return what is left on the file system of *directory*, for other users than root."""
    try:
        found = os.statvfs(directory)
    except OSError as error:
        reraise_interrupt(error)
        return Free(math.inf, math.inf)
    return Free(
        found.f_bavail * found.f_frsize if found.f_blocks else math.inf,
        found.f_favail if found.f_files else math.inf,
    )


def size(path: str) -> int:
    """Return the bytes of the file at *path*; 0 when there is none."""
    try:
        return os.stat(path).st_size
    except OSError as error:
        reraise_interrupt(error)
        return 0
