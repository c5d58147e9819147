"""Outcomes of an opening of a damaged registry, by its answers and by the truth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from tests.damage.probe import Answer

State = dict[str, Answer]
"""Answers of a registry by question."""


class Outcome(StrEnum):
    """Outcome of one opening of a damaged registry."""

    TRUE = "true"
    OLDER = "older consistent state"
    ERROR = "clear error"
    PARTIAL = "what could be read, by damaged='read'"
    UNDETECTABLE = "silently wrong, integrity_check does not tell"
    WRONG = "SILENTLY WRONG, integrity_check tells"
    UNCHECKED = "CHECK SILENT, integrity_check tells"
    RAW = "RAW ERROR"
    HANG = "HANG"
    CRASH = "CRASH"
    CHANGED = "REFUSED OPEN CHANGED A BYTE"
    NEW = "REGISTRY MADE AFRESH"

    @property
    def is_good(self) -> bool:
        """True if the outcome is permitted."""
        return self.value[0].islower()


def classify(
    found: State | str, truths: Sequence[State], plain: str, mode: str, changed: Sequence[str]
) -> tuple[Outcome, str]:
    """Return the outcome of one opening, and why.

    Args:
        found: the answers; `hang` or `crash` if there are none.
        truths: permitted states, the newest first.
        plain: first line of SQLite's integrity check.
        mode: way of opening.
        changed: files that the opening has changed.
    """
    if isinstance(found, str):
        return (Outcome.HANG if found == "hang" else Outcome.CRASH), found
    raw = [f"{name}: {answer[1]}" for name, answer in found.items() if answer[0] == "raw"]
    if raw:
        return Outcome.RAW, raw[0]
    if found["open"][0] == "error":
        if changed:
            return Outcome.CHANGED, f"{', '.join(changed)}: {found['open'][1]}"
        return Outcome.ERROR, str(found["open"][1])
    if found["open"] not in [truth["open"] for truth in truths]:
        return Outcome.NEW, f"registry {found['open'][1]}"
    return _of_answers(found, truths, plain, mode)


def _of_answers(
    found: State, truths: Sequence[State], plain: str, mode: str
) -> tuple[Outcome, str]:
    """Return the outcome of a registry that was opened."""
    errors = [f"{name}: {answer[1]}" for name, answer in found.items() if answer[0] == "error"]
    wrong = [difference(found, truth) for truth in truths]
    tells = plain != "ok"
    after = found.get("after", ("value", "ok"))[1]
    if all(wrong) and not tells:
        outcome = Outcome.UNDETECTABLE, wrong[0]
    elif all(wrong):
        outcome = (Outcome.PARTIAL if mode == "damaged" else Outcome.WRONG), wrong[0]
    elif tells and found["check"] == ("value", 0):
        outcome = Outcome.UNCHECKED, "check() returns nothing"
    elif after != "ok" and not tells:
        outcome = Outcome.WRONG, f"after a write: {after}"
    elif errors:
        outcome = Outcome.ERROR, errors[0]
    else:
        outcome = (Outcome.OLDER if wrong[0] else Outcome.TRUE), ""
    return outcome


def difference(found: State, truth: State) -> str:
    """Return the first answer that contradicts *truth*; "" if there is none."""
    for name, answer in truth.items():
        given = found.get(name)
        if given is None or given[0] != "value" or name == "check":
            continue
        if name == "list" and answer[0] == "value":
            if not is_consistent(given[1], answer[1]):
                return f"{name}: {len(given[1])} sandboxes"
        elif given != answer:
            return f"{name}: {str(given[1])[:120]} instead of {str(answer[1])[:120]}"
    return _written(found)


def _written(found: State) -> str:
    """Return what contradicts the write of `probe.write` in the list after it; "" if nothing."""
    before, after = found["list"], found.get("listed")
    written = found.get("written", ("error", ""))
    if after is None or {before[0], after[0], written[0]} != {"value"}:
        return ""
    expected = [written[1] if each and each[0] == written[1][0] else each for each in before[1]]
    return "" if after[1] == expected else "a write has changed other sandboxes"


def is_consistent(found: Sequence[Any], truth: Sequence[Any]) -> bool:
    """Return whether *found* is *truth* in its order, with None in the place of some sandboxes."""
    readable = [each for each in found if each is not None]
    kept = set(readable)
    return len(found) == len(truth) and readable == [each for each in truth if each in kept]


def contents(folder: str) -> dict[str, bytes]:
    """Return the bytes of each file in *folder*."""
    found = {}
    for name in os.listdir(folder):
        with open(f"{folder}/{name}", "rb") as file:
            found[name] = file.read()
    return found


def changes(before: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """Return the files that differ, except those that a refused open may leave.

    SQLite rebuilds the WAL index, and an open creates empty lock files.
    """
    names = sorted(before.keys() | after.keys())
    changed = [name for name in names if before.get(name) != after.get(name)]
    locks = {name for name in changed if name.endswith(("-lock", "-queue"))}
    empty = {name for name in locks if name not in before and not after[name]}
    return [name for name in changed if not name.endswith("-shm") and name not in empty]
