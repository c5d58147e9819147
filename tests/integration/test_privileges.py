"""A registry under any umask, and in a process whose real user differs from the effective one."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from registry import NetNS, Store
from registry.host import kernel
from registry.shim import server
from tests import needs
from tests.tools import make_old_registry, run

OVERFLOW = 65534

USE = """
    import ctypes, encodings.ascii, json, multiprocessing, os, shutil, sys
    from registry import NetNS, Store
    from registry.cli import program
    from registry.cli.containerd import documents, import_export
    from tests.tools import READY, sandbox

    folder, umask, real, effective, netns = sys.argv[1], *map(int, sys.argv[2:])

    def use(path, old):
        with Store.open(path) as store:
            store.add(sandbox("a"), READY).status.update(lambda found: found)
        with Store.open(path, read_only=True) as store:
            assert [] == store.check()
        with Store.open(old) as store:
            assert [] == store.check()
        assert 0 == program.main(["--db", path, "export", "--status", f"{path}.statuses"])

    # As root, since the interpreter may lie where only root can read.
    shutil.copy(f"{folder}/own/old.db", f"{folder}/old.db")
    use(f"{folder}/warm.db", f"{folder}/old.db")
    os.setgroups([])
    os.setresgid(real, effective, effective)
    os.setresuid(real, effective, effective)
    os.umask(umask)
    use(f"{folder}/own/a/b/registry.db", f"{folder}/own/old.db")
    if netns:
        with Store.open(f"{folder}/own/a/b/registry.db") as store:
            made = NetNS.create(store.new_netns_path(f"{folder}/own/netns"))
            added = store.add(sandbox("b", netns_path=made.path), READY)
            assert {"OPEN": 2} == store.reconcile().counts
            added.remove_netns()
            assert made.closed
    """


class Place(NamedTuple):
    """A directory for all users, and in it one of the user that uses the registry."""

    folder: str

    def use(self, umask: int, real: int, effective: int, *, netns: bool = False) -> dict[str, int]:
        """Use a registry, and return the modes of the files and directories that this made."""
        own = f"{self.folder}/own"
        os.mkdir(own, 0o755)
        make_old_registry(f"{own}/old.db")
        for name in os.listdir(own):
            os.chown(f"{own}/{name}", effective, effective)
        os.chown(own, effective, effective)
        run(USE, self.folder, umask, real, effective, int(netns))
        found = {}
        for folder, folders, files in os.walk(own):
            for name in (*folders, *files):
                path = f"{folder}/{name}"
                found[os.path.relpath(path, own)] = stat.S_IMODE(os.lstat(path).st_mode)
                assert effective == os.lstat(path).st_uid
        return found


@pytest.fixture
def place() -> Iterator[Place]:
    """Return a place that is removed at the end."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Place(folder)


@needs.another_user
@pytest.mark.parametrize("umask", [0o000, 0o777], ids=oct)
@pytest.mark.parametrize("uid", [0, OVERFLOW], ids=["root", "user"])
def test_a_registry_works_under_any_umask_and_all_files_are_private(
    place: Place, uid: int, umask: int
) -> None:
    """Created, opened again, upgraded with its backup, and exported."""
    modes = place.use(umask, uid, uid)
    assert {"a", "a/b", "a/b/registry.db", "a/b/registry.db.statuses"} < modes.keys()
    assert any("-before-" in name for name in modes), json.dumps(modes)
    directories = {"a", "a/b"}
    assert {0o700} == {modes[name] for name in directories}
    assert {0o600} == {mode for name, mode in modes.items() if name not in directories}


@needs.another_user
@pytest.mark.parametrize(("real", "effective"), [(OVERFLOW, 0), (0, OVERFLOW)], ids=str)
def test_the_effective_user_decides_in_a_set_user_id_process(
    place: Place, real: int, effective: int
) -> None:
    """`access` without a flag would ask for the rights of the real user."""
    modes = place.use(0o022, real, effective)
    assert modes["a/b/registry.db"] == 0o600


@needs.namespaces
@needs.another_user
def test_a_set_user_id_process_of_root_makes_and_removes_namespaces(place: Place) -> None:
    """The real user is another one."""
    try:
        place.use(0o022, OVERFLOW, 0, netns=True)
    finally:
        kernel.umount(f"{place.folder}/own/netns", kernel.MNT_DETACH)


@needs.namespaces
def test_a_directory_of_namespaces_may_be_entered_under_any_umask(place: Place) -> None:
    """As that of `ip netns`: other programs look there."""
    before = os.umask(0o777)
    try:
        NetNS.create(f"{place.folder}/a/b/netns").remove()
    finally:
        os.umask(before)
    kernel.umount(f"{place.folder}/a/b", kernel.MNT_DETACH)
    assert [0o755, 0o755] == [
        stat.S_IMODE(os.stat(f"{place.folder}/{name}").st_mode) for name in ("a", "a/b")
    ]


@pytest.mark.parametrize("name", ["", "-wal", "-shm", "-lock", "-queue", "directory"])
def test_check_reports_a_file_that_all_users_may_write(path: str, name: str) -> None:
    """Or a directory in which they may replace the files; a sticky one is not reported."""
    spoiled = os.path.dirname(path) if name == "directory" else path + name
    with Store.open(path) as store:
        assert [] == store.check()
        before = stat.S_IMODE(os.stat(spoiled).st_mode)
        os.chmod(spoiled, 0o702)
        (violation,) = store.check()
        found = f"mode 0702 of {spoiled!r}"
        assert ("files_are_private", found) == (violation.rule, violation.found)
        os.chmod(spoiled, 0o1777 if name == "directory" else before)
        assert [] == store.check()
        os.chmod(spoiled, before)


def test_the_lock_file_of_a_server_is_private_under_any_umask(place: Place) -> None:
    """And the directories that are made for it."""
    before = os.umask(0o777)
    try:
        with server._claimed(f"{place.folder}/a/b/lock", "serve"):
            pass
    finally:
        os.umask(before)
    modes = {
        name: stat.S_IMODE(os.stat(f"{place.folder}/{name}").st_mode)
        for name in ("a", "a/b", "a/b/lock")
    }
    assert {"a": 0o700, "a/b": 0o700, "a/b/lock": 0o600} == modes
