"""What Go and containerd wrote, and what Go's decoder said: see tests/data."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from registry import Metadata, MetadataError

DATA = Path(__file__).parent / "data"
"""What the suite always has."""
SHARED = DATA.parents[2] / "shared" / "data"
"""More of the same, where it lies beside the checkout."""
FOLDERS = [folder for folder in (DATA, SHARED) if folder.is_dir()]


class Case(NamedTuple):
    """An input of Go's UnmarshalJSON, and what it made of it."""

    name: str
    input: bytes
    remarshal: bytes | None
    """What its MarshalJSON wrote of the result; None: it refused the input."""
    error: str | None


def documents() -> dict[str, bytes]:
    """Return every document that Go's encoder wrote, by a name."""
    found = {}
    for folder in FOLDERS:
        for file in sorted((folder / "containerd").glob("*.json")):
            if file.name != "MANIFEST.json":
                found[f"{folder.parent.name}-{file.stem}"] = file.read_bytes()
    return found | {line["name"]: line["json"].encode() for line in encoded()}


def encoded() -> list[dict[str, Any]]:
    """Return every line of metadata-*.jsonl, with a *name* that ends with its layout."""
    found = []
    for folder in FOLDERS:
        for file in sorted((folder / "go").glob("metadata-*.jsonl")):
            layout = file.stem.removeprefix("metadata-")
            for line in _lines(file):
                name = f"{folder.parent.name}-{line['kind']}-{line['n']}-{layout}"
                found.append(line | {"name": name})
    return found


def cases(folder: Path) -> list[Case]:
    """Return every line of unmarshal.jsonl in *folder*."""
    return [
        Case(
            line["name"],
            base64.b64decode(line["input_b64"]) if "input_b64" in line else line["input"].encode(),
            line["remarshal"].encode() if line["ok"] else None,
            line["error"],
        )
        for line in _lines(folder / "go" / "unmarshal.jsonl")
    ]


def ours(data: bytes) -> bytes | MetadataError:
    """Return what we write of *data*, or the error that refuses it."""
    try:
        return Metadata.unmarshal_json(data).marshal_json()
    except MetadataError as error:
        return error


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    # Not splitlines(): a raw U+2028 is no end of a line.
    for line in file.read_text(encoding="utf-8").split("\n"):
        if line:
            yield json.loads(line)
