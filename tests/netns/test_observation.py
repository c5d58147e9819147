"""Observation of network namespaces: load, closed, identities, and no side effects."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
import threading
from pathlib import Path

import pytest

from registry import ClosedNetNSError, NetNS, NetNSError
from registry.host import kernel, namespaces
from registry.host.context import HostContext
from registry.host.namespaces import Presence
from registry.model.identity import NetNSIdentity
from tests import needs
from tests.netns.conftest import inside
from tests.tools import run

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
    pytest.mark.usefixtures("nothing_leaks"),
]


@pytest.mark.parametrize("what", ["nothing", "file", "directory", "fifo", "uts", "socket"])
def test_load_and_closed_recognise_other_objects(base_dir: str, what: str) -> None:
    """And neither blocks, nor touches it."""
    path = f"{base_dir}/x"
    made = NetNS.create(path)
    made.remove()
    with socket.socket(socket.AF_UNIX) as bound:
        if what == "file":
            Path(path).touch()
        elif what == "directory":
            os.mkdir(path)
        elif what == "fifo":
            os.mkfifo(path)
        elif what == "uts":
            Path(path).touch()
            kernel.mount("/proc/self/ns/uts", path, "none", kernel.MS_BIND)
        elif what == "socket":
            bound.bind(path)
        before = os.lstat(path) if what != "nothing" else None
        with pytest.raises(ClosedNetNSError) as caught:
            NetNS.load(path)
        assert path == caught.value.path
        assert made.closed
        with pytest.raises(ClosedNetNSError):
            made.do(inside)
    assert before == (os.lstat(path) if what != "nothing" else None)


def test_load_returns_the_namespace_at_the_path(made: NetNS) -> None:
    """The same as who made it has."""
    loaded = NetNS.load(made.path)
    assert made.identity == loaded.identity
    assert made.do(inside) == loaded.do(inside)
    assert (False, False) == (made.closed, loaded.closed)
    made.remove()
    assert (True, True) == (made.closed, loaded.closed)


def test_another_namespace_at_the_path_is_not_the_loaded_one(made: NetNS) -> None:
    """It is created at the same path ten times, since inodes are reused."""
    for _ in range(10):
        made.remove()
        other = NetNS.create(made.path)
        assert made.closed
        assert not other.closed
        with pytest.raises(ClosedNetNSError):
            made.do(inside)
        made.remove()  # leaves the other one alone
        assert not other.closed
        other.remove()


def test_one_namespace_at_two_paths_is_one(base_dir: str, made: NetNS) -> None:
    """A path is only a name."""
    second = f"{base_dir}/second"
    Path(second).touch()
    kernel.mount(made.path, second, "none", kernel.MS_BIND)
    assert NetNS.load(second).identity.same_as(made.identity)
    made.remove()
    assert not NetNS.load(second).closed


def test_unresolvable_path_is_neither_open_nor_closed(base_dir: str) -> None:
    """A loop of symlinks: NetNSError with the errno, from every question."""
    path = f"{base_dir}/loop"
    made = NetNS.create(path)
    made.remove()
    os.symlink(path, path)
    for call in (
        lambda: NetNS.load(path),
        lambda: made.closed,
        lambda: made.do(inside),
        made.remove,
    ):
        with pytest.raises(NetNSError) as caught:
            call()
        assert (errno.ELOOP, path) == (caught.value.errno, caught.value.path)
    assert os.path.islink(path)


def test_observing_from_another_mount_namespace_changes_nothing(base_dir: str, made: NetNS) -> None:
    """There it is an empty file, which stays, and the namespace with it."""
    out = run(
        """
        import sys
        from registry import ClosedNetNSError, NetNS
        from registry.host import kernel
        kernel.unshare(0x20000)  # CLONE_NEWNS
        kernel.umount(sys.argv[1], 0)
        try:
            NetNS.load(sys.argv[1])
        except ClosedNetNSError as error:
            print("is no namespace" in str(error))
        """.replace("kernel.umount", "kernel.mount('', '/', 'none', 0x44000); kernel.umount"),
        made.path,
    )
    assert "True" == out.strip()
    assert not made.closed


# identity and observation


def test_identities_without_a_number_are_compared_by_inode() -> None:
    """And say so; a boot id that differs counts only where nothing outweighs it."""
    one = NetNSIdentity("boot", 7, 70, 1)
    assert one.same_as(one._replace(mount_ns=2, inode=71))
    assert not one.same_as(one._replace(number=8))
    assert one.same_as(one._replace(number=None))
    assert not one.same_as(one._replace(number=None, inode=71))
    assert one.by_inode_only(one._replace(number=None))
    assert not one.by_inode_only(one)
    other = one._replace(boot_id="other")
    assert one.same_as(other)
    assert not one.same_as(other._replace(inode=71))
    assert not one.same_as(other._replace(number=None))
    assert not one.same_as(other._replace(number=8))
    for unknown in (one._replace(boot_id=""), other):
        assert one._replace(boot_id="").same_as(unknown._replace(inode=71))


def test_the_number_is_the_cookie_of_a_socket_inside(made: NetNS) -> None:
    """So what an older kernel tells by a socket is what a newer one tells by ioctl."""

    def cookie() -> int:
        with socket.socket() as probe:
            option = probe.getsockopt(socket.SOL_SOCKET, kernel.SO_NETNS_COOKIE, 8)
        return int(struct.unpack("=Q", option)[0])

    with open(made.path, "rb") as file:
        assert made.identity.number == namespaces._cookie(file.fileno()) == made.do(cookie)
        if kernel.namespace_number(file.fileno()) is None:
            pytest.skip("this kernel has no NS_GET_ID to compare with")
        assert made.identity.number == kernel.namespace_number(file.fileno())


def test_an_observer_identifies_all_namespaces_in_one_thread_at_most(
    base_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their cookies too, as on a kernel without NS_GET_ID; the caller stays where he is."""
    made = [NetNS.create(f"{base_dir}/ns-{n}") for n in range(3)]
    here = os.stat("/proc/thread-self/ns/net").st_ino
    numbers = [each.identity.number for each in made]
    paths = [*(each.path for each in made), f"{base_dir}/none", base_dir]
    started: list[str] = []
    start = threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    for old_kernel in (False, True):
        if old_kernel:
            monkeypatch.setattr(kernel, "namespace_at", lambda *_: None)
            monkeypatch.setattr(kernel, "namespace_number", lambda _: None)
        started.clear()
        observer = namespaces.Observer([*paths, paths[0]], HostContext.current())
        observations = {path: observer.observe(path) for path in paths}
        assert observations[paths[0]] is observer.observe(paths[0])
        assert numbers == [
            observed.identity.number
            for observed in observations.values()
            if observed.identity is not None
        ]
        assert [Presence.ABSENT, Presence.NOT_A_NAMESPACE] == [
            observations[path].presence for path in paths[3:]
        ]
        assert old_kernel == len(started)
    assert here == os.stat("/proc/thread-self/ns/net").st_ino
    namespaces.Observer([], HostContext.current())
    for each in made:
        each.remove()


def test_observation_is_the_same_on_a_kernel_that_reports_less(made: NetNS, base_dir: str) -> None:
    """By a file handle (Linux 6.18), by an ioctl of what is opened, by a socket inside."""
    out = run(
        """
        import errno, os, sys
        from registry.host import kernel, namespaces
        from registry.host.context import HostContext
        from tests.netns.seccomp import IOCTL, NAME_TO_HANDLE_AT, refuse
        directory = sys.argv[1]
        open(f"{directory}/file", "w").close()
        os.mkfifo(f"{directory}/fifo")
        os.symlink("made", f"{directory}/link")
        os.symlink("loop", f"{directory}/loop")
        names = ("made", "link", "file", "fifo", "", "none", "file/none", "loop", "\\0", "\\ud800")
        paths = [*(f"{directory}/{name}" for name in names), "/proc/self/ns/uts", "/proc/self/stat"]
        print(tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 18))
        context, seen = HostContext.current(), []
        for lack in (
            lambda: None,
            lambda: refuse(NAME_TO_HANDLE_AT, errno.EPERM),
            lambda: refuse(IOCTL, errno.ENOTTY, kernel.NS_GET_ID),
        ):
            lack()
            at = f"{directory}/made".encode(), kernel.AT_FDCWD, 0
            told = kernel.namespace_at(*at) is not None
            with open(f"{directory}/made") as file:
                numbered = kernel.namespace_number(file.fileno()) is not None
            print(told, numbered)
            seen.append([namespaces.observe(path, context) for path in paths])
        first = seen[0]
        print(all(first == other for other in seen[1:]))
        print(*(observed.presence.name for observed in first), first[0].identity.number)
        print(first[7].detail, first[8].detail, first[10].detail, sep="\\n")
        """,
        base_dir,
    )
    recent, *told, same, presences, loop, nul, other = out.splitlines()
    assert [f"{recent} {recent}", f"False {recent}", "False False"] == told
    assert "True" == same
    assert (
        "OPEN OPEN NOT_A_NAMESPACE NOT_A_NAMESPACE NOT_A_NAMESPACE ABSENT ABSENT UNSEEN UNSEEN "
        f"UNSEEN OTHER_TYPE NOT_A_NAMESPACE {made.identity.number}"
    ) == presences
    assert f"'{base_dir}/loop' cannot be seen: Too many levels of symbolic links" == loop
    assert f"'{base_dir}/\\x00' cannot be seen: embedded null byte" == nul
    assert "'/proc/self/ns/uts' is a namespace of type 0x4000000, not net" == other


def test_path_leads_to_a_namespace_where_faccessat2_is_refused(made: NetNS) -> None:
    """By a seccomp filter that does not know the call; libc then reports that nothing is there."""
    out = run(
        """
        import errno, sys
        from registry.host import namespaces
        from tests.netns.seccomp import FACCESSAT2, refuse
        refuse(FACCESSAT2, errno.EPERM)
        for path in (sys.argv[1], sys.argv[1] + "-none", "/etc/passwd"):
            print(namespaces.may_be_at(path))
        """,
        made.path,
    )
    assert ["True", "False", "False"] == out.split()


def test_observing_takes_no_lock_and_no_reference(made: NetNS) -> None:
    """A namespace that is observed without pause can be removed."""
    observed = namespaces.observe(made.path, HostContext.current())
    assert Presence.OPEN is observed.presence
    with open(os.path.dirname(made.path) + "/lock", "w", encoding="utf-8") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert Presence.OPEN is namespaces.observe(made.path, HostContext.current()).presence
    made.remove()
    assert Presence.ABSENT is namespaces.observe(made.path, HostContext.current()).presence
    assert stat.S_ISDIR(os.stat(os.path.dirname(made.path)).st_mode)
