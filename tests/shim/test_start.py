"""Modules that the start of the server loads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shim.client import Client
from tests.shim.conftest import Server
from tests.tools import environment, run

USED = {"click", "google", "grpc", "grpc_health", "registry", "typing_extensions"}
"""Packages beside the standard library that a server imports until it answers."""
OF_GRPC = {"grpc_channelz", "grpc_reflection", "grpc_status", "grpc_tools"}
"""Packages that grpcio imports where they are installed."""
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


def test_serve_imports_only_what_it_needs(tmp_path: Path) -> None:
    """Python lists the imports of a server that has answered a call and run a sandbox."""
    server = Server(tmp_path)
    command = [sys.executable, "-X", "importtime", *server.command()[1:]]
    with server.log.open("ab") as log:
        process = subprocess.Popen(command, env=environment(), stderr=log)
    try:
        with Client(server.socket) as cri:
            cri.call("Version", wait=True)
            cri.call("Status")
            cri.list()
        process.terminate()
        assert 0 == process.wait()
    finally:
        process.kill()
    found = re.findall(r"^import time: .*\| +(\w+)", server.log.read_text(), re.MULTILINE)
    others = set(found) - sys.stdlib_module_names - OF_GRPC
    # Of site, of pickle, which looks for Jython, and the title of the list.
    assert USED == others - {"_distutils_hack", "sitecustomize", "org", "imported"}


def test_only_grpc_loads_asyncio() -> None:
    """The other modules of the shim do not use it, and grpcio takes half of a start."""
    assert set() == loaded("registry.shim.sandboxer", "asyncio", "grpc")
    assert {"asyncio", "grpc"} == loaded("registry.shim.service", "asyncio", "grpc")
