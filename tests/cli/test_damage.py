"""Damage: a record with one flipped bit hides no other record, and causes no traceback."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from registry import Extension, Store
from registry.cli import program
from tests.pages import flip, places
from tests.tools import READY, pod, sandbox

SEED = int(os.environ.get("DAMAGE_SEED", "0"))
FLIPS = 12
COMMANDS = (
    *("list --all", "list --json", "inspect bad", "inspect bad --json", "history", "check"),
    *("reconcile --dry-run", "reconcile", f"export --status {os.devnull}", "delete good"),
)
DAMAGED = 3
"""Exit code where SQLite itself finds the damage."""


def test_every_command_ends_with_a_documented_code_on_a_damaged_record(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`list` still shows the other record."""
    whole, path = tmp_path / "whole.db", str(tmp_path / "damaged.db")
    with Store.open(whole) as store:
        fields = {"ip": "10.0.0.1", "additional_ips": ("10.0.0.2",)}
        bad = store.add(sandbox("bad", config=pod(app="x"), **fields), READY)
        bad.extensions.update(lambda _: {"name": Extension("type", b"value")})
        store.add(sandbox("good"), READY)
    bits = [
        (table, column, place.type, bit)
        for table in ("sandboxes", "sandbox_statuses", "sandbox_extensions")
        for column, place in places(str(whole), table, "bad").items()
        for bit in range(8 * len(place.type))
    ]
    for table, column, place, bit in random.Random(SEED).sample(bits, FLIPS):
        for leftover in tmp_path.glob("damaged.db*"):
            leftover.unlink()
        shutil.copy(whole, path)
        flip(path, place, bit)
        for command in COMMANDS:
            code = program.main(["--db", path, *command.split()])
            out, err = capfd.readouterr()
            what = f"{command}: bit {bit} of the type of {table}.{column}; DAMAGE_SEED={SEED}"
            assert code in {0, 1, DAMAGED}, f"{what}: {err}"
            assert "good" in out or command != "list --all" or code == DAMAGED, what
