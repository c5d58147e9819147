"""The verb `completion`: scripts for shells."""

from __future__ import annotations

import click

from registry.cli import complete, options
from registry.cli.failures import FINE, PROGRAM
from registry.cli.output.streams import write


@click.command(
    epilog=options.examples(
        "sandbox-registry completion bash >> ~/.bash_completion",
        "sandbox-registry completion fish | source",
    )
)
@click.argument(
    "shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]), help="bash, zsh or fish."
)
@click.pass_context
def completion(ctx: click.Context, *, shell: str) -> int:
    """Print the script by which a shell completes verbs, options, ids, names, pods and the like."""
    from click.shell_completion import get_completion_class  # noqa: PLC0415 - only here

    kind = get_completion_class(shell)
    assert kind is not None
    write(kind(ctx.find_root().command, {}, PROGRAM, complete.VARIABLE).source())
    return FINE
