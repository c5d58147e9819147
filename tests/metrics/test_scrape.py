"""Scrapes of open stores: the values, their bounds, and what happens if a registry fails."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from registry import InvalidArgumentError, State, Status, Store, UnavailableError, restore
from registry.aio import AsyncStore
from registry.metrics import collector, readings
from registry.metrics.table import METRICS, NAMESPACES, OTHER, PREFIX, REASONS
from tests.conftest import OpenStore
from tests.convoy import more
from tests.metrics.samples import families, samples, scrape, value
from tests.tools import (
    READY,
    UNKNOWN,
    execute,
    in_another_thread,
    is_recent,
    line,
    pod,
    run,
    running,
    sandbox,
    say,
)

ENDLESS = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) SELECT count(*) FROM n"


def test_every_metric_of_the_table_has_a_sample_of_its_type_labels_and_unit(store: Store) -> None:
    """The parser of OpenMetrics accepts the text; no other metric is in it."""
    store.add(sandbox("a"), Status(State.NOTREADY, reason="Stopped"))
    store.reconcile()
    found = families(scrape(collector(store, check=True)))
    assert [metric.name for metric in METRICS] == list(found)
    for metric in METRICS:
        family = found[metric.name]
        assert (metric.kind, metric.unit, metric.meaning) == (
            family.type,
            family.unit,
            family.documentation,
        )
        for sample in family.samples:
            assert store.path == sample.labels["path"]
            assert {"path", *metric.labels} == sample.labels.keys() - {"le"}, sample


def test_sandboxes_are_counted_by_state_and_namespace(store: Store) -> None:
    """Each namespace has all states, so that no series begins with its first sandbox."""
    assert {0} == set(samples(scrape(collector(store)), "sandboxes").values())
    store.add(sandbox("a", config=pod(namespace="shop")), READY)
    store.add(sandbox("b", config=pod(namespace="shop")), UNKNOWN)
    store.add(sandbox("c", config=None), Status(State.NOTREADY, reason="Stopped"))
    text = scrape(collector(store))
    assert {
        (("namespace", "shop"), ("state", "SANDBOX_READY")): 1,
        (("namespace", "shop"), ("state", "SANDBOX_UNKNOWN")): 1,
        (("namespace", "shop"), ("state", "SANDBOX_NOTREADY")): 0,
        (("namespace", ""), ("state", "SANDBOX_READY")): 0,
        (("namespace", ""), ("state", "SANDBOX_UNKNOWN")): 0,
        (("namespace", ""), ("state", "SANDBOX_NOTREADY")): 1,
    } == samples(text, "sandboxes")
    assert {(("reason", "Stopped"),): 1} == samples(text, "not_ready")


def test_namespaces_and_reasons_are_bounded_and_the_largest_are_kept(store: Store) -> None:
    """All sandboxes are counted; each of the others in `other`."""
    number = count()

    def add(namespace: str, reason: str) -> None:
        config, status = pod(namespace=namespace), Status(State.NOTREADY, reason=reason)
        store.add(sandbox(f"s{next(number)}", config=config), status)

    with store.transaction():
        for n in range(NAMESPACES + 5):
            add(f"n{n}", f"R{n}")
        for _ in "12":
            add("zz-large", "ZzLarge")
    text = scrape(collector(store))
    counts = {
        labels["namespace"]: number
        for labels, number in ((dict(key), n) for key, n in samples(text, "sandboxes").items())
        if labels["state"] == "SANDBOX_NOTREADY"
    }
    reasons = {dict(key)["reason"]: n for key, n in samples(text, "not_ready").items()}
    assert (NAMESPACES + 1, REASONS + 1) == (len(counts), len(reasons))
    assert {NAMESPACES + 7} == {sum(counts.values()), sum(reasons.values())}
    assert (2, 6) == (counts["zz-large"], counts[OTHER])
    assert (2, NAMESPACES + 6 - REASONS) == (reasons["ZzLarge"], reasons[OTHER])


def test_a_namespace_of_any_characters_is_a_label(store: Store, path: str) -> None:
    """A client other than the kubelet may send anything, and SQL may store invalid UTF-8."""
    store.add(sandbox("a", config=pod(namespace='a"\\\n\u202e')), UNKNOWN)
    store.add(sandbox("b", config=pod(namespace="b")), UNKNOWN)
    execute(path, "UPDATE sandboxes SET namespace = CAST(X'ff' AS TEXT) WHERE id = 'b'")
    text = scrape(collector(store))
    found = {dict(key)["namespace"] for key in samples(text, "sandboxes")}
    assert {'a"\\\\n\\u202e', "\\udcff"} == found
    store.delete("b")


def test_transitions_count_those_of_all_processes_and_do_not_jump_by_a_restore(
    path: str, tmp_path: Path
) -> None:
    """A restore begins a block of seqs; the counter begins again, as after a restart."""
    backup = str(tmp_path / "backup.db")
    with Store.open(path) as store:
        scraped = collector(store)
        store.add(sandbox("a"), READY)
        store.backup(backup)
        execute(path, "UPDATE sandbox_statuses SET state = 'SANDBOX_NOTREADY'")
        assert 2 == value(scrape(scraped), "transitions_total")
        restore(backup, path, force=True)
        assert (0, 2) == tuple(
            value(scrape(scraped), name) for name in ("transitions_total", "incarnation")
        )
        store.delete("a")
        assert 1 == value(scrape(scraped), "transitions_total")


def test_the_oldest_time_is_that_of_the_change_to_the_state(open_store: OpenStore) -> None:
    """An update that keeps the state does not make a sandbox younger."""
    clock = count(10**9, 10**9)
    store = open_store(clock=lambda: next(clock), reconcile=False)
    first = store.add(sandbox("a"), READY)
    store.add(sandbox("b"), READY)
    first.status.update(more)
    oldest = samples(scrape(collector(store)), "oldest_state_timestamp_seconds")
    assert {(("state", "SANDBOX_READY"),): 1} == oldest
    first.status.update(lambda old: replace(old, state=State.NOTREADY))
    oldest = samples(scrape(collector(store)), "oldest_state_timestamp_seconds")
    assert {(("state", "SANDBOX_READY"),): 2, (("state", "SANDBOX_NOTREADY"),): 4} == oldest


def test_the_latest_reconcile_of_the_store_is_shown(open_store: OpenStore) -> None:
    """Its verdicts, its orphans, when it ended and how long it took; nothing without one."""
    assert {} == samples(scrape(collector(open_store(reconcile=False))), "reconcile_sandboxes")
    store = open_store()
    store.add(sandbox("a", netns_path="/nowhere/netns"), READY)
    store.reconcile(dry_run=True)
    text = scrape(collector(store))
    assert 1 == value(text, "reconcile_sandboxes", verdict="CLOSED")
    assert 0 == value(text, "reconcile_sandboxes", verdict="OPEN")
    assert 0 == value(text, "reconcile_orphans")
    assert is_recent(int(value(text, "reconcile_timestamp_seconds") * 1e9))
    assert value(text, "reconcile_duration_seconds") > 0


def test_the_writes_of_this_process_are_shown_as_histograms(open_store: OpenStore) -> None:
    """A store that only reads has none: zeros would tell nothing about other processes."""
    store = open_store()
    before = value(scrape(collector(store)), "group_writes_count")
    store.add(sandbox("a"), READY)
    text = scrape(collector(store))
    assert before + 1 == value(text, "group_writes_count")
    for name in ("commit_duration_seconds", "lock_wait_duration_seconds"):
        assert (
            before + 1 == value(text, f"{name}_count") == value(text, f"{name}_bucket", le="+Inf")
        )
        assert value(text, f"{name}_sum") > 0
    assert {} == samples(scrape(collector(open_store(read_only=True))), "group_writes_count")


def test_a_reader_that_keeps_the_wal_is_counted(store: Store, path: str) -> None:
    """By the kernel's list of locks: a process that begins a read and does not end it."""
    store.add(sandbox("a"), READY)
    reading = """
        import sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], isolation_level=None)
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sandboxes").fetchone()
        print("reading", flush=True)
        sys.stdin.readline()
        """
    with running(reading, path) as reader:
        assert "reading" == line(reader)
        assert 1 == value(scrape(collector(store)), "wal_readers")
        say(reader)
        reader.wait()
        assert 0 == value(scrape(collector(store)), "wal_readers")
    assert os.stat(f"{path}-wal").st_size == value(scrape(collector(store)), "wal_bytes")


@pytest.mark.parametrize("suffix", ["-reserve", "-spare"])
def test_the_disk_reserve_is_whole_until_a_part_of_it_is_missing(
    store: Store, path: str, suffix: str
) -> None:
    """Each of its two files, also if another process has released it."""
    assert 1 == value(scrape(collector(store)), "disk_reserve_whole")
    os.unlink(path + suffix)
    assert 0 == value(scrape(collector(store)), "disk_reserve_whole")


def test_violations_are_shown_only_if_the_scrape_checks(path: str) -> None:
    """Each rule has a sample, so that no series begins with a violation."""
    with Store.open(path) as store:
        store.add(sandbox("a"), UNKNOWN)
        execute(path, "UPDATE sandboxes SET pod = 'another'")
        assert {} == samples(scrape(collector(store)), "check_violations")
        found = samples(scrape(collector(store, check=True)), "check_violations")
        assert 1 == found.pop((("rule", "columns_are_true"),))
        assert {0} == set(found.values())


def test_a_closed_store_is_down_and_its_errors_are_counted(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No exception ends the scrape of the other collectors; the log has the first failure."""
    with Store.open(path) as store:
        scraped = collector(store)
        assert 1 == value(scrape(scraped), "up")
    for errors in (1, 2):
        text = scrape(scraped)
        assert (0, errors) == (value(text, "up"), value(text, "scrape_errors_total"))
        assert {} == samples(text, "sandboxes")
        assert value(text, "scrape_duration_seconds") >= 0
    assert 1 == len(caplog.records)


def test_a_damaged_registry_is_down_beside_one_that_is_not(tmp_path: Path) -> None:
    """Each registry has samples of its own, with its path."""
    damaged, whole = (str(tmp_path / name) for name in ("damaged.db", "whole.db"))
    with Store.open(damaged) as one, Store.open(whole) as two:
        execute(damaged, "DROP TABLE sandbox_statuses")
        (family,) = (each for each in collector(one, two).collect() if each.name == f"{PREFIX}up")
        ups = {sample.labels["path"]: sample.value for sample in family.samples}
        assert {damaged: 0, whole: 1} == ups


def test_a_query_is_interrupted_when_its_time_has_passed(store: Store) -> None:
    """The connection is then usable by the next reader."""
    session = store._session
    with (
        pytest.raises(
            UnavailableError, match=r"read metrics of .*: timed out after 0.05 s"
        ) as caught,
        readings._snapshot(session, 0.05) as connection,
    ):
        connection.fetch(ENDLESS)
    assert (store.path, 0.05) == (caught.value.path, caught.value.timeout)
    assert 1 == value(scrape(collector(store)), "up")


def test_a_scrape_delays_no_writer_and_shows_no_uncommitted_change(store: Store, path: str) -> None:
    """In the middle of its snapshot another process writes; a transaction of ours is left out."""
    with readings._snapshot(store._session, 60) as connection:
        before = connection.fetch("SELECT count(*) FROM sandboxes")
        with closing(sqlite3.connect(path, timeout=0)) as other, other:
            other.execute("UPDATE registry SET created_at = created_at + 1")
        assert before == connection.fetch("SELECT count(*) FROM sandboxes")
    with store.transaction():
        store.add(sandbox("a", config=pod(namespace="shop")), READY)
        own, others = scrape(collector(store)), in_another_thread(lambda: scrape(collector(store)))
        for text in (own, others):
            assert {0} == set(samples(text, "sandboxes").values())


def test_to_register_a_collector_reads_nothing_and_finds_duplicates(path: str) -> None:
    """`describe` names the families, so that a store may be closed, and none is there twice."""
    with Store.open(path) as store:
        pass
    registered = CollectorRegistry(auto_describe=True)
    registered.register(collector(store))
    assert 0 == registered.get_sample_value(f"{PREFIX}up", {"path": path})
    with pytest.raises(ValueError, match="Duplicated"):
        registered.register(collector(store))


def test_an_async_store_is_scraped_like_a_store(path: str) -> None:
    """It is the same file; the scrape runs in the thread of the HTTP server."""

    async def scrape_it() -> str:
        async with await AsyncStore.open(path) as store:
            await store.add(sandbox("a"), READY)
            return await asyncio.to_thread(scrape, collector(store))

    assert 1 == value(asyncio.run(scrape_it()), "transitions_total")


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", None])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(store: Store, timeout: object) -> None:
    """As by every call that takes seconds."""
    with pytest.raises(InvalidArgumentError) as caught:
        collector(store, timeout=timeout)  # type: ignore[arg-type]
    assert ("timeout", timeout) == (caught.value.field, caught.value.value)


def test_another_object_and_a_second_store_of_a_file_are_refused(open_store: OpenStore) -> None:
    """Two samples with the same labels are no valid output."""
    store = open_store()
    for stores in ([store, open_store()], [store, "registry.db"]):
        with pytest.raises(InvalidArgumentError) as caught:
            collector(*stores)
        assert ("stores", stores[1]) == (caught.value.field, caught.value.value)


def test_scrapes_go_on_beside_writes_of_another_thread(store: Store) -> None:
    """The histograms are read while they are written, and no scrape fails."""
    handle, scraped = store.add(sandbox("a"), READY), collector(store)

    def write() -> None:
        for _ in range(50):
            handle.status.update(more)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        texts = [scrape(scraped)]
        while not writing.done():
            texts.append(scrape(scraped))
        writing.result()
    assert {1} == {value(text, "up") for text in texts}
    assert value(scrape(scraped), "group_writes_count") >= 51


def test_without_the_extra_the_import_says_what_to_install() -> None:
    """An error of the package, with the command; its cause is Python's own."""
    out = run(
        """
        import sys
        sys.modules["prometheus_client"] = None
        from registry import FailedPreconditionError
        try:
            import registry.metrics
        except FailedPreconditionError as error:
            print(type(error.__cause__).__name__)
            print(error)
        """
    )
    cause, message = out.splitlines()
    assert "ModuleNotFoundError" == cause
    assert message.startswith("import registry.metrics: prometheus_client")
    assert message.endswith("; run `pip install 'sandbox-registry[metrics]'`")
