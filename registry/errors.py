"""Errors of the package, one class for each reaction of a caller.

The direct children of `RegistryError` are containerd's errdefs classes, so that a shim maps them to
gRPC codes without reading text. `NetNSError` alone reports an error of the kernel, with its errno.
A message names the operation, the object, the cause and what to do; the operands are attributes.
"""

from __future__ import annotations


class RegistryError(Exception):
    """Base of the package's errors; the class itself reports a driver error of an unknown code."""

    def __init__(self, message: str, /, **operands: object) -> None:
        """Keep *message* for people, and each operand as a declared attribute for programs."""
        super().__init__(message)
        for name, value in operands.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no operand {name!r}")
            setattr(self, name, value)

    sqlite_code: int | None = None
    """Extended SQLite result code of the cause; None for another cause."""


class NotFoundError(RegistryError):
    """No sandbox with the id, or no registry at the path. gRPC: NOT_FOUND."""

    id: str = ""
    path: str = ""


class AlreadyExistsError(RegistryError):
    """Another sandbox has the id. gRPC: ALREADY_EXISTS."""

    id: str = ""


class NameReservedError(AlreadyExistsError):
    """Sandbox *holder* has the name that was requested for *id*."""

    name: str = ""
    holder: str = ""


class InvalidArgumentError(RegistryError):
    """A value that is never accepted. gRPC: INVALID_ARGUMENT."""

    field: str = ""
    value: object = None


class AmbiguousPrefixError(InvalidArgumentError):
    """A *prefix* of several ids; *ids* are all of them, in order."""

    prefix: str = ""
    ids: tuple[str, ...] = ()


class MetadataError(InvalidArgumentError):
    """Stored or encoded metadata that cannot be read; *id* is the sandbox, "" if not known.

    *seq* is the transition that cannot be read, 0 if it is not one of the history.
    """

    id: str = ""
    seq: int = 0


class FailedPreconditionError(RegistryError):
    """A call that the present state does not permit; repeating it alone does not help.

    gRPC: FAILED_PRECONDITION.
    """

    id: str = ""
    path: str = ""


class StoreClosedError(FailedPreconditionError):
    """A store that was closed, or belongs to the process that forked this one."""


class SchemaVersionError(FailedPreconditionError):
    """A schema that this code may not use; *found* and *supported* are the revisions."""

    found: str = ""
    supported: str = ""


class ReadOnlyError(FailedPreconditionError):
    """A write through a read-only store, or to a read-only file."""


class ClosedNetNSError(FailedPreconditionError):
    """A *path* without a network namespace, which was removed or never created.

    Source: containerd pkg/netns, ErrClosedNetNS.
    """


class CompactedError(FailedPreconditionError):
    """A history that does not reach back to *after*; *oldest* is the first seq that is kept."""

    after: int = 0
    oldest: int = 0


class UnavailableError(RegistryError):
    """Contention or timeout: nothing is stored, and a retry after a while may succeed.

    The deadline passed, or a write that shared the commit has ended the transaction of both.
    *holder* names the thread or process that has the lock, if known. *since* is the time at which
    it began (ns since the Unix epoch, 0 if unknown), *timeout* the seconds waited.
    gRPC: UNAVAILABLE.
    """

    path: str = ""
    holder: str = ""
    since: int = 0
    timeout: float = 0.0


class ResourceExhaustedError(RegistryError):
    """Lack of disk space, inodes, descriptors, threads or memory, or a value that is too large.

    *errno* is the error of the system for *path* (0: none); *size* is over *limit* bytes.
    gRPC: RESOURCE_EXHAUSTED.
    """

    path: str = ""
    errno: int = 0
    field: str = ""
    size: int = 0
    limit: int = 0


class DataLossError(RegistryError):
    """A file that is corrupt, was replaced while open, or is no registry. gRPC: DATA_LOSS."""

    path: str = ""


class CommitUnknownError(DataLossError):
    """A failed commit of which SQLite cannot tell whether a crash would bring it back.

    The store accepts no more writes; open it again and read what is stored.
    """


class NetNSError(RegistryError):
    """An operation on the network namespace at *path* that the kernel refused with *errno*."""

    path: str = ""
    errno: int = 0


def retold(error: RegistryError, message: str) -> RegistryError:
    """Return a copy of *error* with another *message*, for another call that failed with it."""
    operands = {name: value for name, value in vars(error).items() if name[:2] != "__"}
    return type(error)(message, **operands)
