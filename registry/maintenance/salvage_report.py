"""Report of a salvage: the records that were copied, and those that were not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from registry.visible import visible

SHOWN: Final = 10
"""Losses of one kind that the report for people shows; a history may be lost by thousands."""
LOSSES_MAX: Final = 100_000
"""Losses that a report holds; it counts the others."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A record of a damaged registry that is not in the copy, or not as it was.

    Attributes:
        table: table of the record.
        sandbox_id: id of the sandbox; "" if it is not known, or the record is of none.
        source: where the record, or the evidence for it, was found, such as `page 7`.
        reason: why it was not copied, or what was changed.
        record: the record as JSON, as far as it could be read; else "".
    """

    table: str
    sandbox_id: str
    source: str
    reason: str
    record: str = ""

    def __str__(self) -> str:
        """Return one line for a log."""
        whose = f" of sandbox {self.sandbox_id!r}" if self.sandbox_id else ""
        where = ": ".join(filter(None, (f"{self.table}{whose}", self.source, self.reason)))
        return visible(where)


Report = Callable[[Loss], None]
"""Takes a loss when it is found."""


class Losses:
    """The losses that were reported, up to a bound."""

    def __init__(self) -> None:
        """Begin without a loss."""
        self.found: list[Loss] = []
        self.omitted = 0

    def add(self, loss: Loss) -> None:
        """Keep *loss*, or count it."""
        if len(self.found) < LOSSES_MAX:
            self.found.append(loss)
        else:
            self.omitted += 1


@dataclass(frozen=True, slots=True)
class Salvage:
    """Result of `salvage`.

    Attributes:
        old: path of the damaged registry, which is as it was.
        new: path of the copy.
        read: number of records that were found in the old file, by table; one that was found
            twice counts twice.
        written: number of records in the copy, by table.
        added: number of those that the salvage has made itself, by table, such as transitions to
            the states of the copy.
        losses: records that were lost or changed, at most 100,000 of them.
        omitted: number of further losses.
        lost: ids of the sandboxes that the old file proves, and that are not in the copy.
    """

    old: str
    new: str
    read: Mapping[str, int]
    written: Mapping[str, int]
    added: Mapping[str, int]
    losses: tuple[Loss, ...]
    omitted: int = 0
    lost: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True if nothing was lost, as far as the file tells."""
        return not self.losses

    def lines(self) -> Iterator[str]:
        """Yield the report for people: a line for each table, one for each loss, and the sum.

        Of losses in one table for one reason, `SHOWN` are shown and the others counted.
        """
        for table, count in self.written.items():
            own = f" ({self.added[table]} of them by the salvage)" if self.added[table] else ""
            yield f"{table}: {self.read[table]} read, {count} written{own}{self._lost_of(table)}"
        seen: Counter[tuple[str, str]] = Counter()
        for loss in self.losses:
            seen[loss.table, loss.reason] += 1
            if seen[loss.table, loss.reason] <= SHOWN:
                yield str(loss)
        for (table, reason), count in seen.items():
            if count > SHOWN:
                yield visible(f"{table}: and {count - SHOWN} more: {reason}")
        if self.omitted:
            yield f"and {self.omitted} more, which no line counts"
        yield f"sandboxes copied: {self.written.get('sandboxes', 0)}, lost: {self._lost()}"

    def _lost_of(self, table: str) -> str:
        """Return the number of records of *table* that were lost or changed, as far as it is known.

        A record may be reported several times: by itself, by an index, and with its page. A page
        does not tell how many records it had.
        """
        losses = [loss for loss in self.losses if loss.table == table]
        known: set[object] = set(self.lost) if table == "sandboxes" else set()
        if table in {"sandboxes", "sandbox_statuses"}:  # one record for each id
            known |= {loss.sandbox_id for loss in losses if loss.sandbox_id}
        else:
            known |= {(loss.sandbox_id, loss.source, loss.record) for loss in losses if loss.record}
        if all(loss.sandbox_id or loss.record for loss in losses):
            return f", {len(known)} lost or changed" if known else ""
        if not known:
            return ", number of lost ones unknown"
        return f", at least {len(known)} lost or changed"

    def _lost(self) -> str:
        """Return the number of lost sandboxes, and the ids of the first ones."""
        if not self.lost:
            return "0"
        more = f" and {len(self.lost) - SHOWN} more" if len(self.lost) > SHOWN else ""
        return visible(f"{len(self.lost)} ({', '.join(self.lost[:SHOWN])}{more})")
