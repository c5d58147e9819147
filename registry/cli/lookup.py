"""Sandboxes by what an operator types: an id, a name or a pod."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterable, Sequence
from typing import Final

from registry.cli import options
from registry.errors import (
    AmbiguousPrefixError,
    DataLossError,
    InvalidArgumentError,
    MetadataError,
    NotFoundError,
)
from registry.handles.sandbox import Sandbox
from registry.model.status import short_state
from registry.store import Store, session_of
from registry.tables import queries, sql
from registry.tables.rows import as_text
from registry.visible import visible

LISTED: Final = 10
"""Sandboxes that an error lists."""
EVENT: Final = 6
"""Place of `event` in a row of the history."""


class SeveralMatchError(InvalidArgumentError):
    """Several sandboxes match what the operator has typed; the message has them in one line."""

    summary: str = ""
    """Beginning of the message in more than one line."""
    matches: tuple[str, ...] = ()
    """Further lines: a sandbox each, the newest first."""


def find(store: Store, text: str, doing: str) -> Sandbox:
    """Return the sandbox that *text* names, an UNKNOWN one too.

    A full id or a full name wins. Else *text* is a prefix of an id, a pod (`NAMESPACE/POD`), or the
    name of a pod.

    Args:
        store: has the sandbox.
        text: as the operator has typed it.
        doing: operation and object, which begin the message of an error.
    Raises:
        NotFoundError: there is no such sandbox.
        DataLossError: its record cannot be read, in a damaged registry.
        InvalidArgumentError: *text* is empty, or several sandboxes match.
    """
    _require_text(text, doing)
    try:
        return _find(store, text, doing)
    except (DataLossError, NotFoundError) as error:
        if not options.is_damaged() or not _is_known(store, text, doing):
            raise
        shows = f"`{options.command(store.path)} why {shlex.quote(text)}` shows what is known of it"
        message = f"{doing}: its record cannot be read; {shows}"
        raise DataLossError(message, path=store.path) from error


def _is_known(store: Store, text: str, doing: str) -> bool:
    """Return whether the history or an index of a damaged registry has a sandbox *text*."""
    from registry.tables import readable  # noqa: PLC0415 - rarely needed

    with contextlib.suppress(DataLossError):
        if _not_deleted(store, _past_ids(store, text, doing)):
            return True
    with session_of(store).engine.snapshot(doing) as connection:
        return readable.is_indexed(connection, text)


def _find(store: Store, text: str, doing: str) -> Sandbox:
    """Return the sandbox that *text* names, as `find`."""
    with contextlib.suppress(AmbiguousPrefixError, NotFoundError):
        found = store.get(text, include_unknown=True)
        if found.id == text:
            return found
    with contextlib.suppress(NotFoundError):
        return store.get(name=text, include_unknown=True)
    matches = list({each.id: each for each in _matches(store, text)}.values())
    if len(matches) > 1:
        raise _several(doing, _shown(matches), text)
    if not matches:
        raise NotFoundError(f"{doing}: there is no such sandbox", id=text)
    return matches[0]


def find_by_id(store: Store, text: str, doing: str, command: str) -> Sandbox:
    """Return the sandbox whose id is *text* or, alone, begins with it.

    Args:
        store: has the sandbox.
        text: as the operator has typed it.
        doing: operation and object, which begin the message of an error.
        command: beginning of the command that does the same to an id.
    Raises:
        NotFoundError: `find` finds none either.
        InvalidArgumentError: *text* is empty, several sandboxes match, or *text* is a name or a
            pod.
    """
    _require_text(text, doing, "a full id, or a unique prefix")
    found = store.list(include_unknown=True, id=text)
    exact = [each for each in found if each.id == text]
    if len(exact or found) > 1:
        raise _several(doing, _shown(found), text)
    if not found:
        named = find(store, text, doing)
        why = f"the command takes an id, and sandbox {named.name!r} has id {named.id}"
        again = f"`{command} {shlex.quote(named.id)}`"
        raise InvalidArgumentError(f"{doing}: {why}; use {again}", field="id", value=text)
    return (exact or found)[0]


def find_in_history(store: Store, text: str, doing: str) -> str:
    """Return the id of the sandbox that *text* names, as `find` does; also of a deleted one.

    A sandbox that exists wins over deleted ones, also if its record cannot be read.

    Raises:
        NotFoundError: there is no such sandbox, and no history of one is kept.
        InvalidArgumentError: *text* is empty, or several sandboxes match.
    """
    _require_text(text, doing)
    with contextlib.suppress(MetadataError):  # the history has it, with damage
        if not store.history(text, limit=1):
            return _find_past(store, text, doing)
    return text


def _find_past(store: Store, text: str, doing: str) -> str:
    with contextlib.suppress(DataLossError, NotFoundError):
        return _find(store, text, doing).id
    found = _past_ids(store, text, doing)
    if len(found) > 1 and options.is_damaged():
        found = _not_deleted(store, found) or found
    if len(found) > 1:
        raise _several(doing, found, text)
    if not found:
        message = f"{doing}: there is no such sandbox, and no history of one is kept"
        raise NotFoundError(message, id=text)
    return found[0]


def _past_ids(store: Store, text: str, doing: str) -> list[str]:
    """Return the ids that *text* names in the history, the newest first."""
    namespace, slash, pod = text.partition("/")
    pods = {"namespace": namespace, "pod": pod} if slash else {"namespace": None, "pod": text}
    params = {"name": text, **pods, **queries.prefix_params(text)}
    return [as_text(id) for (id,) in session_of(store).fetch(sql.PAST_IDS, params, doing)]


def _not_deleted(store: Store, ids: Iterable[str]) -> list[str]:
    """Return those of *ids* whose last readable transition is not a deletion."""
    query = queries.history(frozenset({"id"}))
    found = []
    for id in ids:
        past = session_of(store).history(query, {"after": 0, "id": id}, "read history")
        if past and past[-1][EVENT] != "deleted":
            found.append(id)
    return found


def ids(store: Store) -> list[str]:
    """Return all ids, which a short id must not begin; none if damage hides them."""
    with contextlib.suppress(DataLossError):
        return [str(id) for (id,) in session_of(store).fetch(sql.IDS, {}, "list ids")]
    return []


def nothing(store: Store, message: str, query: str, what: str, value: str | None) -> str:
    """Return *message* on a filter that nothing matches, with the values that there are.

    Args:
        store: was read.
        message: without a hint.
        query: of the values, `sql.REASONS` for example.
        what: the filter has, `reason` for example.
        value: of the filter; None: it was not given. One that exists needs no hint.
    """
    if value is None:
        return message
    known = [as_text(each) for (each,) in session_of(store).fetch(query, {}, f"list {what}s")]
    if value.casefold() in map(str.casefold, known):
        return message
    if not known:
        return f"{message}; no {what} is recorded"
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return visible(
        f"{message}; there is no {what} {value!r}, only {', '.join(known[:LISTED])}{more}"
    )


def _require_text(text: str, doing: str, advice: str = "an id, a name or NAMESPACE/POD") -> None:
    if not text:
        message = f"{doing}: the id is empty; give {advice}"
        raise InvalidArgumentError(message, field="id", value=text)


def _matches(store: Store, text: str) -> list[Sandbox]:
    """Return the sandboxes whose id begins with *text*, and those of the pod."""
    namespace, slash, pod = text.partition("/")
    if slash:
        return store.list(include_unknown=True, namespace=namespace, pod=pod)
    by_id = store.list(include_unknown=True, id=text)
    return [*by_id, *store.list(include_unknown=True, pod=text)]


def _shown(found: Iterable[Sandbox]) -> list[str]:
    """Return how an error names the sandboxes *found*, the newest first."""
    lines = []
    for sandbox in sorted(found, key=_created_at, reverse=True):
        state = short_state(sandbox.stored["state"])
        lines.append(f"{sandbox.id} ({sandbox.name}, {state})")
    return lines


def _created_at(sandbox: Sandbox) -> int:
    """Return the time of the creation of *sandbox*; 0 if it is unset or damaged."""
    created_at = sandbox.stored["created_at"]
    return created_at if isinstance(created_at, int) else 0


def _several(doing: str, found: Sequence[str], text: str) -> SeveralMatchError:
    listed = list(found[:LISTED])
    more = [f"and {len(found) - LISTED} more"] if len(found) > LISTED else []
    match = f"{doing}: {len(found)} sandboxes match"
    ids = " ".join([", ".join(listed), *more])
    return SeveralMatchError(
        f"{match}, the newest first: {ids}; give one of these ids",
        field="id",
        value=text,
        summary=f"{match}; give one of these ids, the newest first:",
        matches=(*listed, *more),
    )
