"""Removing a namespace removes that one and no other, whatever becomes of its path meanwhile."""

from __future__ import annotations

import ast
import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from registry import NetNS, NetNSError, Sandbox, Store
from registry.host import directory_lock, kernel, netns
from registry.host.context import HostContext
from registry.host.namespaces import is_elsewhere
from registry.model.identity import NetNSIdentity
from registry.recovery import orphans
from tests import needs
from tests.netns.conftest import Sleeper
from tests.tools import (
    READY,
    UNKNOWN,
    environment,
    line,
    python,
    query,
    run,
    sandbox,
    say,
    tamper,
    until,
)

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]

ELSEWHERE = "00000000-0000-4000-8000-000000000000"
IN_OTHER_MOUNT_NS = """
    import os, sys
    from registry import Metadata, NetNS, State, Status, Store
    from registry.host import kernel
    path, directory, name, id, prepare = sys.argv[1:]
    exec(prepare)
    made = NetNS.create(os.path.join(directory, name))
    if id:
        with Store.open(path) as store:
            store.add(Metadata(id, id, None, netns_path=made.path), Status(State.READY))
    print(os.getpid(), flush=True)
    for question in sys.stdin:
        print(eval(question), flush=True)
    """


@contextmanager
def other_mount_namespace(
    path: str, directory: str, name: str, *, id: str = "", prepare: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """Lend a process that has made a network namespace in a mount namespace of its own.

    Args:
        path: of the registry.
        directory: of the network namespace.
        name: in the directory.
        id: of the sandbox that it has added for it; "": none.
        prepare: code that it has run before.
    """
    child = subprocess.Popen(
        ["unshare", "--mount", *python(IN_OTHER_MOUNT_NS, path, directory, name, id, prepare)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert str(child.pid) == line(child)
        yield child
    finally:
        child.kill()
        child.communicate()


def is_closed(child: subprocess.Popen[str]) -> bool:
    """Return whether the namespace that the child has made is closed, as the child sees it."""
    say(child, "made.closed")
    return line(child) == "True"


def add(store: Store, path: str, id: str = "a") -> tuple[NetNS, Sandbox]:
    """Add a sandbox with a namespace of its own at *path*."""
    made = NetNS.create(path)
    return made, store.add(sandbox(id, netns_path=path), READY)


def refused(remove: Callable[[], object], code: int, path: str) -> str:
    """Expect the error, and return its message."""
    with pytest.raises(NetNSError) as caught:
        remove()
    assert (code, path) == (caught.value.errno, caught.value.path)
    return str(caught.value)


@pytest.fixture
def victim(base_dir: str) -> Iterator[NetNS]:
    """Return a stranger's namespace, which has to be open at the end."""
    victim = NetNS.create(f"{base_dir}/victim")
    yield victim
    assert not victim.closed
    victim.remove()


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


# Other mount namespaces.


@pytest.mark.parametrize("here", ["file", "nothing", "namespace", "symlink", "no directory"])
def test_namespace_recorded_in_another_mount_namespace_is_left(
    store: Store, path: str, base_dir: str, victim: NetNS, here: str
) -> None:
    """Whatever is at the path here, it lives on there and is not taken for closed: EXDEV."""
    directory = f"{base_dir}/in"
    if here != "no directory":
        os.mkdir(directory)
    prepare = f"kernel.mount('none', {base_dir!r}, 'tmpfs', 0)" if here != "file" else ""
    with other_mount_namespace(path, directory, "theirs", id="a", prepare=prepare) as child:
        at = f"{directory}/theirs"
        if here == "namespace":
            Path(at).touch()
            kernel.mount(victim.path, at, "none", kernel.MS_BIND)
        elif here == "symlink":
            os.symlink(victim.path, at)
        handle = store.get("a")
        there = os.lstat(at) if os.path.lexists(at) else None
        message = refused(handle.remove_netns, errno.EXDEV, at)
        assert "recorded in mount namespace" in message
        refused(lambda: handle.netns, errno.EXDEV, at)
        assert there == (os.lstat(at) if os.path.lexists(at) else None)
        assert not is_closed(child)


def test_namespace_recorded_in_another_mount_namespace_is_removed_there(
    store: Store, path: str, base_dir: str
) -> None:
    """It is mounted here too, and compared; its mounts elsewhere go with the file."""
    made, handle = add(store, store.new_netns_path(base_dir))
    out = run(
        """
        import os, sys
        from registry import Store
        from registry.host import kernel
        kernel.unshare(0x20000)  # CLONE_NEWNS
        kernel.mount("", "/", "none", 0x44000)  # private
        with Store.open(sys.argv[1], reconcile=False) as store:
            handle = store.get("a")
            print(handle.netns)
            handle.remove_netns()
            print(os.path.lexists(handle.netns_path))
        """,
        path,
    )
    assert [repr(made), "False"] == out.splitlines()
    assert made.closed
    assert None is handle.netns
    handle.remove_netns()


@pytest.mark.parametrize("own", [False, True], ids=["other name", "own name"])
def test_namespace_recorded_in_another_mount_namespace_is_closed_once_gone(
    store: Store, path: str, base_dir: str, own: bool
) -> None:
    """Its last mount went with its mount namespace; of files only an own name is removed."""
    at = store.new_netns_path(base_dir) if own else f"{base_dir}/planned"
    with other_mount_namespace(path, *os.path.split(at), id="a"):
        ((number, inode),) = query(path, "SELECT netns_number, netns_inode FROM sandboxes")
    while kernel.namespace_exists(number, kernel.CLONE_NEWNET, inode):
        os.sched_yield()  # until the kernel has freed it
    if kernel.namespace_exists(number, kernel.CLONE_NEWNET, inode) is None:
        pytest.skip("this kernel cannot tell whether a namespace exists (Linux 6.18 can)")
    assert None is store.get("a").netns
    store.get("a").remove_netns()
    assert own is not os.path.isfile(at)


@pytest.mark.parametrize("elsewhere", ["same path", "other path"])
def test_an_empty_file_on_which_a_stranger_has_mounted_is_left(
    store: Store, path: str, base_dir: str, elsewhere: str
) -> None:
    """In another mount namespace it is a living namespace, which would go with the file."""
    made, handle = add(store, f"{base_dir}/theirs")
    kernel.umount(made.path, kernel.MNT_DETACH)
    os.unlink(made.path)
    where, prepare = base_dir, ""
    if elsewhere == "other path":
        where = f"{base_dir} b\\ind"
        os.mkdir(where)
        prepare = f"kernel.mount({base_dir!r}, {where!r}, 'none', 0x1000)"
    with other_mount_namespace(path, where, "theirs", prepare=prepare) as child:
        assert os.path.isfile(made.path)
        handle.remove_netns()
        made.remove()
        assert os.path.isfile(made.path)
        assert not is_closed(child)
    handle.remove_netns()
    assert not os.path.lexists(made.path)


def test_remove_reports_another_namespace_on_our_own_name_in_another_mount_namespace(
    store: Store, path: str, base_dir: str
) -> None:
    """The file would be left for ever without a word: EXDEV, and where it is mounted."""
    made, handle = add(store, store.new_netns_path(base_dir))
    kernel.umount(made.path, kernel.MNT_DETACH)
    os.unlink(made.path)
    with other_mount_namespace(path, *os.path.split(made.path)) as child:
        message = refused(handle.remove_netns, errno.EXDEV, made.path)
        assert f"/proc/{child.pid}/root{made.path}" in message
        assert os.path.isfile(made.path)
        assert not is_closed(child)
    handle.remove_netns()
    assert not os.path.lexists(made.path)


def test_an_empty_file_on_which_the_recorded_namespace_is_mounted_elsewhere_is_removed(
    store: Store, base_dir: str
) -> None:
    """A copy of the mounts has it still; it goes with the file."""
    made, handle = add(store, store.new_netns_path(base_dir))
    child = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", "echo ready; exec sleep 1000"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert "ready" == line(child)
        kernel.umount(made.path, kernel.MNT_DETACH)
        copy = f"/proc/{child.pid}/root{made.path}"
        assert NetNS.load(copy).identity.same_as(made.identity)
        handle.remove_netns()
        assert not os.path.lexists(made.path)
        assert not os.path.lexists(copy)
    finally:
        child.kill()
        child.communicate()


def test_an_empty_file_is_removed_although_a_mount_elsewhere_covers_the_namespace(
    store: Store, base_dir: str
) -> None:
    """As in a mount namespace that began as a copy of ours and has a /run/netns of its own."""
    made, handle = add(store, store.new_netns_path(base_dir))
    cover = f"mount -t tmpfs none {base_dir}; echo ready; exec sleep 1000"
    child = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", cover], stdout=subprocess.PIPE, text=True
    )
    try:
        assert "ready" == line(child)
        kernel.umount(made.path, kernel.MNT_DETACH)  # as a removal that was killed after it
        handle.remove_netns()
        assert not os.path.lexists(made.path)
    finally:
        child.kill()
        child.communicate()


def test_a_mount_of_another_mount_namespace_is_not_unmounted_through_proc(
    store: Store, path: str, base_dir: str
) -> None:
    """/proc/PID/root leads to it; the kernel refuses, and the error says so."""
    with other_mount_namespace(path, base_dir, "theirs") as child:
        through = NetNS.load(f"/proc/{child.pid}/root{base_dir}/theirs")
        refused(through.remove, errno.EINVAL, through.path)
        assert not is_closed(child)


def test_without_proc_nothing_is_removed_and_the_error_says_so(base_dir: str) -> None:
    """The mount that is held is reached through it."""
    made = NetNS.create(f"{base_dir}/made")
    out = run(
        """
        import os, sys
        from registry import NetNS, NetNSError
        from registry.host import kernel
        made = NetNS.load(sys.argv[1])
        kernel.unshare(0x20000)  # CLONE_NEWNS
        kernel.mount("", "/", "none", 0x44000)  # private
        kernel.mount("none", "/proc", "tmpfs", 0)
        try:
            made.remove()
        except NetNSError as error:
            print(error.errno, os.path.lexists(made.path), "/proc" in str(error))
        """,
        made.path,
    )
    assert f"{errno.ENOENT} True True" == out.strip()
    assert not made.closed
    made.remove()


def test_in_a_chroot_an_empty_file_is_left_and_the_error_says_so(base_dir: str) -> None:
    """Its mount is not shown there, so mounts on it elsewhere are not known."""
    out = run(
        """
        import os, sys
        from registry import NetNSError
        from registry.host import context, kernel, netns
        kernel.unshare(0x20000)  # CLONE_NEWNS
        kernel.mount("", "/", "none", 0x44000)  # private
        os.mkdir(f"{sys.argv[1]}/proc")
        kernel.mount("/proc", f"{sys.argv[1]}/proc", "none", kernel.MS_BIND | kernel.MS_REC)
        os.mkdir(f"{sys.argv[1]}/netns")
        open(f"{sys.argv[1]}/netns/sr-x-1", "x").close()
        context.HostContext.current()  # imports what is not in the chroot
        os.chroot(sys.argv[1])
        try:
            netns.remove("/netns/sr-x-1", None, own=True)
        except NetNSError as error:
            print(error.errno, os.listdir("/netns"), "chroot" in str(error))
        """,
        base_dir,
    )
    assert f"{errno.ENODEV} ['sr-x-1'] True" == out.strip()


def test_a_hidden_copy_of_the_mount_keeps_the_file_busy(base_dir: str) -> None:
    """Where the directory became a mount after the namespace: EBUSY while the copy is there."""
    made = NetNS.create(f"{base_dir}/made")
    directory = f"{base_dir}/copied"
    os.mkdir(directory)
    kernel.mount("none", directory, "tmpfs", 0)
    kernel.mount("", directory, "none", 0x40000)  # MS_PRIVATE
    Path(directory, "bind").touch()
    kernel.mount(made.path, f"{directory}/bind", "none", kernel.MS_BIND)
    kernel.mount(directory, directory, "none", kernel.MS_BIND | kernel.MS_REC)
    bound = NetNS.load(f"{directory}/bind")
    for _ in range(2):
        refused(bound.remove, errno.EBUSY, bound.path)
    assert not made.closed
    kernel.umount(directory, kernel.MNT_DETACH)
    bound.remove()
    assert not os.path.lexists(bound.path)
    made.remove()


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


def test_a_path_of_our_own_name_on_which_another_mount_namespace_has_mounted_is_left(
    store: Store, path: str, base_dir: str
) -> None:
    """While nothing is recorded it cannot be told whose it is: EXDEV, and where it is mounted."""
    planned = store.new_netns_path(base_dir)
    handle = store.add(sandbox("a", netns_path=planned), UNKNOWN)
    with other_mount_namespace(path, *os.path.split(planned)) as child:
        message = refused(handle.remove_netns, errno.EXDEV, planned)
        assert f"/proc/{child.pid}/root{planned}" in message
        assert os.path.isfile(planned)
    handle.remove_netns()
    assert not os.path.lexists(planned)


# The rest.


def test_the_namespace_of_a_process_is_not_to_be_removed(
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


def test_a_boot_id_that_differs_alone_makes_it_no_other_namespace(
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


def test_a_kernel_that_tells_less_removes_as_well(base_dir: str) -> None:
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


def test_an_orphan_that_cannot_be_removed_keeps_no_other(store: Store, base_dir: str) -> None:
    """A process lives in the first: EBUSY, and the second is removed."""
    lived_in, left = sorted(
        (NetNS.create(store.new_netns_path(base_dir)) for _ in range(2)),
        key=lambda each: each.path,
    )
    process = lived_in.do(lambda: subprocess.Popen(["sleep", "1000"]))
    try:
        paths = [lived_in.path, left.path]
        refused(lambda: store.remove_orphans(paths), errno.EBUSY, lived_in.path)
        assert (False, True) == (lived_in.closed, left.closed)
    finally:
        process.kill()
        process.wait()
    assert [lived_in.path] == store.remove_orphans(paths)


@needs.program("setpriv")
@pytest.mark.parametrize("options", ["hidepid=0", "hidepid=2,gid=65534", "hidepid=4"])
def test_remove_orphans_refuses_while_proc_hides_processes(
    store: Store, path: str, base_dir: str, options: str
) -> None:
    """A hidden process may live in the orphan: EACCES, and EBUSY once it can be seen.

    With hidepid=0 the process is listed, and without CAP_SYS_PTRACE its namespaces are not.
    """
    orphan = NetNS.create(store.new_netns_path(base_dir))
    code = """
        import sys
        from registry import NetNSError, Store
        with Store.open(sys.argv[1], reconcile=False) as store:
            try:
                print(store.remove_orphans([sys.argv[2]]))
            except NetNSError as error:
                print(error.errno, error)
        """
    hiding = f"mount -t proc -o {options} proc /proc"
    unprivileged = "exec setpriv --bounding-set=-sys_ptrace"
    command = ["unshare", "--mount", "sh", "-c", f'{hiding} && {unprivileged} "$@"', "-"]
    process = orphan.do(lambda: subprocess.Popen(["sleep", "1000"]))
    try:
        said = subprocess.run(
            [*command, *python(code, path, orphan.path)],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        assert said.startswith(f"{errno.EACCES} remove orphaned network namespace")
        assert "a process may live in it, since /proc hides processes" in said
        assert not orphan.closed
        refused(lambda: store.remove_orphans([orphan.path]), errno.EBUSY, orphan.path)
    finally:
        process.kill()
        process.wait()
    assert [orphan.path] == store.remove_orphans([orphan.path])


def test_remove_orphans_finds_a_process_whose_main_thread_has_ended(
    store: Store, base_dir: str
) -> None:
    """/proc/PID/ns is that of the main thread, which is a zombie: another thread lives there."""
    orphan = NetNS.create(store.new_netns_path(base_dir))
    code = """
        import ctypes, threading, time
        threading.Thread(target=time.sleep, args=[1000], daemon=True).start()
        print("ready", flush=True)
        ctypes.CDLL(None).pthread_exit(None)
        """
    process = orphan.do(lambda: subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True))
    try:
        assert "ready" == line(process)
        until(lambda: not os.path.exists(f"/proc/{process.pid}/ns/net"))
        refused(lambda: store.remove_orphans([orphan.path]), errno.EBUSY, orphan.path)
    finally:
        process.kill()
        process.communicate()
    assert [orphan.path] == store.remove_orphans([orphan.path])


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


def test_remove_orphans_stops_at_the_first_lock_that_times_out(
    store: Store, base_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the write lock of the registry, and must not wait once for each orphan."""
    paths = [NetNS.create(store.new_netns_path(base_dir)).path for _ in range(2)]
    calls = []

    def times_out(path: str, *_: object) -> None:
        calls.append(path)
        raise NetNSError("timed out", path=path, errno=errno.ETIMEDOUT)

    monkeypatch.setattr(netns, "remove", times_out)
    refused(lambda: store.remove_orphans(paths), errno.ETIMEDOUT, min(paths))
    assert [min(paths)] == calls
    monkeypatch.undo()
    assert sorted(paths) == store.remove_orphans(paths)


def test_an_orphan_whose_path_cannot_be_passed_keeps_no_other(path: str, base_dir: str) -> None:
    """The command line names what lies in a directory with a control character, and goes on."""
    odd = f"{base_dir}/a\x01"
    os.mkdir(odd)
    with Store.open(path) as store:
        kept = NetNS.create(store.new_netns_path(f"{base_dir}/kept"))
        orphan = NetNS.create(store.new_netns_path(f"{base_dir}/removed"))
        for id, each in (("kept", kept), ("removed", orphan)):
            store.add(sandbox(id, netns_path=f"{os.path.dirname(each.path)}/none"), READY)
    moved = f"{odd}/{os.path.basename(kept.path)}"
    Path(moved).touch()
    kernel.mount(kept.path, moved, "none", kernel.MS_BIND)
    tamper(path, f"UPDATE sandboxes SET netns_path = '{odd}/none' WHERE id = 'kept'")
    done = subprocess.run(
        [sys.executable, "-m", "registry", "--db", path, "reconcile", "--remove-orphans"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert 1 == done.returncode, done.stderr
    assert "holds a control character" in done.stderr
    assert (False, True) == (kept.closed, orphan.closed)


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


def test_from_an_unknown_mount_namespace_nothing_is_taken_for_closed() -> None:
    """Without /proc or a descriptor ours cannot be determined."""
    here = HostContext.current()
    identity = NetNSIdentity(here.boot_id, None, 7, here.mount_ns)
    assert not is_elsewhere(identity, here)
    assert is_elsewhere(identity, here._replace(mount_ns=None))
    assert is_elsewhere(identity, here._replace(mount_ns=-1))
    assert not is_elsewhere(identity._replace(mount_ns=None), here._replace(mount_ns=-1))
    assert not is_elsewhere(identity._replace(boot_id=ELSEWHERE), here._replace(mount_ns=-1))


def test_an_orphan_that_is_gone_by_then_is_not_removed(
    store: Store, base_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process was faster: no error, and it is not among the removed."""
    orphan = NetNS.create(store.new_netns_path(base_dir))
    find = orphans.without_owner

    def racing(found: Iterable[str], owned: Iterable[str]) -> list[str]:
        orphans = find(found, owned)
        orphan.remove()
        return orphans

    monkeypatch.setattr(orphans, "without_owner", racing)
    assert [] == store.remove_orphans([orphan.path])
