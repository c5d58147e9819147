"""`python -m registry`, and the program `sandbox-registry`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line and return its exit code; see docs/cli.md."""
    try:
        from registry import cli  # noqa: PLC0415 - typer and rich are an extra

        return cli.main()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in {"typer", "rich"}:
            raise
        sys.stderr.write(
            f"sandbox-registry: error: the command line needs {missing}: "
            "install sandbox-registry[cli]\n"
        )
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
