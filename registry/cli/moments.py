"""Points in time as operators write them."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any, Final

import click

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION: Final = re.compile(r"(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")

_OF_TODAY: Final = re.compile(r"\d\d?:")
_OF_YEAR: Final = re.compile(r"\d\d-\d\d(T|$)")


class Moment(click.ParamType[int]):
    """A time in ns since the Unix epoch: a duration before now, a time of today, or a date; UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the time that *value* names."""
        match = _DURATION.fullmatch(value)
        if match and value:
            counts = zip(reversed(match.groups()), _UNITS.values(), strict=True)
            seconds = sum(int(count or 0) * unit for count, unit in counts)
            return max(0, time.time_ns() - seconds * 10**9)
        try:
            moment = _read(value)
        except ValueError:
            why = "is neither a duration such as 30m, 1h30m or 2d, nor a time such as 13:05,"
            self.fail(f"{value!r} {why} 2026-11-27 or 2026-11-27T09:12:03Z", param, ctx)
        seconds, rest = divmod(int(moment.timestamp() * 10**6), 10**6)
        return min(max(0, seconds * 10**9 + rest * 1000), 2**63 - 1)


def _read(text: str) -> datetime:
    """Return the time *text*: RFC 3339, a date, maybe of this year, or a time of today.

    It is in UTC without an offset.

    Raises:
        ValueError: it is none of them.
    """
    if _OF_TODAY.match(text):
        text = f"{datetime.now(UTC):%Y-%m-%d}T{text}"
    elif _OF_YEAR.match(text):
        text = f"{datetime.now(UTC):%Y}-{text}"
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
