"""Salvage of a damaged registry: what is copied, what is reported, and what stays as it is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from registry import (
    CompactedError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    Loss,
    NotFoundError,
    Salvage,
    State,
    Status,
    Store,
    UnavailableError,
    salvage,
)
from registry.host.part_file import PartFile
from registry.maintenance import salvage_report
from registry.tables.version import BLOCK
from tests.documents import text_of
from tests.interrupts import Interrupts, time_out
from tests.pages import flip, places
from tests.tools import (
    READY,
    contents,
    environment,
    execute,
    fill_history,
    is_locked,
    line,
    make_old_registry,
    pod,
    query,
    running,
    sandbox,
    tamper,
)

SIZE = 4096
ADD = """
    import sys
    from registry import Store, Metadata, State, Status
    store = Store.open(sys.argv[1], reconcile=False)
    store.add(Metadata("d4", "d4", None), Status(State.READY))
    print(flush=True)
    sys.stdin.read()
    """
"""Code that adds a sandbox, and leaves a WAL when it is killed."""


@pytest.fixture
def new(tmp_path: Path) -> str:
    """Return a path at which the copy can be made."""
    return str(tmp_path / "new.db")


@pytest.fixture
def filled(path: str) -> str:
    """Return a closed registry of three sandboxes, of which one was deleted."""
    with Store.open(path, actor="test") as store:
        for id in ("a1", "b2", "c3"):
            store.add(sandbox(id, config=pod(app=id)), READY)
        store.get("a1").extensions.update(lambda _: {"cni": b"cache"})
        store.get("b2").status.update(lambda old: replace(old, state=State.NOTREADY))
        store.delete("c3")
    return path


def page_of(path: str, name: str) -> int:
    """Return the root page of a table or index."""
    ((page,),) = query(path, f"SELECT rootpage FROM sqlite_master WHERE name = '{name}'")
    return int(page)


def overwrite(path: str, page: int, data: bytes = b"\xff" * SIZE) -> None:
    """Write *data* over a page of a closed registry."""
    with open(path, "r+b") as file:
        file.seek((page - 1) * SIZE)
        file.write(data)


def checked(found: Salvage) -> dict[str, State]:
    """Return the states in the copy, by id; it passes `check`."""
    with Store.open(found.new, reconcile=False) as store:
        assert [] == store.check()
        return {each.id: each.status.get().state for each in store.list(include_unknown=True)}


def told(found: Salvage, table: str) -> list[tuple[str, str]]:
    """Return the ids and the reasons of the losses of a table."""
    return [(loss.sandbox_id, loss.reason) for loss in found.losses if loss.table == table]


# The copy.


def test_a_whole_registry_is_copied_as_it_is(filled: str, new: str) -> None:
    """Rows, history and id are equal; only the incarnation is the next one."""
    tables = ("sandboxes", "sandbox_statuses", "sandbox_labels", "sandbox_extensions")
    before = [query(filled, f"SELECT * FROM {table}") for table in tables]
    history = query(filled, "SELECT * FROM sandbox_transitions")
    found = salvage(filled, new)
    assert found.complete
    assert () == found.losses
    assert found.read == found.written
    assert before == [query(new, f"SELECT * FROM {table}") for table in tables]
    assert history == query(new, "SELECT * FROM sandbox_transitions")
    identity = "SELECT registry_id, created_at, level, copied_at FROM registry"
    assert query(filled, identity) == query(new, identity)
    assert [(2,)] == query(new, "SELECT incarnation FROM registry")
    assert {"a1": State.READY, "b2": State.NOTREADY} == checked(found)


def test_the_history_goes_on_in_the_next_block(filled: str, new: str) -> None:
    """A watch that has seen all transitions resumes; one that has seen lost ones does not."""
    salvage(filled, new)
    with Store.open(new, reconcile=False) as store:
        seen = store.history()[-1].seq
        store.delete("a1")
        assert [BLOCK + 1] == [each.seq for each in store.history(after=seen)]
        with pytest.raises(CompactedError):
            store.history(after=seen + 1)
        assert [] == store.check()


def test_a_history_of_several_incarnations_is_copied(filled: str, new: str) -> None:
    """With its jumps, also if its beginning is lost."""
    for _ in range(2):
        execute(filled, "UPDATE registry SET copied_at = 5")
        with Store.open(filled, reconcile=False) as store:
            for n in range(300):
                store.add(sandbox(f"s{n}"), Status(State.READY, message="m" * 100))
                store.delete(f"s{n}")
    found = salvage(filled, new)
    assert found.complete
    assert {"a1", "b2"} == checked(found).keys()
    seqs = query(new, "SELECT seq FROM sandbox_transitions ORDER BY seq")
    assert query(filled, "SELECT seq FROM sandbox_transitions ORDER BY seq") == seqs
    assert {0, 1, 2} == {seq // BLOCK for (seq,) in seqs}
    leaves = "SELECT pageno FROM dbstat WHERE name = 'sandbox_transitions' ORDER BY path"
    for place, blocks in ((1, {0, 1, 2, 3}), (-3, {2, 3})):
        copy = f"{new}-{place}"
        hurt = shutil.copy(filled, f"{filled}-{place}")
        overwrite(hurt, query(filled, leaves)[place][0])
        assert {"a1", "b2"} == checked(salvage(hurt, copy)).keys()
        seqs = query(copy, "SELECT seq FROM sandbox_transitions ORDER BY seq")
        assert {seq // BLOCK for (seq,) in seqs} <= blocks


def test_an_empty_registry_is_copied(path: str, new: str) -> None:
    """Its id is a record, too."""
    Store.open(path).close()
    found = salvage(path, new)
    assert found.complete
    assert {} == checked(found)
    assert query(path, "SELECT registry_id FROM registry") == query(
        new, "SELECT registry_id FROM registry"
    )


def test_a_registry_of_the_first_revision_is_copied_into_one_of_the_newest(
    path: str, new: str
) -> None:
    """Its rows have fewer columns, and it has no extensions."""
    make_old_registry(path)
    found = salvage(path, new)
    assert found.complete
    assert {"s0": State.UNKNOWN, "s1": State.READY, "s2": State.NOTREADY} == checked(found)
    assert "kept" == query(new, "SELECT message FROM sandbox_statuses WHERE message <> ''")[0][0]


def test_a_copy_stays_a_copy(filled: str, new: str) -> None:
    """The mark of a backup: opened by itself, it becomes another registry."""
    execute(filled, "UPDATE registry SET copied_at = 5")
    salvage(filled, new)
    assert [(5,)] == query(new, "SELECT copied_at FROM registry")
    with Store.open(new, reconcile=False) as store:
        assert [] == store.check()
    assert query(filled, "SELECT registry_id FROM registry") != query(
        new, "SELECT registry_id FROM registry"
    )


# What is lost.


def test_a_sandbox_without_its_row_is_reported_by_the_index(filled: str, new: str) -> None:
    """By its id and its name, and its deletion is in the history."""
    overwrite(filled, page_of(filled, "sandboxes"))
    found = salvage(filled, new)
    assert {} == checked(found)
    lost = told(found, "sandboxes")
    assert {("a1", "its record is lost"), ("b2", "its record is lost")} < set(lost)
    assert any("'name-a1'" in reason for _, reason in lost)
    assert ["a1", "b2"] == [id for id, why in told(found, "sandbox_statuses")]
    last = query(new, "SELECT sandbox_id, event, actor FROM sandbox_transitions WHERE seq > 1000")
    assert {("a1", "deleted", "salvage"), ("b2", "deleted", "salvage")} == set(last)


def test_a_status_that_is_lost_is_made_from_the_last_transition(filled: str, new: str) -> None:
    """The state is known, the process is not."""
    overwrite(filled, page_of(filled, "sandbox_statuses"))
    found = salvage(filled, new)
    assert {"a1": State.READY, "b2": State.NOTREADY} == checked(found)
    assert ["a1", "b2"] == sorted(id for id, _ in told(found, "sandbox_statuses") if id)
    assert [(0, None)] * 2 == query(new, "SELECT pid, process_inode FROM sandbox_statuses")


@pytest.mark.parametrize("damage", ["reason = 'no)word'", "pid = -2", "created_at = -9"])
def test_a_status_that_is_damaged_is_made_from_the_last_transition(
    filled: str, new: str, damage: str
) -> None:
    """The sandbox itself has no damage."""
    tamper(filled, f"UPDATE sandbox_statuses SET {damage} WHERE sandbox_id = 'b2'")
    found = salvage(filled, new)
    (lost,) = found.losses
    assert ("sandbox_statuses", "b2") == (lost.table, lost.sandbox_id)
    assert all(word in lost.reason for word in (damage[:3], "without a process"))
    with Store.open(new, reconcile=False) as store:
        assert Status(State.NOTREADY) == replace(store.get("b2").status.get(), created_at=0)
        assert [] == store.check()


def test_a_status_that_is_older_than_the_history_is_made_from_it(filled: str, new: str) -> None:
    """A page of the statuses is an older one."""
    older = "UPDATE sandbox_statuses SET state = 'SANDBOX_READY', changed_at = 1"
    tamper(filled, f"{older} WHERE sandbox_id = 'b2'")
    found = salvage(filled, new)
    assert {"a1": State.READY, "b2": State.NOTREADY} == checked(found)
    ((id, reason),) = told(found, "sandbox_statuses")
    assert "b2" == id
    assert reason.startswith("older than this transition")


def test_a_history_whose_end_is_lost_leads_to_the_states(filled: str, new: str) -> None:
    """By transitions of `salvage`, in a block of their own; each is reported."""
    tamper(filled, "DELETE FROM sandbox_transitions WHERE seq > 3")
    found = salvage(filled, new)
    assert {"a1": State.READY, "b2": State.NOTREADY} == checked(found)
    last = "SELECT sandbox_id, from_state, to_state, actor FROM sandbox_transitions WHERE seq > 3"
    assert [
        ("b2", "SANDBOX_READY", "SANDBOX_NOTREADY", "salvage"),
        ("c3", "SANDBOX_READY", None, "salvage"),
    ] == query(new, last)
    assert ["c3"] == [id for id, _ in told(found, "sandboxes")]
    assert ["b2"] == [id for id, _ in told(found, "sandbox_statuses")]


def test_a_sandbox_without_status_and_history_is_reported(filled: str, new: str) -> None:
    """Its record is in the report, as JSON."""
    for name in ("sandbox_statuses", "sandbox_transitions"):
        overwrite(filled, page_of(filled, name))
    found = salvage(filled, new)
    assert {} == checked(found)
    records = [json.loads(loss.record) for loss in found.losses if loss.record]
    assert {"name-a1", "name-b2"} <= {record.get("name") for record in records}


def test_of_a_history_with_a_gap_the_newest_part_is_copied(path: str, new: str) -> None:
    """The rest is in the report, and `check` of the copy finds nothing."""
    with Store.open(path, reconcile=False) as store:
        for n in range(300):
            store.add(sandbox(f"s{n}"), Status(State.READY, message="m" * 100))
            store.delete(f"s{n}")
        store.add(sandbox("last"), READY)
    leaves = query(
        path,
        "SELECT pageno FROM dbstat WHERE name = 'sandbox_transitions' AND pagetype = 'leaf'"
        " ORDER BY path",
    )
    overwrite(path, leaves[len(leaves) // 2][0])
    found = salvage(path, new)
    assert {"last": State.READY} == checked(found)
    ((first, count),) = query(new, "SELECT min(seq), count(*) FROM sandbox_transitions")
    assert (1 < first < 601, 601) == (True, first + count - 1)
    exported = {json.loads(loss.record)["seq"] for loss in found.losses if loss.record}
    assert exported == set(range(1, max(exported) + 1))
    gap = f"transitions {max(exported) + 1} to {first - 1} are lost"
    assert ("", gap) in told(found, "sandbox_transitions")


@pytest.mark.parametrize("depth", ["root", "below the root"])
def test_a_damaged_inner_page_loses_no_record(path: str, new: str, depth: str) -> None:
    """It leads to the pages that have the records, and all of these are found."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a1"), READY)
    fill_history(path, 90_000)
    where = "name = 'sandbox_transitions' AND pagetype = 'internal'"
    pages = query(path, f"SELECT pageno FROM dbstat WHERE {where} ORDER BY path")
    assert len(pages) > 3
    overwrite(path, pages[0 if depth == "root" else 2][0])
    found = salvage(path, new)
    assert () == found.losses
    assert found.complete
    assert {"a1": State.READY} == checked(found)
    seqs = "SELECT min(seq), max(seq), count(*) FROM sandbox_transitions"
    assert query(new, seqs) == [(1, 90_001, 90_001)]


def test_a_page_below_a_damaged_inner_page_is_reported(path: str, new: str) -> None:
    """Nothing leads to it any more, and its records are the only ones that are lost."""
    with Store.open(path, reconcile=False) as store, store.transaction():
        for n in range(200):
            store.add(sandbox(f"s{n:03}"), READY)
    where = "name = 'sandboxes' AND pagetype = '{}' ORDER BY path"
    ((root,),) = query(path, f"SELECT pageno FROM dbstat WHERE {where.format('internal')}")
    leaves = query(path, f"SELECT pageno, ncell FROM dbstat WHERE {where.format('leaf')}")
    leaf, cells = leaves[len(leaves) // 2]
    overwrite(path, root)
    overwrite(path, leaf)
    found = salvage(path, new)
    assert cells == len(found.lost) == 200 - len(checked(found))
    (loss,) = [each for each in found.losses if each.source == f"page {leaf}"]
    assert "nothing leads to it, and its records, if it had any, are lost" in loss.reason
    assert not [each for each in found.losses if each.source == f"page {root}"]


def test_the_id_of_a_registry_that_is_lost_is_reported(filled: str, new: str) -> None:
    """The copy has a new one."""
    old_id = query(filled, "SELECT registry_id FROM registry")
    overwrite(filled, page_of(filled, "registry"))
    found = salvage(filled, new)
    assert {"a1": State.READY, "b2": State.NOTREADY} == checked(found)
    assert 2 == len(told(found, "registry"))  # the page and the row
    assert old_id != query(new, "SELECT registry_id FROM registry")


def test_damaged_pages_of_the_schema_cost_nothing(filled: str, new: str) -> None:
    """The first page, with the header, and each other page of the schema, one by one."""
    with open(filled, "rb") as file:
        whole = file.read()
    pages = query(filled, "SELECT pageno FROM dbstat WHERE name = 'sqlite_schema'")
    assert len(pages) > 5
    for (page,) in pages:
        for data in (b"\xff" * SIZE, bytes(SIZE)):
            overwrite(filled, page, data)
            found = salvage(filled, new)
            assert {"a1": State.READY, "b2": State.NOTREADY} == checked(found), page
            Path(filled).write_bytes(whole)
            for copy in Path(new).parent.glob("new.db*"):
                copy.unlink()


@pytest.mark.parametrize(
    "change",
    [
        "name = 'sandbojes' WHERE name = 'sandboxes'",
        "name = 'sandbox_statu' WHERE name = 'sandbox_statuses'",
        *(
            f"rootpage = (SELECT sum(rootpage) FROM sqlite_schema WHERE name IN ({pair}))"
            f" - rootpage WHERE name IN ({pair})"
            for pair in (
                "'sandboxes', 'sqlite_sequence'",
                "'sandboxes', 'sandbox_labels'",
                "'sandboxes', 'sqlite_autoindex_sandboxes_1'",
                "'sandbox_statuses', 'sqlite_autoindex_sandboxes_2'",
                "'sandboxes', 'sandbox_statuses'",
            )
        ),
    ],
)
def test_a_table_under_another_name_in_the_schema_is_copied(
    filled: str, new: str, change: str
) -> None:
    """One byte of its name is damaged, or its root page is that of another table or index."""
    with closing(sqlite3.connect(filled)) as shell, shell:
        shell.execute("PRAGMA writable_schema = ON")
        assert shell.execute(f"UPDATE sqlite_schema SET {change}").rowcount
    found = salvage(filled, new)
    assert {"sandboxes": 2, "sandbox_statuses": 2}.items() <= found.written.items()
    with Store.open(new, reconcile=False) as store:
        assert [] == store.check()
        assert [State.READY, State.NOTREADY] == [each.status_as_read.state for each in store.list()]


def test_a_deleted_sandbox_is_not_brought_back(path: str, new: str) -> None:
    """Its page is on the freelist; without the header nothing leads to the freelist."""
    with Store.open(path, reconcile=False) as store:
        for n in range(100):
            store.add(sandbox(f"s{n:03}", config=pod(long="x" * 500)), READY)
        for n in range(90):
            store.delete(f"s{n:03}")
    overwrite(path, 1)
    assert {f"s{n:03}" for n in range(90, 100)} == checked(salvage(path, new)).keys()


def test_text_that_is_not_utf8_is_reported(filled: str, new: str) -> None:
    """An id, and a message; the other sandboxes are copied."""
    place = places(filled, "sandboxes", "a1")["id"].value
    flip(filled, place, 7)
    found = salvage(filled, new)
    assert {"b2": State.NOTREADY} == checked(found)
    assert ("\udce11", "id is not UTF-8") in told(found, "sandboxes")
    assert all(str(loss).isprintable() for loss in found.losses)


def test_a_config_that_cannot_be_parsed_is_reported(filled: str, new: str) -> None:
    """The JSON for people is in the report."""
    tamper(filled, "UPDATE sandboxes SET config = x'ff' WHERE id = 'a1'")
    found = salvage(filled, new)
    assert {"b2": State.NOTREADY} == checked(found)
    ((_, reason),) = [each for each in told(found, "sandboxes") if each[0] == "a1"]
    assert "read metadata of sandbox 'a1'" in reason
    (record,) = [
        loss.record for loss in found.losses if loss.record and "config_json" in loss.record
    ]
    assert "web" in record


def test_a_config_that_contradicts_its_json_is_reported(filled: str, new: str) -> None:
    """One of both is damaged, and nothing tells which."""
    tamper(filled, "UPDATE sandboxes SET config_json = '{}' WHERE id = 'a1'")
    found = salvage(filled, new)
    assert {"b2": State.NOTREADY} == checked(found)
    assert ("a1", "config and config_json contradict each other") in told(found, "sandboxes")


def test_columns_and_labels_are_derived_from_the_config(filled: str, new: str) -> None:
    """As an addition derives them."""
    tamper(
        filled,
        "UPDATE sandboxes SET pod = 'other', attempt = 7",
        "DELETE FROM sandbox_labels",
    )
    salvage(filled, new)
    with Store.open(new, reconcile=False) as store:
        assert [] == store.check()
        assert ["a1"] == [each.id for each in store.list(pod="web", labels={"app": "a1"})]


def test_of_two_sandboxes_with_one_name_the_newer_is_copied(filled: str, new: str) -> None:
    """The schema is without its constraints; the other one is reported with its holder."""
    with Store.open(filled, reconcile=False) as store:
        store.get("a1").status.update(lambda old: replace(old, message="newest"))
    with closing(sqlite3.connect(filled, isolation_level=None)) as shell:
        for (name,) in shell.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            shell.execute(f"DROP TRIGGER {name}")
        shell.execute("CREATE TABLE copied AS SELECT * FROM sandboxes")
        shell.execute("UPDATE copied SET name = 'name-a1' WHERE id = 'b2'")
        shell.execute("PRAGMA writable_schema = ON")
        shell.execute(
            "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE"
            " name = 'copied') WHERE name = 'sandboxes'"
        )
        shell.execute("DELETE FROM sqlite_master WHERE name = 'copied'")
    found = salvage(filled, new)
    assert {"a1": State.READY} == checked(found)
    assert any("'name-a1' is also that of 'a1'" in why for _, why in told(found, "sandboxes"))


def test_a_cut_file_gives_what_is_left(path: str, new: str) -> None:
    """At each page; nothing is raised but that nothing was found."""
    with Store.open(path, reconcile=False) as store:
        for n in range(60):
            store.add(sandbox(f"s{n}", config=pod(long="x" * 300)), READY)
    counts, errors = [], set()
    for length in range(os.path.getsize(path), 0, -7 * SIZE - 100):
        os.truncate(path, length)
        try:
            counts.append(len(checked(salvage(path, new))))
        except DataLossError as error:
            errors.add(str(error).partition(": ")[2].partition(";")[0])
        for file in Path(new).parent.glob("new.db*"):
            file.unlink()
    assert 60 == counts[0] > counts[-1]
    assert counts == sorted(counts, reverse=True)
    assert errors <= {"no record of a registry was found in it"}


# Logs.


def test_a_commit_that_was_not_acknowledged_is_left_out(filled: str, new: str) -> None:
    """A power cut has torn the last transaction: its last frames are whole, one is not."""
    code = """
        import os, sys
        from registry import Store, Metadata, State, Status
        store = Store.open(sys.argv[1], reconcile=False)
        store.add(Metadata("d4", "d4", None), Status(State.READY))
        before = os.path.getsize(sys.argv[1] + "-wal")
        print(store._session.engine, flush=True)
        store.add(Metadata("e5", "e5", None), Status(State.READY))
        print(flush=True)
        sys.stdin.read()
        """
    with running(code, filled) as process:
        line(process)
        line(process)
    with open(f"{filled}-wal", "rb") as file:
        wal = bytearray(file.read())
    commits = [
        at
        for at in range(32, len(wal) - 24, 24 + SIZE)
        if wal[at + 8 : at + 16] == wal[16:24] and any(wal[at + 4 : at + 8])
    ]
    assert commits[-1] - commits[-2] > 2 * SIZE
    wal[commits[-2] + 24 + SIZE + 24 + 100] ^= 1  # in the first frame of the last transaction
    Path(f"{filled}-wal").write_bytes(wal)
    found = salvage(filled, new)
    assert {"a1", "b2", "d4"} == checked(found).keys()


def test_a_wal_without_its_database_is_read(path: str, new: str) -> None:
    """All commits of a new registry are in the WAL, which a killed process leaves."""
    with running(ADD, path) as process:
        line(process)
        process.kill()
        process.wait()
    os.unlink(path)
    found = salvage(path, new)
    assert found.complete
    assert not os.path.exists(path)
    with Store.open(new, reconcile=False) as store:
        assert ["d4"] == [each.id for each in store.list()]
        assert [] == store.check()


def test_a_wal_of_another_registry_is_left_out(filled: str, new: str, tmp_path: Path) -> None:
    """It is reported, and the file is copied."""
    other = str(tmp_path / "other.db")
    with running(ADD, other) as process:
        line(process)
    shutil.copy(f"{other}-wal", f"{filled}-wal")
    found = salvage(filled, new)
    assert {"a1": State.READY, "b2": State.NOTREADY} == checked(found)
    assert [("", "it does not continue the file, and was left out")] == told(found, "")


@pytest.mark.parametrize("offset", [40, 60])
def test_a_flipped_bit_in_the_header_hides_no_commit_of_the_wal(
    filled: str, new: str, offset: int
) -> None:
    """Of the numbers by which a WAL is recognised: the schema version and that of the commit."""
    with running(ADD, filled) as process:
        line(process)
    with open(filled, "rb") as file:
        whole = file.read()
    for bit in range(31):
        Path(filled).write_bytes(whole)
        flip(filled, range(offset, offset + 4), bit)
        found = salvage(filled, new)
        assert {"a1", "b2", "d4"} == checked(found).keys(), bit
        for copy in Path(new).parent.glob("new.db*"):
            copy.unlink()


def test_an_interrupt_leaves_no_file_and_no_lock(filled: str, new: str) -> None:
    """At the first point in each function: a copy that has its name is whole."""
    overwrite(filled, page_of(filled, "sandbox_statuses"))
    salvage(filled, f"{new}-first")  # imports what it needs
    interrupts = Interrupts(time_out, selected=True)
    for attempt in interrupts:
        attempt.run(partial(salvage, filled, new))
        left = [each.name for each in Path(new).parent.glob("new.db*") if "first" not in each.name]
        assert left in ([], ["new.db"])
        assert not is_locked(f"{filled}-lock")
        assert not is_locked(f"{filled}-queue")
        if left:
            assert {"a1", "b2"} == {id for (id,) in query(new, "SELECT id FROM sandboxes")}
            os.unlink(new)
    assert len(interrupts.functions) > 100


def test_a_rollback_journal_is_reported(filled: str, new: str) -> None:
    """A registry never has one; another program has changed the journal mode."""
    Path(f"{filled}-journal").write_bytes(b"journal")
    found = salvage(filled, new)
    assert ["-journal"] == [loss.source for loss in found.losses]
    assert {"a1", "b2"} == checked(found).keys()


# Files.


def test_a_salvage_changes_no_byte_of_the_old_files(filled: str, new: str) -> None:
    """With a WAL, of a process that was killed, and a damaged page."""
    page = page_of(filled, "sandbox_extensions")
    with running(ADD, filled) as process:
        line(process)
    overwrite(filled, page)
    before = contents(os.path.dirname(filled))
    assert not salvage(filled, new).complete
    after = contents(os.path.dirname(filled))
    assert before == {name: each for name, each in after.items() if name != "new.db"}
    assert "0o100600" in after["new.db"]


def test_a_file_that_exists_is_never_replaced(filled: str, new: str) -> None:
    """Nor one beside it that SQLite would take for the log of the copy."""
    for suffix in ("", "-wal", "-journal"):
        Path(new + suffix).write_text("mine")
        with pytest.raises(FailedPreconditionError, match="exists; name a new file"):
            salvage(filled, new)
        assert "mine" == Path(new + suffix).read_text()
        Path(new + suffix).unlink()
    with pytest.raises(FailedPreconditionError, match="would be a file beside it"):
        salvage(filled, f"{filled}-wal")
    assert [] == [*Path(new).parent.glob("new.db*")]
    assert not os.path.exists(f"{filled}-wal")


def test_an_interrupted_salvage_is_begun_again(filled: str, new: str) -> None:
    """Files that a kill has left are replaced."""
    for suffix in (".part", ".part-found"):
        Path(new + suffix).write_text("left")
    assert salvage(filled, new).complete
    assert ["new.db"] == [each.name for each in Path(new).parent.glob("new.db*")]


@pytest.mark.parametrize("content", [b"", b"x", b"garbage" * 3000, bytes(10 * SIZE)])
def test_a_file_without_records_is_refused(path: str, new: str, content: bytes) -> None:
    """It is said that nothing was found, and nothing is left."""
    Path(path).write_bytes(content)
    with pytest.raises(DataLossError, match="no record of a registry was found in it"):
        salvage(path, new)
    assert [os.path.basename(path)] == os.listdir(os.path.dirname(path))


def test_a_missing_or_irregular_file_is_refused(path: str, new: str, tmp_path: Path) -> None:
    """A FIFO does not hang the call."""
    with pytest.raises(NotFoundError):
        salvage(path, new)
    os.mkfifo(path)
    with pytest.raises(InvalidArgumentError):
        salvage(path, new)
    with pytest.raises(InvalidArgumentError):
        salvage(tmp_path, new)


def test_a_fifo_at_the_path_of_the_wal_is_refused(filled: str, new: str) -> None:
    """It does not hang the call."""
    os.mkfifo(f"{filled}-wal")
    with pytest.raises(InvalidArgumentError, match="not a regular file"):
        salvage(filled, new)


def test_a_missing_directory_is_refused(filled: str, tmp_path: Path) -> None:
    """Of the copy."""
    with pytest.raises(NotFoundError):
        salvage(filled, tmp_path / "missing" / "new.db")


def test_a_registry_that_this_process_has_open_is_refused(filled: str, new: str) -> None:
    """A close of its file would drop SQLite's locks."""
    with (
        Store.open(filled, reconcile=False),
        pytest.raises(FailedPreconditionError, match="this process has it open"),
    ):
        salvage(filled, new)
    assert salvage(filled, new).complete


def test_a_salvage_waits_for_a_process_that_writes(filled: str, new: str) -> None:
    """Past the timeout the error names it; a process that has it open and is idle is none."""
    code = """
        import sys
        from registry import Store
        with Store.open(sys.argv[1], reconcile=False) as store:
            with store.transaction():
                store.delete("a1")
                print(flush=True)
                sys.stdin.readline()
            print(flush=True)
            sys.stdin.readline()
        """
    with running(code, filled) as process:
        line(process)
        with pytest.raises(UnavailableError) as caught:
            salvage(filled, new, timeout=0.1)
        assert f"process {process.pid}" in caught.value.holder
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        line(process)
        assert {"b2": State.NOTREADY} == checked(salvage(filled, new))


# Reports.


def test_a_report_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts the other losses."""
    monkeypatch.setattr(salvage_report, "LOSSES_MAX", 2)
    losses = salvage_report.Losses()
    for n in range(5):
        losses.add(Loss("sandboxes", f"s{n}", "page 7", "lost"))
    read, none = {"sandboxes": 5}, {"sandboxes": 0}
    report = Salvage("/old", "/new", read, none, none, tuple(losses.found), 3)
    assert (2, 3) == (len(losses.found), losses.omitted)
    assert [
        "sandboxes: 5 read, 0 written, 2 lost or changed",
        "sandboxes of sandbox 's0': page 7: lost",
        "sandboxes of sandbox 's1': page 7: lost",
        "and 3 more, which no line counts",
        "sandboxes copied: 0, lost: 0",
    ] == list(report.lines())


def test_a_report_counts_each_record_once(filled: str, new: str) -> None:
    """Not also by its page, its indexes and its status; it names what the salvage has made."""
    whole = Path(filled).read_bytes()
    overwrite(filled, page_of(filled, "sandboxes"))
    found = salvage(filled, new)
    lines = list(found.lines())
    assert len(found.losses) > 4
    assert "sandboxes: 0 read, 0 written, at least 2 lost or changed" == lines[1]
    assert "sandbox_statuses: 2 read, 0 written, 2 lost or changed" == lines[2]
    assert "sandbox_transitions: 5 read, 7 written (2 of them by the salvage)" == lines[4]
    assert "sandboxes copied: 0, lost: 2 (a1, b2)" == lines[-1]
    Path(filled).write_bytes(whole)
    overwrite(filled, page_of(filled, "sandbox_transitions"))
    found = salvage(filled, f"{new}-2")
    made = "2 written (2 of them by the salvage), number of lost ones unknown"
    assert f"sandbox_transitions: 0 read, {made}" == list(found.lines())[4]
    assert 2 == found.added["sandbox_transitions"]


def test_losses_for_one_reason_are_counted_for_people() -> None:
    """The first ones are shown."""
    losses = tuple(Loss("sandbox_transitions", f"s{n}", "page 7", "a gap") for n in range(25))
    lines = [*Salvage("/old", "/new", {}, {}, {}, losses).lines()]
    assert 12 == len(lines)
    assert "sandbox_transitions: and 15 more: a gap" == lines[-2]


def test_a_loss_is_shown_in_one_line() -> None:
    """Characters that a terminal obeys are escaped."""
    shown = str(Loss("sandboxes", "a\x1b\u202e", "page 7", "bad\nline"))
    assert shown.isprintable()
    assert "\u202e" not in shown


def test_the_recipe_for_operators_runs(tmp_path: Path) -> None:
    """The commands of docs/operators.md, in order, on a damaged registry."""
    section = (
        text_of("docs/operators.md").split("## Salvage a damaged registry\n")[1].split("\n## ")[0]
    )
    commands = re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert 2 == len(commands)
    path = str(tmp_path / "registry.db")
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("a1"), READY)
    overwrite(path, page_of(path, "sandbox_statuses"))
    tool = tmp_path / "bin" / "sandbox-registry"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m registry "$@"\n')
    tool.chmod(0o755)
    codes = []
    for command in commands:
        done = subprocess.run(
            command.replace("/var/lib/shim", str(tmp_path)),
            shell=True,
            env={**environment(), "PATH": f"{tool.parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        codes.append((done.returncode, done.stderr))
    assert [(1, ""), (0, "")] == codes
    with Store.open(path, reconcile=False) as store:
        assert [State.READY] == [each.status.get().state for each in store.list()]
        assert [] == store.check()


def test_two_salvages_to_one_path_do_not_mix(path: str, tmp_path: Path) -> None:
    """The second one is refused, and leaves the part of the first."""
    with Store.open(path) as store:
        store.add(sandbox("a"), READY)
    part = PartFile(str(tmp_path / "new.db"))
    part.create(path, "salvage in another process")
    try:
        with pytest.raises(UnavailableError, match="another process is writing"):
            salvage(path, tmp_path / "new.db")
        assert os.path.exists(part.path)
    finally:
        part.discard()
    assert salvage(path, tmp_path / "new.db").complete
