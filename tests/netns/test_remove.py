"""Removing a namespace removes that one and no other, whatever becomes of its path meanwhile."""

from __future__ import annotations

import ast
import errno
import logging
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from registry import NetNS, Store
from registry.host import directory_lock, kernel
from registry.host.context import HostContext
from registry.host.namespaces import is_elsewhere
from registry.model.identity import NetNSIdentity
from tests import needs
from tests.netns.conftest import Sleeper
from tests.netns.removal import add, refused
from tests.tools import (
    READY,
    UNKNOWN,
    line,
    run,
    sandbox,
    tamper,
)

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]

ELSEWHERE = "00000000-0000-4000-8000-000000000000"


# Symlinks.


def test_nothing_is_removed_through_a_symlink_to_another(
    store: Store, base_dir: str, victim: NetNS
) -> None:
    """The link at the path of a sandbox whose namespace is gone stays, as where it leads."""
    made, handle = add(store, store.new_netns_path(base_dir))
    made.remove()
    for target in (victim.path, f"{base_dir}/nothing"):
        os.symlink(target, made.path)
        handle.remove_netns()
        made.remove()
        assert target == os.readlink(made.path)
        assert None is handle.netns
        os.unlink(made.path)


def test_a_symlink_to_the_recorded_namespace_is_an_error(store: Store, base_dir: str) -> None:
    """Nothing is unmounted through it, and the caller does not take it for removed: ELOOP."""
    made, handle = add(store, f"{base_dir}/above/in/made")
    os.rename(f"{base_dir}/above", f"{base_dir}/moved")
    os.makedirs(f"{base_dir}/above/in")
    os.symlink(f"{base_dir}/moved/in/made", made.path)
    for remove in (handle.remove_netns, made.remove):
        message = refused(remove, errno.ELOOP, made.path)
        assert "a symlink leads to it" in message
    assert not made.closed
    assert os.path.islink(made.path)
    NetNS.load(f"{base_dir}/moved/in/made").remove()
    handle.remove_netns()
    assert os.path.islink(made.path)


def test_a_symlink_planted_where_nothing_is_recorded_is_left(
    store: Store, base_dir: str, victim: NetNS
) -> None:
    """An interrupted creation has left none: `NetNS.create` refuses a path that exists."""
    path = store.new_netns_path(base_dir)
    handle = store.add(sandbox("a", netns_path=path), UNKNOWN)
    os.symlink(victim.path, path)
    handle.remove_netns()
    assert os.path.islink(path)


def test_a_symlinked_directory_leads_to_the_namespace(
    store: Store, base_dir: str, tmp_path: Path
) -> None:
    """As /var/run leads to /run."""
    (tmp_path / "link").symlink_to(base_dir)
    made, handle = add(store, store.new_netns_path(f"{tmp_path}/link"))
    assert not made.closed
    handle.remove_netns()
    assert made.closed
    assert [] == os.listdir(base_dir)


# Paths that change between the comparison and the umount.


def replaced_by_symlink(victim: str, path: str) -> None:
    """Put a symlink to the victim in the place of the namespace."""
    kernel.umount(path, kernel.MNT_DETACH)
    os.unlink(path)
    os.symlink(victim, path)


def replaced_by_namespace(victim: str, path: str) -> None:
    """Mount the victim in the place of the namespace, too."""
    kernel.umount(path, kernel.MNT_DETACH)
    kernel.mount(victim, path, "none", kernel.MS_BIND)


def renamed_elsewhere(victim: str, path: str) -> None:
    """Rename the file from another mount namespace, where it is no mount point."""
    run(
        """
        import os, sys
        from registry.host import kernel
        from tests.netns.conftest import unmount_all
        victim, path = sys.argv[1:]
        kernel.unshare(0x20000)  # CLONE_NEWNS
        kernel.mount("", "/", "none", 0x44000)  # private
        unmount_all(os.path.dirname(victim))
        os.rename(path, f"{path}-moved")
        os.symlink(victim, path)
        """,
        victim,
        path,
    )


def directory_replaced(victim: str, path: str) -> None:
    """Move the directory above away, and mount the victim at the path in a new one."""
    above = os.path.dirname(os.path.dirname(path))
    os.rename(above, f"{above}-moved")
    os.makedirs(os.path.dirname(path))
    Path(path).touch()
    kernel.mount(victim, path, "none", kernel.MS_BIND)


def directory_replaced_by_symlink(victim: str, path: str) -> None:
    """Move the directory above away, and have symlinks lead to the victim."""
    above = os.path.dirname(os.path.dirname(path))
    os.rename(above, f"{above}-moved")
    os.mkdir(above)
    os.symlink(os.path.dirname(victim), os.path.dirname(path))
    os.symlink(victim, path)


SWAPS = {
    function.__name__: function
    for function in (
        replaced_by_symlink,
        replaced_by_namespace,
        renamed_elsewhere,
        directory_replaced,
        directory_replaced_by_symlink,
    )
}


@pytest.mark.parametrize("swap", SWAPS)
def test_a_path_swapped_before_the_umount_hits_no_other(
    store: Store, base_dir: str, victim: NetNS, swap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mount that was compared is unmounted, at any path that it has by then."""
    made, handle = add(store, store.new_netns_path(f"{base_dir}/above/in"))
    umount = kernel.umount

    def racing(target: str, flags: int) -> None:
        monkeypatch.undo()
        SWAPS[swap](victim.path, made.path)
        umount(target, flags)

    monkeypatch.setattr(kernel, "umount", racing)
    handle.remove_netns()
    assert umount is kernel.umount
    assert not victim.closed
    with open("/proc/self/mountinfo", "rb") as mounts:
        assert f" net:[{made.identity.inode}] ".encode() not in mounts.read()


def filled(victim: str, path: str) -> None:
    """Write into the file."""
    Path(path).write_text("mine")


def mounted(victim: str, path: str) -> None:
    """Mount the victim on the file."""
    kernel.mount(victim, path, "none", kernel.MS_BIND)


def linked(victim: str, path: str) -> None:
    """Put a symlink to the victim in its place."""
    os.unlink(path)
    os.symlink(victim, path)


def made_directory(victim: str, path: str) -> None:
    """Put a directory in its place."""
    os.unlink(path)
    os.mkdir(path)


@pytest.mark.parametrize("change", [filled, mounted, linked, made_directory])
def test_a_file_changed_after_the_umount_is_left(
    store: Store,
    base_dir: str,
    victim: NetNS,
    change: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the empty file that lay beneath is removed."""
    made, handle = add(store, store.new_netns_path(base_dir))
    umount, found = kernel.umount, []

    def racing(target: str, flags: int) -> None:
        umount(target, flags)
        change(victim.path, made.path)
        found.append(os.lstat(made.path))

    monkeypatch.setattr(kernel, "umount", racing)
    handle.remove_netns()
    assert found == [os.lstat(made.path)]


# Interrupted creations.


@pytest.mark.parametrize("what", ["namespace", "file"])
def test_file_at_a_foreign_path_is_left_while_nothing_is_recorded(
    store: Store, base_dir: str, what: str
) -> None:
    """It may be a stranger's: EEXIST, and how to remove it."""
    path = f"{base_dir}/planned"
    handle = store.add(sandbox("a", netns_path=path), UNKNOWN)
    handle.remove_netns()
    if what == "namespace":
        NetNS.create(path)
    else:
        Path(path).touch()
    refused(handle.remove_netns, errno.EEXIST, path)
    assert os.path.lexists(path)
    if what == "namespace":
        NetNS.load(path).remove()


# The rest.


def test_the_namespace_of_a_process_is_not_removed(
    store: Store, base_dir: str, sleeper: Sleeper, caplog: pytest.LogCaptureFixture
) -> None:
    """/proc/PID/ns/net lasts as long as the process, and that is logged."""
    process = sleeper()
    path = f"/proc/{process.pid}/ns/net"
    handle = store.add(sandbox("a", netns_path=path), READY)
    with caplog.at_level(logging.INFO, "registry"):
        handle.remove_netns()
        NetNS.load(path).remove()
    assert 2 == caplog.text.count(f"remove network namespace {path!r}: nothing to remove")
    assert os.path.lexists(path)
    process.kill()
    process.wait()
    handle.remove_netns()


def test_another_boot_id_alone_does_not_make_another_namespace(
    store: Store, path: str, base_dir: str
) -> None:
    """LXC shows another one; number and inode say that it is the recorded namespace."""
    made, _ = add(store, store.new_netns_path(base_dir))
    tamper(path, f"UPDATE sandboxes SET netns_boot_id = '{ELSEWHERE}'")
    handle = store.get("a")
    assert repr(made) == repr(handle.netns)
    handle.remove_netns()
    assert not os.path.lexists(made.path)


def test_the_latest_record_is_followed(store: Store, base_dir: str) -> None:
    """However old the handle is, and after the deletion the last one that it has read."""
    path = store.new_netns_path(base_dir)
    handle = store.add(sandbox("a"), UNKNOWN)
    made = NetNS.create(path)
    store.update_metadata("a", lambda old: replace(old, netns_path=path))
    assert ("", repr(made)) == (handle.netns_path, repr(handle.netns))
    handle.delete()
    assert repr(made) == repr(handle.netns)
    handle.remove_netns()
    assert made.closed


def test_removal_works_on_a_kernel_that_reports_less(base_dir: str) -> None:
    """By an ioctl of what is opened, and by a socket inside; another one is left alone."""
    out = run(
        """
        import errno, os, sys
        from registry import NetNS
        from registry.host import kernel
        from tests.netns.seccomp import IOCTL, NAME_TO_HANDLE_AT, refuse
        for lack in (
            lambda: refuse(NAME_TO_HANDLE_AT, errno.EPERM),
            lambda: refuse(IOCTL, errno.ENOTTY, kernel.NS_GET_ID),
        ):
            lack()
            made = NetNS.create(f"{sys.argv[1]}/made")
            made.remove()
            other = NetNS.create(made.path)
            made.remove()
            print(made.identity.number is not None, made.closed, other.closed)
            other.remove()
            print(os.listdir(sys.argv[1]))
        """,
        base_dir,
    )
    assert ["True True False", "[]"] * 2 == out.splitlines()


@pytest.mark.parametrize("held_by", ["child", "hidden"])
def test_create_and_remove_stop_waiting_for_the_lock_of_the_directory(
    store: Store, base_dir: str, monkeypatch: pytest.MonkeyPatch, held_by: str
) -> None:
    """Any user may hold it: ETIMEDOUT names the path and, if /proc/locks does, the process."""
    monkeypatch.setattr(directory_lock, "TIMEOUT", 0.1)
    if held_by == "hidden":
        monkeypatch.setattr(directory_lock, "holder_of", lambda _: None)
    made = NetNS.create(store.new_netns_path(base_dir))
    orphans = [made.path, NetNS.create(store.new_netns_path(base_dir)).path]
    new = store.new_netns_path(base_dir)
    child = subprocess.Popen(
        ["flock", base_dir, "sh", "-c", "echo ready; exec sleep 1000"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert "ready" == line(child)
        for refuse, path in (
            (made.remove, made.path),
            (lambda: NetNS.create(new), new),
            (lambda: store.remove_orphans(orphans), min(orphans)),
        ):
            message = refused(refuse, errno.ETIMEDOUT, path)
            assert f"waiting for the flock on {base_dir!r}, held by " in message
            by = f"process {child.pid} (flock)" if held_by == "child" else "an unknown process"
            assert f"held by {by}; retry" in message
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
    assert not os.path.lexists(new)
    assert sorted(orphans) == store.remove_orphans(orphans)


def test_without_descriptors_nothing_is_half_done(base_dir: str) -> None:
    """Whatever number is left: it is done, or NetNSError with EMFILE and all is as it was."""
    out = run(
        """
        import gc, os, resource, sys, warnings
        from registry import NetNS, NetNSError
        warnings.simplefilter("ignore", ResourceWarning)
        sys.unraisablehook = lambda unraisable: None  # of those, too
        os.chdir(sys.argv[1])
        before = len(os.listdir("/proc/self/fd"))
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        NetNS.create(sys.argv[1] + "/warm").remove()
        def attempt(call, limit):
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limits[1]))
                try:
                    return call()
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            except NetNSError as error:
                return error.errno
        seen = {"create": set(), "remove": set(), "unlink": set(), "closed": set(), "do": set()}
        for limit in range(before - 1, before + 30):
            path = f"{sys.argv[1]}/{limit}"
            made = attempt(lambda: NetNS.create(path), limit)
            seen["create"].add(made if isinstance(made, int) else "done")
            if isinstance(made, int):
                assert not os.path.lexists(path)
                made = NetNS.create(path)
            gc.collect()  # netlink sockets that were half made keep descriptors until then
            seen["closed"].add(attempt(lambda: made.closed, limit))
            seen["do"].add(attempt(lambda: made.do(lambda: "done"), limit))
            removed = attempt(made.remove, limit)
            seen["remove"].add(removed)
            assert made.closed is (removed is None) is not os.path.lexists(path)
            made.remove()
            open(path, "w").close()
            unlinked = attempt(made.remove, limit)
            seen["unlink"].add(unlinked)
            assert os.path.lexists(path) is (unlinked is not None)
            made.remove()
        print({call: sorted(map(str, answers)) for call, answers in seen.items()})
        print(os.listdir(sys.argv[1]), len(os.listdir("/proc/self/fd")) == before)
        """,
        base_dir,
    )
    emfile, answers = str(errno.EMFILE), ast.literal_eval(out.splitlines()[0])
    # Since Linux 6.18 a look needs no descriptor.
    assert set(answers.pop("closed")) <= {emfile, "False"}
    assert {
        "create": [emfile, "done"],
        "remove": [emfile, "None"],
        "unlink": [emfile, "None"],
        "do": [emfile, "done"],
    } == answers
    assert "[] True" == out.splitlines()[1]


def test_from_an_unknown_mount_namespace_no_namespace_is_closed() -> None:
    """Without /proc or a descriptor ours cannot be determined."""
    here = HostContext.current()
    identity = NetNSIdentity(here.boot_id, None, 7, here.mount_ns)
    assert not is_elsewhere(identity, here)
    assert is_elsewhere(identity, here._replace(mount_ns=None))
    assert is_elsewhere(identity, here._replace(mount_ns=-1))
    assert not is_elsewhere(identity._replace(mount_ns=None), here._replace(mount_ns=-1))
    assert not is_elsewhere(identity._replace(boot_id=ELSEWHERE), here._replace(mount_ns=-1))
