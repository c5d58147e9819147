"""Registration: which machine and path may push a registry, and under which node.

A copy of a registry has the id of the original, and names of nodes are reused. So a registry is
pushed from one machine and path only, until that place was silent for three heartbeats. Silence is
measured by the clock of the server.
"""

from __future__ import annotations

import os
from typing import Any, Final, NamedTuple

import psycopg

from registry.errors import FailedPreconditionError, SchemaVersionError, UnavailableError
from registry.fleet import statements
from registry.fleet.lines import Registered
from registry.fleet.statements import LEVEL
from registry.fleet.text import digest
from registry.host import context
from registry.sync.interrupts import reraise_interrupt

MACHINE_ID: Final = "/etc/machine-id"
LENGTH: Final = 32
"""Characters of the id of a machine; an image that was not booted yet has less."""


class Place(NamedTuple):
    """Origin of the pushes of a registry."""

    node: str
    machine_id: str
    path: str
    boot_id: str
    kernel: str


def place(path: str, node: str, machine_id: str = "") -> Place:
    """Return the place of the registry at *path* on this machine.

    Args:
        path: real path of the registry.
        node: name of the node.
        machine_id: stable id of the machine; default: derived from /etc/machine-id.
    Raises:
        FailedPreconditionError: the machine has no id.
    """
    machine_id = machine_id or _machine_id()
    return Place(node, machine_id, path, context.boot_id() or "unknown", os.uname().release)


def _machine_id() -> str:
    """Return an id derived from that of the machine, which must not be published itself."""
    try:
        with open(MACHINE_ID, "rb") as file:
            found = file.read(64).strip()
    except OSError as error:
        reraise_interrupt(error)
        found = b""
    if len(found) != LENGTH:
        raise FailedPreconditionError(
            f"push the registry: this machine has no id in {MACHINE_ID!r}; run "
            "systemd-machine-id-setup, or give a stable one by --machine",
            path=MACHINE_ID,
        )
    return digest(b"sandbox-registry fleet " + found)


def require_version(connection: psycopg.Connection) -> None:
    """Raise unless this code may write the database.

    Raises:
        SchemaVersionError: this code is too old, or newer than the database.
    """
    row = connection.execute(statements.VERSION).fetchone()
    level, min_writer = row or (0, 0)
    if min_writer <= LEVEL <= level:
        return
    advice = "upgrade this program"
    if level < LEVEL:
        advice = "run `sandbox-registry fleet migrate` of this version, before pushers are upgraded"
    raise SchemaVersionError(
        f"push to the fleet: its database is at revision {level:04} and takes pushers from "
        f"{min_writer:04} on, this program is at {LEVEL:04}; {advice}",
        found=f"{level:04}",
        supported=f"{LEVEL:04}",
    )


def register(
    connection: psycopg.Connection, at: Place, registry_id: str, incarnation: int, every: float
) -> Registered:
    """Return the registry as it is registered from *at* now, in one transaction.

    Args:
        connection: to the fleet's database.
        at: place of the registry.
        registry_id: its id.
        incarnation: its own number.
        every: seconds between two heartbeats.
    Raises:
        UnavailableError: the registry is pushed from another place, or another registry from here.
        FailedPreconditionError: another role has registered it.
        SchemaVersionError: as `require_version`.
    """
    params: dict[str, Any] = {**at._asdict(), "registry_id": registry_id, "every": every}
    params["source_incarnation"] = incarnation
    with connection.transaction():
        require_version(connection)
        _end_others(connection, at, params)
        row = connection.execute(statements.REGISTERED, params).fetchone()
        if row is None:
            _insert(connection, params)
            return Registered(registry_id, incarnation, incarnation, 0, 0, "")
        own, machine_id, path, node, is_fresh = row[:5], *row[5:]
        if (machine_id, path) != (at.machine_id, at.path) and is_fresh:
            raise UnavailableError(
                f"push registry {at.path!r}: node {node!r} pushes the same registry from {path!r} "
                f"of {'this' if machine_id == at.machine_id else 'another'} machine; a copy must "
                "not be pushed: open it for writing at a path of its own, which gives it an id of "
                "its own; or stop the other pusher and wait for three of its heartbeats",
                path=at.path,
                holder=node,
            )
        connection.execute(statements.TAKE_OVER, params)
        return Registered(registry_id, *own)


def _insert(connection: psycopg.Connection, params: dict[str, Any]) -> None:
    """Register a registry whose row was not visible."""
    if connection.execute(statements.REGISTER, params).rowcount:
        return
    if connection.execute(statements.REGISTERED, params).fetchone() is not None:
        raise UnavailableError(
            f"push registry {params['path']!r}: another pusher has registered it at this moment",
            path=params["path"],
        )
    raise FailedPreconditionError(
        f"push registry {params['path']!r}: another role has registered its id "
        f"{params['registry_id']!r}, so this one does not see it; push it as that role, or have "
        "the owner of the database move or forget it (docs/fleet.md, 'Move, retire, forget'); "
        "or stop this pusher if the registry was moved",
        path=params["path"],
    )


def _end_others(connection: psycopg.Connection, at: Place, params: dict[str, Any]) -> None:
    """End the registries that were pushed from the same node and path, if they are silent."""
    for other, incarnation, cursor, is_fresh in connection.execute(statements.OTHERS, params):
        if is_fresh:
            raise UnavailableError(
                f"push registry {at.path!r}: node {at.node!r} pushes another registry from this "
                "path; stop its pusher, or wait for three of its heartbeats: it is ended then",
                path=at.path,
                holder=at.node,
            )
        ended = {"registry_id": other, "incarnation": incarnation, "kind": "replaced"}
        connection.execute(statements.END, {"other": other})
        connection.execute(statements.EMPTY, {"other": other})
        connection.execute(statements.INSERT_BREAK, {**ended, "after": cursor, "before": cursor})
