"""The verb `upgrade`: the schema, brought up to date."""

from __future__ import annotations

import os
from typing import Final

import click

from registry.cli import options
from registry.cli.failures import FINE
from registry.cli.output.formats import sentences, show
from registry.cli.output.streams import write
from registry.cli.output.views import Format, View
from registry.errors import SchemaVersionError
from registry.host import paths
from registry.tables.version import REVISION

FIELDS: Final = ("path", "from", "to", "backup", "dry_run", "upgraded")
VIEW: Final = View(FIELDS, table={"PATH": "path"}, name="path", id="path")


@click.command(
    epilog=options.examples(
        "sandbox-registry upgrade --dry-run", "sandbox-registry upgrade --sql | less"
    )
)
@click.option("--sql", "as_sql", is_flag=True, help="Print the SQL that would run; write nothing.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@options.timeout
@options.output(VIEW)
@options.db
def upgrade(*, db: str, as_sql: bool, dry_run: bool, timeout: float, form: Format) -> int:
    """Bring the schema of an older registry up to date; this writes.

    A backup beside the registry is made first. Programs of the older version that have the registry
    open go on, as far as the revision allows it.
    """
    path = paths.resolve(db)
    found, backup = _revision(path), ""
    if as_sql:
        none = f"-- at revision {REVISION}: there is nothing to upgrade\n"
        write(none if found == REVISION else _statements(path))
        return FINE
    if found != REVISION:
        from registry.tables.upgrade_backup import SUFFIX  # noqa: PLC0415 - as Alembic

        backup = f"{path}{SUFFIX}"
        if not dry_run:
            options.open_to_write(db, timeout).close()
    upgraded = found != REVISION and not dry_run
    values = (path, found, REVISION, backup, dry_run, upgraded)
    fields = dict(zip(FIELDS, values, strict=True))
    text = sentences([_sentence(found, path, backup, dry_run=dry_run)])
    show([fields], VIEW, form, whole=fields, text=text)
    return FINE


def _revision(path: str) -> str:
    """Return the revision of the registry at *path*, which this program can use or upgrade.

    Raises:
        SchemaVersionError: it is newer, and this program may not read it.
    """
    try:
        options.open_to_read(path).close()
    except SchemaVersionError as error:
        if error.found > REVISION:
            raise
        return error.found
    return REVISION


def _statements(path: str) -> str:
    from registry.tables import upgrade_sql  # noqa: PLC0415 - it imports SQLAlchemy

    return "".join(f"{statement};\n" for statement in upgrade_sql.statements(path))


def _sentence(found: str, path: str, backup: str, *, dry_run: bool) -> str:
    if found == REVISION:
        return f"{path} is at revision {REVISION}: there is nothing to upgrade"
    if dry_run:
        kept = f"it would be copied to {backup} first"
        return f"{path} would be upgraded from revision {found} to {REVISION}; {kept}"
    kept = f"the registry as it was before is at {backup}" if os.path.exists(backup) else ""
    return "; ".join(filter(None, (f"upgraded {path} from revision {found} to {REVISION}", kept)))
