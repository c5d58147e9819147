"""Options that several verbs share, and the registry that they name."""

from __future__ import annotations

import logging
import os
from typing import Any, Final

import click

from registry.cli.failures import DAMAGED, FOUND, PROGRAM, complain
from registry.errors import DataLossError, RegistryError
from registry.handles.sandbox import Sandbox
from registry.store import TIMEOUT, Store
from registry.visible import visible

TIMEOUT_MAX: Final = 86_400.0
"""Seconds that a timeout may have; a longer one, infinity included, is refused."""


def _name_registry(ctx: click.Context, _: click.Parameter, value: str | None) -> str:
    """Return the path of the registry: given after the verb, before it, or by the environment."""
    path: str | None = ctx.obj if value is None else value
    if path is None:
        raise click.BadParameter("no registry is named, and SANDBOX_REGISTRY_DB is not set")
    return path


class Count(click.IntRange):
    """An integer of at least *least*, without an upper bound."""

    name = "integer"

    def __init__(self, least: int = 0) -> None:
        """Refuse what is below *least*."""
        super().__init__(min=least)


class Seconds(click.ParamType[float]):
    """A number of seconds, between 0 and `TIMEOUT_MAX`."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return *value*, a text or a number, as a number."""
        try:
            seconds = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        if not 0 <= seconds <= TIMEOUT_MAX:  # nan too, which a FloatRange accepts
            self.fail(f"{seconds:g} is not between 0 and {TIMEOUT_MAX:g}", param, ctx)
        return seconds


db = click.option(
    "--db",
    metavar="PATH",
    callback=_name_registry,
    help="The registry; takes precedence over --db before the verb.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
timeout = click.option(
    "--timeout",
    metavar="SECONDS",
    type=Seconds(),
    default=TIMEOUT,
    show_default=True,
    help="Longest time to wait for other writers.",
)
id = click.argument("id", metavar="ID", help="Full id, or a unique prefix.")


def open_to_read(db: str) -> Store:
    """Open the registry at *db* read-only."""
    return Store.open(db, read_only=True, create=False)


def open_to_show(db: str) -> Store:
    """Open the registry at *db* read-only, also a damaged one; the program then exits with FOUND.

    A damaged registry is reported on stderr, and so is what its reads leave out.
    """
    try:
        return open_to_read(db)
    except DataLossError as error:
        if not error.damage:
            raise
        complain(f"{error}; shown is what can be read, which may be wrong", FOUND)
    show_warnings()
    click.get_current_context().meta[DAMAGED] = True
    return Store.open(db, damaged="read")


def show_warnings() -> None:
    """Have the warnings of the library written to stderr until the end of the verb."""
    log, complaints = logging.getLogger("registry"), Warner()
    log.addHandler(complaints)
    click.get_current_context().call_on_close(lambda: log.removeHandler(complaints))


class Warner(logging.Handler):
    """Handler that writes the warnings of the library to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        complain(record.getMessage(), FOUND)


def open_to_write(db: str, timeout: float, *, create: bool = False) -> Store:
    """Open the registry at *db* for writing, without a reconcile.

    Args:
        db: path of the registry.
        timeout: seconds that a write waits for other writers.
        create: make the registry if there is none.
    """
    actor = f"{PROGRAM}[{os.getpid()}]"
    return Store.open(db, create=create, reconcile=False, timeout=timeout, actor=actor)


def find(store: Store, id: str, doing: str) -> Sandbox:
    """Return the sandbox with *id*, a full id or a unique prefix, an UNKNOWN one too.

    Args:
        store: has the sandbox.
        id: as the operator has typed it.
        doing: operation and object, which begin the message of an error.
    Raises:
        NotFoundError: there is no such sandbox.
        InvalidArgumentError: *id* is empty, or several ids begin with it.
    """
    try:
        return store.get(id, include_unknown=True)
    except RegistryError as error:
        # The same error with its operands: the operator has not asked to "get" a sandbox.
        error.args = (str(error).replace(visible(f"get sandbox {id!r}"), visible(doing), 1),)
        raise
