"""Measurements of the engine: each write and each commit is counted once, failed waits included."""

from __future__ import annotations

import math

import pytest

from registry import Sandbox, Store, UnavailableError
from registry.engine.measurements import SECONDS, WRITES, Histogram, Measurements
from tests.conftest import OpenStore
from tests.convoy import convoy, more
from tests.integration.groups import updates
from tests.tools import in_another_thread


def measured(store: Store) -> Measurements:
    """Return the measurements of the file of *store*."""
    return store._session.engine.writes.measurements


def total(histogram: Histogram) -> int:
    """Return the number of values in *histogram*."""
    return sum(histogram.counts)


def test_a_group_counts_one_commit_and_a_wait_for_each_member(
    store: Store, handles: list[Sandbox], blocker: Sandbox
) -> None:
    """Nine writes in one group: nine waits, one commit, one group of nine."""
    found = measured(store)
    waits, commits = total(found.wait_seconds), total(found.commit_seconds)
    sizes = list(found.group_writes.counts)
    with convoy(store, blocker, *updates(handles)):
        pass
    assert (9, 1) == (total(found.wait_seconds) - waits, total(found.commit_seconds) - commits)
    grown = [after - before for before, after in zip(sizes, found.group_writes.counts, strict=True)]
    assert {16: 1} == {
        bound: count for bound, count in zip((*WRITES, math.inf), grown, strict=True) if count
    }
    assert found.group_writes.sum >= 9


def test_a_write_that_is_rolled_back_counts_a_wait_and_no_commit(
    store: Store, handles: list[Sandbox]
) -> None:
    """The wait is over before the function runs."""
    found = measured(store)
    waits, commits = total(found.wait_seconds), total(found.commit_seconds)
    with pytest.raises(LookupError), store.transaction():
        handles[0].status.update(more)  # a savepoint, which waits for nothing
        raise LookupError
    assert (1, 0) == (total(found.wait_seconds) - waits, total(found.commit_seconds) - commits)


def test_a_wait_that_timed_out_is_counted_with_its_duration(open_store: OpenStore) -> None:
    """Otherwise the histogram would hide the longest waits."""
    store = open_store(timeout=0.15)
    found = measured(store)
    before, seconds = total(found.wait_seconds), found.wait_seconds.sum
    with store.transaction(), pytest.raises(UnavailableError):
        in_another_thread(lambda: store.delete("a"))
    assert before + 2 == total(found.wait_seconds)
    assert found.wait_seconds.sum - seconds >= 0.15


def test_stores_of_one_file_share_their_measurements(open_store: OpenStore) -> None:
    """They share the engine: what is measured is the file as this process uses it."""
    first, second = open_store(), open_store()
    assert measured(first) is measured(second)


@pytest.mark.parametrize("seconds", [*SECONDS, 0.0, 31.0])
def test_a_duration_is_in_the_first_bucket_whose_bound_it_does_not_exceed(seconds: float) -> None:
    """A value that equals a bound belongs below it, as in OpenMetrics (`le`)."""
    found = Measurements()
    found.waited(seconds)
    found.committed(seconds, 1)
    (place,) = [n for n, count in enumerate(found.wait_seconds.counts) if count]
    assert seconds <= (*SECONDS, math.inf)[place]
    assert place == 0 or seconds > SECONDS[place - 1]
    assert found.wait_seconds.counts == found.commit_seconds.counts
    assert (seconds, seconds, 1) == (
        found.wait_seconds.sum,
        found.commit_seconds.sum,
        found.group_writes.sum,
    )
