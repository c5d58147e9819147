"""The verb `reconcile`."""

from __future__ import annotations

import click

from registry.cli import lookup, options
from registry.cli.failures import FINE, FOUND, complain
from registry.cli.output.formats import show
from registry.cli.output.progress import Progress
from registry.cli.output.views import Format
from registry.cli.verbs.report import DRY_RUN, MEANING, VIEW, findings, lines_of, whole
from registry.errors import InvalidArgumentError, NetNSError


@click.command(
    epilog=MEANING
    + options.examples(
        "sandbox-registry reconcile --dry-run", "sandbox-registry reconcile --remove-orphans"
    ),
)
@click.option("--dry-run", is_flag=True, help="Report what would change, and write nothing.")
@click.option("--remove-orphans", is_flag=True, help="Remove namespaces that no sandbox owns.")
@options.timeout
@options.output(VIEW)
@options.db
def reconcile(*, db: str, dry_run: bool, remove_orphans: bool, timeout: float, form: Format) -> int:
    """Observe every sandbox, and mark those that are gone as NOTREADY; this writes.

    It also brings the schema of an older registry up to date.
    """
    removed, code = [], FINE
    remove = remove_orphans and not dry_run
    opened = options.open_to_read(db) if dry_run else options.open_to_write(db, timeout)
    with opened as store:
        with Progress("reconcile"):
            report = store.reconcile(dry_run=dry_run)
        for path in report.orphans if remove else ():
            try:
                removed += store.remove_orphans([path])
            except (NetNSError, InvalidArgumentError) as error:  # the others can be removed
                code = complain(str(error), FOUND)
        ids = lookup.ids(store) if form.shortens else ()
    show(
        findings(report),
        DRY_RUN if dry_run else VIEW,
        form,
        whole=whole(report) | {"removed": removed, "dry_run": dry_run},
        ids=ids,
        text=None if report.findings else "",
        after=lines_of(report, removed, dry_run=dry_run, tried=remove),
    )
    return code
