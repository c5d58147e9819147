"""The verb `check`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

import click

from registry.cli import options
from registry.cli.failures import FINE, FOUND
from registry.cli.output.formats import Format, View, show
from registry.cli.output.progress import Progress
from registry.store import Store

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
    show(found, VIEW, form, text=None if found else "no violations\n")
    return FOUND if found else FINE
