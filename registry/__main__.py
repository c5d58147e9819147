"""`python -m registry`, and the program `sandbox-registry`."""

from __future__ import annotations

import sys
from typing import Final

EXTRAS: Final = {"typer": "cli", "rich": "cli", "grpc": "shim"}
"""What is not always installed, and by which extra it is."""


def main() -> int:
    """Run the command line and return its exit code; see docs/cli.md."""
    try:
        from registry.cli import commands  # noqa: PLC0415 - typer and rich are an extra
        from registry.shim import command  # noqa: F401, PLC0415 - it adds its verb

        return commands.main()
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
        return 130


if __name__ == "__main__":
    sys.exit(main())
