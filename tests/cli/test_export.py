"""The verb export, and its round trip with import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from registry import State, Status, Store
from tests.cli.program import KNOWN, MANIFEST, SAMPLES
from tests.cli.transfer import ERROR, call, found, line
from tests.golden import DATA
from tests.tools import (
    NOTREADY,
    environment,
    execute,
    pod,
    sandbox,
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a registry of one sandbox, `there`, whose name is `taken`."""
    path = str(tmp_path / "registry.db")
    with Store.open(path) as store:
        store.add(sandbox("there", name="taken"), NOTREADY)
    return path


@pytest.mark.parametrize("suffix", ["", "-wal", "-lock"])
def test_the_registry_is_not_overwritten_with_its_statuses(path: str, suffix: str) -> None:
    """Typing `--status` for `--db` would lose everything."""
    os.symlink(f"{path}{suffix}", f"{path}.link")
    for name in (f"{path}{suffix}", f"{path}.link"):
        done = call(path, "export", "--status", name)
        assert (2, b"") == (done.code, done.out)
    assert 0 == call(path, "export", "--status", f"{path}.statuses").code
    assert {"there"} == set(found(path))


def test_export_and_import_are_a_round_trip(path: str, tmp_path: Path) -> None:
    """Metadata and status of every sandbox, UNKNOWN ones too; then export gives the same bytes."""
    call(path, "import", *SAMPLES[:6], "--status", MANIFEST)
    call(path, "import", *SAMPLES[6:])
    ended = Status(
        State.NOTREADY, 0, 7, exited_at=8, exit_status=-1, reason="A_1", message="ü\n\x1b"
    )
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("ü", config=pod("\x7f\u2028<", app="ü"), additional_ips=()), ended)
    first = call(path, "export", "--status", tmp_path / "statuses")
    assert (0, "") == (first.code, first.err)
    (tmp_path / "all").write_bytes(first.out)
    other = str(tmp_path / "other.db")
    done = call(other, "import", "--create", tmp_path / "all", "--status", tmp_path / "statuses")
    assert (0, "") == (done.code, done.err)
    assert found(path) == found(other)
    assert first.out == call(other, "export").out
    assert len(SAMPLES) + 2 == first.out.count(b"\n")


def test_export_writes_the_bytes_of_containerd(path: str) -> None:
    """Sandboxes are named by full ids or unique prefixes; each is written once."""
    call(path, "import", *SAMPLES)
    id = KNOWN["podnet-kubelet"]["id"]
    sample = (DATA / "containerd" / "podnet-kubelet.json").read_bytes()
    done = call(path, "export", id, id[:12])
    assert (0, sample + b"\n", "") == (done.code, done.out, done.err)
    assert sorted(file.read_bytes() for file in SAMPLES) == sorted(
        each for each in call(path, "export").out.splitlines() if b'"there"' not in each
    )


def test_export_of_a_missing_sandbox_writes_nothing(path: str) -> None:
    """Nor does an ambiguous or an empty id."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("there-2"), NOTREADY)
    for id, code in (("nope", 1), ("the", 2), ("", 2)):
        done = call(path, "export", "there", id)
        assert (code, b"") == (done.code, done.out)
        assert re.fullmatch(ERROR, done.err)


def test_export_omits_sandboxes_that_cannot_be_read(path: str) -> None:
    """The others are written; one line has the cause."""
    metadata = replace(sandbox("a"), config=None)
    with Store.open(path, reconcile=False) as store:
        store.add(metadata, NOTREADY)
    damaged = "UPDATE sandboxes SET config = x'ff', config_json = '{}' WHERE id = 'there'"
    with Store.open(path, reconcile=False) as store:
        store.delete("there")
        store.add(sandbox("there"), Status(State.UNKNOWN))
    execute(path, damaged)
    done = call(path, "export")
    assert (1, metadata.marshal_json() + b"\n") == (done.code, done.out)
    assert re.fullmatch(
        r"sandbox-registry: error: read metadata of sandbox 'there': .*\n", done.err
    )


def test_closed_pipe_ends_an_export_silently(path: str, tmp_path: Path) -> None:
    """A full disk is reported."""
    text = b"".join(line(f"m{n}") for n in range(2000))
    assert 0 == call(path, "import", "-", stdin=text).code
    program = f"{sys.executable} -m registry --db {path} export"
    for redirect, code, err in (
        ("| head -n 1; exit ${PIPESTATUS[0]}", 141, ""),
        (">/dev/full", 3, "sandbox-registry: error: write output: No space left on device\n"),
        (">&-", 0, ""),
    ):
        done = subprocess.run(
            ["bash", "-c", f"{program} {redirect}"],
            env=environment(),
            capture_output=True,
            check=False,
            text=True,
        )
        assert (code, err) == (done.returncode, done.stderr)
    done = subprocess.run(
        [*program.split(), "--status", "/dev/full"],
        env=environment(),
        capture_output=True,
        check=False,
        text=True,
    )
    assert (3, "") == (done.returncode, done.stdout)
    assert re.fullmatch(ERROR, done.stderr)
