"""Errors of usage as one line, with hints to verbs and options of other programs."""

from __future__ import annotations

from typing import Final

import click

from registry.cli.failures import PROGRAM

VERBS: Final = {
    "describe": "inspect",
    "events": "watch",
    "get": "list",
    "help": "--help",
    "logs": "history",
    "pods": "list",
    "rm": "delete",
}
"""Verbs of other programs, and what stands for each here."""
OPTIONS: Final = dict.fromkeys(
    ("-A", "--all-namespaces"),
    "The sandboxes of all namespaces are listed, unless --namespace filters them.",
)
"""Options of other programs that this one does not need, and why."""
DRY_RUN: Final = "--dry-run"
"""Option that is -n in make and rsync, and not here, since lists have that for their limit."""


def line_of(error: click.ClickException) -> str:
    """Return the message of *error* in one line, which ends with the help to read."""
    message = " ".join(error.format_message().split())
    if isinstance(error, click.exceptions.NoSuchCommand) and error.command_name in VERBS:
        message = f"{error.message} Did you mean {VERBS[error.command_name]!r}?"
    context = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.NoSuchOption) and error.option_name in OPTIONS:
        message = f"{error.message} {OPTIONS[error.option_name]}"
    known = {name for each in context.command.params for name in each.opts} if context else ()
    if isinstance(error, click.NoSuchOption) and error.option_name == "-n" and DRY_RUN in known:
        message = f"{error.message} Did you mean {DRY_RUN!r}?"
    return f"{message} (see {context.command_path if context else PROGRAM} --help)"
