"""OpenTelemetry spans of writes, as an exporter of the SDK in memory gets them."""

from __future__ import annotations

import asyncio
import threading

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from registry import Sandbox, Status, Store, UnavailableError
from registry.aio import AsyncStore
from tests.conftest import OpenStore
from tests.convoy import convoy, more
from tests.integration.groups import updates
from tests.tools import READY, Stop, in_another_thread, run, sandbox


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> TracerProvider:
    """Return a tracer provider that is the one of this process until the end of the test."""
    provider = TracerProvider()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)  # a program can set one only once
    return provider


@pytest.fixture
def exporter(provider: TracerProvider, store: Store) -> InMemorySpanExporter:
    """Return an exporter that gets the spans which end after the store was opened."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


def named(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    """Return the spans with a name, in the order in which they ended."""
    return [span for span in exporter.get_finished_spans() if span.name == f"registry.{name}"]


def attributes(span: ReadableSpan) -> dict[str, object]:
    """Return the attributes of a span without their prefix."""
    found = (span.attributes or {}).items()
    return {key.removeprefix("sandbox_registry."): value for key, value in found}


def times(span: ReadableSpan) -> tuple[int, int]:
    """Return the beginning and the end of a span, in ns since the Unix epoch."""
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def test_a_write_has_a_span_with_its_wait_and_its_commit_inside(
    store: Store, exporter: InMemorySpanExporter
) -> None:
    """All three are children of the span of the caller, or of each other."""
    with trace.get_tracer("test").start_as_current_span("caller") as caller:
        store.add(sandbox("a1"), READY)
    (write,), (wait,), (commit,) = (named(exporter, each) for each in ("write", "wait", "commit"))
    assert write.parent == caller.get_span_context()
    assert wait.parent == commit.parent == write.context
    assert {
        "path": store.path,
        "operation": "add sandbox",
        "sandbox_id": "a1",
    } == attributes(write)
    assert {"group_size": 1} == attributes(commit)
    began, ended = times(write)
    assert began <= times(wait)[0] <= times(wait)[1] <= times(commit)[0]
    assert times(commit)[0] <= times(commit)[1] <= ended
    assert write.status.is_ok or write.status.is_unset
    scope = write.instrumentation_scope
    assert scope is not None
    assert "registry" == scope.name


def test_each_kind_of_write_names_its_operation(
    store: Store, exporter: InMemorySpanExporter
) -> None:
    """The id is an attribute of its own, so that the operations are few."""
    handle = store.add(sandbox("a1"), READY)
    handle.status.update(more)
    handle.extensions.update(lambda _: {"a": b"b"})
    store.reconcile()
    with store.transaction():
        store.delete("a")
    assert [
        ("add sandbox", "a1"),
        ("update status of sandbox", "a1"),
        ("update extensions of sandbox", "a1"),
        ("transaction", None),
    ] == [
        (each["operation"], each.get("sandbox_id"))
        for each in map(attributes, named(exporter, "write"))
    ]


def test_members_of_a_group_have_spans_of_one_commit(
    store: Store, exporter: InMemorySpanExporter, handles: list[Sandbox], blocker: Sandbox
) -> None:
    """Each write shows the commit that it waited for, with the size of its group."""
    exporter.clear()
    with convoy(store, blocker, *updates(handles)):
        pass
    assert 9 == len(named(exporter, "write"))
    assert [9] * 9 == [attributes(each)["group_size"] for each in named(exporter, "commit")]


@pytest.mark.parametrize("error", [LookupError("its own"), Stop()])
def test_a_write_that_raises_has_the_status_error_and_no_commit(
    store: Store, exporter: InMemorySpanExporter, error: BaseException
) -> None:
    """The span has the exception as an event."""
    handle = store.add(sandbox("a1"), READY)
    exporter.clear()

    def fail(_: object) -> None:
        raise error

    with pytest.raises(type(error)):
        handle.status.update(fail)  # type: ignore[arg-type]
    (write,) = named(exporter, "write")
    assert [] == named(exporter, "commit")
    assert StatusCode.ERROR is write.status.status_code
    assert f"{type(error).__name__}: {error}" == write.status.description
    assert ["exception"] == [event.name for event in write.events]


def test_a_write_that_timed_out_has_a_span_of_its_wait(
    exporter: InMemorySpanExporter, open_store: OpenStore
) -> None:
    """It is the span for which an operator looks."""
    impatient = open_store(timeout=0.1)
    with impatient.transaction(), pytest.raises(UnavailableError):
        in_another_thread(lambda: impatient.delete("a"))
    late = named(exporter, "write")[0]
    assert StatusCode.ERROR is late.status.status_code
    (wait,) = (each for each in named(exporter, "wait") if each.parent == late.context)
    assert times(wait)[1] - times(wait)[0] >= 10**8


class Broken(SpanProcessor):
    """Processor of the embedder that raises."""

    def __init__(self, error: Exception) -> None:
        self.error: Exception | None = error

    def on_end(self, _: ReadableSpan) -> None:
        """Raise the error once."""
        error, self.error = self.error, None
        if error is not None:
            raise error


def test_a_processor_that_raises_does_not_fail_the_write(
    store: Store,
    exporter: InMemorySpanExporter,
    provider: TracerProvider,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The write is stored by then; the log has the error."""
    provider.add_span_processor(Broken(LookupError("full")))
    store.add(sandbox("a1"), READY)
    assert [("registry", "add sandbox 'a1': record spans")] == [
        (each.name, each.getMessage()) for each in caplog.records
    ]


def test_a_batch_of_tasks_has_one_write_span(
    path: str, store: Store, exporter: InMemorySpanExporter
) -> None:
    """The commit has the number of writes, and the batch names no sandbox."""
    gate = threading.Event()

    def block(old: Status) -> Status:
        assert gate.wait(30)
        return more(old)

    async def update_all() -> None:
        async with await AsyncStore.open(path) as tasks:
            handle = await tasks.add(sandbox("a1"), READY)
            updates = [asyncio.create_task(handle.status.update(fn)) for fn in (block, more, more)]
            await asyncio.sleep(0)  # each queues its write
            gate.set()
            await asyncio.gather(*updates)

    asyncio.run(update_all())
    assert [1, 3] == [attributes(each)["group_size"] for each in named(exporter, "commit")]
    alone, batch = map(attributes, named(exporter, "write"))
    assert {"sandbox_id": "a1", "operation": "add sandbox", "path": store.path} == alone
    assert "update status of sandbox" == batch["operation"]
    assert "sandbox_id" not in batch


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("", "False False"),
        ("import opentelemetry.trace", "True True"),
    ],
)
def test_nothing_is_imported_and_no_span_made_without_a_provider(
    path: str, code: str, loaded: str
) -> None:
    """A process that does not trace imports neither OpenTelemetry nor the module of the spans."""
    out = run(
        f"""
        import sys
        {code}
        from dataclasses import replace
        from registry import Metadata, State, Status, Store
        with Store.open(sys.argv[1]) as store:
            store.add(Metadata("a", "a", None), Status(State.READY)).status.update(
                lambda old: replace(old, message="more"))
        print("registry.engine.spans" in sys.modules, "opentelemetry" in sys.modules)
        """,
        path,
    )
    assert f"{loaded}\n" == out


def test_the_first_writes_of_two_threads_wait_for_the_module(path: str) -> None:
    """One imports it while the other one looks for it; neither fails."""
    run(
        """
        import builtins, sys, threading
        from concurrent.futures import ThreadPoolExecutor
        from opentelemetry import trace
        from registry import Metadata, State, Status, Store
        original = builtins.__import__
        importing, looking, go_on = threading.Event(), threading.Event(), threading.Event()

        def slow(name, globals=None, locals=None, fromlist=(), level=0):
            if name == "registry.version" and globals["__name__"] == "registry.engine.spans":
                importing.set()
                assert go_on.wait(60)
            if importing.is_set() and fromlist == ("spans",):
                looking.set()
            return original(name, globals, locals, fromlist, level)

        with Store.open(sys.argv[1]) as store, ThreadPoolExecutor(2) as pool:
            builtins.__import__ = slow

            def add(id):
                return store.add(Metadata(id, id, None), Status(State.READY)).id

            first = pool.submit(add, "a")
            assert importing.wait(60)
            second = pool.submit(add, "b")
            while not looking.is_set() and not second.done():
                pass
            go_on.set()
            assert ["a", "b"] == [first.result(), second.result()]
        """,
        path,
    )
