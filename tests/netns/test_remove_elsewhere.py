"""Removal of namespaces and files that another mount namespace has mounted."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry import NetNS, Store
from registry.host import kernel
from tests import needs
from tests.netns.removal import add, refused
from tests.tools import (
    UNKNOWN,
    environment,
    line,
    python,
    query,
    run,
    sandbox,
    say,
)

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]
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


def test_a_path_of_our_own_name_on_which_another_mount_namespace_has_mounted_is_left(
    store: Store, path: str, base_dir: str
) -> None:
    """While nothing is recorded its owner is unknown: EXDEV, and where it is mounted."""
    planned = store.new_netns_path(base_dir)
    handle = store.add(sandbox("a", netns_path=planned), UNKNOWN)
    with other_mount_namespace(path, *os.path.split(planned)) as child:
        message = refused(handle.remove_netns, errno.EXDEV, planned)
        assert f"/proc/{child.pid}/root{planned}" in message
        assert os.path.isfile(planned)
    handle.remove_netns()
    assert not os.path.lexists(planned)
