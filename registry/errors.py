"""Errors of the package: one class for each reaction of a caller.

The direct children of `RegistryError` are containerd's errdefs classes, so a shim maps them to
gRPC codes without reading the text. Only `NetNSError` reports an error of the kernel, with its
errno.

A message states the operation, the object and the cause; after a semicolon it states what to do.
The operands of the message are attributes. An attribute has its default if it does not apply.
A message is one line, with an escape for each character of an operand that is not seen.
"""

from __future__ import annotations

from registry.visible import visible


class RegistryError(Exception):
    """Base of all errors of this package; itself raised for a driver error of unknown code.

    To do: report it; the code of SQLite is in `sqlite_code`.
    """

    def __init__(self, message: str, /, **operands: object) -> None:
        """Keep *message* for people, and each operand, a declared attribute, for programs."""
        super().__init__(visible(message))
        for name, value in operands.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no operand {name!r}")
            setattr(self, name, value)

    sqlite_code: int | None = None
    """Extended result code of SQLite, if an error of SQLite is the cause."""


class NotFoundError(RegistryError):
    """A sandbox, or the registry at a path, does not exist. gRPC: NOT_FOUND.

    To do: a stop or a removal has succeeded; else tell the caller.
    """

    id: str = ""
    """Id, or prefix of an id, of the sandbox."""
    name: str = ""
    """Name of the sandbox, if it was looked up by its name."""
    path: str = ""
    """Path of the registry."""


class AlreadyExistsError(RegistryError):
    """The id is taken. gRPC: ALREADY_EXISTS.

    To do: take another id, or `get` the sandbox: an earlier call may have added it.
    """

    id: str = ""
    """Id that was requested for the new sandbox."""


class NameReservedError(AlreadyExistsError):
    """The name is taken.

    To do: remove the sandbox `holder` first, or increment the attempt.
    """

    name: str = ""
    """Name that was requested for sandbox `id`."""
    holder: str = ""
    """Id of the sandbox that has the name."""


class InvalidArgumentError(RegistryError):
    """A value cannot be accepted, now or later. gRPC: INVALID_ARGUMENT.

    To do: correct `field`; it is a fault of the caller.
    """

    field: str = ""
    """Name of the argument, or path of the field in it."""
    value: object = None
    """The value that was refused."""
    position: int = 0
    """Number of the character of `value` that was refused, from 1 on; 0: it is not known which."""


class AmbiguousPrefixError(InvalidArgumentError):
    """Several ids begin with the prefix.

    To do: pass more characters, or one of `ids`.
    """

    prefix: str = ""
    """Prefix that was looked up."""
    ids: tuple[str, ...] = ()
    """All ids that begin with it, in order."""


class MetadataError(InvalidArgumentError):
    """Stored or encoded metadata cannot be read.

    To do: skip the sandbox; use `Sandbox.stored`; delete it, or restore a backup.
    """

    id: str = ""
    """Id of the sandbox, if it is known."""
    seq: int = 0
    """Number of the transition that cannot be read; 0: the error is not about the history."""


class FailedPreconditionError(RegistryError):
    """The present state does not permit the call; a retry alone does not help.

    gRPC: FAILED_PRECONDITION.

    To do: read the state, and decide again.
    """

    id: str = ""
    """Id of the sandbox."""
    path: str = ""
    """Path of the file."""
    errno: int = 0
    """Error number of the system; 0: the system refused nothing."""


class StoreClosedError(FailedPreconditionError):
    """The store was closed, or belongs to the process that forked this one.

    To do: open a store; in a forked child open another file, or spawn a process.
    """


class SchemaVersionError(FailedPreconditionError):
    """The schema of the registry is newer or older than this code may use.

    To do: upgrade this program, or open with `upgrade=True`.
    """

    found: str = ""
    """Revision of the registry."""
    supported: str = ""
    """Revision of this code."""


class ReadOnlyError(FailedPreconditionError):
    """A write to a store, or to a file, that is read-only.

    To do: open it for writing; check the mount and the mode of the file.
    """


class ClosedNetNSError(FailedPreconditionError):
    """No network namespace is at `path`: it was removed, or never created.

    Source: containerd pkg/netns, ErrClosedNetNS.

    To do: the sandbox has ended: record NOTREADY, and clean up.
    """


class CompactedError(FailedPreconditionError):
    """The history no longer holds all transitions after a number.

    To do: list the sandboxes, and go on from `oldest`.
    """

    after: int = 0
    """Number of the transition after which the caller wanted to read."""
    oldest: int = 0
    """Number of the oldest transition that the history holds."""


class UnavailableError(RegistryError):
    """Another write prevented the call; nothing is stored, and a retry may succeed.

    The deadline passed, or another write of the same group ended the transaction of both.
    gRPC: UNAVAILABLE.

    To do: retry with a delay; if it repeats, end the process `holder`, which writes since
    `since`.
    """

    path: str = ""
    """Path of the registry."""
    holder: str = ""
    """Thread or process that holds the lock, if it is known."""
    since: int = 0
    """Time at which the holder began to write, in ns since the Unix epoch; 0: unknown."""
    timeout: float = 0.0
    """Seconds that the call has waited."""


class ResourceExhaustedError(RegistryError):
    """A disk, its inodes, descriptors, threads or memory are used up, or a value is too large.

    gRPC: RESOURCE_EXHAUSTED.

    To do: free what `errno` names, then retry; shorten `field` to `limit` bytes. What has ended
    can still be marked and deleted on a full disk.
    """

    path: str = ""
    """Path of the file."""
    errno: int = 0
    """Error number of the system; 0: the system refused nothing."""
    field: str = ""
    """Name of the argument that is too large."""
    size: int = 0
    """Bytes of the argument."""
    limit: int = 0
    """Maximum bytes of the argument."""


class DataLossError(RegistryError):
    """The file is damaged, is not a registry, or was replaced while open. gRPC: DATA_LOSS.

    To do: stop writing; follow docs/operators.md, or restore a backup.
    """

    path: str = ""
    """Path of the registry."""
    damage: tuple[str, ...] = ()
    """What SQLite has found in a damaged file, one line for each finding, the first ones."""


class CommitUnknownError(DataLossError):
    """A commit failed, and it is unknown whether a crash will make it appear.

    The store accepts no more writes.

    To do: close the store, open it, and read what is stored.
    """


class NetNSError(RegistryError):
    """The kernel refused an operation on a network namespace.

    To do: act on `errno`; docs/reconcile.md has a table.
    """

    path: str = ""
    """Path of the network namespace."""
    errno: int = 0
    """Error number of the kernel."""


def retold(error: RegistryError, message: str) -> RegistryError:
    """Return a copy of *error* with another message, for another call that failed with it."""
    operands = {name: value for name, value in vars(error).items() if name[:2] != "__"}
    return type(error)(message, **operands)
