"""Numbers by which a registry file and this code recognise each other."""

from __future__ import annotations

from typing import Final

REVISION: Final = "0004"
"""Alembic's name of the newest revision."""
LEVEL: Final = 4
"""The newest revision as a number: `registry.level` holds it, and older code can compare it."""
APPLICATION_ID: Final = 0x53524442
"""`SRDB`: distinguishes a registry from any other SQLite file (PRAGMA application_id)."""
HISTORY_MAX: Final = 100_000
"""Number of transitions that are kept."""
BLOCK: Final = 1_000_000_000
"""The first transition of a new incarnation has a seq of a multiple of this number, plus one."""
