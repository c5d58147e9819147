"""Hostile text: NUL, surrogates, 1 MB labels, SQL, long keys, and values of the wrong type."""

from __future__ import annotations

from dataclasses import replace

import pytest

from registry import Metadata, Store
from registry.cri import PodSandboxConfig
from registry.fleet.text import KEY_MAX, array, key, number, text
from tests.fleet.compare import assert_equal
from tests.fleet.conftest import Database, NewPusher, push
from tests.tools import READY, UNKNOWN, execute, pod, sandbox, tamper

SQL = "'); DROP TABLE fleet_sandboxes; -- \\ \" {} %s %(x)s {NULL}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", ""),
        ("a\0b", r"a\x00b"),
        ("a\udc80\ud800", r"a\udc80\ud800"),
        (b"\xff\0", r"\udcff\x00"),
        (7, "7"),
        ("ü€𝄞", "ü€𝄞"),
    ],
)
def test_text_can_be_stored(value: object, expected: object) -> None:
    """Each value becomes a text that PostgreSQL accepts, and an ordinary one is unchanged."""
    assert expected == text(value)


def test_key_is_cut_with_its_hash() -> None:
    """Long keys that differ stay different, in whole characters."""
    assert "ab" == key("ab")
    assert "x" * KEY_MAX == key("x" * KEY_MAX)
    long = [key("€" * 5000), key("€" * 5000 + "x")]
    assert long[0] != long[1]
    assert all(each is not None and len(each.encode()) <= KEY_MAX for each in long)


def test_number_is_an_integer_of_64_bits() -> None:
    """Nothing else that a damaged record holds."""
    assert [5, None, None, None] == [number(each) for each in (5, "5", 2**63, b"")]


def test_array_is_read_as_it_was_given(database: Database) -> None:
    """Quotes, backslashes, NULL and braces are data."""
    values = [None, "NULL", "", SQL, 'a"b\\', "{,}", "x\ny\tz"]
    with database.cluster.connect(database.name) as connection:
        found = connection.execute("SELECT %s::text[]", [array(values)]).fetchone()
        assert (values,) == found
        numbers = [1, None, -(2**63)]
        assert (numbers,) == connection.execute("SELECT %s::bigint[]", [array(numbers)]).fetchone()


def test_hostile_text_is_pushed_and_stops_nothing(
    path: str, database: Database, new_pusher: NewPusher
) -> None:
    """In every column, labels included; a batch with such a row is stored whole."""
    hostile = pod(SQL, SQL, **{"k": SQL, SQL: "v", "big": "x" * 1_000_000})
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a", config=hostile), UNKNOWN)
        store.add(Metadata("b", SQL, pod("p" * 4000, "n" * 4000)), READY)
        store.add(sandbox("c", config=PodSandboxConfig()), replace(READY, message=SQL))
    nul = "'a' || char(0) || 'b'"
    execute(
        path,
        f"INSERT INTO sandbox_labels VALUES ('a', {nul}, {nul})",
        "INSERT INTO sandbox_labels VALUES ('a', 'lone', CAST(X'EDB080' AS TEXT))",
        f"UPDATE sandbox_statuses SET message = {nul}, reason = 'R' WHERE sandbox_id = 'a'",
        "UPDATE sandbox_statuses SET state = 'SANDBOX_NOTREADY', reason = 'r_'"
        " || replace(hex(zeroblob(5000)), '0', 'r') WHERE sandbox_id = 'c'",
    )
    tamper(path, "UPDATE sandbox_transitions SET actor = CAST(X'FF' AS TEXT) WHERE seq = 1")
    push(new_pusher())
    labels = database.one("SELECT labels FROM fleet_sandboxes WHERE sandbox_id = 'a'")
    assert r"a\x00b" == labels[r"a\x00b"]
    assert r"\udced\udcb0\udc80" == labels["lone"]
    assert SQL == labels["k"]
    assert 1_000_000 == len(labels["big"])
    assert r"\udcff" == database.one("SELECT actor FROM fleet_transitions WHERE seq = 1")
    assert r"a\x00b" == database.one("SELECT message FROM fleet_overview WHERE id = 'a'")
    assert 4 == database.one("SELECT count(*) FROM fleet_history")
    assert 1 == database.one(
        "SELECT count(*) FROM fleet_not_ready WHERE reason LIKE 'r_rrr%' AND length(reason) < 512"
    )
    push(new_pusher())


@pytest.mark.parametrize("at", [0, 1, 999, -1, -1_000_000_001, 2**63 - 1, -(2**63)])
def test_time_is_exact_to_the_nanosecond(
    path: str, database: Database, new_pusher: NewPusher, at: int
) -> None:
    """Whatever the clock of a node says, a row is stored, and compares equal."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a"), READY)
    tamper(path, f"UPDATE sandbox_transitions SET at = {at}")
    push(new_pusher())
    assert 1 == assert_equal(database, path)
