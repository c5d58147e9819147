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
    "rm": "delete",
}
"""Verbs of other programs, and what stands for each here."""
OPTIONS: Final = dict.fromkeys(
    ("-A", "--all-namespaces"),
    "The sandboxes of all namespaces are listed, unless --namespace filters them.",
)
"""Options of other programs that this one does not need, and why."""


def line_of(error: click.ClickException) -> str:
    """Return the message of *error* in one line, which ends with the help to read."""
    message = " ".join(error.format_message().split())
    if isinstance(error, click.exceptions.NoSuchCommand) and error.command_name in VERBS:
        message = f"{error.message} Did you mean {VERBS[error.command_name]!r}?"
    if isinstance(error, click.NoSuchOption) and error.option_name in OPTIONS:
        message = f"{error.message} {OPTIONS[error.option_name]}"
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{message} (see {context.command_path if context else PROGRAM} --help)"
