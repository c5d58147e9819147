"""Modules that the start of a process loads: shims are short-lived and start often."""

from __future__ import annotations

import textwrap

import pytest

from registry import Store
from tests.tools import READY, pod, run, sandbox

HEAVY = (
    "alembic",
    "asyncio",
    "ctypes",
    "google.protobuf",
    "json",
    "pydantic",
    "pyroute2",
    "registry.maintenance",
    "registry.recovery.reconcile",
    "rich",
    "sqlalchemy",
    "typer",
)
"""Modules of which a process loads only those that it uses."""
STARTS = {
    "import": ("import registry", ""),
    "open, get, update, close": (
        """
        from dataclasses import replace
        from registry import Store
        with Store.open(sys.argv[1]) as store:
            store.get("a").status.update(lambda old: replace(old, message="started"))
        """,
        "registry.recovery.reconcile",
    ),
    "the same without a reconcile": (
        """
        from dataclasses import replace
        from registry import Store
        with Store.open(sys.argv[1], reconcile=False) as store:
            store.get("a").status.update(lambda old: replace(old, message="started"))
        """,
        "",
    ),
    "open, list, history, delete, close": (
        """
        from registry import Store
        with Store.open(sys.argv[1]) as store:
            store.list(labels={"app": "web"})
            store.history()
            store.delete("a")
        """,
        "registry.recovery.reconcile",
    ),
    "create": (
        """
        from registry import Store
        Store.open(sys.argv[1] + "-new").close()
        """,
        "registry.recovery.reconcile",
    ),
    "read the config": (
        """
        from registry import Store
        with Store.open(sys.argv[1], read_only=True) as store:
            assert store.get("a").config is not None
        """,
        "google.protobuf",
    ),
    "add, check": (
        """
        from registry import Metadata, State, Status, Store, cri
        with Store.open(sys.argv[1]) as store:
            config = cri.PodSandboxConfig(metadata=cri.PodSandboxMetadata(name="web"))
            store.add(Metadata("b", "b", config), Status(State.READY))
            assert not store.check()
        """,
        "google.protobuf json registry.recovery.reconcile",
    ),
}
"""Code of each start, which has the path of a registry as its argument, and what of HEAVY it loads.
"""


@pytest.mark.parametrize("start", STARTS)
def test_start_loads_only_what_it_uses(start: str, path: str) -> None:
    """Every module of HEAVY that it does not use is left out."""
    with Store.open(path) as store:
        store.add(sandbox("a", config=pod(app="web")), READY)
    code, used = STARTS[start]
    loaded = f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
    assert f"{used}\n" == run(f"import sys\n{textwrap.dedent(code)}\n{loaded}", path)
