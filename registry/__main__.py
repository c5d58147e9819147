"""`python -m registry`, and the program `sandbox-registry`."""

from __future__ import annotations

import gc
import sys
from typing import Final

EXTRAS: Final = {
    "click": "cli",
    "datasette": "browse",
    "grpc": "shim",
    "grpc_health": "shim",
    "prometheus_client": "metrics",
    "psycopg": "fleet",
    "rich": "cli",
    "uvicorn": "browse",
    "yaml": "cli",
}
"""Optional dependencies, and the extra that installs each."""
ABOVE: Final = {
    "serve": "registry.shim.command:serve",
    "browse": "registry.browse.command:browse",
}
"""Verbs of packages that stand above the command line; see `registry.cli.program.VERBS`."""
YOUNG_OBJECTS: Final = 100_000
"""Objects that are made before Python searches them for garbage, instead of 700: nothing that is
imported is garbage, and the server imports 50,000 objects."""
INTERRUPTED: Final = 130
"""Exit code that a shell shows for a program ended by SIGINT."""


def main() -> int:
    """Run the command line and return its exit code; see docs/cli.md."""
    gc.set_threshold(YOUNG_OBJECTS)
    if sys.argv[1:] == ["--version"]:  # as `program` does, without importing click
        return _show_version()
    try:
        from registry.cli import program  # noqa: PLC0415 - click is an extra

        return program.main(more=ABOVE)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extra = EXTRAS.get(missing)
        if extra is None:
            raise
        sys.stderr.write(
            f"sandbox-registry: error: this needs {missing}: install sandbox-registry[{extra}]\n"
        )
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        # The process ends. Python would search all that was imported for garbage three times.
        gc.freeze()


def _show_version() -> int:
    """Print the version and return the exit code; the program reports what goes wrong."""
    from registry.version import __version__  # noqa: PLC0415 - only here

    try:
        print(f"sandbox-registry {__version__}", flush=True)  # noqa: T201
    except OSError as error:
        from registry.cli import program  # noqa: PLC0415
        from registry.sync.interrupts import reraise_interrupt  # noqa: PLC0415

        reraise_interrupt(error)
        return program.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
