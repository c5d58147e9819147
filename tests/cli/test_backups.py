"""The verbs `backup` and `restore`, the recipes for operators, and the units in examples/."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from registry import State, Store
from registry.cli.failures import FINE, UNAVAILABLE, USAGE
from tests import needs
from tests.cli.program import run
from tests.documents import text_of
from tests.tools import READY, ROOT, environment, query, sandbox

NAME = re.compile(r"registry-\d{8}T\d{6}Z\.db")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a registry of one sandbox, which no program has open."""
    path = str(tmp_path / "registry.db")
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
    return path


def test_backup_and_restore_say_what_they_did(path: str, tmp_path: Path) -> None:
    """In plain sentences; what is lost is said in both forms."""
    copy = str(tmp_path / "copy.db")
    assert (FINE, f"backed up {path} to {copy}\n", "") == run("--db", path, "backup", copy)
    done = run("--db", path, "restore", copy)
    assert (FINE, "") == (done.code, done.err)
    first, lost, kept, sandboxes = done.out.splitlines()
    assert f"restored {path} from {copy}, as incarnation 2" == first
    assert "lost: nothing; no transition came after the backup" == lost
    assert kept.startswith(f"what was replaced is kept as {path}.replaced-")
    assert "sandboxes: 1 OPEN" == sandboxes
    with Store.open(path) as store:
        for id in "bc":
            store.add(sandbox(id), READY)
    refused = run("--db", path, "restore", copy)
    assert UNAVAILABLE == refused.code
    lost = "the backup does not have 2 transitions (seq 1000000001 to 1000000002)"
    assert f"{lost}; `sandbox-registry --db {path} history --after 1000000000` shows" in refused.err
    assert "give --force to lose it" in refused.err
    found = json.loads(run("--db", path, "restore", copy, "--force", "--json").out)
    assert [{"first": 1_000_000_001, "last": 1_000_000_002}] == found["lost"]
    assert (path, copy, 3) == (found["path"], found["backup"], found["incarnation"])
    os.unlink(path)
    done = run("--db", path, "restore", copy)
    assert f"there was no registry at {path}\n" in done.out
    assert "is kept as" not in done.out


def test_restore_names_one_transition_and_its_own_writes_as_they_are(
    path: str, tmp_path: Path
) -> None:
    """One has no plural, and the reconcile of a restore has the command line as its writer."""
    copy = str(tmp_path / "copy.db")
    with Store.open(path) as store:
        store.add(sandbox("b", netns_path="/run/netns/never-created"), READY)
        store.backup(copy)
        store.delete("a")
    assert "does not have 1 transition (seq 3);" in run("--db", path, "restore", copy).err
    done = run("--db", path, "restore", copy, "--force")
    assert "lost: 1 transition (seq 3) after the backup" in done.out
    with Store.open(path, read_only=True) as store:
        last = store.history()[-1]
    assert "NetNSClosed" == last.reason
    assert re.fullmatch(r"sandbox-registry\[\d+\]", last.actor)


def test_restore_of_what_is_no_backup_fails_and_leaves_the_registry(
    path: str, tmp_path: Path
) -> None:
    """By the exit code of other verbs that find no registry, and of usage."""
    before = query(path, "SELECT * FROM registry")
    assert UNAVAILABLE == run("--db", path, "restore", str(tmp_path / "missing.db")).code
    assert USAGE == run("--db", path, "restore", path).code
    assert USAGE == run("--db", path, "backup", path).code
    assert UNAVAILABLE == run("--db", str(tmp_path / "missing.db"), "backup", "copy.db").code
    assert before == query(path, "SELECT * FROM registry")


def test_backup_keeps_the_newest_and_removes_nothing_else(path: str, tmp_path: Path) -> None:
    """Backups of its own naming alone, and only once the new one is good."""
    folder = tmp_path / "backups"
    folder.mkdir()
    old = [f"registry-2026010{n}T030000Z.db" for n in range(1, 5)]
    later = "registry-29990101T000000Z.db"
    others = ["registry.db", "other-20260101T030000Z.db", "registry-20260101T030000Z.db.txt"]
    opened = "registry-20251231T030000Z.db"
    for name in (*old, later, opened):
        with Store.open(path) as store:
            store.backup(folder / name)
    Store.open(folder / opened).close()
    for name in others:
        (folder / name).touch()
    (folder / "registry-20250101T030000Z.db").mkdir()
    done = run("--db", path, "backup", str(folder), "--keep", "3", "--json")
    assert FINE == done.code, done.err
    found = json.loads(done.out)
    name = os.path.basename(found["path"])
    assert NAME.fullmatch(name)
    assert os.path.getsize(found["path"]) == found["bytes"]
    assert [str(folder / each) for each in old[:3]] == found["removed"]
    expected = {old[3], later, name, opened, *others, "registry-20250101T030000Z.db"}
    assert expected == {each for each in os.listdir(folder) if not each.startswith(f"{opened}-")}
    assert [("a",)] == query(found["path"], "SELECT id FROM sandboxes")
    shutil.rmtree(folder)
    assert USAGE == run("--db", path, "backup", str(folder), "--keep", "3").code
    assert USAGE == run("--db", path, "backup", str(folder), "--keep", "0").code


def test_the_recipes_of_the_document_work(path: str, tmp_path: Path) -> None:
    """In order: a backup, one for a timer, and a restore; with the paths of this test."""
    section = text_of("docs/operators.md").split("## Make a backup, and restore one\n")[1]
    recipes = re.findall(r"```sh\n(sandbox-registry .*?)```", section.split("\n## ")[0], re.DOTALL)
    assert ["backup", "backup", "restore"] == [each.split()[3] for each in recipes]
    program = tmp_path / "bin" / "sandbox-registry"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m registry "$@"\n')
    program.chmod(0o755)
    (tmp_path / "backup").mkdir()
    for recipe in recipes:
        command = recipe.replace("/var/lib/shim", str(tmp_path)).replace(
            " /backup", f" {tmp_path}/backup"
        )
        subprocess.run(
            ["bash", "-euc", command],
            env=environment() | {"PATH": f"{program.parent}:{os.environ['PATH']}"},
            check=True,
            capture_output=True,
        )
    assert ["registry-", "registry."] == sorted(
        each[:9] for each in os.listdir(tmp_path / "backup")
    )
    assert [(2,)] == query(path, "SELECT incarnation FROM registry")


def test_the_recipe_of_the_document_brings_a_lost_sandbox_back(path: str, tmp_path: Path) -> None:
    """From the registry that a restore has replaced, with its status."""
    run("--db", path, "backup", str(tmp_path / "copy.db"))
    with Store.open(path) as store:
        store.add(sandbox("4a333b1c"), READY)
    done = json.loads(
        run("--db", path, "restore", str(tmp_path / "copy.db"), "--force", "--json").out
    )
    text = text_of("docs/operators.md")
    (recipe,) = re.findall(r"```sh\nkept=\S+\n(.*?)```", text, re.DOTALL)
    program = f'"{sys.executable}" -m registry'
    command = recipe.replace("sandbox-registry", program).replace("/var/lib/shim", str(tmp_path))
    command = f"kept={done['replaced']}\n{command}".replace("/tmp/s", f"{tmp_path}/s")
    subprocess.run(["bash", "-euc", command], env=environment(), check=True)
    with Store.open(path) as store:
        assert State.READY is store.get("4a333b1c").status.get().state
        assert [] == store.check()


@needs.program("systemd-analyze")
def test_the_units_of_the_timer_are_valid(tmp_path: Path) -> None:
    """As systemd reads them, with a program that exists; the command is that of the recipe."""
    units = [f"sandbox-registry-backup.{kind}" for kind in ("service", "timer")]
    for name in units:
        text = Path(ROOT, "examples", name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("/usr/local/bin/sandbox-registry", "/bin/true"))
        if name.endswith("service"):
            (command,) = re.findall(r"^ExecStart=/usr/local/bin/(.*)$", text, re.MULTILINE)
            assert f"```sh\n{command}\n```" in text_of("docs/operators.md")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "sandbox-registry-backup" in line]
    assert (0, []) == (done.returncode, said), done.stderr
