"""Sandboxes into a registry and out of it, in the JSON that containerd stores.

Rules:

1. All documents are read, decoded, encoded and observed before the registry is locked, then adopted
   in one transaction, whose time grows with their number and not with its square.
2. What is refused is reported, every one of it, and not the first only.
3. Identities of namespaces and processes are not carried: an import records those that it observes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NamedTuple

from registry.cli.documents import Document, open_binary
from registry.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    MetadataError,
    NameReservedError,
    ResourceExhaustedError,
)
from registry.handles import additions
from registry.handles.additions import Addition
from registry.handles.sandbox import Sandbox
from registry.host.context import HostContext
from registry.model.status import State, Status
from registry.store import Store
from registry.sync.interrupts import reraise_interrupt

STATUSES_MAX: Final = 2**26
"""Bytes of a file of statuses; decoded they take some ten times as much memory."""
ERROR_MAX: Final = 1000
"""Characters of an error, an id or a name that a report repeats."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a document; *holder* is the sandbox that has its id or name already."""

    source: str
    id: str
    name: str
    state: State | None
    imported: bool
    holder: str = ""
    error: str = ""


class _RefusedError(Exception):
    """Ends the transaction of an import that is to be all or nothing."""


# Statuses.


def read_statuses(path: str) -> dict[str, Mapping[str, Any]]:
    """Return the statuses in a file, by id, with the fields of `Status`; others are not looked at.

    JSON: an object a line, or an array of them, each with an `id`; or an object of objects, whose
    keys are the ids of those that have none.

    Raises:
        MetadataError: it cannot be read, or holds something else, or two of one id.
    """
    doing = f"read statuses {path!r}"
    try:
        with open_binary(path) as file:
            data = file.read(STATUSES_MAX + 1)
    except OSError as error:
        reraise_interrupt(error)
        raise MetadataError(f"{doing}: {error.strerror}") from error
    if len(data) > STATUSES_MAX:
        raise MetadataError(f"{doing}: it is over the limit of {STATUSES_MAX} bytes")
    try:
        entries = _entries(data.decode())
    except (ValueError, RecursionError) as error:
        raise MetadataError(f"{doing}: no JSON that is known here: {error}") from error
    found: dict[str, Mapping[str, Any]] = {}
    for id, entry in entries:
        if not isinstance(id, str) or not isinstance(entry, dict):
            raise MetadataError(f"{doing}: an entry is no object with an id", value=entry)
        if found.setdefault(id, entry) is not entry:
            raise MetadataError(f"{doing}: {id!r} has two statuses", id=id)
    return found


def _entries(text: str) -> list[tuple[Any, Any]]:
    """Return each id with its entry, whatever they are.

    Raises:
        ValueError, RecursionError: it is no JSON.
    """
    try:
        whole = _json(text)
    except ValueError:
        whole = [_json(line) for line in text.split("\n") if line.strip()]
    if isinstance(whole, dict) and not isinstance(whole.get("id"), str):
        return [(_id_of(entry) or key, entry) for key, entry in whole.items()]
    return [(_id_of(entry), entry) for entry in (whole if isinstance(whole, list) else [whole])]


def _json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("an object has a key twice")
        return found

    return json.loads(text, object_pairs_hook=unique)


def _id_of(entry: Any) -> Any:
    return entry.get("id") if isinstance(entry, dict) else None


def _status_of(entry: Mapping[str, Any]) -> Status:
    """Return the status that *entry* stands for; whether it can be stored is not asked here.

    Raises:
        MetadataError: it has no state that is known here.
    """
    fields = {name: entry.get(name) for name in Status.__dataclass_fields__}
    name = str(fields.pop("state")).removeprefix("SANDBOX_")
    if name not in State.__members__:
        known = ", ".join(map(str, State))
        raise MetadataError(f"status: state {entry.get('state')!r} is none of {known}")
    given = {field: value for field, value in fields.items() if value is not None}
    return Status(State[name], **given)


# Importing.


class Candidate(NamedTuple):
    """A document that was prepared; *outcome* has an error where there is no *addition*."""

    outcome: Outcome
    addition: Addition | None


def prepare(
    found: Iterable[Document], statuses: Mapping[str, Mapping[str, Any]]
) -> list[Candidate]:
    """Return what can be adopted of the documents *found*, and why the others cannot.

    Args:
        found: the documents.
        statuses: by id, as `read_statuses` returns them; without one a sandbox is UNKNOWN.
    """
    context = HostContext.current()
    return [_prepare(document, statuses, context) for document in found]


def _prepare(
    document: Document, statuses: Mapping[str, Mapping[str, Any]], context: HostContext
) -> Candidate:
    metadata = document.metadata
    if metadata is None:
        error = _short(document.error)
        return Candidate(Outcome(document.source, "", "", None, imported=False, error=error), None)
    id, name = _short(metadata.id), _short(metadata.name)
    outcome = Outcome(document.source, id, name, None, imported=False)
    try:
        entry = statuses.get(metadata.id)
        status = Status(State.UNKNOWN) if entry is None else _status_of(entry)
        return Candidate(outcome, additions.prepare("adopt", metadata, status, 0, context))
    except (InvalidArgumentError, ResourceExhaustedError) as error:
        return Candidate(replace(outcome, error=_short(str(error))), None)


def load(store: Store, candidates: Sequence[Candidate], *, keep_going: bool) -> list[Outcome]:
    """Adopt *candidates* in one transaction, and return what became of each.

    Args:
        store: into which they go.
        candidates: as `prepare` returns them.
        keep_going: take the others when some are refused, instead of none.
    """
    outcomes: list[Outcome] = []
    sources: dict[str, str] = {}
    with contextlib.suppress(_RefusedError), store.transaction():
        outcomes.extend(_adopt(store, candidate, sources) for candidate in candidates)
        if not keep_going and any(outcome.error for outcome in outcomes):
            raise _RefusedError
        return outcomes
    return [replace(outcome, imported=False) for outcome in outcomes]


def _adopt(store: Store, candidate: Candidate, sources: dict[str, str]) -> Outcome:
    """Adopt one; *sources*, by id, are of those that were adopted before it, and of this one."""
    outcome, addition = candidate
    if addition is None:
        return outcome
    try:
        additions.insert(store._session, addition)  # noqa: SLF001 - what `Store.adopt` does second
    except AlreadyExistsError as error:
        holder = error.holder if isinstance(error, NameReservedError) else error.id
        why = str(error)
        if holder in sources:
            why = f"{sources[holder]} has its id or name already"
        return replace(outcome, holder=holder, error=_short(why))
    sources[str(addition.columns["id"])] = outcome.source
    return replace(outcome, state=addition.status.state, imported=True)


def _short(text: str) -> str:
    return text if len(text) <= ERROR_MAX else text[:ERROR_MAX] + "..."


# Exporting.


def status_line(sandbox: Sandbox) -> str:
    """Return the status that *sandbox* was found with, as `read_statuses` takes it.

    Raises:
        MetadataError: its state is none that is known here.
    """
    fields = asdict(sandbox.status_as_read) | {"state": str(sandbox.status_as_read.state)}
    return json.dumps({"id": sandbox.id} | fields, ensure_ascii=False) + "\n"
