"""Sandboxes into a registry and out of it, in the JSON that containerd stores.

Rules:

1. Documents are read one by one, and none further than its limit: what is kept is what they say.
2. All of them are read before the registry is locked, then adopted in one transaction.
3. What is refused is reported, every one of it, and not the first only.
4. Which namespaces and processes it was is not carried: whoever imports notes it anew.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO, Final

from registry.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    MetadataError,
    NameReservedError,
    ResourceExhaustedError,
)
from registry.metadata import DOCUMENT_MAX, Metadata
from registry.sandbox import Sandbox
from registry.status import State, Status
from registry.store import Store

STDIN: Final = "-"
"""The file name that stands for it."""
STATUSES_MAX: Final = DOCUMENT_MAX
"""Bytes of a file of statuses."""
REFUSED_MAX: Final = 1000
"""Documents of one file that are none before it is given up: a binary has millions of lines."""
CHUNK: Final = 2**20
"""Bytes that are read at once of what nobody is going to take."""
ERROR_MAX: Final = 1000
"""Characters of an error, an id or a name that a report repeats."""

_TEXTS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?')


@dataclass(frozen=True, slots=True)
class Document:
    """What stands at *source*, `FILE:LINE`: metadata, or *error* says why it is none."""

    source: str
    metadata: Metadata | None
    error: str = ""


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


# Reading.


def documents(paths: Iterable[str]) -> Iterator[Document]:
    """Yield what the files hold, in order; one that cannot be read is a document with an error."""
    for path in paths:
        try:
            with _open(path) as file:
                yield from _documents(path, file)
        except OSError as error:
            yield Document(path, None, f"read {path!r}: {error.strerror}")


def _documents(path: str, file: BinaryIO) -> Iterator[Document]:
    refused = 0
    for line, text in split(file):
        document = _decode(f"{path}:{line}", text)
        yield document
        refused += document.metadata is None
        if refused == REFUSED_MAX:
            yield Document(path, None, f"{refused} documents are none; the rest is not read")
            return


def split(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield each JSON document of *file*, and the line that it begins in.

    A document ends with the line that closes its last bracket, so a file may hold one that is
    written over many lines, or one in each line. A line that opens and closes a whole object at its
    first byte begins anew, so that one that is cut off does not swallow those behind it.

    Of a document over `DOCUMENT_MAX` bytes that many and one are returned.
    """
    text, begin, depth = bytearray(), 0, 0
    for number, line in enumerate(_lines(file), 1):
        if not line.strip(b" \t\r\n"):
            continue
        opened = _opened(line)
        if text and (depth <= 0 or (line.startswith(b"{") and opened == 0)):
            yield begin, bytes(text)
            text.clear()
        if not text:
            begin, depth = number, 0
        text += line[: DOCUMENT_MAX + 1 - len(text)]
        depth += opened
    if text:
        yield begin, bytes(text)


def _open(path: str) -> BinaryIO:
    return open(0, "rb", closefd=False) if path == STDIN else open(path, "rb")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield each line, of a long one no more than its document may have and a byte."""
    while line := file.readline(DOCUMENT_MAX + 1):
        yield line
        while line and not line.endswith(b"\n"):
            line = file.readline(CHUNK)


def _opened(line: bytes) -> int:
    """Return how many more brackets *line* opens than it closes."""
    bare = _TEXTS.sub(b"", line)
    return sum(map(bare.count, (b"{", b"["))) - sum(map(bare.count, (b"}", b"]")))


def _decode(source: str, text: bytes) -> Document:
    if len(text) > DOCUMENT_MAX:
        return Document(source, None, f"the document is over the limit of {DOCUMENT_MAX} bytes")
    try:
        return Document(source, Metadata.unmarshal_json(text))
    except MetadataError as error:
        return Document(source, None, str(error))


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
        with _open(path) as file:
            data = file.read(STATUSES_MAX + 1)
    except OSError as error:
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
        whole = json.loads(text)
    except ValueError:
        whole = [json.loads(line) for line in text.split("\n") if line.strip()]
    if isinstance(whole, dict) and not isinstance(whole.get("id"), str):
        return [(_id_of(entry) or key, entry) for key, entry in whole.items()]
    return [(_id_of(entry), entry) for entry in (whole if isinstance(whole, list) else [whole])]


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


def load(
    store: Store,
    found: Sequence[Document],
    statuses: Mapping[str, Mapping[str, Any]],
    *,
    keep_going: bool,
) -> list[Outcome]:
    """Adopt the sandboxes of *found* in one transaction, and return what became of each.

    Args:
        store: into which they go.
        found: the documents.
        statuses: by id, as `read_statuses` returns them; without one a sandbox is UNKNOWN.
        keep_going: take the others when some are refused, instead of none.
    """
    outcomes: list[Outcome] = []
    with contextlib.suppress(_RefusedError), store.transaction():
        outcomes += [_adopt(store, document, statuses) for document in found]
        if not keep_going and any(outcome.error for outcome in outcomes):
            raise _RefusedError
        return outcomes
    return [replace(outcome, imported=False) for outcome in outcomes]


def _adopt(store: Store, document: Document, statuses: Mapping[str, Mapping[str, Any]]) -> Outcome:
    metadata = document.metadata
    if metadata is None:
        return Outcome(document.source, "", "", None, imported=False, error=_short(document.error))
    id, name = _short(metadata.id), _short(metadata.name)
    refused = Outcome(document.source, id, name, None, imported=False)
    try:
        entry = statuses.get(metadata.id)
        status = Status(State.UNKNOWN) if entry is None else _status_of(entry)
        store.adopt(metadata, status)
    except AlreadyExistsError as error:
        holder = error.holder if isinstance(error, NameReservedError) else metadata.id
        return replace(refused, holder=holder, error=_short(str(error)))
    except (InvalidArgumentError, ResourceExhaustedError) as error:
        if not error.field and not isinstance(error, MetadataError):
            raise  # the disk is full
        return replace(refused, error=_short(str(error)))
    return replace(refused, state=status.state, imported=True)


def _short(text: str) -> str:
    return text if len(text) <= ERROR_MAX else text[:ERROR_MAX] + "..."


# Exporting.


def status_lines(sandboxes: Iterable[Sandbox]) -> str:
    """Return the statuses that the sandboxes were found with, as `read_statuses` takes them."""
    lines = (
        json.dumps({"id": each.id} | asdict(each.seen) | {"state": str(each.seen.state)})
        for each in sandboxes
    )
    return "".join(f"{line}\n" for line in lines)
