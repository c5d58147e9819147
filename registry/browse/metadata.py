"""Metadata for Datasette: descriptions, facets, and the questions as canned queries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import Column

from registry.browse.questions import load
from registry.tables import schema
from registry.tables.views import VIEWS
from registry.visible import visible

DATABASE: Final = "registry"
"""Name of the database in addresses."""
_FACETS: Final = {
    "sandbox_overview": ["state", "namespace", "reason"],
    "why_not_ready": ["reason", "namespace"],
    "sandbox_history": ["event", "to_state", "namespace", "reason"],
}
_HIDDEN: Final = (*schema.metadata.tables, "alembic_version", "sqlite_sequence")


def metadata(path: str, actor: str) -> dict[str, Any]:
    """Return the metadata of the page of the registry at *path*, which *actor* alone may see."""
    tables: dict[str, dict[str, Any]] = {name: {"hidden": True} for name in _HIDDEN}
    for table in schema.metadata.tables.values():
        tables[table.name] |= _described(table.comment or "", table.columns.items())
    for view in VIEWS:
        tables[view.name] = _described(view.meaning, view.columns.items())
        tables[view.name] |= {"facets": _FACETS[view.name]}
    queries = {
        each.name: {"sql": each.sql, "title": each.title, "description": each.about}
        for each in load()
    }
    return {
        "title": "sandbox-registry",
        "description": visible(path),
        "allow": {"id": actor},
        "databases": {DATABASE: {"tables": tables, "queries": queries}},
    }


def _described(meaning: str, columns: Iterable[tuple[str, Column[Any]]]) -> dict[str, Any]:
    """Return the description of a table or view, and of its columns."""
    return {
        "description": f"{meaning[0].upper()}{meaning[1:]}.",
        "columns": {name: _meaning(each) for name, each in columns},
    }


def _meaning(column: Column[Any]) -> str:
    null = column.info["null"]
    unit = column.info["unit"]
    text = f"{column.comment}{f' Unit: {unit}.' if unit else ''}{f' NULL: {null}.' if null else ''}"
    return text.replace("`", "")
