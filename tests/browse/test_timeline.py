"""States over time, from changes, and their drawing."""

from __future__ import annotations

import re

import pytest

from registry.browse import drawing, timeline
from registry.browse.timeline import Change, Line, Span

READY, NOTREADY = "SANDBOX_READY", "SANDBOX_NOTREADY"


def change(at: int, before: str | None, after: str | None, id: str = "a") -> Change:
    """Return a change at *at* seconds."""
    return Change(id, "ns", "pod", timeline.iso(at), before, after, "Why", "shim[1]")


def test_a_time_of_a_view_is_read_and_written() -> None:
    """Nine digits, six of which count here."""
    text = "2026-03-01T08:00:01.250000000Z"
    assert text == timeline.iso(timeline.seconds(text))
    assert timeline.seconds("2026-03-01T08:00") == timeline.seconds("2026-03-01T08:00Z")


def test_a_state_lasts_until_the_next_change() -> None:
    """The first one from the begin, the last one to the end."""
    found = timeline.spans([change(10, READY, NOTREADY)], 0, 30)
    assert [(0, 10, READY), (10, 30, NOTREADY)] == [each[:3] for each in found]


@pytest.mark.parametrize("at", ["1969-12-31T23:59:59.-00000001Z", "", "1960-01-01T00:00:00Z"])
def test_a_time_that_no_clock_has_made_is_the_beginning(at: str) -> None:
    """One row that was written by hand does not hide all others."""
    odd = change(0, None, READY)._replace(at=at)
    found = timeline.spans([odd, change(10, READY, NOTREADY)], 0, 30)
    assert [(0, 10), (10, 30)] == [each[:2] for each in found]


def test_a_deleted_sandbox_leaves_a_gap_until_it_is_created_again() -> None:
    """An id may be added again: it is another sandbox."""
    changes = [change(5, None, READY), change(10, READY, None), change(20, None, READY)]
    found = timeline.spans(changes, 0, 30)
    assert [(5, 10), (20, 30)] == [each[:2] for each in found]


def test_a_clock_that_was_set_back_gives_no_negative_time() -> None:
    """The order is that of the history."""
    found = timeline.spans([change(20, None, READY), change(10, READY, NOTREADY)], 0, 30)
    assert all(each.begin <= each.end for each in found)


def test_a_sandbox_without_a_change_stands_for_the_whole_time() -> None:
    """And only if it has no change."""
    standing = [change(0, None, READY, "a"), change(0, None, NOTREADY, "b")]
    lines = timeline.lines([change(10, READY, NOTREADY, "a")], standing, 5, 30)
    assert {"a": 2, "b": 1} == {line.id: len(line.spans) for line in lines}


@pytest.mark.parametrize("seconds", [1, 59, 3600, 86_400, 400 * 86_400, 10**10])
def test_a_scale_of_any_length_has_a_few_marks(seconds: int) -> None:
    """From seconds to centuries."""
    line = Line("a", "ns", "pod", [Span(0, seconds, READY)])
    marks = re.findall("<line ", drawing.svg([line], 0, seconds))
    assert len(marks) <= drawing.MARKS


def test_a_drawing_escapes_its_text() -> None:
    """Names, ids, reasons and actors."""
    evil = "<script>\"'&\u202e"
    drawn = drawing.svg([Line(evil, evil, evil, [Span(0, 9, READY, evil, evil)])], 0, 10)
    assert "<script" not in drawn
    assert "\u202e" not in drawn
    assert '"/-/sandbox/~3Cscript~3E~22~27~26~E2~80~AE"' in drawn
    assert {"svg", "title", "line", "text", "a", "g", "rect"} >= set(re.findall(r"<(\w+)", drawn))


def test_a_drawing_of_nothing_is_empty() -> None:
    """A node without sandboxes."""
    assert "<rect" not in drawing.svg([], 0, 10)
