"""Arrows point one way: a module imports only what stands before it."""

from __future__ import annotations

import ast
import importlib
import os

import registry
from tests.tools import run

PACKAGE = os.path.dirname(registry.__file__)
ORDER = [
    "version",
    "visible",
    "errors",
    "sync.interrupts",
    "sync.imports",
    "sync.locks",
    "sync.threads",
    "sync",
    "cri.gojson.scan",
    "cri.gojson.shapes",
    "cri.gojson.messages",
    "cri.gojson.write",
    "cri.gojson",
    "cri",
    "model.validation",
    "model.text",
    "model.identity",
    "model.selector",
    "model.status",
    "model.cni",
    "model.metadata",
    "model.extensions",
    "model.containerd",
    "model",
    "host.descriptor",
    "host.kernel",
    "host.file_events",
    "host.context",
    "host.namespaces",
    "host.inventory",
    "host.mounts",
    "host.paths",
    "host.file_locks",
    "host.part_file",
    "host.directory_lock",
    "host.netns",
    "host.pidfd",
    "host.file_users",
    "host.process",
    "host.held_process",
    "host",
    "engine.driver",
    "engine.long_wal",
    "engine.sqlite_errors",
    "engine.wal_file",
    "engine.journal_file",
    "engine.continuity",
    "engine.disk_reserve",
    "engine.beside",
    "engine.disk_space",
    "engine.lock_file",
    "engine.process_lock",
    "engine.usage",
    "engine.deadline",
    "engine.owner",
    "engine.measurements",
    "engine.transaction",
    "engine.hooks",
    "engine.lock_holder",
    "engine.file_identity",
    "engine.readers",
    "engine.own_commits",
    "engine.poller",
    "engine.commits",
    "engine.loop_waits",
    "engine.wal",
    "engine.writer",
    "engine.group_commit",
    "engine.engine",
    "engine.spans",
    "engine.write",
    "engine.open_files",
    "engine",
    "tables.version",
    "tables.sql",
    "tables.queries",
    "tables.filters",
    "tables.columns",
    "tables.rows",
    "tables.readable",
    "tables.encoding",
    "tables.position",
    "tables.incarnation",
    "tables.copies",
    "tables.upgrade_backup",
    "tables.migrations",
    "tables.upgrade_sql",
    "tables.inspection",
    "tables.backup",
    "tables.writes",
    "tables.integrity",
    "tables.triggers",
    "tables.schema",
    "tables.views",
    "tables.statements",
    "tables.generate",
    "tables.document",
    "tables",
    "handles.runtime_state",
    "handles.cache",
    "handles.stops",
    "handles.session",
    "handles.damaged",
    "handles.watch",
    "handles.identities",
    "handles.extensions",
    "handles.sandbox",
    "handles.additions",
    "handles.exit_watcher",
    "handles",
    "recovery.findings",
    "recovery.evidence",
    "recovery.verdicts",
    "recovery.observations",
    "recovery.orphans",
    "recovery.reconcile",
    "recovery",
    "store",
    "aio.calls",
    "aio.face",
    "aio",
    "maintenance.present",
    "maintenance.restore",
    "maintenance.pages",
    "maintenance.salvage_report",
    "maintenance.damaged_file",
    "maintenance.records",
    "maintenance.salvage_copy",
    "maintenance.salvage",
    "maintenance",
    "metrics.table",
    "metrics.readings",
    "metrics.scrape",
    "metrics.text",
    "metrics",
    "cli.output.cells",
    "cli.output.terminal",
    "cli.output.streams",
    "cli.output.values",
    "cli.output.ids",
    "cli.output.progress",
    "cli.output.pager",
    "cli.output.views",
    "cli.output.rows",
    "cli.output.formats",
    "cli.output",
    *("fleet.text", "fleet.tables", "fleet.statements", "fleet.postgres", "fleet.source"),
    *("fleet.lines", "fleet.lease", "fleet.push", "fleet.figures", "fleet.follow"),
    *("fleet.maintain", "fleet.queries"),
    "fleet",
    "cli.containerd.documents",
    "cli.containerd.extensions",
    "cli.containerd.import_export",
    "cli.containerd",
    "cli.failures",
    "cli.usage",
    "cli.signals",
    "cli.moments",
    "cli.complete",
    "cli.options",
    "cli.lookup",
    "cli.verbs.summary",
    "cli.verbs.transitions",
    "cli.verbs.report",
    "cli.verbs.live",
    "cli.verbs.listing",
    "cli.verbs.inspect",
    "cli.verbs.facts",
    "cli.verbs.steps",
    "cli.verbs.explanation",
    "cli.verbs.why",
    "cli.verbs.history",
    "cli.verbs.watch",
    "cli.verbs.who",
    "cli.verbs.sql",
    "cli.verbs.reconcile",
    "cli.verbs.check",
    "cli.verbs.metrics",
    "cli.verbs.delete",
    "cli.verbs.upgrade",
    "cli.verbs.backup",
    "cli.verbs.restore",
    "cli.verbs.salvage",
    "cli.verbs.importing",
    "cli.verbs.export",
    "cli.verbs.demo",
    "cli.verbs.completion",
    "cli.verbs.fleet",
    "cli.verbs",
    "cli.program",
    "cli",
    "shim.limits",
    "shim.cgroups",
    "shim.mounts",
    "shim.seccomp",
    "shim.validate",
    "shim.pause",
    "shim.plugins",
    "shim.netconf",
    "shim.arguments",
    "shim.attachment",
    "shim.network",
    "shim.recovery",
    "shim.runs",
    "shim.sandboxer",
    "shim.answers",
    "shim.stats",
    "shim.images",
    "shim.systemd",
    "shim.ending",
    "shim.calls",
    "shim.events",
    "shim.service",
    "shim.metrics",
    "shim.server",
    "shim.command",
    "shim",
    "browse.questions",
    "browse.metadata",
    "browse.timeline",
    "browse.drawing",
    "browse.readings",
    "browse.cells",
    "browse.database",
    "browse.plugin",
    "browse.server",
    "browse.command",
    "browse",
    "__main__",
]
LATE = {
    ("store", "tables.integrity"),
    ("model.metadata", "model.containerd"),
    ("handles.runtime_state", "handles.stops"),
}
"""Upwards, and only when it is called."""
PACKAGES = {name.rpartition(".")[0] for name in ORDER if "." in name}


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
    lines = registry.__doc__.split("lists its modules:\n")[-1].strip().split("\n")
    listed = [line.split()[0] for line in lines]
    assert listed == [name for name in ORDER if "." not in name and name != "__main__"]


def test_each_package_lists_its_modules_in_this_order() -> None:
    """All of them, below what the package is."""
    for package in PACKAGES - {"cri", "cri.gojson", "shim"}:
        doc = importlib.import_module(f"registry.{package}").__doc__ or ""
        lines = doc.split("\n\n")[1].strip().split("\n")
        inside = [name for name in ORDER if name.rpartition(".")[0] == package]
        assert inside == [f"{package}.{line.split()[0]}" for line in lines]


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
            inside = name.partition(".")[0]
            if inside != name:  # its package, and what that imports of itself
                above = {each for each in above if not each.startswith(f"registry.{inside}")}
            print(*(above & sys.modules.keys()))
        """,
        PACKAGE,
        # The shim embeds the package, as anybody does, through its face.
        *[name for name in ORDER if name in modules() and not name.startswith("shim")],
    )
    assert "" == out.strip()


def test_the_shim_gets_by_with_what_anybody_can_import() -> None:
    """But for interrupts, threads, system calls that Python lacks, and the program of `serve`."""
    for name, source in modules().items():
        if name.startswith("shim."):
            allowed = {"cri", "sync.interrupts", "host.kernel"}
            allowed |= {"version"}
            allowed |= {"sync.threads"} if name in {"shim.pause", "shim.server"} else set()
            allowed |= {"host.file_locks"} if name == "shim.server" else set()
            allowed |= (
                {"cli.failures", "cli.options", "visible"} if name == "shim.command" else set()
            )
            others = {each for each in imports(source) if not each.startswith("shim")}
            assert allowed >= {each for each in others if each not in PACKAGES - {"cri"}}, name


def test_everything_exported_is_there_and_documented() -> None:
    """Each name of `__all__`, in order, with a docstring of its own."""
    assert sorted(registry.__all__, key=lambda name: (not name.isupper(), name)) == registry.__all__
    for name in registry.__all__:
        value = getattr(registry, name)
        assert name == "UpdateFunc" or value.__doc__
