"""Points in time as operators write them."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any, Final

import click

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION: Final = re.compile(r"(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


class Moment(click.ParamType[int]):
    """A time in ns since the Unix epoch: a duration before now, such as `1h30m`, or a date."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the time that *value* names."""
        match = _DURATION.fullmatch(value)
        if match and value:
            counts = zip(reversed(match.groups()), _UNITS.values(), strict=True)
            seconds = sum(int(count or 0) * unit for count, unit in counts)
            return max(0, time.time_ns() - seconds * 10**9)
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            why = "is neither a duration such as 30m, 1h30m or 2d, nor a time such as"
            self.fail(f"{value!r} {why} 2026-11-27 or 2026-11-27T09:12:03Z", param, ctx)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds, rest = divmod(int(moment.timestamp() * 10**6), 10**6)
        return min(max(0, seconds * 10**9 + rest * 1000), 2**63 - 1)
