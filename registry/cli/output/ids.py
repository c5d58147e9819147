"""Ids as tables show them: cut to a length at which they are unique."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from os.path import commonprefix
from typing import Final

LEAST: Final = 8
"""Characters of a short id, if no other id begins with them."""
STEP: Final = 4
"""Characters that are added at a time: short ids of a few lengths align better."""


def shortened(ids: Iterable[str]) -> dict[str, str]:
    """Return a prefix of each of *ids* that no other one begins with, by the whole id."""
    found: dict[str, str] = {}
    left, length = set(ids), LEAST
    while left:
        ends = [min(left), max(left)]
        shared = len(commonprefix(ends)) if len(left) > 1 else 0  # noqa: RUF071 - of characters
        length = max(length, shared + STEP - shared % STEP)
        if len({id[:length] for id in left}) == len(left):  # nearly always
            return found | {id: id[:length] for id in left}
        counts = Counter([id[:length] for id in left])
        unique = {id for id in left if counts[id[:length]] == 1 or len(id) <= length}
        found |= {id: id[:length] for id in unique}
        left -= unique
        length += STEP
    return found
