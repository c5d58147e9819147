"""Damage: a record with one flipped bit hides no other record, and causes no traceback."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from registry import Extension, State, Store
from registry.cli import program
from registry.cli.output.values import shown
from tests.cli.program import Call
from tests.pages import flip, places
from tests.tools import READY, pod, query, sandbox

SEED = int(os.environ.get("DAMAGE_SEED", "0"))
FLIPS = 12
COMMANDS = (
    *(
        "list --all",
        "list --json",
        "list --since 1h",
        "inspect bad",
        "inspect bad --json",
        "history",
        "check",
    ),
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


def test_the_readable_part_of_a_damaged_registry_is_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A page of the sandboxes is overwritten: the exit code is 1, and stderr tells the damage."""
    path = str(tmp_path / "damaged.db")
    with Store.open(path) as store, store.transaction():
        for n in range(300):
            store.add(sandbox(f"id{n:05}"), READY)
    pages = "SELECT pageno FROM dbstat WHERE name = 'sandboxes' AND pagetype = 'leaf' ORDER BY path"
    ((page,),) = query(path, f"{pages} LIMIT 1 OFFSET 1")
    with open(path, "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)

    def show(command: str) -> tuple[str, str]:
        assert 1 == program.main(["--db", path, *command.split()]), command
        return capfd.readouterr()

    out, err = show("list --json")
    listed = [each["id"] for each in json.loads(out)]
    assert 200 < len(listed) < 300
    assert listed == sorted(listed, reverse=True)
    assert "the database is damaged" in err
    lost = sorted({f"id{n:05}" for n in range(300)}.difference(listed))
    more = f" and {len(lost) - 20} more; salvage names them" if len(lost) > 20 else ""
    named = f"{len(lost)} sandboxes cannot be read, the registry is damaged: {', '.join(lost[:20])}"
    assert f"{named}{more}\n" in err
    for once in ("the database is damaged: Page", "restore a backup with"):
        assert 1 == err.count(once)
    for command in ("list", f"inspect {listed[-1]}", "history --json", "history"):
        assert listed[-1] in show(command)[0]
    for command in (f"list --id {lost[0]}", "history --reason Nothing"):
        assert "matches" not in show(command)[1], "what cannot be read may match"
    assert len(listed) == len(show("export")[0].splitlines())
    out, err = show("check")
    assert ("file_is_whole" in out, "") == (True, err)
    assert f"Page {page}: btreeInitPage() returns error code 11" in out
    assert 1 == out.count("database disk image is malformed")
    assert "; rules: constraints_hold, " in out.splitlines()[-1]
    rules = [each["rule"] for each in json.loads(show("check --json")[0])]
    assert {"constraints_hold", "values_are_valid"} <= set(rules)
    for command in ("reconcile", "reconcile --dry-run", f"delete {listed[0]}"):
        assert 3 == program.main(["--db", path, *command.split()]), command
        assert "the database is damaged" in capfd.readouterr().err


@pytest.fixture
def shop(tmp_path: Path) -> str:
    """Return a closed registry of three pods, and of an older one of the first, deleted."""
    path = str(tmp_path / "shop.db")
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("old", name="web-0", config=pod("web-0", "shop")), READY).delete()
        for n in range(3):
            store.add(sandbox(f"id{n}", name=f"web-{n}", config=pod(f"web-{n}", "shop")), READY)
    return path


@pytest.mark.parametrize("table", ["sandboxes", "sandbox_statuses"])
@pytest.mark.parametrize("text", ["web-0", "shop/web-0", "id0"])
def test_why_tells_the_last_state_of_a_record_that_cannot_be_read(
    shop: str, main: Call, table: str, text: str
) -> None:
    """It says "deleted" only of what the history says that of; `inspect` says it is there."""
    overwrite(shop, table)
    code, out, _ = main("--db", shop, "why", text)
    begins = "Sandbox id0 (web-0), pod web-0 in namespace shop, has a record that cannot be read. "
    assert (1, True) == (code, " ".join(out.split()).startswith(begins))
    assert "Its last known state is READY, since " in " ".join(out.split())
    assert "deleted" not in out
    found = json.loads(main("--db", shop, "why", text, "--json").out)
    assert ("SANDBOX_READY", None) == (found["state"], found["verdict"])
    assert "was deleted " in main("--db", shop, "why", "old").out
    code, out, err = main("--db", shop, "inspect", text)
    assert (3, "") == (code, out)
    why = f"sandbox-registry --db {shop} why {text}"
    cause = f"its record cannot be read; `{why}` shows what is known of it\n"
    assert err.endswith(f"inspect sandbox {text!r}: {cause}")
    code, _, err = main("--db", shop, "inspect", "old")
    assert (1, True) == (code, "there is no such sandbox" in err)


def test_an_index_proves_a_record_whose_history_is_lost_too(shop: str, main: Call) -> None:
    """By its id and by its name: nothing is said to be missing, and nothing to be deleted."""
    for table in ("sandboxes", "sandbox_transitions"):
        overwrite(shop, table)
    for text in ("id0", "web-0"):
        assert "its record cannot be read" in main("--db", shop, "inspect", text).err
        code, out, err = main("--db", shop, "why", text)
        assert (3, "") == (code, out)
        assert "the registry is damaged, and nothing of it can be read; restore a backup" in err


@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_list_names_one_sandbox_whose_row_is_damaged(
    shop: str, main: Call, quiet: tuple[str, ...]
) -> None:
    """A join drops the row without an error; the names of the others are read."""
    flip(shop, places(shop, "sandboxes", "id0")["id"].type, 1)
    code, out, err = main("--db", shop, "list", *quiet)
    assert (1, False) == (code, "id0" in out)
    assert {"id1", "id2"} <= set(out.split())
    warning = "list sandboxes: 1 sandbox cannot be read, the registry is damaged: id0\n"
    assert err.endswith(f"sandbox-registry: error: {warning}")
    assert 2 == err.count("sandbox-registry: error: ")
    found = json.loads(main("--db", shop, "list", "--json").out)
    assert ["web-2", "web-1"] == [each["name"] for each in found]


def test_why_tells_a_salvaged_state_from_when_it_is_known(
    shop: str, main: Call, tmp_path: Path
) -> None:
    """The history is lost: the time of the salvage is not that of the change."""
    with Store.open(shop, reconcile=False) as store:
        store.get("id1").status.update(lambda old: replace(old, state=State.NOTREADY))
        written = store.history("id1")[-1].at
    overwrite(shop, "sandbox_transitions")
    new = str(tmp_path / "new.db")
    assert 1 == main("salvage", shop, new).code
    out = " ".join(main("--db", new, "why", "web-1").out.split())
    assert "has been NOTREADY for " in out
    assert f", since {shown('at', written)}, or longer: the change was lost by damage" in out
    assert "; a salvage wrote it, for changes that were lost." in out
    found = json.loads(main("--db", new, "why", "web-1", "--json").out)
    assert str(written) == found["since_ns"]
    with Store.open(new, reconcile=False) as store:
        store.get("id2").status.update(lambda old: replace(old, state=State.NOTREADY))
    assert "or longer" not in main("--db", new, "why", "web-2").out


@pytest.mark.parametrize("table", ["sandboxes", "sandbox_statuses"])
def test_a_salvage_without_a_sandbox_advises_a_backup(
    shop: str, main: Call, tmp_path: Path, table: str
) -> None:
    """The copy is not to be put in place; the deletions that it records are no deletions."""
    overwrite(shop, table)
    new = str(tmp_path / "new.db")
    code, out, _ = main("salvage", shop, new)
    step = f"sandbox-registry --db {shop} restore "
    if table == "sandbox_statuses":
        assert out.splitlines()[-1].startswith(
            f"to put the copy in the place of the old one: `{step}{new}`"
        )
        return
    begins = f"the copy has no sandbox; prefer a backup: `{step}BACKUP` (--force"
    assert (1, True) == (code, out.splitlines()[-1].startswith(begins))
    out = " ".join(main("--db", new, "why", "id0").out.split())
    assert "was lost by damage to the registry: a salvage recorded its deletion " in out
    assert "was deleted" not in out


def test_a_salvage_of_an_empty_registry_says_how_to_put_it_in_place(
    main: Call, tmp_path: Path
) -> None:
    """Nothing is lost."""
    path, new = str(tmp_path / "empty.db"), str(tmp_path / "new.db")
    Store.open(path).close()
    code, out, _ = main("salvage", path, new)
    assert (0, True) == (code, f"restore {new}`" in out.splitlines()[-1])


def overwrite(path: str, table: str) -> None:
    """Overwrite the only page of *table* in a closed registry."""
    ((page,),) = query(path, f"SELECT rootpage FROM sqlite_master WHERE name = '{table}'")
    with open(path, "r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
