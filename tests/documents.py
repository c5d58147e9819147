"""The documents of the project, and the code blocks in them."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path
from typing import Final, NamedTuple

from tests.tools import ROOT

DOCUMENTS: Final = sorted(name for name in os.listdir(ROOT) if name.endswith(".md")) + sorted(
    str(path.relative_to(ROOT)) for path in Path(ROOT, "docs").rglob("*.md")
)


def text_of(document: str) -> str:
    """Return the text of a document, named by its path from the root of the project."""
    return Path(ROOT, document).read_text(encoding="utf-8")


class Block(NamedTuple):
    """A code block of a document."""

    document: str
    language: str
    """The word behind the opening fence; "" if there is none."""
    text: str


def all_blocks() -> list[Block]:
    """Return every code block of every document; those of a list are indented."""
    fenced = re.compile(r"^( *)(`{3,})(\S*)[^\n]*\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
    return [
        Block(document, language, textwrap.dedent(text))
        for document in DOCUMENTS
        for _, _, language, text in fenced.findall(text_of(document))
    ]


def blocks(language: str) -> list[tuple[str, str]]:
    """Return every code block of *language*, with a name made of its document and number."""
    found = []
    for document in DOCUMENTS:
        matches = re.findall(rf"```{language}\n(.*?)```", text_of(document), re.DOTALL)
        found += [(f"{document}-{n}", block) for n, block in enumerate(matches)]
    return found
