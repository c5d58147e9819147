"""The verb `upgrade`, on registries of older revisions."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from registry import Store
from registry.tables.version import REVISION
from tests.cli.program import Call, Done
from tests.tools import contents, execute, make_old_registry, query


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a registry of the first revision."""
    path = str(tmp_path / "registry.db")
    make_old_registry(path)
    return path


def database(path: str) -> str:
    """Return the hash of the database file alone: a reader may leave a WAL index."""
    return contents(os.path.dirname(path))[os.path.basename(path)]


def test_upgrade_says_what_it_has_done_and_where_the_backup_is(call: Call, path: str) -> None:
    """A second call has nothing to do."""
    backup = f"{path}-before-{REVISION}"
    expected = (
        f"upgraded {path} from revision 0001 to {REVISION}; "
        f"the registry as it was before is at {backup}\n"
    )
    assert Done(0, expected, "") == call("upgrade")
    assert [("0001",)] == query(backup, "SELECT version_num FROM alembic_version")
    assert [(REVISION,)] == query(path, "SELECT version_num FROM alembic_version")
    again = f"{path} is at revision {REVISION}: there is nothing to upgrade\n"
    assert Done(0, again, "") == call("upgrade")
    with Store.open(path, read_only=True) as store:
        assert [] == store.check()


def test_a_dry_run_writes_nothing(call: Call, path: str) -> None:
    """It says the same in advance."""
    before = database(path)
    code, out, err = call("upgrade", "--dry-run")
    assert (0, "") == (code, err)
    assert f"{path} would be upgraded from revision 0001 to {REVISION}; it would be copied" in out
    assert before == database(path)
    assert not os.path.exists(f"{path}-before-{REVISION}")


def test_sql_prints_the_statements_that_would_run(call: Call, path: str) -> None:
    """A shell that reads them upgrades a copy; the registry stays as it is."""
    before = database(path)
    code, out, err = call("upgrade", "--sql")
    assert (0, "", before) == (code, err, database(path))
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(":memory:")) as copy:
        source.backup(copy)
        copy.executescript(out)
        found = copy.execute("SELECT version_num FROM alembic_version").fetchall()
    assert [(REVISION,)] == found
    call("upgrade")
    nothing = f"-- at revision {REVISION}: there is nothing to upgrade\n"
    assert Done(0, nothing, "") == call("upgrade", "--sql")


def test_upgrade_prints_json(call: Call, path: str) -> None:
    """`upgraded` says whether this call has done it."""
    fields: dict[str, object] = {"path": path, "from": "0001", "to": REVISION}
    backup = f"{path}-before-{REVISION}"
    dry = fields | {"backup": backup, "dry_run": True, "upgraded": False}
    assert dry == json.loads(call("upgrade", "--dry-run", "--json").out)
    done = fields | {"backup": backup, "dry_run": False, "upgraded": True}
    assert done == json.loads(call("upgrade", "--json").out)
    fields |= {"from": REVISION, "backup": "", "dry_run": False, "upgraded": False}
    assert fields == json.loads(call("upgrade", "--json").out)


def test_a_newer_registry_is_refused(call: Call, path: str) -> None:
    """This program cannot bring it back."""
    call("upgrade")
    execute(
        path,
        "UPDATE registry SET level = 9999, min_reader = 9999, min_writer = 9999",
        "UPDATE alembic_version SET version_num = '9999'",
    )
    code, out, err = call("upgrade")
    assert (3, "") == (code, out)
    assert "is at revision '9999'" in err
    assert "upgrade this program" in err


def test_upgrade_makes_no_registry(main: Call, tmp_path: Path) -> None:
    """A missing file is an error."""
    code, out, err = main("--db", str(tmp_path / "none.db"), "upgrade")
    assert (3, "") == (code, out)
    assert "there is no such file; is its disk mounted?" in err


@pytest.mark.parametrize("verb", ["list", "check", "who", "history"])
def test_reading_verbs_name_upgrade(call: Call, path: str, verb: str) -> None:
    """They refuse an older schema."""
    code, _, err = call(verb)
    assert 3 == code
    assert "`sandbox-registry upgrade` brings it up to date" in err
