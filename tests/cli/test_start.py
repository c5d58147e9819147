"""Modules that each start of the program imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from registry import Store
from registry.cli.program import VERBS
from tests.tools import READY, pod, run, sandbox

HEAVY = {
    *("alembic", "asyncio", "ctypes", "google", "grpc", "json", "pydantic"),
    *("pyroute2", "rich", "sqlalchemy", "typer"),
}
"""Packages of which a verb imports only those that it uses."""
MODULES = {place.partition(":")[0] for place in VERBS.values()}


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a path without a registry."""
    return str(tmp_path / "registry.db")


def imported(*args: str) -> set[str]:
    """Return the names of the modules that the program has imported once it has run *args*."""
    out = run(
        """
        import sys
        from registry.__main__ import main
        assert main() == 0
        print("\\n", sorted(sys.modules))
        """,
        *args,
    )
    return set(ast.literal_eval(out.splitlines()[-1]))


@pytest.mark.parametrize("verb", ["list", "list --json", "history", "--help"])
@pytest.mark.parametrize("config", [False, True], ids=["no config", "config"])
def test_reading_imports_only_what_it_uses(path: str, verb: str, config: bool) -> None:
    """A list decodes no config; only a terminal needs what cuts and pages a table."""
    with Store.open(path) as store:
        store.add(sandbox("a", config=pod() if config else None), READY)
    loaded = imported("--db", path, *verb.split())
    used = {"json"} if "--json" in verb else set()
    assert used == HEAVY & {name.partition(".")[0] for name in loaded}
    assert "registry.shim.server" not in loaded
    assert not {"registry.cli.output.terminal", "registry.cli.output.pager", "yaml"} & loaded


def test_a_verb_imports_no_other_verb(path: str) -> None:
    """Each group of verbs is a module, imported when one of its verbs is run."""
    Store.open(path).close()
    assert {"registry.cli.verbs.listing"} == MODULES & imported("--db", path, "list")
    assert {"registry.cli.verbs.history"} == MODULES & imported("--db", path, "history")
