"""The copy of a damaged registry, written from the records that were found in it.

Rules:

1. A sandbox is copied if its row and its status are valid, as those of an addition are. What
   follows from the config (labels, columns for filters, JSON) is derived from it again.
2. Of several records of one id or name, that with the newest `changed_at` counts, then the one on a
   page that is reached. One that is not reached is left out if the history tells of its deletion.
3. A status that is lost, or older than the last transition, is made from that: its state, without
   a process.
4. Of the history, the newest run without a gap is copied. The copy begins a new incarnation, in
   which transitions by `SALVAGE` lead to its states: each sandbox that was lost has a deletion.
5. Everything else is reported. Nothing is changed without a report.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice, pairwise
from typing import Any, Final, NamedTuple

from registry import cri
from registry.errors import RegistryError
from registry.maintenance.salvage_report import Loss, Report
from registry.model.extensions import Extension
from registry.model.extensions import validate as validate_extensions
from registry.model.metadata import validate as validate_metadata
from registry.model.status import validate as validate_status
from registry.model.text import loads
from registry.sync.interrupts import reraise_interrupt
from registry.tables import encoding, incarnation, sql
from registry.tables.incarnation import SALVAGE, Incarnation, begin, mark_copy
from registry.tables.rows import Row, Transition, as_text, damage, load_extension, load_status
from registry.tables.version import BLOCK, HISTORY_MAX, LEVEL

INCARNATIONS_MAX: Final = 1_000_000
"""Incarnations that a registry may have had; a greater number is damage."""
COPIES_MAX: Final = 8
"""Records with one key that are compared with one another."""
_SHAPES: Final = {"created": (False, True), "changed": (True, True), "deleted": (True, False)}
"""Whether a transition has a state before and after it, by its event."""

Record = dict[str, Any]


class _Run(NamedTuple):
    """Transitions without a gap, but for jumps to the block of a new incarnation."""

    first: int
    last: int
    length: int
    jumps: int

    def goes_on(self, seq: int) -> bool:
        """Return whether *seq* may be the next one."""
        return seq == self.last + 1 or (seq > self.last and seq % BLOCK == 1)


class Copy:
    """The copy, by a connection that has attached the records as `found`."""

    def __init__(self, connection: sqlite3.Connection, report: Report, doing: str) -> None:
        """Prepare the records; the tables of the copy are empty, and have no triggers."""
        self._connection, self._report, self._doing = connection, report, doing
        self.lost: Final[set[str]] = set()
        """Ids of sandboxes whose loss was reported."""
        self.added: Final = Counter[str]()
        """Number of records that were made, not copied, by table."""

    def run(self) -> None:
        """Write all tables; the history last, since it tells what became of the sandboxes."""
        self._sort_history()
        self._connection.execute("BEGIN")
        for row in self._each(
            "SELECT s.id, max(t.changed_at) FROM found.sandboxes AS s LEFT JOIN"
            " found.sandbox_statuses AS t ON t.sandbox_id = s.id GROUP BY s.id ORDER BY 2 DESC, 1"
        ):
            self._write_sandbox(row["id"])
        self._write_extensions()
        self._report_lost()
        self._write_history()
        self._connection.execute("COMMIT")

    # The tables.

    def _begin_incarnation(self, run: _Run) -> None:
        """Write the row of the registry: the next incarnation, whose history follows *run*."""
        rows = "SELECT * FROM found.registry ORDER BY reached DESC, incarnation DESC, level DESC"
        found = next(filter(_is_identity, self._each(rows)), None)
        if found is None:
            why = "its id is lost: the copy has a new one, and owns none of the old namespaces"
            self._report(Loss("registry", "", "its row", why))
            self.added["registry"] += 1
            found = {"registry_id": incarnation.new_id(), "incarnation": 1, "copied_at": None}
        else:
            self._connection.execute("UPDATE registry SET created_at = :created_at", found)
            if found["level"] > LEVEL:
                why = f"its level {found['level']} is newer than {LEVEL}: use the newer program"
                self._report(_loss("registry", "", found, why))
        # Each incarnation has a block of numbers; that of the latest one may be lost.
        number = max(found["incarnation"], run.jumps + 1)
        last = max(run.last, (number - 1) * BLOCK)
        now = Incarnation(found["registry_id"], number, found["copied_at"], last)
        begin(self._connection, now, registry_id=now.registry_id, number=number + 1)
        if now.copied_at is not None:
            mark_copy(self._connection, now.copied_at)

    def _write_sandbox(self, id: str) -> None:
        row = self._best("sandboxes", "id", id, "reached DESC, page")
        past = self._last_transition(id)
        if not row["reached"] and past and past["event"] == "deleted":
            return
        status = self._best("sandbox_statuses", "sandbox_id", id, "changed_at DESC, reached DESC")
        last = past if past and past["event"] != "deleted" else None
        refusal = "its status is lost"
        if status and not (last and _is_older(status, last)):
            refusal = self._try(row, status)
        elif last:
            refusal = "older than this transition" if status else "lost"
        if refusal and last:
            why = f"{refusal}; the copy has the state of the transition, without a process"
            without = self._try(row, _status_of(last))
            if not without:
                self._report(Loss("sandbox_statuses", id, f"transition {last['seq']}", why))
                self.added["sandbox_statuses"] += 1
            refusal = without
        if refusal:
            self._lose("sandboxes", id, row, refusal)

    def _try(self, row: Record, status: Record) -> str:
        """Write the sandbox of *row* with *status*; return why it cannot be written, or ""."""
        try:
            columns, labels = _derived({**status, **row}, self._doing)
            self._insert(columns, labels)
        except (RegistryError, ValueError, sqlite3.IntegrityError) as error:
            reraise_interrupt(error)
            return self._refusal(row, error)
        return ""

    def _insert(self, columns: Record, labels: list[dict[str, object]]) -> None:
        """Insert the rows of a sandbox, or none of them."""
        self._connection.execute("SAVEPOINT sandbox")
        try:
            self._connection.execute(sql.INSERT_SANDBOX, columns)
            self._connection.executemany(sql.INSERT_LABEL, labels)
            self._connection.execute(sql.INSERT_STATUS, columns)
        except BaseException:
            self._connection.execute("ROLLBACK TO sandbox")
            raise
        finally:
            self._connection.execute("RELEASE sandbox")

    def _refusal(self, row: Record, error: Exception) -> str:
        """Return why *row* was refused; the schema does not name the holder of its name."""
        holder = self._first("SELECT id FROM sandboxes WHERE name = :name", row)
        if holder and isinstance(error, sqlite3.IntegrityError):
            return f"its name {row['name']!r} is also that of {holder['id']!r}, changed later"
        return str(error)

    def _write_extensions(self) -> None:
        written: dict[str, Extension] = {}
        id = ""
        for row in self._each(
            "SELECT * FROM found.sandbox_extensions ORDER BY sandbox_id, name, reached DESC, page"
        ):
            if row["sandbox_id"] != id:
                id, written = str(row["sandbox_id"]), {}
            why = self._write_extension(id, row, written)
            past = self._last_transition(id) if why else None
            if why and (row["reached"] or not past or past["event"] != "deleted"):
                self._report(_loss("sandbox_extensions", id, row, why))

    def _write_extension(self, id: str, row: Record, written: dict[str, Extension]) -> str:
        """Write one extension beside those *written*; return why it cannot be written, or ""."""
        try:
            name, extension = load_extension((row["name"], row["type_url"], row["value"]), id)
            if name in written:
                same = written[name] == extension
                return "" if same else f"{name!r} was found with another value, which is in use"
            if not self._first("SELECT 1 FROM sandboxes WHERE id = ?", (id,)):
                return f"{name!r}: its sandbox is lost"
            validate_extensions({**written, name: extension}, self._doing)
            self._connection.execute(sql.INSERT_EXTENSION, row)
            written[name] = extension
        except (RegistryError, sqlite3.IntegrityError) as error:
            reraise_interrupt(error)
            return str(error)
        return ""

    # Evidence of records that are lost.

    def _report_lost(self) -> None:
        """Report each sandbox that an index, a status or the history proves, and is not copied."""
        for entry in self._each(_ENTRIES):
            self._report_entry(entry)
        for row in self._each(
            "SELECT * FROM found.sandbox_statuses WHERE sandbox_id NOT IN"
            " (SELECT id FROM sandboxes) ORDER BY sandbox_id, changed_at DESC"
        ):
            past = self._last_transition(row["sandbox_id"])
            if row["reached"] or not past or past["event"] != "deleted":
                self._lose("sandbox_statuses", row["sandbox_id"], row, "its sandbox is lost")
        for row in self._each(
            "SELECT *, max(seq) FROM found.history WHERE sandbox_id NOT IN"
            " (SELECT id FROM sandboxes) GROUP BY sandbox_id"
        ):
            if row["event"] != "deleted" and row["sandbox_id"] not in self.lost:
                why = f"its record is lost; its last state was {row['to_state']}"
                self._lose("sandboxes", row["sandbox_id"], None, why, f"transition {row['seq']}")

    def _report_entry(self, entry: Record) -> None:
        """Report an entry of an index that no record in the copy has."""
        source, value = f"index on page {entry['page']}", as_text(entry["value"])
        known = self._first("SELECT id FROM sandboxes WHERE creation = :row", entry)
        if entry["field"] == "extension":
            why = f"{as_text(entry['name'])!r} is lost"
            self._report(Loss("sandbox_extensions", value, source, why))
        elif known:
            why = f"the index says that its {entry['field']} is {value!r}"
            self._report(Loss("sandboxes", known["id"], source, why))
        elif entry["field"] == "id":
            self._lose("sandboxes", value, None, "its record is lost", source)
        elif not self._first("SELECT 1 FROM found.sandboxes WHERE creation = :row", entry):
            why = f"the record of the sandbox with the name {value!r} is lost"
            self._report(Loss("sandboxes", "", source, why))

    def _lose(self, table: str, id: str, row: Record | None, why: str, source: str = "") -> None:
        """Report the loss of a sandbox; from *source* alone only if it was not reported yet."""
        if row is not None:
            self._report(_loss(table, id, row, why))
        elif id not in self.lost:
            self._report(Loss(table, id, source, why))
        self.lost.add(id)

    # The history.

    def _sort_history(self) -> None:
        """Collect the valid transitions by their seq as `found.history`."""
        for statement in _SORT:
            self._connection.execute(statement)
        before: Record = {}
        for row in self._each(
            "SELECT * FROM found.sandbox_transitions ORDER BY seq, reached DESC, page"
        ):
            if before and _content(row) == _content(before):
                continue
            why = _why_invalid(tuple(row[name] for name in _FIELDS))
            if not why and row["seq"] == before.get("seq"):
                why = f"another transition {row['seq']}, on page {before['page']}, counts"
            if why:
                self._report(_loss("sandbox_transitions", row["sandbox_id"], row, why))
                continue
            self._connection.execute(_INSERT_FOUND, row)
            before = row

    def _last_transition(self, id: str) -> Record | None:
        query = "SELECT * FROM found.history WHERE sandbox_id = ? ORDER BY seq DESC LIMIT 1"
        return self._first(query, (id,))

    def _write_history(self) -> None:
        """Copy a run of transitions, and add those that lead from it to the states of the copy."""
        runs = list(self._runs())
        run = _newest(runs)
        for before, after in pairwise(runs):
            if before.last + 1 < after.first and after.first % BLOCK != 1:
                why = f"transitions {before.last + 1} to {after.first - 1} are lost"
                self._report(Loss("sandbox_transitions", "", f"transition {after.first}", why))
        self._connection.execute(_COPY_HISTORY, (run.first, run.last))
        query = "SELECT * FROM found.history WHERE NOT seq BETWEEN ? AND ? ORDER BY seq"
        for row in self._each(query, (run.first, run.last)):
            why = "the transitions that were copied do not continue it"
            self._report(_loss("sandbox_transitions", row["sandbox_id"], row, why))
        self._begin_incarnation(run)
        query = "SELECT sandbox_id, to_state FROM sandbox_transitions ORDER BY seq"
        last = {row["sandbox_id"]: row["to_state"] for row in self._each(query)}
        is_compacted = run.first % BLOCK != 1 or run.length >= HISTORY_MAX
        for row in self._each("SELECT sandbox_id, state FROM sandbox_statuses"):
            id, state = row["sandbox_id"], row["state"]
            self._lead(id, last.pop(id, state if is_compacted else None), state)
        for id, state in last.items():
            self._lead(id, state, None)

    def _runs(self) -> Iterator[_Run]:
        """Yield the runs of transitions, each of which continues the one before."""
        run: _Run | None = None
        last: dict[str, str | None] = {}
        for row in self._each("SELECT * FROM found.history ORDER BY seq"):
            seq = row["seq"]
            if run is not None and run.goes_on(seq) and _follows(row, last, run):
                run = _Run(run.first, seq, run.length + 1, run.jumps + (seq > run.last + 1))
            else:
                if run is not None:
                    yield run
                run = _Run(seq, seq, 1, 0)
                last.clear()
            last[row["sandbox_id"]] = row["to_state"]
        if run is not None:
            yield run

    def _lead(self, id: str, before: str | None, after: str | None) -> None:
        """Add the transition of sandbox *id* from the state *before* to *after*, if they differ."""
        if before == after:
            return
        if before is not None and after is not None:
            why = f"its state is {after}, and {before} by its last transition that was copied"
            self._report(Loss("sandbox_statuses", id, "history", why))
        event = "deleted" if after is None else "created" if before is None else "changed"
        now = self._first(
            "SELECT name, pod, namespace, uid, pid, reason, message FROM sandboxes"
            " JOIN sandbox_statuses ON sandbox_id = id WHERE id = ?",
            (id,),
        )
        columns = {**(now or self._last_transition(id) or {}), "sandbox_id": id, "event": event}
        columns |= {"from_state": before, "to_state": after, "boot_id": None}
        columns |= {"actor": SALVAGE, "at": time.time_ns()}
        self._connection.execute(_INSERT_TRANSITION, columns)
        self.added["sandbox_transitions"] += 1

    # Queries.

    def _each(self, query: str, params: Any = ()) -> Iterator[Record]:
        """Yield the rows of *query* one by one: the records may take more than the memory."""
        cursor = self._connection.execute(query, params)
        names = [column[0] for column in cursor.description]
        for row in cursor:
            yield dict(zip(names, row, strict=True))

    def _first(self, query: str, params: Any = ()) -> Record | None:
        found = self._connection.execute(query, params)
        row, names = found.fetchone(), [column[0] for column in found.description]
        found.close()
        return None if row is None else dict(zip(names, row, strict=True))

    def _best(self, table: str, key: str, id: str, order: str) -> Record:
        """Return the record of *id* that comes first in *order*, and report others."""
        query = f"SELECT * FROM found.{table} WHERE {key} = ? ORDER BY {order}"  # noqa: S608
        found = list(islice(self._each(query, (id,)), COPIES_MAX))
        for other in found[1:]:
            if _content(other) != _content(found[0]):
                why = f"another record of it, on page {found[0]['page']}, is newer, or in use"
                self._report(_loss(table, id, other, why))
        return found[0] if found else {}


_FIELDS: Final = tuple(Transition.__dataclass_fields__)
_NAMES: Final = ", ".join(_FIELDS)
_INSERT_TRANSITION: Final = (
    f"INSERT INTO sandbox_transitions ({', '.join(_FIELDS[1:])})"  # noqa: S608
    f" VALUES ({', '.join(f':{name}' for name in _FIELDS[1:])})"
)
_COPY_HISTORY: Final = (
    f"INSERT INTO sandbox_transitions ({_NAMES}) SELECT {_NAMES} FROM found.history"  # noqa: S608
    " WHERE seq BETWEEN ? AND ?"
)
_ENTRIES: Final = (
    "SELECT DISTINCT e.page, field, e.value, e.name, row FROM found.entries AS e"
    " LEFT JOIN sandboxes AS s ON s.creation = row AND e.value = iif(field = 'id', s.id, s.name)"
    " WHERE s.creation IS NULL AND field <> 'extension' UNION ALL"
    " SELECT DISTINCT e.page, field, e.value, e.name, row FROM found.entries AS e"
    " LEFT JOIN found.sandbox_extensions AS x ON sandbox_id = e.value AND x.name = e.name"
    " WHERE sandbox_id IS NULL AND field = 'extension'"
)
"""Entries of indexes without their record."""
_INSERT_FOUND: Final = (
    f"INSERT INTO found.history (page, reached, {_NAMES})"  # noqa: S608
    f" VALUES (:page, :reached, {', '.join(f':{name}' for name in _FIELDS)})"
)
_SORT: Final = (
    f"CREATE TABLE found.history (seq INTEGER PRIMARY KEY, page, reached, {_NAMES[5:]})",
    "CREATE INDEX found.history_by_id ON history (sandbox_id, seq)",
    "CREATE INDEX found.sandboxes_by_id ON sandboxes (id)",
    "CREATE INDEX found.sandboxes_by_creation ON sandboxes (creation)",
    "CREATE INDEX found.extensions_by_id ON sandbox_extensions (sandbox_id, name)",
    "CREATE INDEX found.statuses_by_id ON sandbox_statuses (sandbox_id, changed_at)",
)


def _content(record: Record) -> Record:
    return {name: value for name, value in record.items() if name not in {"page", "reached"}}


def _loss(table: str, id: str | None, record: Record, why: str) -> Loss:
    """Return the loss of *record*; its JSON leaves out bytes."""
    shown = {k: v for k, v in _content(record).items() if not isinstance(v, bytes)}
    return Loss(table, id or "", f"page {record['page']}", why, json.dumps(shown))


def _is_older(status: Record, transition: Record) -> bool:
    """Return whether *status* is lost, or has the state before *transition*."""
    if not status:
        return True
    is_later = transition["at"] > (status["changed_at"] or 0)
    return is_later and bool(transition["to_state"] != status["state"])


def _status_of(transition: Record) -> Record:
    """Return a status row from the last transition of its sandbox."""
    unset = ("created_at", "exited_at", "exit_status", *encoding.process_columns(None))
    kept = ("sandbox_id", "reason", "message", "actor", "boot_id")
    return {
        **dict.fromkeys(unset),
        **{name: transition[name] for name in kept},
        "state": transition["to_state"],
        "pid": 0,
        "changed_at": transition["at"],
        "leaving": 0,
    }


def _derived(record: Record, doing: str) -> tuple[Record, list[dict[str, object]]]:
    """Return the columns and the label rows of a sandbox, as an addition writes them.

    Raises:
        RegistryError, ValueError: it could not be added.
    """
    row = Row(**{name: record[name] for name in Row._fields})
    found = damage(row)
    if found or record["leaving"]:
        raise ValueError(found or "its deletion had begun")
    if row.pid == 0 and any(record[name] is not None for name in encoding.process_columns(None)):
        raise ValueError("it has the identity of a process without a pid")
    metadata = row.metadata()
    validate_metadata(metadata, doing)
    validate_status(load_status(row), doing)
    if metadata.config is not None and not _agrees(metadata.config, record["config_json"]):
        raise ValueError("config and config_json contradict each other")
    derived = encoding.metadata_columns(metadata)
    names = ("config_json", "pod", "namespace", "uid", "attempt", "host_network")
    columns = {**record, **{name: derived[name] for name in names}}
    return columns, encoding.label_rows(metadata)


def _agrees(config: cri.PodSandboxConfig, text: str | None) -> bool:
    """Return whether *text* is the JSON of *config*; a newer program may write more."""
    known = cri.PodSandboxConfig()
    known.CopyFrom(config)
    known.DiscardUnknownFields()
    if known.ByteSize() != config.ByteSize():
        return True
    return bool(loads(text or "null") == encoding.config_value(config))


def _why_invalid(values: tuple[Any, ...]) -> str:
    """Return why *values* are no transition that the history may have; "" if they are one."""
    try:
        transition = Transition.load(values)
    except RegistryError as error:
        reraise_interrupt(error)
        return str(error)
    states = (transition.from_state is not None, transition.to_state is not None)
    if transition.seq < 1 or _SHAPES.get(transition.event) != states:
        return f"transition {transition.seq} has the event {transition.event!r} with other states"
    return ""


def _follows(row: Record, last: Mapping[str, str | None], run: _Run) -> bool:
    """Return whether the transition *row* continues the states in *last*, of *run*."""
    id, event, state = row["sandbox_id"], row["event"], row["from_state"]
    if id not in last:
        return event == "created" or run.first % BLOCK != 1
    if event == "created":
        return last[id] is None
    return bool(last[id] == state and state != row["to_state"])


def _newest(runs: list[_Run]) -> _Run:
    """Return the newest run; a seq that is far from the longest run and its block is damage."""
    longest = max(runs, key=lambda run: run.length, default=_Run(1, 0, 0, 0))
    near = [
        run
        for run in runs
        if run.first % BLOCK < HISTORY_MAX or run.first - longest.last < HISTORY_MAX
    ]
    return near[-1] if near else longest


def _is_identity(row: Record) -> bool:
    """Return whether the schema would accept *row* as that of the registry."""
    return (
        re.fullmatch("[0-9a-f]{32}", row["registry_id"]) is not None
        and 0 < row["incarnation"] < INCARNATIONS_MAX
        and (row["copied_at"] or 1) > 0
    )
