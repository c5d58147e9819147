"""Every command that the text of a document names exists, with its options."""

from __future__ import annotations

import re

import click
import pytest

from registry.__main__ import ABOVE
from registry.cli import program
from tests.documents import DOCUMENTS, text_of

GROUP = program.group(ABOVE)
CONTEXT = click.Context(GROUP, help_option_names=["-h", "--help"])
COMMANDS = sorted(
    {
        (document, " ".join(command.split()))
        for document in DOCUMENTS
        for command in re.findall(r"`sandbox-registry((?:\s[^`]*)?)`", text_of(document))
    }
)


def options_of(command: click.Command, context: click.Context) -> set[str]:
    """Return the options of *command*, and those of the whole program."""
    parameters = [*command.get_params(context), *GROUP.get_params(CONTEXT)]
    return {option for each in parameters for option in (*each.opts, *each.secondary_opts)}


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_a_command_in_the_text_exists(document: str, command: str) -> None:
    """Its verb is the first word in lower case that is neither an option nor a value of `--db`."""
    words = re.sub(r"--db \S+", "", command).split()
    options = {word.partition("=")[0] for word in words if word.startswith("-")}
    verbs = [word for word in words if word[0] != "-" and word.islower()]
    verb = GROUP.get_command(CONTEXT, verbs[0]) if verbs else GROUP
    assert verb is not None, (document, command)
    assert options <= options_of(verb, click.Context(verb, parent=CONTEXT)), (document, command)
