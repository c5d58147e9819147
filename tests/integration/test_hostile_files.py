"""Objects that other programs and users have put in the place of the files of a registry."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from registry import FailedPreconditionError, NotFoundError, Store
from registry.cli import program
from registry.host import kernel
from tests import needs
from tests.tools import READY, contents, run, sandbox

VICTIM = "victim"
"""Name of the file of another program, in the directory of the registry."""


def symlink(path: str, victim: str) -> None:
    """Lead to a file of another program."""
    os.symlink(victim, path)


def dangling_symlink(path: str, victim: str) -> None:
    """Lead to a file that is missing."""
    os.symlink(f"{victim}-gone", path)


def fifo(path: str, _: str) -> None:
    """Make a FIFO: opening it waits for a writer."""
    os.mkfifo(path)


def directory(path: str, _: str) -> None:
    """Make a directory, which cannot be opened for writing."""
    os.mkdir(path)


def hard_link(path: str, victim: str) -> None:
    """Be another name of a file of another program."""
    os.link(victim, path)


KINDS = {each.__name__: each for each in (symlink, dangling_symlink, fifo, directory, hard_link)}
USED = ("-journal", "-wal", "-shm", "-lock", "-queue")


@pytest.fixture
def victim(tmp_path: Path) -> str:
    """Return the path of a file of another program, world-readable."""
    file = tmp_path / VICTIM
    file.touch()  # SQLite, and a lock file, would take an empty file for their own
    file.chmod(0o644)
    return str(file)


def expect_refusal(path: str, name: str, *, read_only: bool = False) -> str:
    """Expect that an open names the file *name* and what to do, and return the message."""
    with pytest.raises(FailedPreconditionError) as caught:
        Store.open(path, read_only=read_only)
    assert path == caught.value.path
    message = str(caught.value)
    assert f"{name!r} " in message
    assert message.endswith("; move it away")
    return message


@pytest.mark.parametrize("there", [False, True], ids=["new", "registry"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", USED)
def test_a_file_beside_the_database_that_is_not_ours_is_refused(
    tmp_path: Path, path: str, victim: str, *, suffix: str, kind: str, there: bool
) -> None:
    """It is named, nothing is changed, and once it is moved away the registry opens."""
    name = path + suffix
    if there:
        with Store.open(path) as store:
            store.add(sandbox("a"), READY)
        if os.path.exists(name):
            os.unlink(name)
    KINDS[kind](name, victim)
    before = contents(str(tmp_path))
    expect_refusal(path, name)
    if there and "-lock" not in name and "-queue" not in name:
        expect_refusal(path, name, read_only=True)
    assert before == contents(str(tmp_path))
    os.rename(name, tmp_path / "away")
    with Store.open(path) as store:
        assert there == bool(store.list())
        assert [] == store.check()


@needs.namespaces
@pytest.mark.parametrize("suffix", USED)
def test_a_device_beside_the_database_is_refused(path: str, suffix: str) -> None:
    """Here a bind mount, since a container may make no devices."""
    Path(path + suffix).touch()
    kernel.mount("/dev/null", path + suffix, "none", kernel.MS_BIND)
    try:
        assert "a device" in expect_refusal(path, path + suffix)
    finally:
        kernel.umount(path + suffix, kernel.MNT_DETACH)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["-reserve", "-spare"])
def test_an_object_in_place_of_the_disk_reserve_stays_as_it_was(
    tmp_path: Path, path: str, victim: str, suffix: str, kind: str
) -> None:
    """The registry works without it; neither length nor mode of the other file changes."""
    KINDS[kind](path + suffix, victim)
    for _ in range(2):
        with Store.open(path) as store:
            assert [] == store.check()
    found = os.stat(victim)
    assert (0, 0o100644) == (found.st_size, found.st_mode)
    assert not os.path.exists(f"{victim}-gone")


# Symlinks to nothing.


@pytest.mark.parametrize("options", [{}, {"create": False}, {"read_only": True}], ids=str)
@pytest.mark.parametrize("of", ["database", "directory", "symlink"])
def test_a_symlink_to_nothing_is_not_a_new_registry(
    tmp_path: Path, of: str, options: dict[str, bool]
) -> None:
    """It may lead to a disk that is not mounted yet: its target is named, and nothing is made."""
    target, link = tmp_path / "disk" / "registry", tmp_path / "link"
    os.symlink(target, link)
    path = {"database": link, "directory": link / "a" / "r.db", "symlink": tmp_path / "2"}[of]
    if of == "symlink":
        os.symlink(link, path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(NotFoundError, match="remove the symlink") as caught:
        Store.open(path, **options)  # type: ignore[arg-type]
    assert str(path) == caught.value.path
    assert f"{str(target)!r}, where nothing is" in str(caught.value)
    assert before == sorted(os.listdir(tmp_path))
    target.mkdir(parents=True)
    if of == "directory":
        Store.open(path).close()


def test_a_relative_path_in_a_directory_that_was_removed_is_not_found(tmp_path: Path) -> None:
    """It is not the registry that is missing, but the working directory."""
    code = """
        import os, sys
        from registry import NotFoundError, Store
        os.mkdir(sys.argv[1])
        os.chdir(sys.argv[1])
        os.rmdir(sys.argv[1])
        try:
            Store.open("registry.db")
        except NotFoundError as error:
            print(error.path, error)
        """
    said = run(code, tmp_path / "gone")
    assert said.startswith("registry.db open registry 'registry.db': find the working directory")


def test_import_makes_no_registry_at_the_target_of_a_symlink(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by --create either, which is then not the advice."""
    os.symlink("gone", tmp_path / "link")
    document = tmp_path / "document"
    document.write_bytes(sandbox("a").marshal_json())
    args = ["--db", str(tmp_path / "link"), "import", "--create", str(document)]
    assert 3 == program.main(args)
    said = capsys.readouterr().err
    assert said.endswith("mount the disk of its target, or remove the symlink\n")


def test_a_new_registry_in_a_directory_behind_a_symlink_is_made_there(tmp_path: Path) -> None:
    """The directory is there: only the database is missing."""
    (tmp_path / "disk").mkdir()
    os.symlink("disk", tmp_path / "link")
    with Store.open(tmp_path / "link" / "new" / "r.db") as store:
        assert str(tmp_path / "disk" / "new" / "r.db") == store.path


# Directories in which any user may create files.

OPEN = """
    import os, sys
    import ctypes, encodings.ascii  # now, since the interpreter may lie where only root can read
    from registry import RegistryError, Store
    Store.open(sys.argv[3]).close()
    uid = int(sys.argv[2])
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    try:
        with Store.open(sys.argv[1]) as store:
            print(len(store.list()))
    except RegistryError as error:
        print(type(error).__name__, error)
    """
STRANGER, OWNER = 1234, 65534


class Shared(NamedTuple):
    """A path in a directory like /tmp; *warm* is a registry that is opened before, as root."""

    path: str
    warm: str

    def open_as(self, uid: int) -> str:
        """Open the registry as a user, and return the number of sandboxes or the error."""
        return run(OPEN, self.path, uid, self.warm)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    """Return a path in a directory in which any user may create files."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o1777)
        yield Shared(f"{folder}/registry.db", str(tmp_path / "warm.db"))


@needs.another_user
@pytest.mark.parametrize("uid", [0, OWNER], ids=["root", "user"])
@pytest.mark.parametrize("suffix", ["", *USED])
def test_a_file_that_another_user_has_planted_in_a_shared_directory_is_refused(
    shared: Shared, suffix: str, uid: int
) -> None:
    """Of a new registry and of one that is there; the file of the owner or of root is not."""
    name = shared.path + suffix
    for there in (False, True):
        if there:
            os.unlink(name)
            assert "0\n" == shared.open_as(uid)
        if there and not suffix:
            continue
        Path(name).touch()
        os.chmod(name, 0o666)
        os.chown(name, STRANGER, STRANGER)
        said = shared.open_as(uid)
        assert said.startswith("FailedPreconditionError open registry")
        assert f"belongs to another user (uid {STRANGER}), in a directory" in said
        assert name in said
    if suffix:
        os.chown(name, uid, uid)
        assert "0\n" == shared.open_as(uid)
