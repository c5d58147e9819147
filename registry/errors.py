"""What can go wrong, one class for each thing a caller would do about it.

The direct children of `RegistryError` are containerd's errdefs classes, so a shim maps them to
gRPC codes without reading text; `NetNSError` alone is of the kernel and keeps its errno. A message
says what was tried, on which object, why it failed and what to do; the operands are attributes.
"""

from __future__ import annotations


class RegistryError(Exception):
    """Every error of this package; plain, it carries a driver error of an unforeseen code."""

    def __init__(self, message: str, /, **operands: object) -> None:
        """Keep *message* for people and each operand, a declared attribute, for programs."""
        super().__init__(message)
        for name, value in operands.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no operand {name!r}")
            setattr(self, name, value)

    sqlite_code: int | None = None
    """The extended SQLite result code where one is the cause."""


class NotFoundError(RegistryError):
    """There is no such sandbox, or no registry at the path. gRPC: NOT_FOUND."""

    id: str = ""
    path: str = ""


class AlreadyExistsError(RegistryError):
    """The id is taken. gRPC: ALREADY_EXISTS."""

    id: str = ""


class NameReservedError(AlreadyExistsError):
    """Sandbox *holder* has the name that *id* was to get."""

    name: str = ""
    holder: str = ""


class InvalidArgumentError(RegistryError):
    """A value cannot be accepted, now or ever. gRPC: INVALID_ARGUMENT."""

    field: str = ""
    value: object = None


class AmbiguousPrefixError(InvalidArgumentError):
    """Several ids begin with *prefix*; *ids* are all of them, in order."""

    prefix: str = ""
    ids: tuple[str, ...] = ()


class MetadataError(InvalidArgumentError):
    """Stored or encoded metadata cannot be read. *id* is the sandbox where it is known.

    *seq* is the transition that cannot be read, 0 where it is not one of the history.
    """

    id: str = ""
    seq: int = 0


class FailedPreconditionError(RegistryError):
    """The call does not fit the present state; repeating it alone will not help.

    gRPC: FAILED_PRECONDITION.
    """

    id: str = ""
    path: str = ""


class StoreClosedError(FailedPreconditionError):
    """The store was closed, or belongs to the process that forked this one."""


class SchemaVersionError(FailedPreconditionError):
    """The registry's schema is not one this code may use; both revisions are named."""

    found: str = ""
    supported: str = ""


class ReadOnlyError(FailedPreconditionError):
    """A write through a store, or to a file, that can only be read."""


class ClosedNetNSError(FailedPreconditionError):
    """No network namespace is at *path*: it was removed, or never made.

    Source: containerd pkg/netns, ErrClosedNetNS.
    """


class CompactedError(FailedPreconditionError):
    """The history no longer reaches back to *after*; *oldest* is the first seq that is kept."""

    after: int = 0
    oldest: int = 0


class UnavailableError(RegistryError):
    """Another write was in the way; a retry after a while may succeed, nothing is stored.

    The deadline passed, or a write that shared the commit has ended the transaction of both.
    *holder* names the thread or process, where it is known, *since* when it began (ns since the
    Unix epoch, 0 unknown), *timeout* the seconds waited. gRPC: UNAVAILABLE.
    """

    path: str = ""
    holder: str = ""
    since: int = 0
    timeout: float = 0.0


class ResourceExhaustedError(RegistryError):
    """A disk, its inodes, descriptors, threads or memory are used up, or a value is too large.

    *errno* is what the system said of *path* (0: nothing); *size* is over *limit* bytes.
    gRPC: RESOURCE_EXHAUSTED.
    """

    path: str = ""
    errno: int = 0
    field: str = ""
    size: int = 0
    limit: int = 0


class DataLossError(RegistryError):
    """The file is corrupt, was replaced under us, or is no registry. gRPC: DATA_LOSS."""

    path: str = ""


class CommitUnknownError(DataLossError):
    """A commit failed and SQLite cannot tell whether it will be there after a crash.

    The store accepts no more writes; open it anew and read what is so.
    """


class NetNSError(RegistryError):
    """The kernel refused an operation on the network namespace at *path*; *errno* says why."""

    path: str = ""
    errno: int = 0


def retold(error: RegistryError, message: str) -> RegistryError:
    """Return *error* with another message, for another call that it has failed too."""
    operands = {name: value for name, value in vars(error).items() if name[:2] != "__"}
    return type(error)(message, **operands)
