"""Sandboxes from and to the JSON that containerd stores.

Rules:

1. All documents are read, decoded, encoded and observed before the registry is locked. They are
   adopted in one transaction, whose time is linear in their number.
2. Every document that is refused is reported, not only the first.
3. Identities of namespaces and processes are not exported: an import records what it observes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NamedTuple

from registry.cli.containerd import extensions
from registry.cli.containerd.documents import Document, open_binary
from registry.cli.output.values import EXACT, TIMES
from registry.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    MetadataError,
    NameReservedError,
    NotFoundError,
    ResourceExhaustedError,
)
from registry.handles import additions
from registry.handles.additions import Addition
from registry.handles.sandbox import Sandbox
from registry.host.context import HostContext
from registry.model.extensions import Extension
from registry.model.extensions import validate as validate_extensions
from registry.model.status import State, Status, short_state
from registry.store import Store, session_of
from registry.sync.interrupts import reraise_interrupt

STATUSES_MAX: Final = 2**26
"""Bytes of a file of statuses; decoded, they take about ten times as much memory."""
ERROR_MAX: Final = 1000
"""Characters of an error, an id or a name in a report."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result for one document.

    Attributes:
        source: `FILE:LINE` of the document.
        id, name: of the sandbox; empty if the document cannot be read.
        state: of the sandbox, also if the import is rolled back; None if the document is refused.
        imported: whether the sandbox is in the registry now.
        holder: sandbox that has the id or the name already, else empty.
        error: reason of the refusal, else empty.
    """

    source: str
    id: str
    name: str
    state: State | None
    imported: bool
    holder: str = ""
    error: str = ""


class _RefusedError(Exception):
    """Rolls back an import of which one document is refused."""


# Statuses.


def read_statuses(path: str) -> dict[str, Mapping[str, Any]]:
    """Return the statuses in a file, by id; fields that `status_line` does not write are ignored.

    The file has an object on each line, or an array of objects, each with an `id`; or an object of
    objects, whose keys are the ids of those without an `id`.

    Raises:
        MetadataError: the file cannot be read, is no such JSON, or has two statuses of one id.
    """
    doing = f"read statuses {path!r}"
    try:
        with open_binary(path) as file:
            data = file.read(STATUSES_MAX + 1)
    except OSError as error:
        reraise_interrupt(error)
        raise MetadataError(f"{doing}: {error.strerror}") from error
    if len(data) > STATUSES_MAX:
        raise MetadataError(f"{doing}: the file is over the limit of {STATUSES_MAX} bytes")
    try:
        entries = _entries(data.decode())
    except (ValueError, RecursionError) as error:
        raise MetadataError(f"{doing}: invalid JSON: {error}") from error
    found: dict[str, Mapping[str, Any]] = {}
    for id, entry in entries:
        if not isinstance(id, str) or not isinstance(entry, dict):
            raise MetadataError(f"{doing}: an entry is not an object with an id", value=entry)
        if found.setdefault(id, entry) is not entry:
            raise MetadataError(f"{doing}: {id!r} has two statuses", id=id)
    return found


def _entries(text: str) -> list[tuple[Any, Any]]:
    """Return each id with its entry, both of any type.

    Raises:
        ValueError, RecursionError: *text* is not JSON.
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
    """Return the status in *entry*; it is not validated here.

    Raises:
        MetadataError: *entry* has no known state.
    """
    fields = {name: _field(entry, name) for name in Status.__dataclass_fields__}
    name = short_state(fields.pop("state"))
    if name not in State.__members__:
        known = ", ".join(map(str, State))
        raise MetadataError(f"status: state {entry.get('state')!r} is none of {known}")
    given = {field: value for field, value in fields.items() if value is not None}
    return Status(State[name], **given)


def _field(entry: Mapping[str, Any], name: str) -> Any:
    """Return the field *name*; of a time its integer, which `list -o json` has as text.

    Raises:
        MetadataError: the text of a time is no integer.
    """
    exact = entry.get(f"{name}{EXACT}") if name in TIMES else None
    value = entry.get(name) if exact is None else exact
    if name not in TIMES or not isinstance(value, str):
        return value
    try:
        return int(value)
    except ValueError as error:
        message = f"status: {name} {value!r} is not an integer of ns since the Unix epoch"
        raise MetadataError(f"{message}; give {name}{EXACT} too", value=value) from error


# Importing.


class Candidate(NamedTuple):
    """A prepared document; *outcome* has the error if there is no *addition*."""

    outcome: Outcome
    addition: Addition | None
    extensions: Mapping[str, Extension]


def prepare(
    found: Iterable[Document], statuses: Mapping[str, Mapping[str, Any]]
) -> list[Candidate]:
    """Return a candidate for each document, with the reason if it cannot be adopted.

    Args:
        found: the documents.
        statuses: by id, as `read_statuses` returns them; a sandbox without a status is UNKNOWN.
    """
    context = HostContext.current()
    return [_prepare(document, statuses, context) for document in found]


def _prepare(
    document: Document, statuses: Mapping[str, Mapping[str, Any]], context: HostContext
) -> Candidate:
    metadata = document.metadata
    if metadata is None:
        error = _short(document.error)
        outcome = Outcome(document.source, "", "", None, imported=False, error=error)
        return Candidate(outcome, None, {})
    id, name = _short(metadata.id), _short(metadata.name)
    outcome = Outcome(document.source, id, name, None, imported=False)
    try:
        entry = statuses.get(metadata.id, {"state": str(State.UNKNOWN)})
        addition = additions.prepare("adopt", metadata, _status_of(entry), 0, context)
        given = entry.get("extensions")
        found = {} if given is None else extensions.load(given)
        return Candidate(outcome, addition, validate_extensions(found, addition.doing))
    except (InvalidArgumentError, ResourceExhaustedError) as error:
        return Candidate(replace(outcome, error=_short(str(error))), None, {})


def load(
    store: Store,
    candidates: Sequence[Candidate],
    *,
    keep_going: bool,
    progress: Callable[[int, int], object] = lambda _done, _total: None,
) -> list[Outcome]:
    """Adopt *candidates* in one transaction, and return the outcome of each.

    Args:
        store: the registry that adopts them.
        candidates: as `prepare` returns them.
        keep_going: adopt the others when some are refused, instead of none.
        progress: called with the number of documents that are done, and of all.
    """
    outcomes: list[Outcome] = []
    sources: dict[str, str] = {}
    with contextlib.suppress(_RefusedError), store.transaction():
        for number, candidate in enumerate(candidates, 1):
            outcomes.append(_adopt(store, candidate, sources))
            progress(number, len(candidates))
        if not keep_going and any(outcome.error for outcome in outcomes):
            raise _RefusedError
        return outcomes
    return [replace(outcome, imported=False) for outcome in outcomes]


def _adopt(store: Store, candidate: Candidate, sources: dict[str, str]) -> Outcome:
    """Adopt one candidate, and add its source to *sources*, which are by id."""
    outcome, addition, found = candidate
    if addition is None:
        return outcome
    try:
        # The second half of `Store.adopt`.
        sandbox = additions.insert(session_of(store), addition)
        if found:
            sandbox.extensions.update(lambda _: found)
    except AlreadyExistsError as error:
        holder = error.holder if isinstance(error, NameReservedError) else error.id
        why = str(error)
        if holder in sources:
            why = f"{sources[holder]} already has its id or name"
        return replace(outcome, holder=holder, error=_short(why))
    sources[str(addition.columns["id"])] = outcome.source
    return replace(outcome, state=addition.status.state, imported=True)


def _short(text: str) -> str:
    return text if len(text) <= ERROR_MAX else text[:ERROR_MAX] + "..."


# Exporting.


def status_line(sandbox: Sandbox) -> str:
    """Return the status of *sandbox* as it was read, in the form that `read_statuses` takes.

    The line has the latest extensions, and none if the sandbox has been deleted.

    Raises:
        MetadataError: its state is unknown, or an extension is damaged.
    """
    fields = asdict(sandbox.status_as_read) | {"state": str(sandbox.status_as_read.state)}
    with contextlib.suppress(NotFoundError):
        if found := extensions.dump(sandbox.extensions):
            fields["extensions"] = found
    return json.dumps({"id": sandbox.id} | fields, ensure_ascii=False) + "\n"
