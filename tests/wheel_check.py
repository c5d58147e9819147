"""Check of the wheel where the checkout cannot be imported; `make wheel` runs it with -I.

Not a pytest module: that environment has no pytest.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import replace
from importlib import resources
from pathlib import Path

import registry
from registry import Metadata, State, Status, Store

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BIN = os.path.dirname(sys.executable)
PACKAGE = os.path.dirname(registry.__file__)


def run(program: str, *args: str) -> str:
    """Run an installed program, which must succeed, and return its standard output."""
    done = subprocess.run(
        [os.path.join(BIN, program), *args], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{program} {args}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def contents() -> None:
    """Require that the package is the installed one, and complete."""
    assert PACKAGE.startswith(sys.prefix), PACKAGE
    for name in (
        "py.typed",
        "alembic.ini",
        "migrations/env.py",
        "migrations/fleet/env.py",
        "migrations/fleet/versions/0001_fleet.py",
        "cri/sandbox_config_pb2.pyi",
        "shim/runtime.proto",
        "browse/questions.toml",
        "browse/templates/node.html",
    ):
        assert os.path.exists(os.path.join(PACKAGE, name)), name
    assert os.path.exists(f"{sys.prefix}/share/man/man1/sandbox-registry.1")
    requirements = importlib.metadata.requires("sandbox-registry") or []
    needed = {item.split(">")[0].split("<")[0] for item in requirements if "extra" not in item}
    assert needed == {"alembic", "protobuf", "pyroute2", "sqlalchemy"}, needed


def documents(sdist: str) -> None:
    """Require that the archive *sdist* has every document, and every file that the README links."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        linked = set(re.findall(r"\]\(([^)#:]+)[)#]", file.read()))
    assert "docs/api.md" in linked, linked
    tracked = {str(path.relative_to(ROOT)) for path in Path(ROOT, "docs").rglob("*.*")}
    needed = {name for name in linked | tracked if "__pycache__" not in name}
    missing = {name for name in needed if name.rstrip("/") not in names}
    assert not missing, missing


def recover(path: str) -> None:
    """Create a registry, open it again without slow imports, and reconcile it."""
    with Store.open(path) as store:
        store.add(Metadata("a", "a", None, netns_path="/run/netns/none"), Status(State.READY))
        store.add(Metadata("b", "b", None), Status(State.READY))
    code = (
        "import sys; from registry import Store; s = Store.open(sys.argv[1], reconcile=False);"
        "s.list(); s.close(); sys.exit(any(m in sys.modules for m in ('alembic', 'pyroute2')))"
    )
    run("python", "-I", "-c", code, path)
    with Store.open(path) as store:
        assert store.recovery is not None
        assert [finding.reason for finding in store.recovery.findings] == ["NetNSClosed"]
        store.get("b").status.update(lambda old: replace(old, message="still"))
        assert store.check() == []


def upgrade(path: str) -> None:
    """Make a registry of an empty file, by `open` and by the shipped alembic.ini."""
    with open(path, "wb"):
        pass
    Store.open(path).close()
    ini = os.path.join(PACKAGE, "alembic.ini")
    other = f"{path}.other"
    run("alembic", "-c", ini, "-x", f"db={other}", "upgrade", "head")
    assert "(head)" in run("alembic", "-c", ini, "-x", f"db={other}", "current")
    Store.open(other).close()


def upgrade_old(path: str) -> None:
    """Upgrade a registry that the code of revision 0001 has made, by the shipped revisions."""
    old = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "registry-0001.zip")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from registry import *;"
        "s = Store.open(sys.argv[2]); s.add(Metadata('a', 'a', None), Status(State.READY));"
        "assert not hasattr(Sandbox, 'extensions'); s.close()"
    )
    run("python", "-I", "-c", code, old, path)
    with Store.open(path) as store:
        store.get("a").extensions.update(lambda _: {"x": b"1"})
        assert store.check() == []


def command_line(path: str) -> None:
    """Read with the installed program what the library wrote."""
    assert "reconcile" in run("sandbox-registry", "--help")
    assert "SANDBOX_NOTREADY" in run("sandbox-registry", "--db", path, "list", "--json")
    assert "exited_at_ns" in run("sandbox-registry", "--db", path, "list", "-o", "yaml")
    assert resources.files("registry.cli.output").joinpath("schema.json").is_file()
    assert "no violations" in run("sandbox-registry", "--db", path, "check")


def main() -> None:
    """Run all checks; the argument is the sdist."""
    documents(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/registry.db"
        contents()
        recover(path)
        upgrade(f"{folder}/empty.db")
        upgrade_old(f"{folder}/old.db")
        command_line(path)
    version = importlib.metadata.version("sandbox-registry")
    assert registry.__version__ == version, registry.__version__
    print(f"the wheel of sandbox-registry {version} works on Python {sys.version.split()[0]}")  # noqa: T201


if __name__ == "__main__":
    main()
