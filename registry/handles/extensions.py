"""Extensions of one sandbox, read and replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from registry.engine.driver import Fetch
from registry.errors import NotFoundError
from registry.handles.session import Session, check_function
from registry.model.extensions import Extension, ExtensionsFunc, validate
from registry.tables import writes
from registry.tables.rows import Row
from registry.visible import visible

UNCACHED: Final = "extensions"
"""Report of a change to rows that no cache holds: what is cached stays valid."""


class Extensions(Mapping[str, Extension]):
    """Extensions of one creation of a sandbox, by name; read from the latest commit.

    One object has one reading, made at its first use. `Sandbox.extensions` returns a new object
    each time, so `sandbox.extensions["a"]` is of the latest commit, or as the caller's open
    transaction has it. Every use of an object without a reading raises `NotFoundError` once the
    sandbox has been deleted.
    """

    __slots__ = ("_handle", "_reading", "_session")

    def __init__(self, session: Session, handle: Row) -> None:
        """Read nothing yet; use `Sandbox.extensions`."""
        self._session, self._handle = session, handle
        self._reading: Mapping[str, Extension] | None = None

    def __repr__(self) -> str:
        """Show the sandbox; this reads nothing."""
        return visible(f"Extensions(sandbox={self._handle.id!r})")

    def __getitem__(self, name: str) -> Extension:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def _read(self) -> Mapping[str, Extension]:
        """Return the reading of this object.

        Raises:
            NotFoundError: the sandbox has been deleted.
            MetadataError: an extension is damaged.
        """
        reading = self._reading
        if reading is None:
            session, doing = self._session, f"read extensions of sandbox {self._handle.id!r}"
            reading = self._find(lambda sql, params: session.fetch(sql, params, doing))
            if reading is None:
                raise self._deleted(doing)
            self._reading = reading
        return reading

    def update(self, fn: ExtensionsFunc, /) -> Mapping[str, Extension]:
        """Replace all extensions by the result of *fn*, and return them once they are committed.

        *fn* gets the latest extensions by name, in a dict of its own. It runs inside the
        transaction, exactly once, while no other writer runs: keep it short. Its exception is
        raised unchanged, and nothing is stored. A value of its result is an `Extension`, protobuf's
        `Any`, or bytes, whose type URL is "".

        Raises:
            NotFoundError: the sandbox has been deleted.
            InvalidArgumentError: the result is no mapping, has more than 64 names, or a name or a
                value cannot be stored.
            ResourceExhaustedError: a value is over 256 KiB, or the disk is full. Extensions can be
                removed from a full disk.
            MetadataError: a stored extension is damaged.
            FailedPreconditionError: *fn* itself changed these extensions, or deleted the sandbox.
            UnavailableError: as `StatusStorage.update`.
        """
        doing = f"update extensions of sandbox {self._handle.id!r}"
        check_function(doing, fn)
        session, handle = self._session, self._handle
        with session.write(doing, sandbox_id=handle.id) as transaction:
            self._reading = None  # the next use of this object reads what is stored
            before = self._find(transaction.fetch)
            if before is not None:
                fetch = transaction.fetch
                result = session.ask(
                    transaction, handle, fn, dict(before), lambda: self._find(fetch) == before
                )
                after = validate(result, doing)
                if after.items() <= before.items():
                    session.require_space_to_mark(doing)
                else:
                    session.require_space(doing, grows=True)
                since = transaction.connection.total_changes
                writes.replace_extensions(transaction, handle.id, before, after)
                transaction.report(since, UNCACHED)
                return after
        raise self._deleted(doing)

    def _find(self, fetch: Fetch) -> dict[str, Extension] | None:
        return writes.find_extensions(self._handle.creation, self._handle.id, fetch)

    def _deleted(self, doing: str) -> NotFoundError:
        """Return the error for a sandbox that was not found, and set its StopCh."""
        self._session.mark_missing_deleted(self._handle.creation, doing)
        return NotFoundError(f"{doing}: it has been deleted", id=self._handle.id)
