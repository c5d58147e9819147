"""Options that several verbs share, and the registry that they name."""

from __future__ import annotations

import functools
import logging
import os
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import click

from registry.cli import complete
from registry.cli.failures import DAMAGED, FOUND, PROGRAM, complain
from registry.cli.output.views import CUSTOM, KINDS, Format, View, read_columns
from registry.errors import DataLossError
from registry.store import TIMEOUT, Store

Verb = Callable[..., int]
Kind = tuple[str, Mapping[str, str]]
"""A format: its name, and its columns if it is `custom-columns`."""
DEFAULT: Final[Kind] = ("table", {})
"""Format without an option."""
VARIABLE: Final = "SANDBOX_REGISTRY_DB"
"""Variable of the environment that names the registry."""
TIMEOUT_MAX: Final = 86_400.0
"""Seconds that a timeout may have; a longer one, infinity included, is refused."""


class Given(NamedTuple):
    """Options before the verb, which those after it take precedence over."""

    db: str | None = None
    form: Kind | None = None


def _name_registry(ctx: click.Context, _: click.Parameter, value: str | None) -> str:
    """Return the path of the registry: given after the verb, before it, or by the environment."""
    given = ctx.obj.db if isinstance(ctx.obj, Given) else None
    path: str | None = given if value is None else value
    if path is None:
        raise click.BadParameter(f"no registry is named, and {VARIABLE} is not set")
    return path


def command(db: str) -> str:
    """Return the beginning of a command on the registry *db*, to be copied by the operator."""
    return PROGRAM if os.environ.get(VARIABLE) == db else f"{PROGRAM} --db {shlex.quote(db)}"


class Count(click.ParamType[int]):
    """An integer of at least *least*, as SQLite can hold it."""

    name = "integer"

    def __init__(self, least: int = 0, hint: str = "") -> None:
        """Refuse what is below *least*; *hint* is added to the error about what is no number."""
        self._least, self._hint = least, hint

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return *value*, a text or a number, as a number."""
        try:
            count = int(value)
        except ValueError:
            self.fail(f"{value!r} is not a whole number{self._hint}", param, ctx)
        if not self._least <= count < 2**63:  # SQLite has 64 bits
            self.fail(f"{count} is not between {self._least} and {2**63 - 1}", param, ctx)
        return count


class FormatName(click.ParamType[Kind]):
    """A format, and the columns of `custom-columns=`."""

    name = "format"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Kind:
        """Return the name of the format and its columns."""
        kind, equals, columns = value.partition("=")
        if kind in KINDS and not equals:
            return kind, {}
        if kind != CUSTOM:
            self.fail(f"{value!r} is none of {', '.join(KINDS)}, {CUSTOM}=...", param, ctx)
        try:
            return kind, read_columns(columns)
        except ValueError as error:
            self.fail(str(error), param, ctx)


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
    shell_complete=complete.files,
)
form = click.option(
    *("--output", "-o"),
    metavar="FORMAT",
    type=FormatName(),
    help="table, wide, json, yaml, jsonl, name; or named fields: "
    "custom-columns=TITLE:FIELD,TITLE:FIELD",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Short for -o json.")
_OF_TABLES: Final = (
    click.option("--no-headers", is_flag=True, help="Leave out the titles of a table."),
    click.option("--no-trunc", is_flag=True, help="Show ids and values whole."),
)
_OF_LISTS: Final = (
    click.option("--quiet", "-q", is_flag=True, help="Print only ids, whole ones."),
    click.option(
        "--sort", metavar="FIELD", default="", help="Sort by a field; -FIELD in reverse order."
    ),
    click.option(
        *("--limit", "--last", "-n"),
        metavar="N",
        type=Count(1, hint="; -n is the limit, and --namespace the filter of `list`"),
        help="At most N, the first in the order.",
    ),
)


_OF_PAGED: Final = click.option(
    "--no-pager",
    is_flag=True,
    help="On a terminal, do not show long output by $PAGER, or less.",
)


def output(view: View | None, *, lists: bool = False) -> Callable[[Verb], Verb]:
    """Return the decorator that gives a verb its `Format`, as the parameter *form*.

    Args:
        view: what the verb prints; None: the verb finds out which fields there are.
        lists: whether it prints a list of any length, to be sorted and limited.
    """

    def decorate(verb: Verb) -> Verb:
        @functools.wraps(verb)
        def run(**params: Any) -> int:
            return verb(form=_format_of(params, view), **params)

        of_lists = _OF_LISTS if lists else ()
        of_paged = (_OF_PAGED,) if view is not None and view.paged else ()
        for option in reversed((form, as_json, *of_lists, *_OF_TABLES, *of_paged)):
            option(run)
        return run

    return decorate


def _format_of(params: dict[str, Any], view: View | None) -> Format:
    """Take the options of the format from *params*, and return what they ask for."""
    given, json = params.pop("output"), params.pop("as_json")
    before = click.get_current_context().obj
    kind, columns = ("json", {}) if json else given or getattr(before, "form", None) or DEFAULT
    found = Format(
        kind,
        columns,
        headers=not params.pop("no_headers"),
        trunc=not params.pop("no_trunc"),
        quiet=params.pop("quiet", False),
        sort=params.pop("sort", ""),
        limit=params.pop("limit", None),
        pages=not params.pop("no_pager", False),
    )
    return found if view is None else found.resolved(view)


timeout = click.option(
    "--timeout",
    metavar="SECONDS",
    type=Seconds(),
    default=TIMEOUT,
    show_default=True,
    help="Longest time to wait for other writers.",
)
id = click.argument(
    "id", metavar="ID", help="Full id, or a unique prefix.", shell_complete=complete.values("id")
)
NAMES: Final = "Id or unique prefix, name, NAMESPACE/POD, or a unique pod."
"""Help text of an argument that names a sandbox."""
sandbox = click.argument(
    "sandbox",
    metavar="SANDBOX",
    help=NAMES,
    shell_complete=complete.sandboxes,
)

past_sandbox = functools.partial(click.argument, "sandbox", shell_complete=complete.past_sandboxes)
"""Return the decorator of an argument that may also name a deleted sandbox."""


def examples(*lines: str) -> str:
    """Return the end of a help text: *lines* of a shell, which click does not wrap."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def open_to_read(db: str, timeout: float = TIMEOUT) -> Store:
    """Open the registry at *db* read-only; *timeout*: seconds to wait for one that opens it."""
    return Store.open(db, read_only=True, create=False, timeout=timeout)


def open_to_show(db: str, *, warns: bool = True) -> Store:
    """Open the registry at *db* read-only, also a damaged one; the program then exits with FOUND.

    A damaged registry is reported on stderr, and so is what its reads leave out.

    Args:
        db: path of the registry.
        warns: report what is left out; False: the verb shows one sandbox.
    """
    try:
        return open_to_read(db)
    except DataLossError as error:
        if not error.damage:
            raise
        complain(f"{error}; shown is what can be read, which may be wrong", FOUND)
    if warns:
        show_warnings()
    click.get_current_context().meta[DAMAGED] = True
    return Store.open(db, damaged="read")


def is_damaged() -> bool:
    """Return whether the verb shows a damaged registry."""
    ctx = click.get_current_context(silent=True)
    return ctx is not None and DAMAGED in ctx.meta


def show_warnings() -> None:
    """Have the warnings of the library written to stderr until the end of the verb."""
    log, complaints = logging.getLogger("registry"), Warner()
    log.addHandler(complaints)
    click.get_current_context().call_on_close(lambda: log.removeHandler(complaints))


class Warner(logging.Handler):
    """Handler that writes the warnings of the library to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, except on damage that `open_to_show` has reported."""
        if getattr(record, "event", "") == "writes_refused" and is_damaged():
            return
        complain(record.getMessage(), FOUND)


def open_to_write(db: str, timeout: float, *, create: bool = False) -> Store:
    """Open the registry at *db* for writing, without a reconcile.

    Args:
        db: path of the registry.
        timeout: seconds that a write waits for other writers.
        create: make the registry if there is none.
    """
    return Store.open(db, create=create, reconcile=False, timeout=timeout, actor=actor())


def actor() -> str:
    """Return the name of this program as a writer in the history."""
    return f"{PROGRAM}[{os.getpid()}]"
