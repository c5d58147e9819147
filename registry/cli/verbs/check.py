"""The verb `check`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

import click

from registry.cli import options
from registry.cli.failures import FINE, FOUND
from registry.cli.output.formats import show
from registry.cli.output.progress import Progress
from registry.cli.output.streams import is_terminal
from registry.cli.output.views import PEOPLE, Format, View
from registry.store import Store
from registry.tables.integrity import NOT_CHECKED
from registry.visible import visible

VIEW: Final = View(
    ("rule", "sandbox_id", "found", "expected"),
    table={"RULE": "rule", "SANDBOX_ID": "sandbox_id", "FOUND": "found", "EXPECTED": "expected"},
    name="rule",
    id="sandbox_id",
    folds=True,
    paged=True,
)


@click.command(
    epilog=options.examples("sandbox-registry check", "sandbox-registry check -o jsonl"),
)
@options.output(VIEW)
@options.db
def check(*, db: str, form: Format) -> int:
    """Report every violated invariant of the registry; exit code 1 if there is one."""
    with Store.open(db, damaged="read") as store, Progress("check") as progress:
        found = [asdict(violation) for violation in store.check(progress=progress)]
    if form.kind not in PEOPLE:
        show(found, VIEW, form)
    else:
        checked = [each for each in found if not each["found"].startswith(NOT_CHECKED)]
        text = None if checked else "" if found else "no violations\n"
        show(checked, VIEW, form, text=text, after=_not_checked(found))
    return FOUND if found else FINE


def _not_checked(found: Sequence[Mapping[str, str]]) -> str:
    """Return a line for each error that has ended rules, of which damage may end many."""
    rules: dict[str, list[str]] = {}
    for each in found:
        if each["found"].startswith(NOT_CHECKED):
            rules.setdefault(each["found"], []).append(each["rule"])
    lines = [visible(f"{error}; rules: {', '.join(names)}") for error, names in rules.items()]
    if is_terminal():
        from registry.cli.output.terminal import folded  # noqa: PLC0415 - not in a pipe

        lines = [folded(line) for line in lines]
    return "".join(f"{line}\n" for line in lines)
