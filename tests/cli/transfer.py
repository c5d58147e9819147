"""Import and export as the tests run them, and documents to import."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from registry import Metadata, Status, Store
from tests.tools import (
    environment,
    sandbox,
)

ERROR = r"sandbox-registry: error: .+\n"


class Done:
    """Exit code and output of the program."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr.decode()

    @property
    def json(self) -> Any:
        """Output of the program, decoded as JSON."""
        return json.loads(self.out)


def call(path: str, *args: object, stdin: bytes = b"") -> Done:
    """Run the real program."""
    command = [sys.executable, "-m", "registry", "--db", path, *map(str, args)]
    done = subprocess.run(
        command, input=stdin, env=environment(), capture_output=True, check=False, timeout=60
    )
    assert "Traceback" not in done.stderr.decode()
    return Done(done)


def found(path: str) -> dict[str, tuple[Metadata, Status]]:
    """Return every sandbox in the registry."""
    with Store.open(path, reconcile=False) as store:
        assert [] == store.check()
        return {
            each.id: (each.metadata, each.status_as_read)
            for each in store.list(include_unknown=True)
        }


def line(id: str, **fields: Any) -> bytes:
    """Return a document, with the end of its line."""
    return sandbox(id, **fields).marshal_json() + b"\n"
