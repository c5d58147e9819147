"""Extensions in `inspect`, `export` and `import`."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from registry import Extension, Store
from registry.cli.containerd import import_export
from registry.model.extensions import COUNT_MAX, VALUE_MAX
from tests.cli.program import Call
from tests.tools import UNKNOWN, pod, sandbox, tamper

OPAQUE = Extension("example.com/Opaque", b"\x00\xff")
PLAIN = Extension("", b"plain")
ENCODED = {
    "opaque": {"type_url": "example.com/Opaque", "value": "AP8="},
    "plain": {"type_url": "", "value": "cGxhaW4="},
}


def packed(message: Message) -> Extension:
    """Return *message* as an extension."""
    found = AnyMessage()
    found.Pack(message)
    return Extension(found.type_url, found.value)


def extend(path: str, id: str, **extensions: Extension) -> None:
    """Replace the extensions of a sandbox."""
    with Store.open(path, reconcile=False) as store:
        store.get(id, include_unknown=True).extensions.update(lambda _: extensions)


def extensions_of(path: str) -> dict[str, dict[str, Extension]]:
    """Return the extensions of all sandboxes by id."""
    with Store.open(path, reconcile=False) as store:
        assert [] == store.check()
        return {each.id: dict(each.extensions) for each in store.list(include_unknown=True)}


# inspect


def test_inspect_decodes_extensions_of_known_types(path: str, call: Call) -> None:
    """As protobuf's JSON of an Any; others are base64 with their type URL."""
    damaged = Extension("type.googleapis.com/google.protobuf.Duration", b"\xff")
    config = packed(pod("web", "shop"))
    extend(path, "3f2a", age=packed(Duration(seconds=3)), config=config, bad=damaged)
    found = json.loads(call("inspect", "3f2a", "--json").out)["extensions"]
    assert {"@type": damaged.type_url, "value": "3s"} == found["age"]
    assert {"name": "web", "namespace": "shop", "uid": "uid-1"} == found["config"]["metadata"]
    assert config.type_url == found["config"]["@type"]
    assert {"type_url": damaged.type_url, "value": "/w=="} == found["bad"]


def test_inspect_shows_extensions_of_unknown_types_in_base64(path: str, call: Call) -> None:
    """For people, text stays text. A sandbox without extensions has no such part."""
    assert "extensions" not in call("inspect", "3f2a").out
    assert {} == json.loads(call("inspect", "3f2a", "--json").out)["extensions"]
    extend(path, "3f2a", opaque=OPAQUE, plain=PLAIN)
    done = call("inspect", "3f2a")
    assert (0, "") == (done.code, done.err)
    shown = {**ENCODED, "plain": {"type_url": "", "text": "plain"}}
    assert shown == json.loads(done.out.partition("\nextensions:\n")[2])
    assert ENCODED == json.loads(call("inspect", "3f2a", "--json").out)["extensions"]


def test_inspect_reports_a_damaged_extension(path: str, call: Call) -> None:
    """All else is shown; the code is 1."""
    extend(path, "3f2a", plain=PLAIN)
    tamper(path, "UPDATE sandbox_extensions SET name = CAST(x'ff' AS TEXT)")
    done = call("inspect", "3f2a", "--json")
    found = json.loads(done.out)
    assert (1, "3f2a", None) == (done.code, found["id"], found["extensions"])
    assert "read extensions of sandbox '3f2a'" in found["error"]
    assert "read extensions of sandbox '3f2a'" in done.err


# export and import


def test_an_import_restores_the_extensions_that_an_export_has_written(
    path: str, tmp_path: Path, main: Call, call: Call
) -> None:
    """Byte for byte, of an UNKNOWN sandbox too; the others have none."""
    extend(path, "3f2a", opaque=OPAQUE, plain=PLAIN)
    extend(path, "5abc", one=OPAQUE)
    statuses, documents = f"{tmp_path}/statuses", tmp_path / "documents"
    done = call("export", "--status", statuses)
    assert (0, "") == (done.code, done.err)
    documents.write_text(done.out)
    written = [json.loads(line) for line in Path(statuses).read_text().splitlines()]
    assert {"3f2a": ENCODED, "5abc": {"one": ENCODED["opaque"]}} == {
        each["id"]: each["extensions"] for each in written if "extensions" in each
    }
    other = f"{tmp_path}/other.db"
    done = main("--db", other, "import", str(documents), "--status", statuses, "--create")
    assert (0, "") == (done.code, done.err)
    assert extensions_of(path) == extensions_of(other)


def test_export_writes_statuses_for_their_owner_alone(
    path: str, tmp_path: Path, call: Call
) -> None:
    """Extensions may be secret, as the registry is; a file that exists keeps its mode."""
    file = f"{tmp_path}/statuses"
    assert 0 == call("export", "--status", file).code
    assert 0o600 == stat.S_IMODE(os.stat(file).st_mode)
    os.chmod(file, 0o640)
    assert 0 == call("export", "--status", file).code
    assert 0o640 == stat.S_IMODE(os.stat(file).st_mode)


def test_export_reports_a_damaged_extension(path: str, tmp_path: Path, call: Call) -> None:
    """The status is left out, and the code is 1; the others are written."""
    extend(path, "3f2a", plain=PLAIN)
    tamper(path, "UPDATE sandbox_extensions SET name = CAST(x'ff' AS TEXT)")
    file = tmp_path / "statuses"
    done = call("export", "--status", str(file))
    assert 1 == done.code
    assert "read extensions of sandbox '3f2a'" in done.err
    assert 3 == len(done.out.splitlines())
    assert 2 == len(file.read_text().splitlines())


def test_export_reports_statuses_that_an_import_would_refuse(
    path: str, tmp_path: Path, call: Call
) -> None:
    """Their file is written; one of fewer sandboxes can be imported."""
    large = {f"n{n}": bytes(VALUE_MAX) for n in range(COUNT_MAX)}
    with Store.open(path, reconcile=False) as store:
        for n in range(3):
            handle = store.add(sandbox(f"large-{n}"), UNKNOWN)
            handle.extensions.update(lambda _: large)
    file = tmp_path / "statuses"
    done = call("export", "--status", str(file))
    assert 1 == done.code
    assert f"import takes at most {import_export.STATUSES_MAX}" in done.err
    assert import_export.STATUSES_MAX < file.stat().st_size
    assert 0 == call("export", "large-0", "large-1", "--status", str(file)).code
    assert 2 == len(import_export.read_statuses(str(file)))


@pytest.mark.parametrize(
    ("extensions", "error"),
    [
        ([], "extensions: not an object"),
        ({"a": "text"}, "extensions: 'a' is not an object"),
        ({"a": {"@type": "t", "value": "3s"}}, "extensions: 'a' is not an object"),
        ({"a": {"type_url": "t", "value": 1}}, "extensions: the value of 'a' is not base64"),
        ({"a": {"type_url": "t", "value": "=="}}, "extensions: the value of 'a' is not base64"),
        ({"a": {"type_url": 1, "value": ""}}, "adopt sandbox 'x': extension 'a'"),
        ({"": {"type_url": "", "value": ""}}, "adopt sandbox 'x': extension name '' is empty"),
        ({"a": {"type_url": "", "value": "A" * 349_528}}, "over the limit of 262144"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_import_refuses_extensions_that_cannot_be_stored(
    path: str, tmp_path: Path, call: Call, extensions: Any, error: str
) -> None:
    """The document with them is reported; --keep-going imports the others."""
    statuses, documents = tmp_path / "statuses", tmp_path / "documents"
    entries = [
        {"id": "x", "state": "READY", "extensions": extensions},
        {"id": "y", "state": "READY", "extensions": ENCODED},
    ]
    statuses.write_text("".join(json.dumps(each) + "\n" for each in entries))
    documents.write_bytes(b"\n".join(sandbox(id).marshal_json() for id in "xy"))
    arguments = ("import", str(documents), "--status", str(statuses), "--json", "--keep-going")
    done = call(*arguments)
    refused, imported = json.loads(done.out)["sandboxes"]
    assert (1, False, True) == (done.code, refused["imported"], imported["imported"])
    assert error in refused["error"]
    found = extensions_of(path)
    assert {"opaque": OPAQUE, "plain": PLAIN} == found["y"]
    assert "x" not in found
