"""Arrows point one way: a module imports only what stands before it."""

from __future__ import annotations

import ast
import os

import registry
from tests.tools import run

PACKAGE = os.path.dirname(registry.__file__)
ORDER = [
    "errors",
    "values",
    "interrupts",
    "waiting",
    "threads",
    "descriptor",
    "kernel",
    "mounts",
    "status",
    "cri",
    "cri.gojson.scan",
    "cri.gojson.shapes",
    "cri.gojson.messages",
    "cri.gojson.write",
    "cri.gojson",
    "cni",
    "metadata",
    "namespaces",
    "netns",
    "process",
    "schema",
    "columns",
    "sql",
    "rows",
    "engine.paths",
    "engine.probe",
    "engine.driver",
    "engine.walfile",
    "engine.continuity",
    "engine.reserve",
    "engine.lost",
    "engine.room",
    "engine.lockfile",
    "engine.locks",
    "engine.turnstile",
    "engine.owner",
    "engine.transaction",
    "engine.blame",
    "engine.tripwire",
    "engine.readers",
    "engine.watch",
    "engine.wal",
    "engine.writer",
    "engine.group",
    "engine.file",
    "engine.write",
    "engine.shared",
    "engine",
    "migrate",
    "inspection",
    "evidence",
    "reconcile",
    "live",
    "cache",
    "changes",
    "session",
    "sandbox",
    "additions",
    "exits",
    "recover",
    "store",
    "check",
    "documents",
    "transfer",
    "output",
    "cli",
    "shim.validate",
    "shim.pause",
    "shim.sandboxer",
    "shim.service",
    "shim.server",
    "shim.command",
    "shim",
    "__main__",
]
LATE = {("store", "check")}
"""Upwards, and only when it is called."""


def modules() -> dict[str, str]:
    """Return the source of each module by its name in ORDER."""
    found = {}
    for folder, _, files in os.walk(PACKAGE):
        for file in files:
            if not file.endswith(".py") or file.endswith("_pb2.py"):
                continue
            path = os.path.relpath(os.path.join(folder, file), PACKAGE)
            name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            with open(os.path.join(folder, file), encoding="utf-8") as source:
                found[name] = source.read()
    found.pop("__init__")
    return found


def imports(source: str) -> set[str]:
    """Return which modules of the package *source* imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module in {"registry", "registry.engine"}:
                names += [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            short = name.removeprefix("registry.")
            short = short.removesuffix(".sandbox_config_pb2")
            if name.startswith("registry.") and short in ORDER:
                found.add(short)
    return found


def test_every_module_stands_in_the_order() -> None:
    """A new one is put where it belongs."""
    assert set(ORDER) >= modules().keys()


def test_a_module_imports_only_what_stands_before_it() -> None:
    """But for what is imported late, which is listed."""
    for name, source in modules().items():
        for imported in imports(source) - {name}:
            if name.startswith(f"{imported}."):
                continue  # the package that it is in
            late = (name, imported) in LATE
            assert late or ORDER.index(imported) < ORDER.index(name), f"{name} imports {imported}"


def test_the_package_lists_its_modules_in_this_order() -> None:
    """The docstring that a reader meets first is true."""
    assert registry.__doc__ is not None
    listed = registry.__doc__.split("before them:\n")[-1].split()
    places = [listed.index(name) for name in ("errors", "status", "metadata", "store", "check")]
    assert sorted(places) == places


def test_a_module_that_is_imported_alone_pulls_in_none_above_it() -> None:
    """Each by itself, without the package's own imports."""
    out = run(
        """
        import importlib, sys, types
        path, *order = sys.argv[1:]
        for place, name in enumerate(order):
            for loaded in [each for each in sys.modules if each.split(".")[0] == "registry"]:
                if not loaded.endswith("_pb2"):
                    del sys.modules[loaded]
            package = sys.modules["registry"] = types.ModuleType("registry")
            package.__path__ = [path]
            importlib.import_module(f"registry.{name}")
            above = {f"registry.{each}" for each in order[place + 1:]}
            inside = f"registry.{name}".rpartition(".")[0]
            if inside != "registry":  # its package imports all that is in it
                above = {each for each in above if not each.startswith(inside)}
            print(*(above & sys.modules.keys()))
        """,
        PACKAGE,
        # The shim embeds the package, as anybody does, through its face.
        *[name for name in ORDER if name in modules() and not name.startswith("shim")],
    )
    assert "" == out.strip()


def test_the_shim_gets_by_with_what_anybody_can_import() -> None:
    """But for interrupts, system calls that Python lacks, and the program of `serve`."""
    for name, source in modules().items():
        if name.startswith("shim."):
            allowed = {"cri", "interrupts", "kernel", "shim"}
            allowed |= {"cli"} if name == "shim.command" else set()
            assert allowed >= {each.partition(".")[0] for each in imports(source)}, name


def test_everything_exported_is_there_and_documented() -> None:
    """Each name of `__all__`, in order, with a docstring of its own."""
    assert sorted(registry.__all__, key=lambda name: (not name.isupper(), name)) == registry.__all__
    for name in registry.__all__:
        value = getattr(registry, name)
        assert name == "UpdateFunc" or value.__doc__
