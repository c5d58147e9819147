"""The benchmark itself: that it measures what it says, and writes what is read again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import counted, orm, plain, report, samples
from benchmarks.measure import Figure, of_rounds, single
from registry import Store


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Return a registry and the reference's database, of the same 16 sandboxes."""
    ours, reference = f"{tmp_path}/ours.db", f"{tmp_path}/plain.db"
    samples.fill(ours, 16)
    plain.create(reference)
    with closing(plain.Plain(reference)) as opened:
        opened.add(*(samples.sandbox(n) for n in range(16)))
    return ours, reference


def test_all_ways_read_and_write_the_same(files: tuple[str, str]) -> None:
    """The same sandboxes, and the same change of a status."""
    with (
        Store.open(files[0], reconcile=False) as store,
        closing(plain.Plain(files[1])) as reference,
        closing(orm.Orm(files[1])) as mapped,
    ):
        names = [each.id for each in store.list()]
        assert names == [samples.name(n) for n in range(16)]
        assert names == [handle.row.id for handle in reference.handles()]
        assert sorted(names) == sorted(found[0].id for found in mapped.all())
        for update in (reference.update, mapped.update):
            update(names[3], update.__qualname__)
            assert update.__qualname__ in reference.status(names[3])
        assert names[3] == reference.get(names[3])[1]
        assert (
            "SANDBOX_READY"
            == mapped.status(names[3])
            == str(store.get(names[3]).status_as_read.state)
        )


def test_calls_alternate_and_a_figure_is_the_median_of_rounds() -> None:
    """One of ours, one of the reference's; those before are not counted, the ORM's are apart."""
    called: list[str] = []

    def note(way: str) -> Callable[[int], object]:
        return lambda _: called.append(way)

    figure = single("work", note("o"), note("r"), "goal", rounds=2, calls=3, warm=1, orm=note("m"))
    assert "or" + "ororor" + "mmm" + "ororor" + "mmm" == "".join(called)
    assert 2 == len(figure.ratios)
    assert figure.orm is not None
    half = of_rounds("w", [1.0, 2.0, 9.0], [2.0, 4.0, 9.0], "ms")
    assert (2.0, 4.0, (0.5, 0.5, 1.0)) == (half.ours, half.reference, half.ratios)


def test_statements_are_counted(files: tuple[str, str]) -> None:
    """What is answered from memory takes one, and an update two more than the reference."""
    found = {figure.work: figure for figure in counted.statements(*files)}
    assert [1, 1, 1] == [found[f"SQL statements: {w}()"].ours for w in ("status.get", "list")] + [
        found["SQL statements: get(id)"].ours
    ]
    update = found["SQL statements: status.update()"]
    assert (6, 4) == (update.ours, update.reference)


def test_a_table_in_a_document_is_replaced() -> None:
    """And nothing around it."""
    figure = Figure("work", 0.5, 1000.0, "ms", (0.1, 0.3, 0.2), "at most 1", orm=None)
    written = json.loads(json.dumps({"machine": {"cpus": 2}, "figures": [asdict(figure)]}))
    document = f"before\n{report.BEGIN}old\n{report.END}after\n"
    replaced = report.replace_table(document, written)
    assert replaced.startswith(f"before\n{report.BEGIN}cpus 2.\n")
    assert replaced.endswith(f"{report.END}after\n")
    line = "| work (ms) | 0.5 | 1,000 |  | 0.20 (0.10 to 0.30) | at most 1 |"
    assert line in replaced.splitlines()
    assert replaced == report.replace_table(replaced, written)
    assert math.isclose(0.5, figure.ours)
