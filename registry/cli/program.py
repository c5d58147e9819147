"""Group of all verbs, each imported when it is run, and the exit code of the program.

Rules:

1. A verb is read-only unless its help says that it writes, and opens the store accordingly.
2. Text from the database is data: `output` escapes it. `export` alone writes bytes as they are.
3. Output is written after the store is closed: a slow reader of the output delays no writer.
4. Exit codes and the fields of `--json` are a contract (docs/cli.md); new ones may be added.
5. A verb returns its exit code. A module that only one verb needs is imported when it is run.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Final

import click

from registry.cli import complete, options, usage
from registry.cli.failures import (
    CLOSED_PIPE,
    DAMAGED,
    FOUND,
    INTERRUPTED,
    PROGRAM,
    UNAVAILABLE,
    USAGE,
    code_of,
    complain,
)
from registry.cli.lookup import SeveralMatchError
from registry.cli.output.streams import discard, is_terminal, note, write
from registry.errors import RegistryError
from registry.sync.interrupts import reraise_interrupt
from registry.version import __version__
from registry.visible import visible

SECTIONS: Final = {
    "Look": ("list", "inspect", "why", "history", "watch", "who", "sql", "check", "metrics"),
    "Change": ("reconcile", "delete", "upgrade"),
    "Move": ("backup", "restore", "salvage", "import", "export"),
    "Fleet": ("fleet",),
    "Learn": ("demo", "completion"),
}
"""Names of the verbs under the headings of the help."""
VERBS: Final = {
    "list": "registry.cli.verbs.listing:list_sandboxes",
    "inspect": "registry.cli.verbs.inspect:inspect",
    "why": "registry.cli.verbs.why:why",
    "history": "registry.cli.verbs.history:history",
    "watch": "registry.cli.verbs.watch:watch",
    "who": "registry.cli.verbs.who:who",
    "sql": "registry.cli.verbs.sql:run_sql",
    "check": "registry.cli.verbs.check:check",
    "metrics": "registry.cli.verbs.metrics:metrics",
    "reconcile": "registry.cli.verbs.reconcile:reconcile",
    "delete": "registry.cli.verbs.delete:delete",
    "upgrade": "registry.cli.verbs.upgrade:upgrade",
    "backup": "registry.cli.verbs.backup:backup",
    "restore": "registry.cli.verbs.restore:restore",
    "salvage": "registry.cli.verbs.salvage:salvage",
    "import": "registry.cli.verbs.importing:import_sandboxes",
    "export": "registry.cli.verbs.export:export_sandboxes",
    "demo": "registry.cli.verbs.demo:demo",
    "completion": "registry.cli.verbs.completion:completion",
    "fleet": "registry.cli.verbs.fleet:fleet",
}
"""Module of each verb, and the name of its click command there."""
ALIASES: Final = {"ls": "list", "ps": "list"}
"""Names that other programs have for a verb; the help does not list them."""
LAST: Final = "Serve"
"""Heading of the verbs of packages above this one."""
WHOLE: Final = 1000
"""Characters of a sentence of the help, which click would cut."""
OUTPUT: Final = {"registry.cli.output.streams", "click.utils"}
"""Modules that write the output."""


class Verbs(click.Group):
    """Group of verbs, each of which is imported when it is asked for."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Return the names of the verbs, in the order of the help."""
        return list(self.commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the verb *cmd_name*, None if there is no such verb."""
        verb = super().get_command(ctx, ALIASES.get(cmd_name, cmd_name))
        return verb.load() if isinstance(verb, Deferred) else verb

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs under their headings, each with the first sentence of its help."""
        known = {name for names in SECTIONS.values() for name in names}
        others = tuple(name for name in self.commands if name not in known)
        for heading, names in (*SECTIONS.items(), (LAST, others)):
            found = ((name, self.get_command(ctx, name)) for name in names)
            lines = [(name, verb.get_short_help_str(WHOLE)) for name, verb in found if verb]
            if lines:
                with formatter.section(heading):
                    formatter.write_dl(lines)


class Deferred(click.Command):
    """A verb that is not imported yet."""

    def __init__(self, name: str, place: str) -> None:
        """Stand for the command at *place*, `MODULE:NAME`."""
        super().__init__(name)
        self._place = place

    def load(self) -> click.Command:
        """Import the module and return the command."""
        module, _, name = self._place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


def _show_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:  # noqa: FBT001
    if asked and not ctx.resilient_parsing:  # which a completion is
        write(f"{PROGRAM} {__version__}\n")
        ctx.exit()


def group(more: Mapping[str, str]) -> click.Group:
    """Return the program as a click group of `VERBS` and *more* verbs."""

    @click.group(
        PROGRAM,
        cls=Verbs,
        commands={name: Deferred(name, place) for name, place in {**VERBS, **more}.items()},
        no_args_is_help=True,
        subcommand_metavar="VERB [ARGUMENTS]",
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=options.examples(
            f"{PROGRAM} --db /var/lib/shim/registry.db list", f"{PROGRAM} history --since 1h"
        ),
    )
    @click.option(
        "--db",
        metavar="PATH",
        envvar="SANDBOX_REGISTRY_DB",
        show_envvar=True,
        help="The registry.",
        shell_complete=complete.files,
    )
    @options.form
    @options.as_json
    @click.option(
        "--version",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_version,
        help="Show the version and exit.",
    )
    @click.pass_context
    def program(
        ctx: click.Context, *, db: str | None, output: options.Kind | None, as_json: bool
    ) -> None:
        """See, check and recover a registry of pod sandboxes.

        Exit codes: 0 success, 1 an object is missing or wrong, 2 usage, 3 the registry is
        unavailable.
        """
        ctx.obj = options.Given(db, ("json", {}) if as_json else output)

    return program


def main(args: Sequence[str] | None = None, *, more: Mapping[str, str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        args: the command line; sys.argv[1:] by default.
        more: verbs of packages above this one, as `VERBS` has its own.
    """
    if sys.stdout is None:  # closed, as by `>&-`: the caller wants the exit code alone
        with open(os.devnull, "w", encoding="utf-8") as sys.stdout:
            return main(args, more=more)
    try:
        return _run(group(more or {}), list(sys.argv[1:] if args is None else args))
    except click.ClickException as error:
        return complain(usage.line_of(error), error.exit_code)
    except RegistryError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise error.__cause__ from error  # `__main__` names the extra
        return _report(error)
    except (OSError, MemoryError) as error:  # the store raises RegistryErrors
        reraise_interrupt(error)
        return _fail(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def _report(error: RegistryError) -> int:
    """Report *error* in one line, and return the exit code.

    On a terminal, each sandbox of a `SeveralMatchError` has a line, so that no id is broken.
    """
    if sys.stderr and isinstance(error, SeveralMatchError) and is_terminal(sys.stderr):
        code = complain(error.summary, code_of(error))
        note("\n".join([f"  {visible(each)}" for each in error.matches]))
        return code
    return complain(str(error), code_of(error))


def _fail(error: OSError | MemoryError) -> int:
    """Report *error*, which an output or another system call has met, and return the exit code."""
    if isinstance(error, OSError) and not _is_of_output(error):
        why = error.strerror or str(error)
        return complain(
            why if error.filename is None else f"{error.filename!r}: {why}", UNAVAILABLE
        )
    discard(sys.stdout)
    if isinstance(error, BrokenPipeError):
        return CLOSED_PIPE
    why = "no memory" if isinstance(error, MemoryError) else f"write output: {error.strerror}"
    return complain(why, UNAVAILABLE)


def _is_of_output(error: OSError) -> bool:
    """Return whether *error* was raised while output was written, by this package or by click."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__") in OUTPUT for frame in frames)


def _run(program: click.Group, args: list[str]) -> int:
    """Parse *args*, run the verb and return its exit code.

    Not by `program.main`, which writes to stderr on Ctrl-C, and ends the process itself.
    """
    if instruction := os.environ.get(complete.VARIABLE):
        return complete.run(program, PROGRAM, instruction)
    try:
        with program.make_context(PROGRAM, args) as ctx:
            code: int = program.invoke(ctx)
            return max(code, FOUND) if DAMAGED in ctx.meta else code
    except click.exceptions.Exit as done:  # after --help and --version
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        note(error.format_message())
        return USAGE
