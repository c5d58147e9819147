"""The verbs `reconcile`, `check`, `delete` and `salvage`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import click

from registry.cli import options
from registry.cli.failures import FINE, FOUND, complain
from registry.cli.output import table, write, write_all, write_json
from registry.errors import InvalidArgumentError, NetNSError, NotFoundError
from registry.recovery.findings import Report, Verdict
from registry.store import Store
from registry.visible import visible

ORPHANS: Final = (
    "--remove-orphans removes orphans, unless a process lives in one; first make sure that this "
    "registry is no copy and was not restored from a backup: then pods may own them"
)
"""Line after the orphans: a copy, or a backup, does not record what was created later."""


@click.command()
@options.db
@click.option("--dry-run", is_flag=True, help="Report, and write nothing.")
@click.option("--remove-orphans", is_flag=True, help="Remove namespaces that no sandbox owns.")
@options.timeout
@options.as_json
def reconcile(
    *, db: str, dry_run: bool, remove_orphans: bool, timeout: float, as_json: bool
) -> int:
    """Observe every sandbox, and mark those that are gone as NOTREADY; this writes.

    It also brings the schema of an older registry up to date.
    """
    removed, code = [], FINE
    remove = remove_orphans and not dry_run
    opened = options.open_to_read(db) if dry_run else options.open_to_write(db, timeout)
    with opened as store:
        report = store.reconcile(dry_run=dry_run)
        for path in report.orphans if remove else ():
            try:
                removed += store.remove_orphans([path])
            except (NetNSError, InvalidArgumentError) as error:  # the others can be removed
                code = complain(str(error), FOUND)
    if as_json:
        write_json(report_for_programs(report) | {"removed": removed, "dry_run": dry_run})
    else:
        write(report_for_people(report, removed, dry_run=dry_run, tried=remove))
    return code


def report_for_programs(report: Report) -> dict[str, object]:
    """Return *report* for JSON, with the count of each verdict."""
    counts = {verdict: report.counts.get(verdict, 0) for verdict in Verdict}
    return asdict(report) | {"counts": counts}


def report_for_people(
    report: Report,
    removed: Sequence[str] = (),
    *,
    dry_run: bool = False,
    tried: bool = False,
) -> str:
    """Return *report* as a table of findings, the counts, and a line for each orphan.

    Args:
        report: of a reconcile.
        removed: paths of the orphans that were removed.
        dry_run: nothing was changed.
        tried: the orphans were to be removed.
    """
    findings = [asdict(finding) for finding in report.findings]
    columns = ("sandbox_id", "verdict", "changed", "reason", "message")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(report.counts.items()))
    lines = [f"sandboxes: {counts or 'none'}"]
    if dry_run:
        lines.append("dry run: nothing was changed")
    left = "not removed" if tried else "no sandbox owns it"
    lines += [
        f"orphan {visible(path)}: {'removed' if path in removed else left}"
        for path in report.orphans
    ]
    if report.orphans and not tried:
        lines.append(ORPHANS)
    return (table(findings, columns) if findings else "") + "".join(f"{x}\n" for x in lines)


@click.command()
@options.db
@options.as_json
def check(*, db: str, as_json: bool) -> int:
    """Report every violated invariant of the registry; exit code 1 if there is one."""
    with Store.open(db, damaged="read") as store:
        found = [asdict(violation) for violation in store.check()]
    if found or as_json:
        write_all(found, ("rule", "sandbox_id", "found", "expected"), as_json=as_json)
    else:
        write("no violations\n")
    return FOUND if found else FINE


@click.command()
@options.id
@options.db
@options.timeout
@options.as_json
def delete(*, id: str, db: str, timeout: float, as_json: bool) -> int:
    """Delete the record of one sandbox; this writes.

    The processes and the network namespace of the sandbox stay.
    """
    deleted, path = False, ""
    with options.open_to_write(db, timeout) as store, contextlib.suppress(NotFoundError):
        sandbox = options.find(store, id, f"delete sandbox {id!r}")
        id, path, deleted = sandbox.id, sandbox.netns_path, sandbox.delete()
    if as_json:
        write_json({"id": id, "deleted": deleted})
    elif deleted:
        left = f"; network namespace {path} is left alone" if path else ""
        write(visible(f"deleted {id}{left}") + "\n")
    if not deleted:
        return complain(f"delete sandbox {id!r}: there is no such sandbox", FOUND)
    return FINE


@click.command()
@click.argument("old", metavar="OLD", help="The damaged registry; it stays as it is.")
@click.argument("new", metavar="NEW", help="Path of the copy, where no file is.")
@options.timeout
@options.as_json
def salvage(*, old: str, new: str, timeout: float, as_json: bool) -> int:
    """Copy every readable record of the damaged registry OLD into a new one; this writes NEW.

    OLD stays as it is. Exit code 1 if anything was lost.
    """
    from registry.maintenance.salvage import salvage as copy  # noqa: PLC0415 - only here

    found = copy(old, new, timeout=timeout)
    if as_json:
        write_json(asdict(found))
    else:
        write("".join(f"{line}\n" for line in found.lines()))
    return FINE if found.complete else FOUND
