"""Documents that Go and containerd wrote, and results of Go's decoder; see tests/data."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from registry import Metadata, MetadataError

DATA = Path(__file__).parent / "data"
"""Folder of the data that the suite always has."""
SHARED = DATA.parents[2] / "shared" / "data"
"""Folder with more of the same, if it lies beside the checkout."""
FOLDERS = [folder for folder in (DATA, SHARED) if folder.is_dir()]


class Case(NamedTuple):
    """One input of Go's UnmarshalJSON, and its result."""

    name: str
    input: bytes
    remarshal: bytes | None
    """Output of MarshalJSON for the result; None when the input was refused."""
    error: str | None


def documents() -> dict[str, bytes]:
    """Return every document that Go's encoder wrote, by name."""
    found = {}
    for folder in FOLDERS:
        for file in sorted((folder / "containerd").glob("*.json")):
            if file.name != "MANIFEST.json":
                found[f"{folder.parent.name}-{file.stem}"] = file.read_bytes()
    return found | {line["name"]: line["json"].encode() for line in encoded()}


def encoded() -> list[dict[str, Any]]:
    """Return every line of metadata-*.jsonl, with a name that ends with its layout."""
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
    """Return *data* decoded and encoded again, or the error that refuses it."""
    try:
        return Metadata.unmarshal_json(data).marshal_json()
    except MetadataError as error:
        return error


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    # Not splitlines(): a raw U+2028 does not end a line here.
    for line in file.read_text(encoding="utf-8").split("\n"):
        if line:
            yield json.loads(line)
