"""Fields of sandboxes that `list` and `inspect` show."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

from registry import cri
from registry.cli import options
from registry.errors import DataLossError, MetadataError
from registry.handles.sandbox import Sandbox
from registry.store import Store, session_of
from registry.tables import filters, sql
from registry.tables.rows import Summary, as_text

FIELDS: Final = (*Summary._fields, "labels")
"""Fields of a sandbox in a list."""


def summaries(store: Store, fields: tuple[str, ...], **wanted: Any) -> list[tuple[Any, ...]]:
    """Return *fields* of the sandboxes that match the filters of `filters.list_query`.

    A damaged registry is read sandbox by sandbox: `since` is None there, and the filter by it takes
    the last write for the change of state.
    """
    if not options.is_damaged():
        query, params = filters.list_query(summaries=fields, **wanted)
        return session_of(store).fetch(query, params, filters.LISTING)
    since, reason = wanted.pop("since", None), wanted.pop("reason", None)
    limit = wanted.pop("limit", None)
    handles = [
        summary_of(each) for each in store.list(**wanted) if since is None or _wrote(each, since)
    ]
    return [
        tuple(getattr(each, name) for name in fields)
        for each in handles
        if reason is None or as_text(each.reason).casefold() == reason.casefold()
    ][:limit]


def _wrote(sandbox: Sandbox, since: int) -> bool:
    """Return whether the status was written since *since*; True if its time is damaged."""
    changed_at = sandbox._entry.row.changed_at  # noqa: SLF001 - no public column has it
    return not isinstance(changed_at, int) or changed_at >= since


def latest_summary(store: Store, sandbox: Sandbox) -> tuple[Any, ...] | None:
    """Return the `Summary` of *sandbox*; None if it was just deleted, or cannot be read."""
    columns = ", ".join(sql.SUMMARY_COLUMNS.values())
    query = f"{sql.SUMMARIES.format(columns=columns)} WHERE {sql.LIST_ONE}"
    params = {"creation": sandbox._entry.row.creation}  # noqa: SLF001 - a damaged id names none
    with contextlib.suppress(DataLossError):
        for found in session_of(store).fetch(query, params, filters.LISTING):
            return found
    return None


def summary_of(sandbox: Sandbox) -> Summary:
    """Return the summary of *sandbox* without `since`, which its record does not have."""
    stored = sandbox.stored
    metadata = cri.PodSandboxConfig().metadata
    with contextlib.suppress(MetadataError):
        if sandbox.config is not None:
            metadata = sandbox.config.metadata
    fields: dict[str, Any] = {name: stored.get(name) for name in Summary._fields}
    fields |= {"id": sandbox.id, "name": sandbox.name, "pod": metadata.name, "since": None}
    fields |= {name: getattr(metadata, name) for name in ("namespace", "uid", "attempt")}
    return Summary(**fields)


def row_of(values: tuple[Any, ...]) -> dict[str, Any]:
    """Return the fields of a `Summary`, with text for what should be text and is damaged."""
    row = dict(zip(Summary._fields, values, strict=True))
    row["host_network"] = bool(row["host_network"])
    for name, value in row.items():
        if isinstance(value, bytes):
            row[name] = as_text(value)
    return row


def labels(store: Store) -> dict[str, dict[str, str]]:
    """Return the labels of all pods, by the id of the sandbox, sorted by key."""
    found: dict[str, dict[str, str]] = {}
    with contextlib.suppress(DataLossError):
        for id, key, value in session_of(store).fetch(sql.LABELS, {}, "read labels"):
            found.setdefault(id, {})[as_text(key)] = as_text(value)
    return found


def labels_of(sandbox: Sandbox) -> dict[str, str] | None:
    """Return the labels in the config of *sandbox*, sorted by key; None if it cannot be read."""
    with contextlib.suppress(MetadataError):
        config = sandbox.config
        return {} if config is None else dict(sorted(config.labels.items()))
    return None


def unreadable(sandbox: Sandbox) -> Iterator[str]:
    """Yield why the stored status or metadata cannot be read, if so."""
    for part in ("status_as_read", "metadata"):
        try:
            getattr(sandbox, part)
        except MetadataError as error:
            yield str(error)
