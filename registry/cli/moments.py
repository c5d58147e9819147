"""Points in time as operators write them."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from registry.cli.output.values import timestamp

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION: Final = re.compile(r"(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")

_CLOCK: Final = re.compile(r"\d\d?:")
_OF_YEAR: Final = re.compile(r"\d\d-\d\d(T|$)")


class Moment(click.ParamType[int]):
    """A time in ns since the Unix epoch: a duration before now, a clock time, or a date; UTC.

    One after `--since`, which is converted first, ends a range.
    """

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the time that *value* names."""
        given = ctx.params.get("since") if ctx else None
        since = given if isinstance(given, int) else None  # click has a value of its own for none
        try:
            found = read_moment(value, time.time_ns(), since)
        except ValueError:
            why = "is neither a duration such as 30m, 1h30m or 2d, nor a time such as 13:05,"
            self.fail(f"{value!r} {why} 2026-11-27 or 2026-11-27T09:12:03Z", param, ctx)
        if since is not None and found < since:
            why = f"{value!r} ({timestamp(found)}) is before --since, {timestamp(since)}"
            self.fail(f"{why}; give an end after the beginning", param, ctx)
        return found


def read_moment(text: str, now: int, since: int | None = None) -> int:
    """Return the time *text*: a duration before now, RFC 3339, a date, or a clock time.

    It is in UTC without an offset. A clock time that is still ahead today is that of yesterday,
    unless that is before *since*.

    Args:
        text: as the operator has typed it.
        now: in ns since the Unix epoch.
        since: beginning of the range that the time ends, in ns since the Unix epoch.
    Raises:
        ValueError: *text* is none of them.
    """
    match = _DURATION.fullmatch(text)
    if match and text:
        counts = zip(reversed(match.groups()), _UNITS.values(), strict=True)
        return max(0, now - sum(int(count or 0) * unit for count, unit in counts) * 10**9)
    today = datetime.fromtimestamp(now // 10**9, UTC)
    if not _CLOCK.match(text):
        return _nanoseconds(f"{today:%Y-}{text}" if _OF_YEAR.match(text) else text)
    found = _nanoseconds(f"{today:%Y-%m-%d}T{text}")
    if found > now:
        before = _nanoseconds(f"{today - timedelta(days=1):%Y-%m-%d}T{text}")
        return before if since is None or before >= since else found
    return found


def _nanoseconds(text: str) -> int:
    """Return the time *text*, which is as in RFC 3339, as SQLite can hold it."""
    read = datetime.fromisoformat(text)
    read = read.replace(tzinfo=UTC) if read.tzinfo is None else read
    seconds, rest = divmod(int(read.timestamp() * 10**6), 10**6)
    return min(max(0, seconds * 10**9 + rest * 1000), 2**63 - 1)
