"""Modules that the start of the server loads."""

from __future__ import annotations

import pytest

from tests.tools import run

UNUSED = ("alembic", "pydantic", "pyroute2", "rich", "sqlalchemy", "typer")
"""Modules that a server loads only when a call needs them, or never."""


def loaded(module: str, *names: str) -> set[str]:
    """Return which of *names* a process has loaded after it has imported *module*."""
    code = f"import sys, {module}\nprint(*(name for name in {names!r} if name in sys.modules))"
    return set(run(code).split())


@pytest.mark.parametrize("module", ["registry.shim.server", "registry.shim.command"])
def test_server_loads_no_module_that_it_does_not_use(module: str) -> None:
    """Only a new namespace needs pyroute2."""
    assert set() == loaded(module, *UNUSED)


def test_only_grpc_loads_asyncio() -> None:
    """The other modules of the shim do not use it, and grpcio takes half of a start."""
    assert set() == loaded("registry.shim.sandboxer", "asyncio", "grpc")
    assert {"asyncio", "grpc"} == loaded("registry.shim.service", "asyncio", "grpc")
