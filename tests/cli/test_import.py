"""The verb import: exit code, stdout, stderr, and the registry afterwards."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sqlite3
import subprocess
import sys
import termios
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from registry import Metadata, State, Status, Store, Verdict
from registry.cli.containerd import documents
from registry.model.containerd import DOCUMENT_MAX
from tests.cli.program import KNOWN, MANIFEST, SAMPLES
from tests.cli.transfer import ERROR, call, found, line
from tests.tools import (
    NOTREADY,
    READY,
    environment,
    ids,
    python,
    query,
    running,
    sandbox,
    until,
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a registry of one sandbox, `there`, whose name is `taken`."""
    path = str(tmp_path / "registry.db")
    with Store.open(path) as store:
        store.add(sandbox("there", name="taken"), NOTREADY)
    return path


def test_import_keeps_documents_and_statuses_of_containerd(path: str) -> None:
    """Every sample, byte for byte, and its state, pid and time of creation."""
    done = call(path, "import", *SAMPLES, "--status", MANIFEST, "--json")
    assert (0, "") == (done.code, done.err)
    assert (len(SAMPLES), 0) == (done.json["imported"], done.json["refused"])
    now = found(path)
    for file in SAMPLES:
        known = KNOWN[file.stem]
        metadata, status = now[known["id"]]
        assert file.read_bytes() == metadata.marshal_json()
        assert (known["state"], known["pid"], known["created_at"]) == (
            str(status.state),
            status.pid,
            status.created_at,
        )


def test_import_without_statuses_makes_sandboxes_unknown_and_unverified(path: str) -> None:
    """They have no creator, so no reconcile takes them for interrupted creations."""
    done = call(path, "import", *SAMPLES)
    assert (0, "") == (done.code, done.err)
    assert f"imported {len(SAMPLES)} of {len(SAMPLES)}\n".encode() in done.out
    with Store.open(path) as store:
        assert store.recovery is not None
        assert len(SAMPLES) == store.recovery.counts[Verdict.UNVERIFIED]
        assert ["there"] == ids(store.list())


def test_one_refused_document_rolls_back_the_import(path: str) -> None:
    """Every refused document is reported, with the holder of its id or name."""
    text = line("a") + line("there", name="x") + line("b", name="taken") + b"{}\n" + line("a/b")
    before = query(path, "SELECT * FROM sandbox_transitions")
    done = call(path, "import", "-", "--json", stdin=text)
    assert 1 == done.code
    advice = "0 imported; --keep-going imports the others"
    assert f"sandbox-registry: error: import: 4 of 5 refused, {advice}\n" == done.err
    report = done.json
    assert (0, 4) == (report["imported"], report["refused"])
    assert [
        ("-:1", "a", False, ""),
        ("-:2", "there", False, "there"),
        ("-:3", "b", False, "there"),
        ("-:4", "", False, ""),
        ("-:5", "a/b", False, ""),
    ] == [
        tuple(each[field] for field in ("source", "id", "imported", "holder"))
        for each in report["sandboxes"]
    ]
    errors = [each["error"] for each in report["sandboxes"]]
    assert ("", 'unsupported version: ""') == (errors[0], errors[3])
    assert "the id is taken" in errors[1]
    assert "name 'taken' is reserved for 'there'" in errors[2]
    assert ["there"] == list(found(path))
    assert before == query(path, "SELECT * FROM sandbox_transitions")


def test_an_import_that_is_refused_whole_does_not_advise_to_keep_going(path: str) -> None:
    """There are no others to import."""
    for option in ([], ["--keep-going"]):
        done = call(path, "import", "-", *option, stdin=line("there") + b"{}\n")
        assert 1 == done.code
        assert "sandbox-registry: error: import: 2 of 2 refused, 0 imported\n" == done.err


def test_keep_going_imports_the_others(path: str) -> None:
    """The code is 1 too."""
    text = line("a") + line("there", name="x") + b"no JSON\n" + line("b")
    done = call(path, "import", "-", "--keep-going", stdin=text)
    assert 1 == done.code
    assert re.fullmatch(ERROR, done.err)
    assert b"imported 2 of 4\n" in done.out
    assert {"there", "a", "b"} == set(found(path))


@pytest.mark.parametrize(
    ("second", "holder"),
    [(line("a", name="x"), "a"), (line("b", name="name-a"), "a")],
    ids=["id", "name"],
)
def test_import_refuses_a_second_document_with_the_same_id_or_name(
    path: str, second: bytes, holder: str
) -> None:
    """The first document holds it, also if the import is rolled back."""
    done = call(path, "import", "-", "--json", stdin=line("a") + second)
    refused = done.json["sandboxes"][1]
    assert (1, holder) == (done.code, refused["holder"])
    assert "-:1 already has its id or name" == refused["error"]
    assert {"there"} == set(found(path))
    done = call(path, "import", "-", "--keep-going", stdin=line("a") + second)
    assert 1 == done.code
    assert {"there", "a"} == set(found(path))


def test_import_creates_a_registry_only_on_request(tmp_path: Path) -> None:
    """A disk that is not mounted yet must not look like an empty node."""
    path = str(tmp_path / "new.db")
    done = call(path, "import", SAMPLES[0])
    assert 3 == done.code
    assert done.err.endswith("is its disk mounted? if so, --create makes a registry\n")
    assert not os.path.exists(path)
    assert 0 == call(path, "import", SAMPLES[0], "--create").code
    assert 1 == len(found(path))


def test_import_of_an_empty_file_succeeds(path: str) -> None:
    """An empty registry exports one."""
    done = call(path, "import", "-")
    assert (0, b"imported 0 of 0\n", "") == (done.code, done.out, done.err)


STATUSES = [
    {"id": "a", "state": "SANDBOX_READY", "pid": 0, "created_at": 5, "other": [1]},
    {"id": "b", "state": "NOTREADY", "exited_at": 9, "exit_status": 137, "reason": "Killed"},
]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(map(json.dumps, STATUSES)),
        json.dumps(STATUSES, indent=2),
        json.dumps({"x": STATUSES[0], "y": STATUSES[1]}),
        json.dumps({each["id"]: {k: v for k, v in each.items() if k != "id"} for each in STATUSES}),
    ],
    ids=["lines", "array", "object", "by key"],
)
def test_statuses_are_read_in_each_form(path: str, tmp_path: Path, text: str) -> None:
    """Statuses of other sandboxes are ignored; a sandbox without a status is UNKNOWN."""
    (tmp_path / "s").write_text(text)
    done = call(path, "import", "-", "--status", tmp_path / "s", stdin=line("a") + line("c"))
    assert (0, "") == (done.code, done.err)
    assert 0 == call(path, "import", "-", "--status", tmp_path / "s", stdin=line("b")).code
    now = {id: status for id, (_, status) in found(path).items()}
    assert Status(State.READY, created_at=5) == now["a"]
    ended = Status(State.NOTREADY, exited_at=9, exit_status=137, reason="Killed")
    assert (ended, Status(State.UNKNOWN)) == (now["b"], now["c"])


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_the_output_of_list_holds_the_statuses_of_an_import(
    path: str, tmp_path: Path, form: str
) -> None:
    """Times are those under `_ns`, to the nanosecond."""
    status = Status(State.NOTREADY, 0, 1_700_000_000_123_456_789, 2**60 + 1, 1, "Broken", "it is")
    with Store.open(path, reconcile=False) as store:
        store.add(Metadata("a", "name-a", None), status)
    (tmp_path / "s").write_bytes(call(path, "list", "-o", form).out)
    sandboxes = call(path, "export", "a").out
    assert 0 == call(path, "delete", "a").code
    assert 0 == call(path, "import", "-", "--status", tmp_path / "s", stdin=sandboxes).code
    assert status == found(path)["a"][1]


@pytest.mark.parametrize(
    "text",
    [
        *(b"no", b"7", b"[7]", b'[{"state":"READY"}]', b'{"id":"a"}\n{"id":"a"}', b'{"a":7}'),
        *(b"\xff", b"[" * 100_000, b"9" * 5000, b'[{"id":7}]', b"null", b'{"id":"a"} x'),
        b'{"a":{"state":"READY"},"a":{"state":"NOTREADY"}}',
    ],
    ids=lambda text: repr(text[:12]),
)
def test_file_without_statuses_is_refused(path: str, tmp_path: Path, text: bytes) -> None:
    """One line has the cause, and nothing is imported."""
    (tmp_path / "s").write_bytes(text)
    done = call(path, "import", SAMPLES[0], "--status", tmp_path / "s")
    assert (1, b"") == (done.code, done.out)
    assert re.fullmatch(ERROR, done.err)
    assert {"there"} == set(found(path))


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"state": None},
        {"state": "RUNNING"},
        {"state": ["READY"]},
        {"state": "READY", "pid": "7"},
        {"state": "READY", "pid": -1},
        {"state": "READY", "created_at": 1.5},
        {"state": "READY", "created_at": 2**63},
        {"state": "READY", "created_at": "2025-10-09T08:53:20Z"},
        {"state": "READY", "created_at_ns": "five"},
        {"state": "READY", "created_at_ns": "9" * 5000},
        {"state": "READY", "reason": "two words"},
        {"state": "READY", "message": {}},
    ],
    ids=str,
)
def test_invalid_status_refuses_its_document(
    path: str, tmp_path: Path, status: dict[str, Any]
) -> None:
    """The others are imported."""
    (tmp_path / "s").write_text(json.dumps({"a": status}))
    text = line("a") + line("b")
    done = call(
        path, "import", "-", "--status", tmp_path / "s", "--keep-going", "--json", stdin=text
    )
    assert 1 == done.code
    assert [False, True] == [each["imported"] for each in done.json["sandboxes"]]
    assert {"there", "b"} == set(found(path))


# Files that cannot be imported.


def test_unreadable_file_is_refused_like_a_document(path: str, tmp_path: Path) -> None:
    """A missing file, a directory, a binary, a name that is not UTF-8: each is reported."""
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 16)
    strange = tmp_path / os.fsdecode(b"\xff.json")
    strange.write_bytes(line("strange"))
    done = call(
        *(path, "import", "--keep-going", "--json"),
        *(tmp_path / "missing", tmp_path, tmp_path / "binary", strange),
    )
    assert 1 == done.code
    assert re.fullmatch(ERROR, done.err)
    first, second, *_, last = done.json["sandboxes"]
    assert f"read {str(tmp_path / 'missing')!r}: No such file or directory" == first["error"]
    assert f"read {str(tmp_path)!r}: Is a directory" == second["error"]
    assert (True, "strange") == (last["imported"], last["id"])
    assert {"there", "strange"} == set(found(path))


def test_unreadable_file_of_statuses_is_reported_in_one_line(path: str, tmp_path: Path) -> None:
    """For import and for export."""
    for verb in (["import", SAMPLES[0]], ["export"]):
        done = call(path, *verb, "--status", tmp_path)
        assert (True, b"") == (done.code in {1, 3}, done.out)
        assert re.fullmatch(ERROR, done.err)
    assert 1 == call(path, "import", SAMPLES[0], "--status", tmp_path / "missing").code


def test_document_over_the_limit_is_refused_and_the_next_imported(
    path: str, tmp_path: Path
) -> None:
    """On one line, or on many."""
    big = b'{"x":"' + b"x" * DOCUMENT_MAX + b'"}\n'
    lines = b'{"x":[\n' + (b'"' + b"x" * 2**20 + b'",\n') * 33 + b"7]}\n"
    for n, text in enumerate((big, lines)):
        (tmp_path / "big").write_bytes(text + line(f"after-{n}"))
        done = call(path, "import", tmp_path / "big", "--keep-going", "--json")
        over, after = done.json["sandboxes"]
        assert (1, f"the document is over the limit of {DOCUMENT_MAX} bytes") == (
            done.code,
            over["error"],
        )
        assert after["imported"]


def test_a_huge_file_is_read_in_bounded_memory(path: str, tmp_path: Path) -> None:
    """A line longer than the memory, and millions of invalid lines."""
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**30)
    (tmp_path / "many").write_bytes(b"x\n" * 5_000_000)
    command = f"ulimit -v {2**19}; exec {sys.executable} -m registry --db {path} import --json"
    done = subprocess.run(
        f"{command} {tmp_path}/sparse {tmp_path}/many",
        shell=True,
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert (1, True) == (done.returncode, done.stdout != b""), done.stderr
    outcomes = json.loads(done.stdout)["sandboxes"]
    assert "over the limit" in outcomes[0]["error"]
    assert documents.INVALID_MAX + 2 == len(outcomes)
    assert "the rest is not read" in outcomes[-1]["error"]


@pytest.mark.parametrize("redirect", ["<&-", ">&-", "2>&-", "| head -c 1"])
def test_closed_streams_cause_no_traceback(path: str, tmp_path: Path, redirect: str) -> None:
    """A pipe without a reader is among them."""
    (tmp_path / "many").write_bytes(b"".join(line(f"m{n}") for n in range(2000)))
    files = "-" if redirect == "<&-" else f"{tmp_path}/many"
    command = f"{sys.executable} -m registry --db {path} import {files} {redirect}"
    done = subprocess.run(
        command, shell=True, env=environment(), capture_output=True, check=False, text=True
    )
    assert "Traceback" not in done.stderr
    assert (1 if redirect == "<&-" else 0) == done.returncode


def test_stdin_is_read_before_the_registry_is_locked(path: str) -> None:
    """A slow writer of documents delays no other process."""
    code = "import sys; from registry.cli.program import main; sys.exit(main(sys.argv[1:]))"
    with running(code, "--db", path, "import", "-") as process:
        assert process.stdin is not None
        process.stdin.write(line("a").decode())
        process.stdin.flush()
        with Store.open(path, reconcile=False, timeout=5) as store:
            store.add(sandbox("meanwhile"), READY)
        out, err = process.communicate(line("b").decode())
        assert (0, "") == (process.returncode, err)
        assert "imported 2 of 2" in out
    assert {"there", "meanwhile", "a", "b"} == set(found(path))


def test_a_locked_registry_is_unavailable_and_unchanged(path: str) -> None:
    """The error comes after the timeout."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        done = call(path, "import", SAMPLES[0], "--timeout", 0.2)
    assert (3, b"") == (done.code, done.out)
    assert re.fullmatch(ERROR, done.err)
    assert {"there"} == set(found(path))


def test_statuses_larger_than_the_memory_are_reported_in_one_line(
    path: str, tmp_path: Path
) -> None:
    """The registry is unchanged."""
    many = {str(n): {"state": "READY", "pid": n, "message": "x" * 99} for n in range(100_000)}
    (tmp_path / "s").write_text(json.dumps(many))
    code = """
        import resource, sys
        from registry.cli import program
        with open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[0])
        limit = pages * resource.getpagesize() + 2**25
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        sys.exit(program.main(sys.argv[1:]))
        """
    done = subprocess.run(
        python(code, "--db", path, "import", "-", "--status", tmp_path / "s"),
        input=line("a"),
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert (3, b"") == (done.returncode, done.stdout), done.stderr
    assert re.fullmatch(ERROR, done.stderr.decode())
    assert {"there"} == set(found(path))


@pytest.mark.parametrize("endless", ["cat /dev/zero", "tr '\\0' ' ' </dev/zero", "yes ''"])
def test_endless_file_is_not_read_to_the_end(path: str, endless: str) -> None:
    """One line of it, one of spaces, and lines that are empty."""
    program = f"{sys.executable} -m registry --db {path} import - --keep-going --json"
    done = subprocess.run(
        f"{endless} | {program}", shell=True, env=environment(), capture_output=True, check=False
    )
    assert 1 == done.returncode
    assert "the rest is not read" in json.loads(done.stdout)["sandboxes"][-1]["error"]


def test_an_endless_file_is_not_read_to_the_end_by_name(path: str) -> None:
    """As documents, and as statuses."""
    done = call(path, "import", "/dev/zero", "--keep-going", "--json")
    assert 1 == done.code
    assert "the rest is not read" in done.json["sandboxes"][-1]["error"]
    done = call(path, "import", SAMPLES[0], "--status", "/dev/zero")
    assert 1 == done.code
    assert "the file is over the limit" in done.err


def test_a_fifo_without_a_writer_is_refused_at_once(path: str, tmp_path: Path) -> None:
    """As documents, and as statuses: otherwise the program would wait for ever."""
    os.mkfifo(tmp_path / "fifo")
    expected = "no process writes to this FIFO; start the writer first"
    done = call(path, "import", tmp_path / "fifo", "--json")
    assert 1 == done.code
    assert [f"read {str(tmp_path / 'fifo')!r}: {expected}"] == [
        each["error"] for each in done.json["sandboxes"]
    ]
    done = call(path, "import", SAMPLES[0], "--status", tmp_path / "fifo")
    assert 1 == done.code
    assert expected in done.err


def test_a_fifo_with_a_writer_and_a_pipe_are_read_to_the_end(path: str, tmp_path: Path) -> None:
    """The writer may write later; the pipe of a shell may be empty."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)
    program = [sys.executable, "-m", "registry", "--db", path, "import"]
    with subprocess.Popen([*program, fifo], env=environment(), stdout=subprocess.PIPE) as reader:
        until(lambda: f"{fifo}\n" in opened_by(reader.pid))
        os.write(writer, line("from-fifo"))
        until(lambda: fcntl.ioctl(writer, termios.FIONREAD, bytes(4)) == bytes(4))
        os.close(writer)
        assert reader.stdout is not None
        assert reader.stdout.read().endswith(b"imported 1 of 1\n")
    (tmp_path / "file").write_bytes(line("from-pipe"))
    command = f'"$@" <(cat {tmp_path}/file) <(true)'
    done = subprocess.run(
        ["bash", "-c", command, "bash", *program],
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert (0, b"") == (done.returncode, done.stderr)
    assert {"there", "from-fifo", "from-pipe"} == set(found(path))


def opened_by(pid: int) -> str:
    """Return the paths of the files that process *pid* has open, one on each line."""
    folder, paths = f"/proc/{pid}/fd", []
    for fd in os.listdir(folder):
        with suppress(OSError):  # closed meanwhile
            paths.append(os.readlink(f"{folder}/{fd}") + "\n")
    return "".join(paths)


def test_stdin_can_be_named_only_once(path: str, tmp_path: Path) -> None:
    """Nor can stdout be both sandboxes and statuses."""
    for args in ("import - -", "import - --status -", "export --status -"):
        done = call(path, *args.split(), stdin=line("a"))
        assert (2, b"") == (done.code, done.out)
        assert re.fullmatch(ERROR, done.err)
    assert {"there"} == set(found(path))


def test_import_counts_statuses_that_belong_to_no_document(path: str, tmp_path: Path) -> None:
    """Their ids may be truncated."""
    (tmp_path / "s").write_text(json.dumps({"a": {"state": "READY"}, "b": {"state": "READY"}}))
    done = call(path, "import", "-", "--status", tmp_path / "s", stdin=line("a"))
    assert done.out.endswith(b"imported 1 of 1\n1 of 2 statuses belong to no document\n")
