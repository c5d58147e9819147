"""The verb `who`: the processes that use the registry, and the locks that they hold."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, Final

import click

from registry.cli import options
from registry.cli.failures import FINE, code_of, complain
from registry.cli.output.formats import show, table
from registry.cli.output.streams import is_terminal
from registry.cli.output.values import age, for_programs, timestamp
from registry.cli.output.views import Format, View
from registry.engine import driver, usage
from registry.engine.usage import Usage
from registry.errors import NotFoundError, RegistryError
from registry.host import file_users, paths
from registry.host.file_users import Program
from registry.store import Store, session_of
from registry.tables import sql
from registry.tables.incarnation import Incarnation
from registry.tables.version import LEVEL
from registry.visible import visible

WAIT: Final = 1.0
"""Seconds to wait for a process that opens or recovers the registry."""


NAMED: Final = 5
"""Processes that are named of those whose open files are not seen."""
SECOND: Final = len("2026-11-27T09:12:03")
"""Characters of a timestamp without fractions of a second."""
FIELDS: Final = (
    *("path", "registry_id", "incarnation", "level"),
    *("writer", "queue", "opener", "keepers", "processes", "hidden"),
    *("wal_bytes", "wal_bound", "reserve_bytes", "reserve_bound"),
)
VIEW: Final = View(FIELDS, table={"PATH": "path"}, name="path", id="registry_id")
PROCESSES: Final = View(
    ("pid", "program", "access", "does", "command"),
    table={
        "PID": "pid",
        "PROGRAM": "program",
        "ACCESS": "access",
        "DOES": "does",
        "COMMAND": "command",
    },
    id="pid",
    cuts=True,
)


@click.command(
    epilog=options.examples("sandbox-registry who", "sandbox-registry who -o json | jq .writer.pid")
)
@options.output(VIEW)
@options.db
def who(*, db: str, form: Format) -> int:
    """Show which processes use the registry: the writer, its queue, and readers.

    It answers also beside a process that is stopped, and of a damaged registry. Run it as root to
    see the processes of all users.
    """
    path, doing = paths.resolve(db), f"read who uses registry {db!r}"
    if paths.inspect(path, doing) is None:
        raise NotFoundError(f"{doing}: there is no such file; is its disk mounted?", path=path)
    found = usage.read(path)
    code, registry = FINE, dict.fromkeys(("registry_id", "incarnation", "level"))
    try:
        registry = _registry(path)
    except RegistryError as error:
        code = complain(str(error), code_of(error))
    fields: dict[str, Any] = {"path": path, **registry} | _fields(found)
    text = _for_people(fields, found, time.time_ns())
    show([fields], VIEW, form, whole=fields, text=text)
    return code


def _registry(path: str) -> dict[str, Any]:
    """Return the identity of the registry at *path* as it says itself."""
    with (
        Store.open(path, damaged="read", timeout=WAIT) as store,
        session_of(store).snapshot("read the registry") as fetch,
    ):
        now, ((level, _, _),) = Incarnation.read(fetch), fetch(sql.VERSION, {})
    return {"registry_id": now.registry_id, "incarnation": now.number, "level": level}


def _fields(found: Usage) -> dict[str, Any]:
    """Return the fields of `--json` that are read from the host."""
    writer = found.writer
    return {
        "writer": None
        if writer is None
        else for_programs(
            {**_program(writer.program), "since": writer.since or None, "queues": writer.queues}
        ),
        "queue": list(map(_program, found.queue)),
        "opener": None if found.opener is None else _program(found.opener),
        "keepers": list(map(_program, found.keepers)),
        "processes": [
            {**_program(user.program), "access": user.access, "does": _doing(user.program, found)}
            for user in found.users
        ],
        "hidden": len(found.hidden),
        "wal_bytes": found.wal_bytes,
        "wal_bound": driver.WAL_MAX,
        "reserve_bytes": sum(bytes for bytes, _ in found.reserve.values()),
        "reserve_bound": sum(size for _, size in found.reserve.values()),
    }


def _program(program: Program) -> dict[str, Any]:
    return {
        "pid": program.pid,
        "program": program.name,
        "command": program.command,
        "stopped": program.stopped,
    }


def _doing(program: Program, found: Usage) -> str:
    """Return what a process does with the registry now."""
    does = {
        "writes": () if found.writer is None else (found.writer.program,),
        "waits to write": found.queue,
        "opens it": () if found.opener is None else (found.opener,),
        "keeps a snapshot": found.keepers,
        "is stopped": (program,) if program.stopped else (),
    }
    return ", ".join(
        text for text, who in does.items() if program.pid in {each.pid for each in who}
    )


def _for_people(fields: dict[str, Any], found: Usage, now: int) -> str:
    """Return the registry and its locks, and a table of the processes."""
    id, schema = "-", "-"
    if fields["registry_id"] is not None:
        id = f"{fields['registry_id']}, incarnation {fields['incarnation']}"
        schema = f"level {fields['level']} (this program: {LEVEL})"
    lines = {
        "registry": fields["path"],
        "id": id,
        "schema": schema,
        "write lock": _write_lock(found, now),
        "queue": ", ".join(map(_named, found.queue)) or "no process waits",
        "WAL": _wal(found),
        "disk reserve": _reserve(fields),
    }
    if found.opener is not None:
        lines["readers"] = f"wait for {_named(found.opener)}, which opens, recovers or closes it"
    if found.hidden:
        lines["not seen"] = f"the open files of {_pids(found.hidden)}, for want of permission"
    text = _aligned(lines)
    if not fields["processes"]:
        return text + "No other process is seen to have it open.\n"
    return f"{text}\n{table(fields['processes'], PROCESSES)}"


def _pids(pids: Sequence[int]) -> str:
    """Return the processes *pids*, the first of which are named."""
    if len(pids) == 1:
        return _named(file_users.program(pids[0]))
    more = f" and {len(pids) - NAMED} more" if len(pids) > NAMED else ""
    return f"processes {', '.join(map(str, pids[:NAMED]))}{more}"


def _aligned(lines: dict[str, str]) -> str:
    """Return *lines*, each behind its name; those that do not fit a terminal are folded."""
    size = max(map(len, lines))
    text = [f"{name:{size}}  {visible(value)}" for name, value in lines.items()]
    if is_terminal():
        from registry.cli.output.terminal import folded  # noqa: PLC0415 - not in a pipe

        text = [folded(line, " " * (size + 2)) for line in text]
    return "".join(f"{line}\n" for line in text)


def _write_lock(found: Usage, now: int) -> str:
    writer = found.writer
    if writer is None:
        return "free"
    since = ", since an unknown time; end its transaction, or that process"
    if writer.since:
        since = f" for {age(writer.since, now)}, since {timestamp(writer.since)[:SECOND]}Z"
    by = "" if writer.queues else ", which bypasses the process lock (a sqlite3 shell, say)"
    return f"held by {_named(writer.program)}{by}{since}"


def _named(program: Program) -> str:
    if not program.pid:
        return "a process of another pid namespace"
    name = f" ({program.name}{', stopped' if program.stopped else ''})" if program.name else ""
    return f"process {program.pid}{name}"


def _wal(found: Usage) -> str:
    size = f"{found.wal_bytes} bytes, reset past {driver.WAL_MAX}"
    if not found.keepers:
        return f"{size}; no snapshot keeps it"
    keepers = ", ".join(map(_named, found.keepers))
    end = "; end the read transaction there" if found.wal_is_long else ""
    return f"{size}; kept by the snapshot of {keepers}{end}"


def _reserve(fields: dict[str, Any]) -> str:
    bytes, bound = fields["reserve_bytes"], fields["reserve_bound"]
    if bytes == bound:
        return f"allocated ({bytes} bytes)"
    disk = os.statvfs(fields["path"])
    free = disk.f_bavail * disk.f_frsize
    return f"{bytes} of {bound} bytes are allocated; its disk has {free} bytes free"
