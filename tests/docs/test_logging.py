"""docs/logging.md: every event with its level and its fields, and every field."""

from __future__ import annotations

import logging
import re
from collections import Counter

from tests.documents import text_of
from tests.events import Event, events

TEXT = text_of("docs/logging.md")


def codes(cell: str) -> tuple[str, ...]:
    """Return the names in a cell, in order."""
    return tuple(re.findall(r"`(\w[\w.]*)`", cell))


def documented() -> list[Event]:
    """Return the events of the second table, in order."""
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \| (\w+) \| (.*?) ?\| .+ \|$", TEXT, re.MULTILINE)
    return [Event(name, logger, level, codes(fields)) for name, logger, level, fields in rows]


def test_every_event_is_documented_with_its_level_and_its_fields() -> None:
    """No other event is; each record of the package has its fields where it is logged."""
    found = documented()
    assert [] == sorted(events() ^ set(found))
    assert {1} == set(Counter(each.name for each in found).values())


def test_every_field_is_documented_and_is_no_attribute_of_a_record() -> None:
    """`logging` raises for a field such as `message`, and overwrites one such as `levelname`."""
    table = TEXT.partition("| field | type | meaning |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`.*?) \| (str|int|float|bool) \| .+ \|$", table, re.MULTILINE)
    fields = {name for cell, _ in rows for name in codes(cell)}
    assert fields == {"event"}.union(*(each.fields for each in events()))
    assert not fields & (logging.makeLogRecord({}).__dict__.keys() | {"message", "asctime"})
