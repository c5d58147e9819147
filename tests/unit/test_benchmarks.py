"""The benchmark: its counts, its medians, and the table that it writes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import commands, counted, lists, orm, plain, report, samples, watching
from benchmarks.measure import Figure, count, of_rounds, single
from registry import Store


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Return a registry and the reference's database, with the same 16 sandboxes."""
    ours, reference = f"{tmp_path}/ours.db", f"{tmp_path}/plain.db"
    samples.fill(ours, 16)
    plain.create(reference)
    with closing(plain.Plain(reference)) as opened:
        opened.add(*(samples.sandbox(n) for n in range(16)))
    return ours, reference


def test_ours_plain_and_orm_read_and_write_the_same(files: tuple[str, str]) -> None:
    """All three list the same sandboxes and change the message of a status."""
    with (
        Store.open(files[0], reconcile=False) as store,
        closing(plain.Plain(files[1])) as reference,
        closing(orm.Orm(files[1])) as mapped,
    ):
        names = [each.id for each in store.list()]
        assert names == [samples.name(n) for n in range(16)]
        assert sorted(names) == sorted(row[1] for row in reference.all())
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


def test_single_alternates_calls_and_returns_medians_of_rounds() -> None:
    """Calls of ours and of the reference alternate; those of the ORM follow each round."""
    called: list[str] = []

    def note(way: str) -> Callable[[int], object]:
        return lambda _: called.append(way)

    figure = single("work", note("o"), note("r"), "goal", rounds=2, calls=3, warm=1, orm=note("m"))
    assert "or" + "ororor" + "mmm" + "ororor" + "mmm" == "".join(called)
    assert 2 == len(figure.ratios)
    assert figure.orm is not None
    half = of_rounds("w", [1.0, 2.0, 9.0], [2.0, 4.0, 9.0], "ms")
    assert (2.0, 4.0, (0.5, 0.5, 1.0)) == (half.ours, half.reference, half.ratios)


def test_single_undoes_each_pair_of_calls() -> None:
    """Also those before the first round; each is undone before the next begins."""
    called: list[str] = []

    def note(way: str) -> Callable[[int], object]:
        return lambda n: called.append(f"{way}{n}")

    single("work", note("o"), note("r"), "", rounds=1, calls=2, warm=1, after=note("u"))
    assert "o1 r1 u1 o2 r2 u2 o3 r3 u3" == " ".join(called)


def test_lists_by_selector_find_what_plain_sql_finds(tmp_path: Path) -> None:
    """Few, half and all of the sandboxes match."""
    figures = list(lists.measure(f"{tmp_path}", 1, 100))
    assert [f"list by selector over 100, {count} match / plain SQL" for count in (2, 50, 100)] == [
        each.work for each in figures
    ]
    assert all(each.ratios for each in figures)


def test_commands_are_measured_beside_their_references(tmp_path: Path) -> None:
    """Each row is one run of the program, and one of what it is compared with."""
    figures = list(commands.measure(f"{tmp_path}", 1, 20))
    assert ["--version", "list of 50"] == [
        each.work.partition(" / ")[0].removeprefix("sandbox-registry ") for each in figures[:2]
    ]
    assert all(each.ratios for each in figures)


def test_modules_of_each_start_are_counted(files: tuple[str, str]) -> None:
    """Each start imports more than the one that it contains."""
    found = {figure.work.partition(": ")[2]: figure.ours for figure in counted.modules(files[0])}
    assert list(counted.STARTS) == list(found)
    assert 0 < found["import registry"] <= found["open, get and update"]
    assert found["import registry"] < found["sandbox-registry serve"]


def test_functions_of_an_update_are_counted(files: tuple[str, str]) -> None:
    """Each function of the package is counted once, however often it is entered."""
    figure = counted.functions(files[0])
    assert 10 < figure.ours < 200
    assert figure == counted.functions(files[0])


def test_lines_are_counted_without_generated_code() -> None:
    """The longest function is longer than the median one."""
    engine, median, longest = (figure.ours for figure in counted.lines())
    assert engine > 1000
    assert 1 < median < longest < 200


def test_replace_table_keeps_the_text_around_it() -> None:
    """A count has neither a reference nor a ratio."""
    figure = Figure("work", 0.5, 1000.0, "ms", (0.1, 0.3, 0.2), "at most 1", orm=None)
    figures = [asdict(figure), asdict(count("lines", 2000, "few"))]
    written = json.loads(json.dumps({"machine": {"cpus": 2}, "figures": figures}))
    document = f"before\n{report.BEGIN}old\n{report.END}after\n"
    replaced = report.replace_table(document, written)
    assert replaced.startswith(f"before\n{report.BEGIN}cpus 2.\n")
    assert replaced.endswith(f"{report.END}after\n")
    line = "| work (ms) | 0.5 | 1,000 |  | 0.20 (0.10 to 0.30) | at most 1 |"
    assert line in replaced.splitlines()
    assert "| lines | 2,000 |  |  |  | few |" in replaced.splitlines()
    assert replaced == report.replace_table(replaced, written)
    assert math.isclose(0.5, figure.ours)


def test_latencies_of_watches_are_measured(files: tuple[str, str]) -> None:
    """Of as many commits as are asked for, in another process and in this one."""
    with Store.open(files[0], reconcile=False) as store:
        watch = store.watch()
        between = [*watching._between_processes(files[0], watch, 3)]
        assert 3 == len([each for each in between if each >= 0])
        handle = store.get(samples.name(0))
        assert 3 == len(watching._within_a_process(handle, watch, 3))
        assert 6 == len(store.history(handle.id)) - 1
