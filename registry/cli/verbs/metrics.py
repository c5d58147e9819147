"""The verb `metrics`."""

from __future__ import annotations

import os
from typing import Final

import click

from registry.cli import complete, options
from registry.cli.failures import FINE, UNAVAILABLE, code_of, complain
from registry.cli.output.streams import write_bytes
from registry.errors import RegistryError
from registry.host import paths
from registry.host.part_file import PartFile
from registry.sync.interrupts import call_then, reraise_interrupt

SUFFIX: Final = ".prom"
"""End of the names of the files that node_exporter reads."""
MODE: Final = 0o644
"""Mode of such a file: node_exporter runs as a user of its own."""


@click.command(
    epilog=options.examples(
        "sandbox-registry metrics", "sandbox-registry metrics --output-file registry.prom"
    ),
)
@click.option("--check", is_flag=True, help="Also check the invariants, as `check` does.")
@click.option(
    "--reconcile", is_flag=True, help="Also observe the host, as `reconcile --dry-run` does."
)
@click.option(
    "--output-file",
    metavar="PATH",
    help="Write to PATH in one step, for the textfile collector of node_exporter.",
    shell_complete=complete.files,
)
@options.db
def metrics(*, check: bool, reconcile: bool, output_file: str | None, db: str) -> int:
    """Print metrics of the registry as OpenMetrics text.

    If the registry cannot be read within 5 s, sandbox_registry_up is 0, of the others those of its
    files are there, and the exit code is 3.
    """
    from registry.metrics import scrape, text  # noqa: PLC0415 - an extra of its own

    if output_file is not None and not output_file.endswith(SUFFIX):
        raise click.BadParameter(f"{output_file!r} does not end with {SUFFIX}: it is not read")
    try:
        with options.open_to_read(db, scrape.TIMEOUT) as store:
            options.show_warnings()
            if reconcile:
                store.reconcile(dry_run=True)
            texts = text.of_store(store, check=check)
    except RegistryError as error:
        reraise_interrupt(error)
        if code_of(error) != UNAVAILABLE:
            raise
        known = "; printed is what is known without reading it" if os.path.exists(db) else ""
        complain(f"{error}{known}", UNAVAILABLE)
        texts = text.of_unreadable(os.path.realpath(db))
    if output_file is None:
        write_bytes(texts.openmetrics)
    else:
        _replace(output_file, texts.prometheus)
    return FINE if texts.is_up else UNAVAILABLE


def _replace(path: str, text: bytes) -> None:
    """Replace the file at *path*, in one step.

    Raises:
        RegistryError: it cannot be written.
    """
    real = os.path.realpath(path)
    doing, part = f"write metrics to {path!r}", PartFile(real)

    def write_and_commit() -> None:
        try:
            part.create(os.path.dirname(real), doing)
            with open(part.path, "wb") as file:
                os.fchmod(file.fileno(), MODE)
                file.write(text)
            part.commit()
        except OSError as error:
            reraise_interrupt(error)
            raise paths.refused(doing, real, "write the file", error) from error

    call_then(write_and_commit, part.discard)
