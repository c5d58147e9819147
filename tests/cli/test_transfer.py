"""import and export: exit code, stdout, stderr, and what is in the registry afterwards."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import tracemalloc
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import registry
from registry import Metadata, State, Status, Store, Verdict
from registry.cli import documents, import_export
from registry.cli.documents import Document
from registry.model.containerd import DOCUMENT_MAX
from tests.golden import DATA
from tests.tools import (
    NOTREADY,
    READY,
    environment,
    execute,
    ids,
    pod,
    python,
    query,
    running,
    sandbox,
)

SAMPLES = sorted(
    file for file in (DATA / "containerd").glob("*.json") if file.name != "MANIFEST.json"
)
MANIFEST = DATA / "containerd" / "MANIFEST.json"
KNOWN: dict[str, Any] = json.loads(MANIFEST.read_text(encoding="utf-8"))
ERROR = r"sandbox-registry: error: .+\n"


class Done:
    """What the program left behind."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr.decode()

    @property
    def json(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Return a registry of one sandbox, `there`, whose name is `taken`."""
    path = str(tmp_path / "registry.db")
    with Store.open(path) as store:
        store.add(sandbox("there", name="taken"), NOTREADY)
    return path


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


# Importing.


def test_what_containerd_stored_is_imported_with_its_statuses(path: str) -> None:
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


def test_without_a_status_they_are_unknown_and_unverified(path: str) -> None:
    """Nobody is their creator, so no reconcile takes them for interrupted creations."""
    done = call(path, "import", *SAMPLES)
    assert (0, "") == (done.code, done.err)
    assert f"imported {len(SAMPLES)} of {len(SAMPLES)}\n".encode() in done.out
    with Store.open(path) as store:
        assert store.recovery is not None
        assert len(SAMPLES) == store.recovery.counts[Verdict.UNVERIFIED]
        assert ["there"] == ids(store.list())


def test_one_that_is_refused_stops_all(path: str) -> None:
    """Every one that is refused is reported, with its holder, and nothing has changed."""
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


def test_keep_going_takes_the_others(path: str) -> None:
    """The code is 1 all the same."""
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
def test_two_of_one_import_cannot_have_one_id_or_name(
    path: str, second: bytes, holder: str
) -> None:
    """The first holds it, whether or not it stays."""
    done = call(path, "import", "-", "--json", stdin=line("a") + second)
    refused = done.json["sandboxes"][1]
    assert (1, holder) == (done.code, refused["holder"])
    assert "-:1 already has its id or name" == refused["error"]
    assert {"there"} == set(found(path))
    done = call(path, "import", "-", "--keep-going", stdin=line("a") + second)
    assert 1 == done.code
    assert {"there", "a"} == set(found(path))


def test_a_registry_is_made_on_request_only(tmp_path: Path) -> None:
    """A disk that is not mounted yet is no empty node."""
    path = str(tmp_path / "new.db")
    done = call(path, "import", SAMPLES[0])
    assert 3 == done.code
    assert done.err.endswith("is its disk mounted? if so, --create makes a registry\n")
    assert not os.path.exists(path)
    assert 0 == call(path, "import", SAMPLES[0], "--create").code
    assert 1 == len(found(path))


def test_nothing_to_import_is_fine(path: str) -> None:
    """As what an empty registry exports."""
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
    """Those of others are passed over, and who has none is UNKNOWN."""
    (tmp_path / "s").write_text(text)
    done = call(path, "import", "-", "--status", tmp_path / "s", stdin=line("a") + line("c"))
    assert (0, "") == (done.code, done.err)
    assert 0 == call(path, "import", "-", "--status", tmp_path / "s", stdin=line("b")).code
    now = {id: status for id, (_, status) in found(path).items()}
    assert Status(State.READY, created_at=5) == now["a"]
    ended = Status(State.NOTREADY, exited_at=9, exit_status=137, reason="Killed")
    assert (ended, Status(State.UNKNOWN)) == (now["b"], now["c"])


@pytest.mark.parametrize(
    "text",
    [
        *(b"no", b"7", b"[7]", b'[{"state":"READY"}]', b'{"id":"a"}\n{"id":"a"}', b'{"a":7}'),
        *(b"\xff", b"[" * 100_000, b"9" * 5000, b'[{"id":7}]', b"null", b'{"id":"a"} x'),
        b'{"a":{"state":"READY"},"a":{"state":"NOTREADY"}}',
    ],
    ids=lambda text: repr(text[:12]),
)
def test_a_file_that_holds_no_statuses_is_refused(path: str, tmp_path: Path, text: bytes) -> None:
    """In one line, and nothing is imported."""
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
        {"state": "READY", "reason": "two words"},
        {"state": "READY", "message": {}},
    ],
    ids=str,
)
def test_a_status_that_cannot_be_is_the_refusal_of_its_document(
    path: str, tmp_path: Path, status: dict[str, Any]
) -> None:
    """The others go."""
    (tmp_path / "s").write_text(json.dumps({"a": status}))
    text = line("a") + line("b")
    done = call(
        path, "import", "-", "--status", tmp_path / "s", "--keep-going", "--json", stdin=text
    )
    assert 1 == done.code
    assert [False, True] == [each["imported"] for each in done.json["sandboxes"]]
    assert {"there", "b"} == set(found(path))


# Whatever a file may be.


def test_a_file_that_cannot_be_read_is_refused_like_a_document(path: str, tmp_path: Path) -> None:
    """Missing, a directory, binary, a name that is no UTF-8: each reported, none a traceback."""
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


def test_a_status_file_that_cannot_be_read_is_one_line(path: str, tmp_path: Path) -> None:
    """For import and for export."""
    for verb in (["import", SAMPLES[0]], ["export"]):
        done = call(path, *verb, "--status", tmp_path)
        assert (True, b"") == (done.code in {1, 3}, done.out)
        assert re.fullmatch(ERROR, done.err)
    assert 1 == call(path, "import", SAMPLES[0], "--status", tmp_path / "missing").code


def test_a_document_over_the_limit_is_refused_and_the_next_is_taken(
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
    """A line that is longer than the memory, and lines that are more than anybody wants."""
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
def test_closed_streams_are_no_traceback(path: str, tmp_path: Path, redirect: str) -> None:
    """A pipe that nobody reads among them."""
    (tmp_path / "many").write_bytes(b"".join(line(f"m{n}") for n in range(2000)))
    files = "-" if redirect == "<&-" else f"{tmp_path}/many"
    command = f"{sys.executable} -m registry --db {path} import {files} {redirect}"
    done = subprocess.run(
        command, shell=True, env=environment(), capture_output=True, check=False, text=True
    )
    assert "Traceback" not in done.stderr
    assert (1 if redirect == "<&-" else 0) == done.returncode


def test_stdin_is_read_before_the_registry_is_locked(path: str) -> None:
    """A slow writer of documents holds up nobody."""
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
    """After the timeout."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        done = call(path, "import", SAMPLES[0], "--timeout", 0.2)
    assert (3, b"") == (done.code, done.out)
    assert re.fullmatch(ERROR, done.err)
    assert {"there"} == set(found(path))


def test_statuses_that_the_memory_does_not_hold_are_no_traceback(path: str, tmp_path: Path) -> None:
    """One line, and the registry is as it was."""
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


# Taking a file apart.


def taken(*lines: bytes) -> list[tuple[int, str]]:
    """Return the line of each document of a file of *lines*, and its id, "" where it has none."""
    found = documents.documents("f", BytesIO(b"\n".join(lines)))
    return [
        (int(each.source.removeprefix("f:")), "" if each.metadata is None else each.metadata.id)
        for each in found
    ]


A, B = sandbox("a").marshal_json(), sandbox("b").marshal_json()
CUT = A[: len(A) // 2]
BARE = A.replace(b'{"Version":', b'{ "Version":')
SHOWN = json.dumps(json.loads(A), indent=1).encode()
FLAT = json.dumps(json.loads(A), indent=0).encode()
SPLIT = A.replace(b'"Metadata":', b'"Metadata":\n').replace(b"}}", b"}\n}")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b""], []),
        ([b"", b" \r", b""], []),
        ([A], [(1, "a")]),
        ([A, b"", b"", B + b"\r", b""], [(1, "a"), (4, "b")]),
        ([b"", SHOWN, B], [(2, "a"), (SHOWN.count(b"\n") + 3, "b")]),
        ([FLAT, B], [(1, "a"), (FLAT.count(b"\n") + 2, "b")]),
        ([SPLIT, B], [(1, "a"), (SPLIT.count(b"\n") + 2, "b")]),
        ([A.replace(b'"name-a"', b'"}{[\\""'), B], [(1, "a"), (2, "b")]),
        ([b"no", A, b"}", B], [(1, ""), (2, "a"), (3, ""), (4, "b")]),
        ([A + B, B], [(1, ""), (2, "b")]),
        ([CUT, A, CUT, B], [(1, ""), (2, "a"), (3, ""), (4, "b")]),
        ([CUT, BARE, CUT, SHOWN], [(1, ""), (2, "a"), (3, ""), (4, "a")]),
        ([b"[", CUT.lstrip(b"{"), b"", SHOWN, b"x"], [(1, ""), (4, "a"), (24, "")]),
        ([SHOWN[:-9], SHOWN, FLAT[:-9], FLAT], [(1, ""), (19, "a"), (39, ""), (57, "a")]),
    ],
    ids=range(14),
)
def test_a_file_is_taken_apart_into_documents(
    lines: list[bytes], expected: list[tuple[int, str]]
) -> None:
    """Lines, many lines; and what is broken swallows nothing that comes after it."""
    assert expected == taken(*lines)


def test_documents_of_many_lines_are_found_whole() -> None:
    """Every sample, written for people, one after the other."""
    texts = [json.dumps(json.loads(file.read_bytes()), indent=1).encode() for file in SAMPLES]
    assert [KNOWN[file.stem]["id"] for file in SAMPLES] == [id for _, id in taken(*texts)]


@pytest.mark.parametrize("first", [b'{"x":"', b'{"x":[' + b"{" * DOCUMENT_MAX], ids=["cut", "deep"])
def test_what_is_cut_off_before_more_than_a_document_may_have(first: bytes) -> None:
    """Everything behind it is found."""
    big = sandbox("big", config=pod(x="x" * 2**20)).marshal_json()
    many = [big.replace(b'"big"', b'"%d"' % n).replace(b'{"V', b'{ "V') for n in range(40)]
    assert ["", *map(str, range(40))] == [id for _, id in taken(first, *many)]


@pytest.mark.parametrize("endless", ["cat /dev/zero", "tr '\\0' ' ' </dev/zero", "yes ''"])
def test_a_file_without_an_end_is_given_up(path: str, endless: str) -> None:
    """One line of it, one of spaces, and lines that are empty."""
    program = f"{sys.executable} -m registry --db {path} import - --keep-going --json"
    done = subprocess.run(
        f"{endless} | {program}", shell=True, env=environment(), capture_output=True, check=False
    )
    assert 1 == done.returncode
    assert "the rest is not read" in json.loads(done.stdout)["sandboxes"][-1]["error"]


def test_what_is_broken_again_and_again_is_read_twice_and_no_more() -> None:
    """Documents of many lines of which none ends; a third reading would take hours."""
    read = 0

    class Counted(BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            nonlocal read
            line = super().readline(size)
            read += len(line)
            return line

    text = b"\n".join([SHOWN[:-1]] * 900)
    found = list(documents.documents("f", Counted(text)))
    assert [""] * 900 == ["" if each.metadata is None else each.metadata.id for each in found]
    assert len(text) == read


def test_brackets_are_counted_in_little_memory() -> None:
    """Of a document of the greatest size that is all brackets and texts."""
    text = b'{"x":[' + b'"",' * (DOCUMENT_MAX // 3)
    tracemalloc.start()
    try:
        assert 2 == documents._opened(text[: 2**22])
        assert 2**20 > tracemalloc.get_traced_memory()[1] - 2**22
    finally:
        tracemalloc.stop()


def test_stdin_is_read_once(path: str, tmp_path: Path) -> None:
    """It cannot be both, and stdout cannot be both either."""
    for args in ("import - -", "import - --status -", "export --status -"):
        done = call(path, *args.split(), stdin=line("a"))
        assert (2, b"") == (done.code, done.out)
        assert re.fullmatch(ERROR, done.err)
    assert {"there"} == set(found(path))


# What an import costs.


def traced(path: str, documents: int) -> tuple[int, set[str]]:
    """Return what loading so many documents executes: lines of `transfer`, and files of functions.

    A line of a comprehension counts once for each turn of it. Each of the documents but the first
    is refused, since all have one name.
    """
    found = [documents_of(f"s{n}", name="n") for n in range(documents)]
    candidates = import_export.prepare(found, {})
    steps, files = 0, set()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal steps
        files.add(frame.f_code.co_filename)
        if frame.f_code.co_filename != import_export.__file__:
            return None
        steps += event == "line"
        return trace

    with Store.open(path, reconcile=False) as store:
        sys.settrace(trace)
        try:
            outcomes = import_export.load(store, candidates, keep_going=True)
        finally:
            sys.settrace(None)
    assert [True] + [False] * (documents - 1) == [each.imported for each in outcomes]
    return steps, files


def documents_of(id: str, **fields: Any) -> Document:
    """Return the document of a sandbox."""
    return Document(f"file:{id}", sandbox(id, **fields))


def test_an_import_of_twice_as_many_documents_takes_twice_as_many_steps(tmp_path: Path) -> None:
    """Counted, not timed: what is done for one does not grow with those before it."""
    few, _ = traced(str(tmp_path / "few.db"), 100)
    many, _ = traced(str(tmp_path / "many.db"), 400)
    assert 100 < few < many < 4.5 * few


def test_documents_are_encoded_and_observed_before_the_lock_is_taken(tmp_path: Path) -> None:
    """While it is held nothing is decoded, validated, or looked up on the host."""
    _, files = traced(str(tmp_path / "registry.db"), 10)
    package = os.path.dirname(registry.__file__)
    modules = {os.path.relpath(file, package) for file in files if file.startswith(package)}
    assert "tables/writes.py" in modules
    assert modules.isdisjoint({"model/metadata.py", "model/cni.py"})
    assert not [each for each in modules if each.startswith(("cri/", "host/netns", "host/process"))]


# Exporting.


@pytest.mark.parametrize("suffix", ["", "-wal", "-lock"])
def test_the_registry_is_not_overwritten_with_its_statuses(path: str, suffix: str) -> None:
    """A slip of `--status` for `--db` would lose everything."""
    os.symlink(f"{path}{suffix}", f"{path}.link")
    for name in (f"{path}{suffix}", f"{path}.link"):
        done = call(path, "export", "--status", name)
        assert (2, b"") == (done.code, done.out)
    assert 0 == call(path, "export", "--status", f"{path}.statuses").code
    assert {"there"} == set(found(path))


def test_statuses_that_belong_to_nothing_are_counted(path: str, tmp_path: Path) -> None:
    """Their ids may have been cut."""
    (tmp_path / "s").write_text(json.dumps({"a": {"state": "READY"}, "b": {"state": "READY"}}))
    done = call(path, "import", "-", "--status", tmp_path / "s", stdin=line("a"))
    assert done.out.endswith(b"imported 1 of 1\n1 of 2 statuses belong to no document\n")


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


def test_export_writes_containerds_bytes_of_those_asked_for(path: str) -> None:
    """By whole ids or unique prefixes, each once."""
    call(path, "import", *SAMPLES)
    id = KNOWN["podnet-kubelet"]["id"]
    sample = (DATA / "containerd" / "podnet-kubelet.json").read_bytes()
    done = call(path, "export", id, id[:12])
    assert (0, sample + b"\n", "") == (done.code, done.out, done.err)
    assert sorted(file.read_bytes() for file in SAMPLES) == sorted(
        each for each in call(path, "export").out.splitlines() if b'"there"' not in each
    )


def test_what_is_not_there_cannot_be_exported(path: str) -> None:
    """Nothing is written then."""
    with Store.open(path, reconcile=False) as store:
        store.add(sandbox("there-2"), NOTREADY)
    for id, code in (("nope", 1), ("the", 2), ("", 2)):
        done = call(path, "export", "there", id)
        assert (code, b"") == (done.code, done.out)
        assert re.fullmatch(ERROR, done.err)


def test_what_cannot_be_written_as_json_is_left_out(path: str) -> None:
    """The others go; one line says why."""
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


def test_a_closed_pipe_ends_an_export_quietly(path: str, tmp_path: Path) -> None:
    """And a full disk is said to be one."""
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
