"""Damaged records over the CRI: they do not hide others."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from registry import Store
from tests import needs
from tests.shim.client import NOTREADY, READY, Client, pod_config
from tests.shim.conftest import Server, namespaces, pauses, serving
from tests.tools import tamper, until

pytestmark = [pytest.mark.netns, needs.namespaces]

STATUS = "UPDATE sandbox_statuses SET {} WHERE sandbox_id = {}"
RECORD = "UPDATE sandboxes SET {} WHERE id = {}"
HISTORY = "UPDATE sandbox_transitions SET to_state = {} WHERE event = 'created' AND {}"
DAMAGES = {
    "unknown-state": STATUS.format("state = 'SANDBOX_PAUSED'", "{id}"),
    "no-state": STATUS.format("state = ''", "{id}"),
    "config": RECORD.format("config = x'ffff'", "{id}"),
    "name-no-utf8": RECORD.format("name = CAST(x'6eff' AS TEXT)", "{id}"),
    "handler-no-utf8": RECORD.format("runtime_handler = CAST(x'6eff' AS TEXT)", "{id}"),
    "additional-ips": RECORD.format("additional_ips = '[7]'", "{id}"),
    "created-at": STATUS.format("created_at = -7", "{id}"),
    "history": HISTORY.format("'SANDBOX_PAUSED'", "sandbox_id = {id}"),
    "no-time": "; ".join(
        [
            STATUS.format("created_at = NULL", "{id}"),
            HISTORY.format("'SANDBOX_PAUSED'", "sandbox_id = {id}"),
        ]
    ),
}
"""SQL by the name of the pod whose record it damages; `{id}` is its id."""
UNREADABLE_STATE = {"unknown-state", "no-state"}
LISTED_ONLY = {"config", "name-no-utf8", "handler-no-utf8", "additional-ips"} | UNREADABLE_STATE
"""Damages after which a record has no status."""


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    """Return a server, started on a registry of one whole record and one for each damage."""
    with serving(tmp_path_factory.mktemp("damaged")) as server:
        with Client(server.socket) as cri:
            found = {name: cri.run(pod_config(name)) for name in ("whole", *DAMAGES)}
        server.kill()
        for name, sql in DAMAGES.items():
            tamper(server.db, *sql.replace("{id}", f"'{found[name]}'").split(";"))
        server.start()
        yield server, found
        # The history of the removed record would fail the check at the end.
        tamper(server.db, HISTORY.format("'SANDBOX_UNKNOWN'", "to_state = 'SANDBOX_PAUSED'"))


Damaged = tuple[Server, dict[str, str]]


def test_list_shows_every_record(damaged: Damaged) -> None:
    """Damaged records are shown by their columns; an unknown state is NOTREADY."""
    server, ids = damaged
    with Client(server.socket) as cri:
        found = {item.id: item for item in cri.list()}
        assert set(ids.values()) == found.keys()
        for name, id in ids.items():
            item = found[id]
            assert item.created_at > 0
            assert (NOTREADY if name in UNREADABLE_STATE else READY) == item.state
            if name != "name-no-utf8":
                assert (name, "default", f"uid-{name}", 1) == (
                    item.metadata.name,
                    item.metadata.namespace,
                    item.metadata.uid,
                    item.metadata.attempt,
                )
        assert "a test" == found[ids["unknown-state"]].annotations["made-by"]


def test_list_by_state_agrees_with_full_list(damaged: Damaged) -> None:
    """A record that is shown as NOTREADY is found by that filter."""
    server, _ = damaged
    with Client(server.socket) as cri:
        for state in (READY, NOTREADY):
            shown = [item.id for item in cri.list() if item.state == state]
            assert shown == [item.id for item in cri.list(state=state)]


def test_status_is_data_loss_for_damaged_records_only(damaged: Damaged) -> None:
    """The message gives the cause."""
    server, ids = damaged
    with Client(server.socket) as cri:
        for name, id in ids.items():
            if name not in LISTED_ONLY:
                assert READY == cri.status(id).state
                continue
            with pytest.raises(grpc.RpcError) as caught:
                cri.status(id)
            assert grpc.StatusCode.DATA_LOSS is caught.value.code()
            assert f"of sandbox {id!r}: " in str(caught.value.details())


def test_list_logs_a_damaged_record_once(damaged: Damaged) -> None:
    """A kubelet lists once a second."""
    server, ids = damaged
    with Client(server.socket) as cri:
        for _ in range(3):
            cri.list()
    lines = server.log.read_text().splitlines()
    for name in LISTED_ONLY:
        logged = [line for line in lines if "list sandboxes: " in line and ids[name] in line]
        assert 1 == len(logged)


def test_damaged_record_is_stopped_and_removed(tmp_path: Path) -> None:
    """Process and namespace are ended although the state cannot change; other sandboxes stay."""
    with serving(tmp_path) as server, Client(server.socket) as cri:
        whole, *hurt = [cri.run(pod_config(name)) for name in ("whole", "a", "b")]
        for id in hurt:
            tamper(server.db, STATUS.format("state = 'SANDBOX_PAUSED'", f"'{id}'"))
        assert 3 == len(pauses(server.db)) == len(namespaces(server.db))
        cri.stop(hurt[0])
        cri.stop(hurt[0])
        assert 2 == len(pauses(server.db)) == len(namespaces(server.db))
        assert {whole, *hurt} == {item.id for item in cri.list()}
        for id in hurt:
            cri.remove(id)
        assert 1 == len(pauses(server.db)) == len(namespaces(server.db))
        assert [whole] == [item.id for item in cri.list()]


@pytest.mark.parametrize(
    "attachment",
    [
        "{}",
        '{"network": {}, "args": ""}',
        '{"network": 5, "args": ""}',
        '{"network": {"name": "n", "cniVersion": "9.0.0", "plugins": [{"type": "p"}]}, "args": ""}',
        '{"network": {"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "p"}]}, "args": 5}',
    ],
)
def test_damaged_attachment_fails_only_the_stop_of_its_sandbox(
    tmp_path: Path, attachment: str
) -> None:
    """The next server starts, and the other sandboxes are stopped; a repair lets it go on."""
    with serving(tmp_path) as server, Client(server.socket) as cri:
        hurt, whole = [cri.run(pod_config(name)) for name in ("hurt", "whole")]
        with Store.open(server.db) as store:
            extensions = store.get(hurt).extensions
            before = extensions["cni"]
            extensions.update(lambda old: {**old, "cni": attachment.encode()})
            for start in (False, True):
                if start:
                    server.kill()
                    server.start()
                with pytest.raises(grpc.RpcError) as caught:
                    cri.call("StopPodSandbox", pod_sandbox_id=hurt, wait=True)
                assert grpc.StatusCode.DATA_LOSS is caught.value.code()
                assert "read attachment: " in str(caught.value.details())
            cri.remove(whole)
            extensions.update(lambda old: {**old, "cni": before})
        cri.remove(hurt)
        assert [] == cri.list()


def test_exit_is_recorded_beside_one_of_a_damaged_record(
    tmp_path: Path,
) -> None:
    """Both processes end at the same time; the damaged record does not change."""
    with serving(tmp_path) as server, Client(server.socket) as cri:
        hurt, whole = [cri.run(pod_config(name)) for name in ("hurt", "whole")]
        pids = [cri.info(id)["pid"] for id in (hurt, whole)]
        tamper(server.db, STATUS.format("state = 'SANDBOX_PAUSED'", f"'{hurt}'"))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        until(lambda: cri.status(whole).state == NOTREADY)
        assert "ProcessExited" == cri.info(whole)["reason"]
        until(lambda: f"record the end of sandbox {hurt!r}: " in server.log.read_text())
        cri.remove(hurt)


def test_record_that_contradicts_schema_is_listed_and_not_ended(tmp_path: Path) -> None:
    """A start time is negative; stop works again after a repair."""
    with serving(tmp_path) as server:
        with Client(server.socket) as cri:
            hurt, whole = [cri.run(pod_config(name)) for name in ("hurt", "whole")]
        server.kill()
        negate = STATUS.format("process_start_time = -process_start_time", f"'{hurt}'")
        tamper(server.db, negate)
        server.start()
        before = pauses(server.db)
        with Client(server.socket) as cri:
            assert {hurt, whole} == {item.id for item in cri.list()}
            for call in (cri.stop, cri.remove):
                with pytest.raises(grpc.RpcError) as caught:
                    call(hurt)
                assert "process_start_time" in str(caught.value.details())
            assert before == pauses(server.db)
            cri.remove(whole)
            assert [hurt] == [item.id for item in cri.list()]
            tamper(server.db, negate)
            cri.remove(hurt)
            assert set() == pauses(server.db)
