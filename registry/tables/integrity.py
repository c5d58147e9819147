"""Rules that the data of a registry must satisfy, one function for each.

`run` reports every violation, also after the first one. A rule that raises is reported itself.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

from registry import cri
from registry.engine.beside import LOCKS, OF_SQLITE
from registry.engine.driver import WAL_MAX, Connection
from registry.errors import RegistryError
from registry.host.file_locks import snapshot_holders
from registry.host.paths import inspect, size
from registry.model.extensions import validate as validate_extensions
from registry.model.metadata import Metadata
from registry.model.metadata import validate as validate_metadata
from registry.model.status import validate as validate_status
from registry.model.text import loads
from registry.sync.imports import late_import
from registry.sync.interrupts import reraise_interrupt
from registry.tables import sql
from registry.tables.encoding import config_json, config_value, filter_columns
from registry.tables.rows import Row, as_text, damage, load_status
from registry.tables.version import BLOCK, HISTORY_MAX, LEVEL, REVISION
from registry.tables.writes import find_extensions
from registry.visible import counted, visible


@dataclass(frozen=True, slots=True)
class Violation:
    """Violation of a rule; *sandbox_id* is "" if the rule is about the whole file."""

    rule: str
    sandbox_id: str
    found: str
    expected: str

    def __str__(self) -> str:
        """Return one line for a log."""
        whose = f" of sandbox {self.sandbox_id!r}" if self.sandbox_id else ""
        return visible(f"{self.rule}{whose}: found {self.found}, expected {self.expected}")


Rule = Callable[[Connection], Iterator[Violation]]
NOT_CHECKED: Final = "not checked: "
"""Begins what is found by a rule that raises; the error follows."""


def run(
    connection: Connection, progress: Callable[[int, int], object] | None = None
) -> list[Violation]:
    """Return every violation that *connection* sees in one snapshot; writes nothing.

    Args:
        connection: to the registry.
        progress: called after each rule with the number of rules that are checked, and of all.
    """
    violations: list[Violation] = []
    for number, rule in enumerate(RULES, 1):
        name = rule.__name__
        try:
            violations.extend(map(_with_text, rule(connection)))
        except Exception as error:  # noqa: BLE001 - a damaged value has any type
            reraise_interrupt(error)
            violations.append(Violation(name, "", f"{NOT_CHECKED}{error}", "rows that can be read"))
        if progress is not None:
            progress(number, len(RULES))
    return violations


def _with_text(violation: Violation) -> Violation:
    """Return *violation* with text for an id that is stored as a value of another type."""
    return replace(violation, sandbox_id=as_text(violation.sandbox_id))


def file_is_whole(connection: Connection) -> Iterator[Violation]:
    """Check the structure of the file by SQLite's own integrity check."""
    lines, whole = connection.damage("integrity_check")
    for line in lines:
        yield Violation("file_is_whole", "", line, "ok")
    if not whole and not lines:
        yield Violation("file_is_whole", "", "pages that SQLite cannot read", "ok")
    for table, rowid, parent, _ in connection.fetch_readable("PRAGMA foreign_key_check")[0]:
        if table not in sql.TABLES:
            continue  # of another tool
        found = f"{table} row {rowid} without its row in {parent}"
        yield Violation("file_is_whole", "", found, "no row without its parent")


def _is_ours(connection: Connection) -> bool:
    """Return whether the schema is the one of this code; a newer one may allow more."""
    return connection.fetch("SELECT level FROM registry") == [(LEVEL,)]


def wal_can_be_reset(connection: Connection) -> Iterator[Violation]:
    """Check that no process keeps a snapshot for so long that the WAL grows past its bound.

    Up to twice the bound, the length proves nothing about the present readers: the WAL may have
    grown long ago, and SQLite resets it by itself once no reader needs it.
    """
    path = connection.fetch("PRAGMA database_list")[0][2]
    bytes = size(f"{path}-wal")
    if bytes > 2 * WAL_MAX:
        for keeper in snapshot_holders(path, ours=1):  # the one of this check
            found = f"{keeper} keeps a snapshot, and the WAL has {bytes} bytes"
            yield Violation("wal_can_be_reset", "", found, f"at most {WAL_MAX} bytes")


def files_are_private(connection: Connection) -> Iterator[Violation]:
    """Check that not every user may write to the files, or replace them."""
    path = connection.fetch("PRAGMA database_list")[0][2]
    for name in (os.path.dirname(path), path, *(path + suffix for suffix in OF_SQLITE + LOCKS)):
        found = inspect(name, "check registry")
        if found is not None and found.st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            mode = f"mode {stat.S_IMODE(found.st_mode):04o} of {name!r}"
            yield Violation("files_are_private", "", mode, "no write permission for all users")


def constraints_hold(connection: Connection) -> Iterator[Violation]:
    """Check every CHECK; SQLite's own check leaves them out on a read-only connection."""
    if not _is_ours(connection):
        return
    for name, query in sql.CHECKS.items():
        for (id,) in connection.fetch(query):
            yield Violation("constraints_hold", id, f"{name} violated", "every CHECK met")


def schema_is_whole(connection: Connection) -> Iterator[Violation]:
    """Check that the schema has every object, word for word, and its tables no others.

    Tables and views of other tools in the file, such as Litestream's, are ignored.
    """
    if not _is_ours(connection):
        return
    expected = _expected_words()
    names = [key.partition(" ")[2] for key in expected if key.startswith(("table ", "view "))]
    ours = ", ".join(f"'{name}'" for name in names)
    found = words(connection.fetch(f"{OBJECTS} AND tbl_name IN ({ours})"))
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            shown = f"{key}: {found.get(key, 'nothing')}"
            yield Violation("schema_is_whole", "", shown, expected.get(key, "nothing"))


OBJECTS: Final = (
    "SELECT type || ' ' || name, sql FROM sqlite_master"
    " WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%' AND name <> 'alembic_version'"
)


def words(objects: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the SQL of each object, by type and name, with normalised white space."""
    return {key: re.sub(r"\s*([(),])\s*", r"\1", " ".join(sql.split())) for key, sql in objects}


@cache
def _expected_words() -> dict[str, str]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for statement in sql.SCHEMA:
            connection.execute(statement)
        return words(connection.execute(OBJECTS).fetchall())


def registry_says_who_it_is(connection: Connection) -> Iterator[Violation]:
    """Check the one row of `registry`: its id, which is a part of file names, and its revision."""
    rule = "registry_says_who_it_is"
    found = connection.fetch("SELECT registry_id, level, min_reader, min_writer FROM registry")
    if len(found) != 1:
        yield Violation(rule, "", f"{len(found)} rows", "one row")
    for registry_id, level, *oldest in found:
        if not isinstance(registry_id, str) or not re.fullmatch("[0-9a-f]{32}", registry_id):
            yield Violation(rule, "", f"registry_id {registry_id!r}", "32 hexadecimal digits")
        if not all(1 <= each <= level for each in oldest):
            yield Violation(rule, "", f"level {level}, readable from {oldest}", "1 to its level")
        revisions = connection.fetch("SELECT version_num FROM alembic_version")
        if level == LEVEL and revisions != [(REVISION,)]:
            yield Violation(rule, "", f"revisions {revisions}", REVISION)


def sandbox_has_status(connection: Connection) -> Iterator[Violation]:
    """Check that neither row of a sandbox exists without the other."""
    query = (
        "SELECT id, 'no status' FROM sandboxes WHERE id NOT IN"
        " (SELECT sandbox_id FROM sandbox_statuses)"
        " UNION ALL SELECT sandbox_id, 'no sandbox' FROM sandbox_statuses WHERE sandbox_id NOT IN"
        " (SELECT id FROM sandboxes)"
        " UNION ALL SELECT DISTINCT sandbox_id, 'labels without a sandbox' FROM sandbox_labels"
        " WHERE sandbox_id NOT IN (SELECT id FROM sandboxes)"
        " UNION ALL SELECT DISTINCT sandbox_id, 'extensions without a sandbox'"
        " FROM sandbox_extensions WHERE sandbox_id NOT IN (SELECT id FROM sandboxes)"
    )
    for id, found in connection.fetch(query):
        yield Violation("sandbox_has_status", id, found, "a sandbox and its status")


def identities_are_of_something(connection: Connection) -> Iterator[Violation]:
    """Check that identities are recorded only beside a pid or a path."""
    rule, expected = "identities_are_of_something", "no identity"
    query = (
        "SELECT sandbox_id, 'of process 0' FROM sandbox_statuses WHERE pid = 0 AND"
        " coalesce(process_boot_id, process_pid_ns, process_time_ns, process_inode,"
        " process_start_time) IS NOT NULL UNION ALL"
        " SELECT id, 'of no namespace' FROM sandboxes WHERE netns_path = '' AND"
        " netns_inode IS NOT NULL UNION ALL"
        " SELECT id, 'of no creator' FROM sandboxes WHERE creator_pid IS NULL AND"
        " coalesce(creator_boot_id, creator_inode, creator_start_time) IS NOT NULL"
    )
    for id, found in connection.fetch(query):
        yield Violation(rule, id, found, expected)


def no_deletion_is_pending(connection: Connection) -> Iterator[Violation]:
    """Check that no deletion is incomplete: one transaction announces and completes it."""
    query = "SELECT sandbox_id FROM sandbox_statuses WHERE leaving"
    for (id,) in connection.fetch(query):
        yield Violation("no_deletion_is_pending", id, "leaving = 1", "leaving = 0")


def values_are_valid(connection: Connection) -> Iterator[Violation]:
    """Check that every row decodes to values that the store would accept."""
    ours = _is_ours(connection)
    for row in _rows(connection):
        found = damage(row)
        if found:
            yield Violation("values_are_valid", as_text(row.id), found, "values of the schema")
        try:
            metadata, status = row.metadata(), load_status(row)
            if ours:
                validate_metadata(metadata, "check")
                validate_status(status, "check")
        except (RegistryError, ValueError) as error:
            yield Violation("values_are_valid", row.id, str(error), "values that can be added")


def columns_are_true(connection: Connection) -> Iterator[Violation]:
    """Check that the columns for filters equal the fields of the config."""
    names = ("pod", "namespace", "uid", "attempt", "host_network")
    query = f"SELECT id, config, {', '.join(names)} FROM sandboxes"  # noqa: S608
    for id, data, *found in connection.fetch(query):
        config = _decoded(data)
        if data is not None and config is None:
            continue  # values_are_valid says so
        expected = filter_columns(Metadata(id, "", config))
        for name, value in zip(names, found, strict=True):
            if value != expected[name]:
                yield Violation("columns_are_true", id, f"{name} = {value!r}", repr(expected[name]))


def labels_are_true(connection: Connection) -> Iterator[Violation]:
    """Check that the label rows equal the labels of the config."""
    stored: dict[str, dict[str, str]] = {}
    for id, key, value in connection.fetch(sql.LABELS):
        stored.setdefault(id, {})[key] = value
    for id, data in connection.fetch("SELECT id, config FROM sandboxes"):
        config = _decoded(data)
        if data is not None and config is None:
            continue
        expected = {} if config is None else dict(sorted(config.labels.items()))
        found = stored.get(id, {})
        if found != expected:
            yield Violation("labels_are_true", id, repr(found), repr(expected))


def _decoded(data: object) -> cri.PodSandboxConfig | None:
    """Return the config in a column; None if there is none, or it cannot be decoded."""
    try:
        return cri.PodSandboxConfig.FromString(data) if isinstance(data, bytes) else None
    except Exception as error:  # noqa: BLE001 - each decoder has errors of its own
        reraise_interrupt(error)
        return None


def extensions_are_valid(connection: Connection) -> Iterator[Violation]:
    """Check that each extension decodes, and that the store would accept those of a sandbox."""
    rule, expected = "extensions_are_valid", "extensions that can be stored"
    ours = _is_ours(connection)
    query = "SELECT DISTINCT creation, id FROM sandboxes JOIN sandbox_extensions ON sandbox_id = id"
    for creation, id in connection.fetch(query):
        try:
            found = find_extensions(creation, id, connection.fetch)
            if ours:
                validate_extensions(found, "check")
        except RegistryError as error:
            yield Violation(rule, as_text(id), str(error), expected)


def config_json_is_true(connection: Connection) -> Iterator[Violation]:
    """Check that the config for people (JSON) equals the config for the program (bytes).

    Fields that this code does not know are left out: a newer program has written both forms.
    """
    query = "SELECT id, config, config_json FROM sandboxes WHERE config IS NOT NULL"
    for id, data, text in connection.fetch(query):
        try:
            stored = cri.PodSandboxConfig.FromString(data)
            stored.DiscardUnknownFields()
            known = stored.ByteSize() == len(data)
            # The order of labels and annotations varies.
            is_true = loads(text) == config_value(stored) if known else _config_of(text) == stored
        except Exception as error:  # noqa: BLE001 - each decoder has errors of its own
            reraise_interrupt(error)
            yield Violation("config_json_is_true", id, str(error), "a config in both forms")
            continue
        if not is_true:
            yield Violation("config_json_is_true", id, text, config_json(stored))


def _config_of(text: str) -> cri.PodSandboxConfig:
    """Return the config in the JSON *text*, without the fields that this code does not know."""
    with late_import("google.protobuf.json_format"):
        from google.protobuf import json_format  # noqa: PLC0415 - see encoding.config_json
    return json_format.ParseDict(loads(text), cri.PodSandboxConfig(), ignore_unknown_fields=True)


def history_is_whole(connection: Connection) -> Iterator[Violation]:
    """Check that no transition is missing between the oldest that is kept and the newest.

    Each incarnation after the first one may begin with a jump: see `incarnation.begin`.
    """
    rule = "history_is_whole"
    query = (
        "SELECT coalesce(min(seq), 1), coalesce(max(seq), 0), count(*),"
        " coalesce((SELECT incarnation FROM registry), 1) FROM sandbox_transitions"
    )
    ((oldest, newest, count, incarnation),) = connection.fetch(query)
    jumps = connection.fetch(_JUMPS, {"oldest": oldest})
    if jumps and (len(jumps) >= incarnation or any(first % BLOCK != 1 for first, _ in jumps)):
        whole = count + sum(first - last - 1 for first, last in jumps)
        found = f"{counted(count, 'transition')} from seq {oldest} to {newest}"
        yield Violation(rule, "", found, str(whole))
    # A salvage copies what follows the last gap, and begins an incarnation.
    if oldest > 1 and count < HISTORY_MAX and incarnation == 1:
        yield Violation(rule, "", f"it begins with seq {oldest}", "seq 1")


_JUMPS: Final = (
    "SELECT seq, (SELECT max(seq) FROM sandbox_transitions AS before WHERE before.seq < after.seq)"
    " FROM sandbox_transitions AS after WHERE seq > :oldest"
    " AND seq - 1 NOT IN (SELECT seq FROM sandbox_transitions)"
)
"""Each transition that does not follow the one before, and the seq of that one."""


def history_is_true(connection: Connection) -> Iterator[Violation]:
    """Check that each transition continues the one before, and the last one is the status."""
    query = (
        "SELECT sandbox_id, seq, event, from_state, to_state FROM sandbox_transitions ORDER BY seq"
    )
    last: dict[str, str | None] = {}
    rows = connection.fetch(query)
    # Else the beginning may be compacted.
    oldest = rows[0][1] if rows else 1
    is_complete = oldest == 1 or (len(rows) < HISTORY_MAX and oldest % BLOCK == 1)
    for id, seq, event, from_state, to_state in rows:
        known = last.get(id)
        if event == "changed" and from_state == to_state:
            yield Violation("history_is_true", id, f"seq {seq} changes nothing", "another state")
        if id not in last and event != "created" and is_complete:
            yield Violation("history_is_true", id, f"seq {seq} is its first", "its creation")
        if id in last and event != "created" and from_state != known:
            yield Violation("history_is_true", id, f"seq {seq} from {from_state}", f"from {known}")
        if id in last and event == "created" and known is not None:
            yield Violation("history_is_true", id, f"seq {seq} creates it again", "one creation")
        last[id] = to_state
    states = connection.fetch("SELECT sandbox_id, state FROM sandbox_statuses")
    now = dict(states)
    for id, state in last.items():
        if now.get(id) != state:
            found = f"last transition to {state}, status {now.get(id)}"
            yield Violation("history_is_true", id, found, "both the same")
    if is_complete:
        for id in now.keys() - last.keys():
            yield Violation("history_is_true", id, "no transition", "its creation")


RULES: Final[tuple[Rule, ...]] = (
    file_is_whole,
    wal_can_be_reset,
    files_are_private,
    constraints_hold,
    schema_is_whole,
    registry_says_who_it_is,
    sandbox_has_status,
    identities_are_of_something,
    no_deletion_is_pending,
    values_are_valid,
    columns_are_true,
    labels_are_true,
    extensions_are_valid,
    config_json_is_true,
    history_is_whole,
    history_is_true,
)


def _rows(connection: Connection) -> list[Row]:
    return [Row(*row) for row in connection.fetch(sql.ROWS)]
