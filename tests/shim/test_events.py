"""Events of sandboxes as a kubelet and `crictl events` stream them."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import closing, suppress
from itertools import islice
from typing import Any

import grpc
import pytest

from registry import Metadata, State, Status, Store
from registry.shim.answers import Answers
from registry.shim.calls import STREAMS
from registry.shim.events import EventStream
from tests import needs
from tests.shim.client import NOTREADY, READY, Client, pod_config
from tests.shim.conftest import Server
from tests.tools import pod, until

pytestmark = [pytest.mark.netns, needs.namespaces]

CREATED, STARTED, STOPPED, DELETED = range(4)
"""Numbers of ContainerEventType."""


def take(stream: Any, count: int) -> list[Any]:
    """Return the next *count* events of *stream*."""
    return list(islice(stream, count))


def kinds(events: list[Any]) -> list[tuple[str, int, int]]:
    """Return id, type, and state in the status of each event."""
    return [
        (each.container_id, each.container_event_type, each.pod_sandbox_status.state)
        for each in events
    ]


def test_events_follow_the_life_of_a_sandbox(cri: Client) -> None:
    """Each has the status of the sandbox, and no containers; a failed run has no events."""
    stream = cri.stream("GetContainerEvents")
    bad = pod_config("bad")
    bad.linux.sysctls["net.ipv4.no_such_thing"] = "1"
    with pytest.raises(grpc.RpcError):
        cri.run(bad)
    id = cri.run(pod_config("web", app="shop"))
    started = take(stream, 2)
    assert [(id, CREATED, READY), (id, STARTED, READY)] == kinds(started)
    status = cri.status(id)
    for event in started:
        assert [] == list(event.containers_statuses)
        assert status == event.pod_sandbox_status
        assert event.created_at > 0
    cri.stop(id)
    cri.remove(id)
    ended = take(stream, 2)
    assert [(id, STOPPED, NOTREADY), (id, DELETED, NOTREADY)] == kinds(ended)
    for event in ended:
        assert status.metadata == event.pod_sandbox_status.metadata
        assert event.pod_sandbox_status.id == id
        assert event.created_at > started[-1].created_at
    stream.cancel()


def test_end_of_a_process_and_change_by_another_process_are_events(
    server: Server, cri: Client
) -> None:
    """The history of all processes is streamed."""
    stream = cri.stream("GetContainerEvents")
    id = cri.run(pod_config("web"))
    take(stream, 2)
    os.kill(cri.info(id)["pid"], signal.SIGKILL)
    assert [(id, STOPPED, NOTREADY)] == kinds(take(stream, 1))
    with Store.open(server.db, reconcile=False) as other:
        other.delete(id)
    assert [(id, DELETED, NOTREADY)] == kinds(take(stream, 1))
    stream.cancel()


def test_each_client_has_all_events(server: Server) -> None:
    """Also beside others that leave, or that do not read."""
    with Client(server.socket) as slow, Client(server.socket) as fast, Client(server.socket) as cri:
        streams = [slow.stream("GetContainerEvents") for _ in range(2)]
        read, gone = (fast.stream("GetContainerEvents") for _ in range(2))
        gone.cancel()
        ids = [cri.run(pod_config(f"web-{n}", host_network=True)) for n in range(3)]
        for id in ids:
            cri.remove(id)
        expected = [CREATED, STARTED] * 3 + [STOPPED, DELETED] * 3
        for stream in (read, *streams):
            assert expected == [each.container_event_type for each in take(stream, 12)]
            stream.cancel()


def test_client_that_leaves_frees_its_thread(mortal: Server) -> None:
    """A stream too many is refused at once; after the others have left there are as many again."""
    with Client(mortal.socket) as cri:
        streams = [cri.stream("GetContainerEvents") for _ in range(STREAMS)]
        with pytest.raises(grpc.RpcError) as caught:
            next(cri.stream("GetContainerEvents"))
        assert grpc.StatusCode.RESOURCE_EXHAUSTED is caught.value.code()
        assert f"{STREAMS} streams are open" in str(caught.value.details())
        for stream in streams:
            stream.cancel()
        again: list[Any] = []
        until(lambda: _opened(cri, again) == STREAMS)
        for stream in again:
            stream.cancel()


def _opened(cri: Client, streams: list[Any]) -> int:
    """Add a stream that has an event, unless it is refused, and return the number of them."""
    stream = cri.stream("GetContainerEvents")
    cri.remove(cri.run(pod_config(f"web-{len(streams)}", host_network=True)))
    with suppress(grpc.RpcError):  # an earlier client has not left yet
        next(stream)
        streams.append(stream)
    return len(streams)


def test_client_that_reads_nothing_delays_no_writer(server: Server) -> None:
    """Its socket is full of events, and its stream resumes when it reads again."""
    with (
        Client(server.socket) as slow,
        Store.open(server.db, reconcile=False) as store,
    ):
        stream = slow.stream("GetContainerEvents")
        config = pod()
        config.annotations["size"] = "x" * 200_000
        ids = [f"{n:064x}" for n in range(100)]
        for id in ids:
            store.add(Metadata(id, id, config), Status(State.READY))
        for id in ids:
            store.delete(id)
        events = take(stream, 400)
        stream.cancel()
    for id in ids:
        of_one = [each for each in events if each.container_id == id]
        assert [CREATED, STARTED, STOPPED, DELETED] == [
            each.container_event_type for each in of_one
        ]


def test_end_of_the_server_ends_the_stream(mortal: Server) -> None:
    """As containerd does, without an error; the server does not wait for the client."""
    with Client(mortal.socket) as cri:
        stream = cri.stream("GetContainerEvents")
        assert 0 == mortal.end()
        assert [] == list(stream)
        assert grpc.StatusCode.OK is stream.code()


def test_client_that_vanishes_does_not_keep_the_server(mortal: Server) -> None:
    """Its connection is closed without a word."""
    with socket.socket(socket.AF_UNIX) as raw, Client(mortal.socket) as cri:
        raw.connect(mortal.socket)
        cri.stream("GetContainerEvents")
    assert 0 == mortal.end()


def test_event_of_a_record_that_cannot_be_read_has_the_metadata(store: Store) -> None:
    """The history names the pod, also when the record is gone before it is looked up."""
    with closing(EventStream(store, Answers(store).status)) as stream:
        store.add(Metadata("a1", "web_default_uid_7", pod()), Status(State.READY)).delete()
        events = [next(stream) for _ in range(4)]
    assert [CREATED, STARTED, STOPPED, DELETED] == [each.container_event_type for each in events]
    (created, *_) = store.history("a1")
    for event in events:
        metadata = event.pod_sandbox_status.metadata
        assert ("web", "default", "uid", 7) == (
            metadata.name,
            metadata.namespace,
            metadata.uid,
            metadata.attempt,
        )
        assert created.at == event.pod_sandbox_status.created_at
    assert [] == list(stream)
