"""No registry is begun at a path with evidence of a registry whose database is missing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from registry import DataLossError, NotFoundError, Store
from registry.tables.inspection import BESIDE
from tests.tools import READY, contents, environment, run, sandbox

KILLED = """
    import os, signal, sys
    from registry import Store
    from tests.tools import READY, sandbox
    store = Store.open(sys.argv[1])
    store.add(sandbox("a"), READY)
    os.kill(os.getpid(), signal.SIGKILL)
    """


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a registry whose process was killed: its sandbox is in the WAL alone."""
    path = str(tmp_path_factory.mktemp("killed") / "registry.db")
    run(KILLED, path, expected=-signal.SIGKILL)
    return path


@pytest.fixture
def files(killed: str, path: str) -> Callable[..., None]:
    """Return a function that leaves a registry of these files, whose names begin with `-`."""

    def leave(*names: str) -> None:
        for name in names:
            shutil.copy(killed + name, path + name)

    return leave


def missing(path: str) -> None:
    """Remove the database file."""


def empty(path: str) -> None:
    """Truncate the database file to no bytes."""
    Path(path).touch()


@pytest.fixture(params=[missing, empty], ids=lambda how: how.__name__)
def lost(request: pytest.FixtureRequest, path: str) -> str:
    """Return a path at which the database is lost."""
    request.param(path)
    return path


@pytest.mark.parametrize("proof", ["-wal", "-reserve", "-spare", "-lock"])
@pytest.mark.parametrize(
    "options",
    [{}, {"create": False}, {"read_only": True}, {"reconcile": False}],
    ids=str,
)
def test_a_lost_database_is_not_replaced_by_a_new_registry(
    lost: str, files: Callable[..., None], proof: str, options: dict[str, bool]
) -> None:
    """One proof is enough; the files stay as they are, and the message names them."""
    files(proof, "-queue")
    before = contents(os.path.dirname(lost))
    with pytest.raises(DataLossError, match="there was a registry") as caught:
        Store.open(lost, **options)  # type: ignore[arg-type]
    assert lost == caught.value.path
    assert f"'{proof}' " in str(caught.value)
    assert all(f"{lost}{name}" in str(caught.value) for name in (proof, "-queue"))
    assert before == contents(os.path.dirname(lost))


def test_once_the_named_files_are_moved_away_a_registry_is_begun(
    lost: str, files: Callable[..., None]
) -> None:
    """As the message says."""
    files(*BESIDE)
    with pytest.raises(DataLossError) as caught:
        Store.open(lost)
    for name in BESIDE:
        assert f"{lost}{name}" in str(caught.value)
        os.rename(lost + name, f"{lost}.away{name}")
    with Store.open(lost) as store:
        assert [] == store.list()


def test_once_the_database_is_back_all_is_there(
    killed: str, path: str, files: Callable[..., None]
) -> None:
    """The WAL was kept, and has what the file has not."""
    files(*BESIDE)
    with pytest.raises(DataLossError):
        Store.open(path)
    shutil.copy(killed, path)
    with Store.open(path) as store:
        assert (["a"], []) == ([each.id for each in store.list()], store.check())


def test_a_database_whose_log_was_removed_before_anything_was_moved_into_it_is_lost(
    path: str, files: Callable[..., None]
) -> None:
    """It holds its first page, and no table."""
    files("", "-lock", "-queue", "-reserve", "-spare")
    before = contents(os.path.dirname(path))
    for options in ({}, {"create": False}, {"read_only": True}):
        with pytest.raises(DataLossError, match="is missing") as caught:
            Store.open(path, **options)  # type: ignore[arg-type]
        assert f"{path}-wal" in str(caught.value)
    assert before == contents(os.path.dirname(path))


def test_a_copy_without_its_log_is_told_that_the_log_may_be_missing(
    path: str, files: Callable[..., None]
) -> None:
    """Nothing beside it proves anything: an interrupted creation leaves the same."""
    files("")
    for options in ({"create": False}, {"read_only": True}):
        with pytest.raises(NotFoundError, match="is missing") as caught:
            Store.open(path, **options)  # type: ignore[arg-type]
        assert f"{path}-wal" in str(caught.value)
    assert ["registry.db"] == os.listdir(os.path.dirname(path))
    Store.open(path).close()


@pytest.mark.parametrize(
    "names", [["-lock", "-queue"], ["-lock"], ["-wal", "-shm", "-lock"]], ids=str
)
def test_empty_files_prove_nothing(lost: str, names: list[str]) -> None:
    """A creation that was interrupted leaves lock files, and a reader an empty WAL."""
    for name in names:
        Path(lost + name).touch()
    with Store.open(lost) as store:
        store.add(sandbox("a"), READY)


def test_a_reserve_of_another_size_proves_nothing(lost: str) -> None:
    """It is not from here."""
    Path(f"{lost}-reserve").write_bytes(b"something")
    os.mkdir(f"{lost}-lock-of-something-else")
    Store.open(lost).close()


@pytest.mark.parametrize("command", ["list", "check", "reconcile", "delete a", "import --create -"])
def test_every_command_refuses_a_lost_database(
    path: str, files: Callable[..., None], command: str
) -> None:
    """With the exit code of a registry that cannot be opened."""
    files("-reserve", "-lock", "-queue")
    before = contents(os.path.dirname(path))
    done = subprocess.run(
        [sys.executable, "-m", "registry", "--db", path, *command.split()],
        env=environment(),
        input=sandbox("a").marshal_json().decode(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (3, "") == (done.returncode, done.stdout)
    assert f"{path}-reserve" in done.stderr
    assert before == contents(os.path.dirname(path))
