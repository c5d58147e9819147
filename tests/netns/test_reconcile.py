"""Reconcile of network namespaces, and a reconcile as a whole."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from registry import NetNS, State, Store, Verdict
from registry.cri import NamespaceMode
from registry.host import kernel, namespaces
from registry.recovery import reconcile
from tests import needs
from tests.conftest import OpenStore
from tests.netns.conftest import Sleeper
from tests.netns.findings import add, marked, only, unmarked
from tests.tools import (
    READY,
    UNKNOWN,
    environment,
    line,
    pod,
    python,
    query,
    run,
    sandbox,
)

pytestmark = [
    pytest.mark.netns,
    needs.namespaces,
]


def test_an_open_namespace_is_open(store: Store, base_dir: str) -> None:
    """Nothing is done, and nothing is said."""
    netns = add(store, base_dir)
    report = store.reconcile()
    assert ((), {Verdict.OPEN: 1}, ()) == (report.findings, report.counts, report.orphans)
    assert READY == store.get("a").status.get()
    assert netns.path == getattr(store.get("a").netns, "path", None)
    netns.remove()


def test_a_sandbox_removes_its_namespace(store: Store, base_dir: str) -> None:
    """The recorded one, once; it is closed from then on, and what is stored is as it was."""
    netns = add(store, base_dir)
    sandbox = store.get("a")
    for _ in range(2):
        sandbox.remove_netns()
        assert not os.path.exists(netns.path)
    assert READY == sandbox.status.get()
    assert netns.path == sandbox.netns_path
    assert None is sandbox.netns


@pytest.mark.parametrize("step", ["nothing", "file", "namespace"])
def test_a_sandbox_removes_what_an_interrupted_creation_has_left(
    store: Store, base_dir: str, step: str
) -> None:
    """No identity is recorded; at the intended path it can be no other namespace."""
    path = store.new_netns_path(base_dir)
    sandbox_ = store.add(sandbox("a", netns_path=path), UNKNOWN)
    if step == "file":
        Path(path).touch()
    elif step == "namespace":
        NetNS.create(path)
    sandbox_.remove_netns()
    assert not os.path.exists(path)


def test_a_sandbox_leaves_what_is_not_its_namespace(store: Store, base_dir: str) -> None:
    """Another one in its place, and any on the host network."""
    netns = add(store, base_dir)
    netns.remove()
    other = NetNS.create(netns.path)
    store.get("a").remove_netns()
    assert not other.closed
    config = pod()
    config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    store.add(sandbox("b", config=config, netns_path=netns.path), READY).remove_netns()
    assert not other.closed
    other.remove()


def test_a_host_network_sandbox_is_not_observed(store: Store) -> None:
    """Whatever its path says."""
    config = pod()
    config.linux.security_context.namespace_options.network = NamespaceMode.NODE
    store.add(sandbox("a", config=config, netns_path="/run/netns/none"), READY)
    report = store.reconcile()
    assert ((), {Verdict.HOST: 1}) == (report.findings, report.counts)
    assert None is store.get("a").netns


def test_a_removed_namespace_is_closed(store: Store, base_dir: str) -> None:
    """Nothing is at the path."""
    add(store, base_dir).remove()
    finding = marked(store, Verdict.CLOSED, "NetNSClosed")
    assert "nothing is at" in finding.message
    assert None is store.get("a").netns


def test_an_unmounted_namespace_is_closed_and_the_file_left_alone(
    store: Store, base_dir: str
) -> None:
    """An empty file is at the path, and stays."""
    netns = add(store, base_dir)
    kernel.umount(netns.path, 0)
    marked(store, Verdict.CLOSED, "NetNSClosed")
    assert os.path.isfile(netns.path)


@pytest.mark.parametrize("what", ["file", "directory", "fifo"])
def test_something_that_is_no_namespace_is_closed_and_left_alone(
    store: Store, base_dir: str, what: str
) -> None:
    """A plain file, a directory, a fifo without a reader."""
    path = add(store, base_dir).path
    NetNS.load(path).remove()
    if what == "file":
        Path(path).write_text("mine")
    elif what == "directory":
        os.mkdir(path)
        Path(path, "mine").touch()
    else:
        os.mkfifo(path)
    marked(store, Verdict.CLOSED, "NetNSClosed")
    assert os.path.lexists(path)
    assert what != "directory" or os.path.exists(f"{path}/mine")


def test_another_namespace_at_the_path_is_replaced(store: Store, base_dir: str) -> None:
    """And left alone."""
    netns = add(store, base_dir)
    netns.remove()
    other = NetNS.create(netns.path)
    marked(store, Verdict.REPLACED, "NetNSReplaced")
    assert None is store.get("a").netns
    assert not other.closed
    other.remove()


def test_a_namespace_of_another_type_is_replaced(store: Store, base_dir: str) -> None:
    """One of UTS at the path."""
    netns = add(store, base_dir)
    netns.remove()
    Path(netns.path).touch()
    kernel.mount("/proc/self/ns/uts", netns.path, "none", kernel.MS_BIND)
    finding = marked(store, Verdict.REPLACED, "NetNSReplaced")
    assert "not net" in finding.message


IN_OTHER_MOUNT_NS = """
    import os, sys
    from registry import Metadata, NetNS, State, Status, Store
    from registry.host import kernel
    path, base_dir, pid = sys.argv[1:]
    os.makedirs(base_dir, exist_ok=True)
    netns = NetNS.create(os.path.join(base_dir, "theirs"))
    if pid == "inside":
        pid = netns.do(lambda: os.posix_spawnp("sleep", ["sleep", "1000"], os.environ))
    with Store.open(path) as store:
        status = Status(State.READY, pid=int(pid))
        store.add(Metadata("a", "a", None, netns_path=netns.path), status)
    print(pid, flush=True)
    sys.stdin.readline()
    """


@pytest.mark.parametrize("file_visible", [True, False], ids=["empty-file", "nothing"])
def test_a_namespace_made_in_another_mount_namespace_is_unreachable(
    store: Store, path: str, base_dir: str, file_visible: bool
) -> None:
    """From here it is an empty file, or nothing: neither dead nor to be touched."""
    where = base_dir if file_visible else f"{base_dir}/tmpfs"
    prepare = (
        []
        if file_visible
        else ["sh", "-c", f'mkdir -p {where}; mount -t tmpfs x {where}; exec "$@"', "sh"]
    )
    child = subprocess.Popen(
        ["unshare", "--mount", *prepare, *python(IN_OTHER_MOUNT_NS, path, where, 0)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "0" == line(child)
        assert file_visible == os.path.exists(f"{where}/theirs")
        finding = unmarked(store, Verdict.UNREACHABLE)
        assert "recorded in another one" in finding.message
        assert file_visible == os.path.exists(f"{where}/theirs")
        # Where it was made it is open still.
        found = subprocess.run(
            ["nsenter", "--mount", f"--target={child.pid}", *python(
                "import sys; from registry import NetNS; print(NetNS.load(sys.argv[1]).closed)",
                f"{where}/theirs",
            )],
            env=environment(), capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "False" == found.stdout.strip()
    finally:
        child.kill()
        child.communicate()


def test_an_unreachable_sandbox_whose_process_lives_in_its_namespace_says_so(
    store: Store, path: str, base_dir: str
) -> None:
    """The namespace is known to live, though its path does not lead there from here."""
    child = subprocess.Popen(
        ["unshare", "--mount", *python(IN_OTHER_MOUNT_NS, path, base_dir, "inside")],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    pid = int(line(child))
    try:
        finding = unmarked(store, Verdict.UNREACHABLE)
        assert "still lives in the recorded namespace" in finding.message
    finally:
        os.kill(pid, signal.SIGKILL)
        child.kill()
        child.communicate()


# Several at once, and what is left.


def test_several_reasons_are_all_named(store: Store, base_dir: str, sleeper: Sleeper) -> None:
    """The reason is the first of them, the message names all."""
    process = sleeper()
    netns = add(store, base_dir, replace(READY, pid=process.pid))
    netns.remove()
    process.kill()
    process.wait()
    finding = marked(store, Verdict.CLOSED, "NetNSClosed")
    assert f"process {process.pid} is gone" in finding.message
    assert 0 == store.get("a").status.get().pid


def test_a_notready_sandbox_with_something_alive_is_reported(
    store: Store, base_dir: str, sleeper: Sleeper
) -> None:
    """So that what there is to clean up is known; without it nothing is said."""
    process = sleeper()
    netns = add(store, base_dir, replace(READY, pid=process.pid))
    store.get("a").status.update(lambda old: replace(old, state=State.NOTREADY))
    finding = unmarked(store, Verdict.OPEN)
    assert netns.path in finding.message
    assert str(process.pid) in finding.message
    netns.remove()


# The whole.


def test_open_reconciles_before_the_caller_gets_the_store(
    open_store: OpenStore, base_dir: str
) -> None:
    """And tells in `recovery`; with reconcile=False it does neither."""
    store = open_store()
    add(store, base_dir).remove()
    store.close()
    untouched = open_store(reconcile=False)
    assert (None, State.READY) == (untouched.recovery, untouched.get("a").status.get().state)
    untouched.close()
    recovered = open_store()
    assert recovered.recovery is not None
    assert "NetNSClosed" == only(recovered.recovery).reason
    assert State.NOTREADY == recovered.get("a").status.get().state
    assert str(only(recovered.recovery)).startswith("sandbox 'a': CLOSED (now NOTREADY): ")


def test_10000_sandboxes_are_one_write_transaction(store: Store, path: str) -> None:
    """1,000 of them closed: one commit, and as many findings."""
    with store.transaction():
        for n in range(10_000):
            gone = {"netns_path": f"/run/netns/none-{n}"} if n % 10 == 0 else {}
            store.add(sandbox(f"s{n}", config=None, **gone), READY)
    begun: list[str] = []
    engine = store._session.engine
    assert engine.writer.connection is not None
    engine.writer.connection.set_trace_callback(begun.append)
    report = store.reconcile()
    engine.writer.connection.set_trace_callback(None)
    assert {Verdict.CLOSED: 1_000, Verdict.OPEN: 9_000} == report.counts
    assert 1_000 == len(report.findings) == sum(finding.changed for finding in report.findings)
    assert 1 == sum(statement.startswith("BEGIN") for statement in begun)
    assert [(1_000,)] == query(path, "SELECT count(*) FROM why_not_ready")


def test_sandbox_changed_by_another_writer_meanwhile_is_observed_again(
    open_store: OpenStore, base_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the write one is deleted, one moved on, one mended, one added."""
    store = open_store()
    for id in ("deleted", "moved", "kept"):
        store.add(sandbox(id, netns_path=f"{base_dir}/none"), READY)
    run(
        """
        import sys
        from registry import Metadata, State, Status, Store
        with Store.open(sys.argv[1], reconcile=False) as store:
            for id in ("interrupted", "given up"):
                store.add(Metadata(id, id, None), Status(State.UNKNOWN))
        """,
        store.path,
    )
    with subprocess.Popen(["true"]) as gone:
        store.add(sandbox("mended"), replace(READY, pid=gone.pid))
    mark = reconcile._mark
    rounds: list[object] = []

    def interfere(*args: object) -> object:
        if not rounds:
            other = threading.Thread(target=change)
            other.start()
            other.join()
        rounds.append(args)
        return mark(*args)  # type: ignore[arg-type]

    def change() -> None:
        store.delete("deleted")
        store.get("moved").status.update(lambda old: replace(old, message="meanwhile"))
        store.get("mended").status.update(lambda old: replace(old, pid=os.getpid()))
        store.update_metadata("given up", lambda old: replace(old, ip="10.0.0.1"))
        store.add(sandbox("added", netns_path=f"{base_dir}/none"), READY)

    monkeypatch.setattr(reconcile, "_mark", interfere)
    report = store.reconcile()
    assert ["given up", "interrupted", "kept", "moved"] == sorted(
        finding.sandbox_id for finding in report.findings
    )
    assert all(finding.changed for finding in report.findings)
    assert {Verdict.CLOSED: 2, Verdict.INTERRUPTED: 2, Verdict.OPEN: 1} == report.counts
    assert 2 == len(rounds)
    assert State.READY == store.get("mended").status.get().state
    assert State.READY == store.get("added").status.get().state


def test_identities_are_recorded_once_when_the_object_exists(
    store: Store, path: str, base_dir: str, sleeper: Sleeper
) -> None:
    """At the first write after it was made; a namespace put in its place changes nothing."""
    planned = store.new_netns_path(base_dir)
    handle = store.add(sandbox("a", netns_path=planned), UNKNOWN)
    noted = "SELECT netns_number, netns_inode FROM sandboxes"
    assert [(None, None)] == query(path, noted)
    netns = NetNS.create(planned)
    store.update_metadata("a", lambda old: replace(old, ip="10.0.0.1"))
    expected = [(netns.identity.number, netns.identity.inode)]
    assert expected == query(path, noted)
    pid = sleeper().pid
    handle.status.update(lambda old: replace(old, state=State.READY, pid=pid))
    (first,) = query(path, "SELECT process_inode, process_start_time FROM sandbox_statuses")
    assert None not in first
    netns.remove()
    NetNS.create(planned)
    handle.status.update(lambda old: replace(old, message="again"))
    assert expected == query(path, noted)
    other = sleeper().pid
    handle.status.update(lambda old: replace(old, pid=other))
    (second,) = query(path, "SELECT process_inode, process_start_time FROM sandbox_statuses")
    assert first != second
    NetNS.load(planned).remove()


def test_identities_are_observed_outside_the_lock(
    store: Store, base_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call observes the host while a transaction is open."""
    held = []

    def watched(observe: Callable[..., object], *args: object) -> object:
        held.append(store._session.engine.writes.mutex.holder)
        return observe(*args)

    for name in ("observe", "may_be_at"):
        monkeypatch.setattr(namespaces, name, partial(watched, getattr(namespaces, name)))
    planned = f"{base_dir}/later"
    handle = store.add(sandbox("a", netns_path=planned), UNKNOWN)
    store.update_metadata("a", lambda old: replace(old, ip="10.0.0.1"))
    handle.status.update(lambda old: replace(old, state=State.READY))
    store.reconcile()
    assert [None] * 4 == held
