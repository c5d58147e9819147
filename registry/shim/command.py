"""The verb `serve`."""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any, Final

import click

from registry.cli import options
from registry.cli.failures import FINE
from registry.visible import visible, visible_record

log = logging.getLogger("registry.shim")

STANDARD: Final = logging.makeLogRecord({}).__dict__.keys() | {"message", "asctime"}
"""Attributes of every record, which are no fields."""


class OneLine(logging.Formatter):
    """Formatter whose records begin a line of their own, whatever a client has sent.

    The lines of a traceback, which quote errors of other programs, are indented.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return *record* as one line, and its traceback as lines that begin with a tab."""
        visible_record(record)
        return super().format(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is that of logging
        """Return the traceback of *ei* as lines that begin with a tab."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"\t{visible(line)}" for line in lines)


class Json(logging.Formatter):
    """Formatter that writes each record, with its fields, as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return *record* as JSON of ASCII characters."""
        fields = {name: value for name, value in vars(record).items() if name not in STANDARD}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        import json  # noqa: PLC0415 - the help of the program does without

        return json.dumps(line, default=str)


FORMATS: Final = {"text": OneLine("%(asctime)s %(name)s: %(message)s"), "json": Json()}
"""Formatter of the log by its name."""


def configure_log(form: str) -> None:
    """Write all that is logged, and what would end this program, to stderr in the format *form*.

    The other loggers are those of libraries, such as gRPC. Python would write the traceback of an
    unexpected error with the text of a client as it is.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATS[form])
    logging.basicConfig(handlers=[handler])
    logging.getLogger("registry").setLevel(logging.INFO)
    sys.excepthook = lambda *args: log.error("ended", exc_info=args, extra={"event": "crashed"})


@click.command(
    epilog=options.examples("sandbox-registry --db registry.db serve --listen unix:///run/sr.sock"),
)
@click.option(
    "--listen",
    metavar="unix:///PATH",
    default="unix:///run/sandbox-registry.sock",
    show_default=True,
    help="Socket to serve at.",
)
@click.option(
    "--log-format",
    type=click.Choice(sorted(FORMATS)),
    default="text",
    show_default=True,
    help="Format of the log on stderr, one record a line.",
)
@click.option(
    "--metrics-listen",
    metavar="HOST:PORT",
    default="",
    help="Serve metrics of the calls and of the registry to Prometheus there, by HTTP.",
)
@click.option(
    "--cni-conf-dir",
    metavar="DIR",
    default="/etc/cni/net.d",
    show_default=True,
    help="Directory of CNI configurations; the first one by name is used.",
)
@click.option(
    "--cni-bin-dir",
    metavar="DIR",
    multiple=True,
    default=("/opt/cni/bin", "/usr/lib/cni"),
    show_default=True,
    help="Directory of CNI plugins; give it again for each further one.",
)
@options.db
def serve(
    *,
    listen: str,
    log_format: str,
    metrics_listen: str,
    cni_conf_dir: str,
    cni_bin_dir: tuple[str, ...],
    db: str,
) -> int:
    """Serve the CRI's sandbox calls until SIGTERM; this writes.

    The server creates a missing registry. The sandboxes keep running when the server ends.
    """
    # Errors are reported by this program; gRPC would write its own to stderr first.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from registry.shim import server  # noqa: PLC0415 - gRPC is an extra of its own
    from registry.shim.network import Network  # noqa: PLC0415 - as above

    configure_log(log_format)
    server.serve(db, listen, Network(cni_conf_dir, cni_bin_dir), metrics_listen)
    return FINE
