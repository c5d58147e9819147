"""Extension of Griffe, which reads the docstrings: what the project writes in a way of its own.

1. Griffe finds a section such as "Raises:" only behind an empty line. The docstrings of the project
   have none between two sections.
2. `registry.aio` makes its coroutines from the methods of the same names, as in
   `delete = _write(Store.delete, ...)`. Griffe imports nothing, so it sees no docstring there.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Docstring, Extension, Object


class Docstrings(Extension):
    """Extension that prepares each docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Insert an empty line before each section of the docstring of *obj*."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"(?<!\n)\n(Args|Raises|Returns|Yields):\n", r"\n\n\1:\n", obj.docstring.value
            )

    def on_attribute(self, *, attr: Attribute, **_: Any) -> None:
        """Let the docstring of an attribute of `registry.aio` lead to the original."""
        if attr.docstring is not None or not attr.path.startswith("registry.aio."):
            return
        source = str(attr.value)
        if made := re.search(r"\((Store|Sandbox|StatusStorage|Extensions)\.(\w+)", source):
            name, how = f"{made[1]}.{made[2]}", "as a coroutine, with its arguments and errors"
        elif field := re.search(r"lambda sandbox: sandbox\.(\w+)", source):
            name, how = f"Sandbox.{field[1]}", "without `await`"
        else:
            return
        attr.docstring = Docstring(f"[`{name}`][registry.{name}] {how}.", parent=attr)
