"""Orphans: found, reported, and removed on request."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry import NetNS, NetNSError, State, Store, restore
from registry.cri import NamespaceMode
from registry.host import kernel
from tests import needs
from tests.conftest import OpenStore
from tests.netns.findings import add
from tests.tools import (
    NOTREADY,
    READY,
    UNKNOWN,
    execute,
    pod,
    sandbox,
    tamper,
)

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]


def test_an_orphan_of_ours_is_reported_and_removed_on_request(
    store: Store, base_dir: str, tmp_path: Path
) -> None:
    """Not containerd's, not another registry's, not what a sandbox owns, not a plain file."""
    owned = add(store, base_dir)
    orphan = NetNS.create(store.new_netns_path(base_dir))
    with Store.open(tmp_path / "other.db") as other:
        theirs = NetNS.create(other.new_netns_path(base_dir))
    cni = NetNS.create(f"{base_dir}/cni-6a9d6f1c-5a5b-4bd7-8f5c-9a8f4d6f1c5a")
    Path(store.new_netns_path(base_dir)).touch()
    assert (orphan.path,) == store.reconcile(dry_run=True).orphans == store.reconcile().orphans
    assert not orphan.closed
    wanted = [orphan.path, theirs.path, cni.path, owned.path]
    assert [orphan.path] == store.remove_orphans(wanted)
    assert [True, False, False, False] == [netns.closed for netns in (orphan, theirs, cni, owned)]
    assert () == store.reconcile().orphans
    for netns in (theirs, cni, owned):
        netns.remove()


def test_an_orphan_in_which_a_process_lives_is_kept(
    store: Store, path: str, base_dir: str, tmp_path: Path
) -> None:
    """A copy of the registry would take a running sandbox for an orphan."""
    copy = tmp_path / "copy.db"
    execute(path, f"VACUUM INTO '{copy}'")
    netns = NetNS.create(store.new_netns_path(base_dir))
    store.add(sandbox("a", netns_path=netns.path), READY)
    process = netns.do(lambda: subprocess.Popen(["sleep", "1000"]))
    with Store.open(copy) as other:
        with pytest.raises(NetNSError, match=f"process {process.pid} lives in it") as caught:
            other.remove_orphans([netns.path])
        assert (netns.path, errno.EBUSY) == (caught.value.path, caught.value.errno)
        assert not netns.closed
        process.kill()
        process.wait()
        assert [netns.path] == other.remove_orphans([netns.path])


def test_an_orphan_of_the_original_is_none_of_a_backup(
    store: Store, base_dir: str, tmp_path: Path
) -> None:
    """Opened for writing, a backup has another id; restored, it has that of the original."""
    store.add(sandbox("a", netns_path=store.new_netns_path(base_dir)), UNKNOWN)
    copy = str(tmp_path / "copy.db")
    store.backup(copy)
    later = NetNS.create(store.new_netns_path(base_dir))
    store.add(sandbox("b", netns_path=later.path), READY)
    restored = str(tmp_path / "restored.db")
    assert (later.path,) == restore(copy, restored).recovery.orphans
    with Store.open(copy) as other:
        assert () == other.reconcile().orphans
        assert [] == other.remove_orphans([later.path])
    assert not later.closed
    later.remove()


def test_an_orphan_that_a_sandbox_records_meanwhile_is_kept(store: Store, base_dir: str) -> None:
    """The second look is under the write lock."""
    orphan = NetNS.create(store.new_netns_path(base_dir))
    store.add(sandbox("a", netns_path=orphan.path), UNKNOWN)
    assert [] == store.remove_orphans([orphan.path])
    assert not orphan.closed
    orphan.remove()


def test_orphans_are_found_in_order_beside_files_that_are_not_observed(
    store: Store, base_dir: str
) -> None:
    """A sandbox on the host's network names a directory, too."""
    config = pod()
    config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    store.add(sandbox("a", config=config, netns_path=f"{base_dir}/host"), READY)
    orphans = [NetNS.create(store.new_netns_path(base_dir)) for _ in range(3)]
    assert tuple(sorted(orphan.path for orphan in orphans)) == store.reconcile().orphans
    for orphan in orphans:
        orphan.remove()


@pytest.fixture
def odd_paths(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Return paths that cannot be resolved, each by what is odd about it."""
    loop, chain = tmp_path / "loop", tmp_path / "chain"
    loop.symlink_to(loop)
    chain.mkdir()
    for n in range(1200):  # more than Python resolves, and than the kernel follows
        (chain / str(n)).symlink_to(str(n + 1))
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    yield {
        "zombie's root": f"/proc/{zombie.pid}/root/run/netns/x",
        "zombie's namespace": f"/proc/{zombie.pid}/ns/net",
        "init's root": "/proc/1/root/run/netns/x",
        "loop": str(loop),
        "below a loop": f"{loop}/x",
        "chain": f"{chain}/0",
        "below a chain": f"{chain}/0/x",
        "long name": f"{tmp_path}/{'n' * 300}",
        "below a long name": f"{tmp_path}/{'n' * 300}/x",
        "long path": str(tmp_path) + "/x" * 1900,
        "below a device": "/dev/null/x",
        "below a file": "/etc/passwd/x",
        "not ASCII": f"{tmp_path}/aä一/x",
    }
    zombie.wait()


def test_a_path_that_cannot_be_resolved_stops_nothing_else(
    open_store: OpenStore, base_dir: str, odd_paths: dict[str, str]
) -> None:
    """The store opens, the other sandbox gets its verdict, and the orphan is found and removed."""
    store = open_store(reconcile=False)
    other = add(store, base_dir)
    orphan = NetNS.create(store.new_netns_path(base_dir))
    for n, path in enumerate(odd_paths.values()):
        store.add(sandbox(f"odd{n}", netns_path=path), READY)
    store.close()
    store = open_store()
    assert store.recovery is not None
    assert (orphan.path,) == store.recovery.orphans
    assert 1 + len(odd_paths) == sum(store.recovery.counts.values())
    assert "a" not in {finding.sandbox_id for finding in store.recovery.findings}
    assert [orphan.path] == store.remove_orphans([orphan.path])
    assert (True, False) == (orphan.closed, other.closed)
    other.remove()


@pytest.mark.parametrize(
    "value",
    ["'/a' || char(0) || 'b'", "CAST(x'2fff' AS TEXT)", "'x'", "'/' || char(1)"],
    ids=["nul", "not utf-8", "relative", "control"],
)
def test_a_damaged_path_stops_nothing_else(
    open_store: OpenStore, tmp_path: Path, base_dir: str, value: str
) -> None:
    """The other sandbox gets its verdict, and the orphan is found, for any value of the column."""
    path = str(tmp_path / "damaged.db")  # in which `check` finds something
    with Store.open(path) as store:
        other = add(store, base_dir)
        orphan = NetNS.create(store.new_netns_path(base_dir))
        store.add(sandbox("odd", netns_path=f"{base_dir}/none"), READY)
    tamper(path, f"UPDATE sandboxes SET netns_path = {value} WHERE id = 'odd'")
    with Store.open(path) as store:
        assert store.recovery is not None
        assert (orphan.path,) == store.recovery.orphans
        assert 2 == sum(store.recovery.counts.values())
        assert State.READY is store.get("a").status_as_read.state
        assert [orphan.path] == store.remove_orphans([orphan.path])
    assert (True, False) == (orphan.closed, other.closed)
    other.remove()


def test_a_symlink_is_no_orphan(store: Store, base_dir: str) -> None:
    """Anyone may plant one in a sticky directory; the namespace behind it is another's."""
    victim = add(store, base_dir)
    stranger = NetNS.create(f"{base_dir}/stranger")
    for target in (victim, stranger):
        planted = store.new_netns_path(base_dir)
        os.symlink(target.path, planted)
        assert () == store.reconcile().orphans
        assert [] == store.remove_orphans([planted])
        assert os.path.islink(planted)
    assert (False, False) == (victim.closed, stranger.closed)
    victim.remove()
    stranger.remove()


def test_a_namespace_that_a_sandbox_names_otherwise_is_no_orphan(
    store: Store, base_dir: str, tmp_path: Path
) -> None:
    """Through a symlink to its directory (/var/run is /run), a symlink to it, or another mount."""
    (tmp_path / "link").symlink_to(base_dir)
    names = ("through directory", "symlink", "bind")
    made = {name: NetNS.create(store.new_netns_path(base_dir)) for name in names}
    (tmp_path / "symlink").symlink_to(made["symlink"].path)
    bind = f"{base_dir}/bind"
    Path(bind).touch()
    kernel.mount(made["bind"].path, bind, "none", kernel.MS_BIND)
    paths = (
        made["through directory"].path.replace(base_dir, f"{tmp_path}/link"),
        str(tmp_path / "symlink"),
        bind,
    )
    for name, path in zip(names, paths, strict=True):
        store.add(sandbox(name.replace(" ", "-"), netns_path=path), READY)
    assert () == store.reconcile().orphans
    assert [] == store.remove_orphans(each.path for each in made.values())
    for each in made.values():
        assert not each.closed
        each.remove()


def test_an_orphan_in_a_directory_of_two_names_is_reported_once(
    store: Store, base_dir: str, tmp_path: Path
) -> None:
    """It may be removed by either."""
    (tmp_path / "link").symlink_to(base_dir)
    for n, directory in enumerate((base_dir, tmp_path / "link")):
        store.add(sandbox(f"s{n}", netns_path=f"{directory}/none"), NOTREADY)
    for directory in (base_dir, f"{tmp_path}/link"):
        orphan = NetNS.create(store.new_netns_path(base_dir))
        (reported,) = store.reconcile().orphans
        assert os.path.samefile(orphan.path, reported)
        by_name = orphan.path.replace(base_dir, directory)
        assert [by_name] == store.remove_orphans([by_name])
        assert orphan.closed


def test_orphans_are_not_searched_for_where_nothing_is_recorded(
    store: Store, base_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox without a path says nothing of the working directory."""
    theirs = NetNS.create(store.new_netns_path(base_dir))
    store.add(sandbox("a"), READY)
    monkeypatch.chdir(base_dir)
    assert () == store.reconcile().orphans
    theirs.remove()
