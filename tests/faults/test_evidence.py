"""A file that cannot be inspected is neither missing nor replaced: errors follow the evidence."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from registry import Store
from tests import needs
from tests.tools import LONG, environment, ids, python, run

WORK = """
    import sys
    from registry import RegistryError, Store
    from registry.engine import file_identity
    from tests.tools import READY, sandbox

    file_identity.STAT_CHECKS = int(sys.argv[2])
    try:
        with Store.open(sys.argv[1], timeout=10) as store:
            for id in sys.argv[3]:
                store.add(sandbox(id), READY)
                print("added", id)
            store.list()
            with Store.open(sys.argv[1], read_only=True) as reader:
                reader.list()
        print("closed")
    except RegistryError as error:
        print("error", type(error).__name__, getattr(error, "errno", 0), error)
    """
"""Opens a registry, adds sandboxes whose ids are letters, and reads them."""
FAILING = ("ENOMEM", "EACCES", "EIO")
CALLS = ("newfstatat", "statx")
WRONG = {"DataLossError", "NotFoundError"}
"""Errors that say that a file is missing, replaced or damaged."""


def work(path: str, *strace: str, checks: int = 32, letters: str = "ab") -> tuple[list[str], str]:
    """Run the work under strace, and return its output and the trace of the files of *path*.

    Args:
        path: the registry.
        strace: options.
        checks: of the files by `stat`, before those by `statx`.
        letters: ids to add.
    """
    log = f"{os.path.dirname(path)}.log"
    files = [path + suffix for suffix in ("", "-wal", "-shm", "-journal", "-lock", "-queue")]
    names = [each for file in files for each in ("-P", file)]
    command = ["strace", "-f", "-qq", "-o", log, *names, *strace]
    done = subprocess.run(
        [*command, *python(WORK, path, checks, letters)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    text = Path(log).read_text(encoding="utf-8", errors="replace")
    os.unlink(log)
    return done.stdout.splitlines(), text


def made(path: Path, *, there: bool) -> str:
    """Return the path of a registry in the new directory *path*; it is made if *there*."""
    path.mkdir()
    if there:
        Store.open(path / "registry.db").close()
    return str(path / "registry.db")


@needs.strace
@pytest.mark.parametrize("there", [False, True], ids=["new", "registry"])
@pytest.mark.parametrize("checks", [32, 0], ids=["stat", "statx"])
def test_a_file_that_cannot_be_inspected_is_not_reported_as_missing_or_replaced(
    tmp_path: Path, tried: Callable[[str], None], *, checks: int, there: bool
) -> None:
    """Each of the calls by which this package and SQLite inspect the files fails once."""
    _, log = work(
        made(tmp_path / "all", there=there), "-e", f"trace={','.join(CALLS)}", checks=checks
    )
    points = [
        (call, number, FAILING[number % len(FAILING)])
        for call in CALLS
        for number in range(1, len(re.findall(rf"\b{call}\(", log)) + 1)
    ]
    chosen = points if LONG else points[checks % 5 :: 19]
    errors = 0
    for call, number, fault in chosen:
        path = made(tmp_path / f"{call}-{number}-{fault}", there=there)
        rule = f"inject={call}:error={fault}:when={number}"
        said, log = work(path, "-e", f"trace={call}", "-e", rule, checks=checks)
        assert "(INJECTED)" in log
        outcome = said[-1].split()
        if outcome[0] == "error":
            errors += 1
            assert outcome[1] not in WRONG, (rule, said)
            if ": inspect '" in said[-1]:
                assert getattr(errno, fault) == int(outcome[2]), (rule, said)
        added = [line.split()[1] for line in said if line.startswith("added")]
        with Store.open(path) as store:
            assert added == ids(store.list())[: len(added)], (rule, said)
            assert [] == store.check()
    tried(
        f"inspections that failed, {checks} checks by stat: {len(chosen)} of {len(points)}, "
        f"{errors} errors"
    )


HIDDEN = """
    import os, sys
    from dataclasses import replace
    import ctypes, encodings.ascii  # now, since the interpreter may lie where only root can read
    from registry import RegistryError, Store
    from tests.tools import READY, sandbox

    path, directory = sys.argv[1], os.path.dirname(sys.argv[1])
    with Store.open(sys.argv[2]) as warm:  # imports what is used
        warm.add(sandbox("a"), READY).status.update(lambda old: old)
        assert not warm.check()
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)

    def hide(old):
        os.chmod(directory, 0)
        return replace(old, message="hidden")

    store = Store.open(path)
    status = store.add(sandbox("a"), READY).status
    for fn in (hide, lambda old: old):
        try:
            status.update(fn)
        except RegistryError as error:
            print(type(error).__name__, error)
        os.chmod(directory, 0o700)
    os.chmod(directory, 0)
    store.close()
    os.chmod(directory, 0o700)
    with Store.open(path) as again:
        print(again.get("a").status.get().message, again.check())
    """


@needs.another_user
def test_a_commit_into_files_that_are_hidden_meanwhile_is_unknown() -> None:
    """It is not lost, nor acknowledged; nothing is written any more until the file is reopened."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        own = f"{folder}/own"
        os.mkdir(own, 0o700)
        os.chown(own, 65534, 65534)
        said = run(HIDDEN, f"{own}/r.db", f"{folder}/warm.db").splitlines()
    assert 3 == len(said), said
    first, second, found = said
    assert first.startswith("CommitUnknownError update status of sandbox 'a': the commit was made")
    assert "Permission denied" in first
    assert first == second
    assert "hidden []" == found
