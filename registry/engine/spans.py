"""OpenTelemetry spans of a write, made when it has ended, from the times that it has noted.

    registry.write          from the call to its return
    ├── registry.wait       for the mutex and the process lock
    └── registry.commit     the commit of its group

1. This module is imported, and spans are made, only where the embedder has imported
   `opentelemetry.trace` and has set a tracer provider. Nothing of OpenTelemetry is imported before.
2. No span is open during the write, so no interrupt can leave one open. A span that the embedder
   begins in the body of the write is a sibling of these.
3. The spans belong to the context of the caller. A savepoint has no spans: it waits for nothing.
   An AsyncStore commits the writes of several tasks in a thread, so the spans of a batch belong to
   no task, and are named after the first write.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from opentelemetry import trace

from registry.sync.interrupts import is_interrupt
from registry.version import __version__

if TYPE_CHECKING:
    from registry.engine.transaction import Transaction

log = logging.getLogger("registry")


def record(transaction: Transaction, error: BaseException | None) -> None:
    """Make the spans of *transaction*, which has ended.

    Args:
        transaction: not a savepoint.
        error: of its body, or of the wait for the locks.
    """
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):  # none is set
        return
    try:
        _record(transaction, error)
    except Exception as failure:
        if is_interrupt(failure):
            raise
        log.exception(  # the write itself is stored
            "%s: record spans",
            transaction.doing,
            extra={
                "event": "spans_not_recorded",
                "path": transaction.path,
                "operation": transaction.doing,
            },
        )


def _record(transaction: Transaction, error: BaseException | None) -> None:
    ended, group = time.monotonic(), transaction.group
    tracer = trace.get_tracer("registry", __version__)
    attributes = {
        "sandbox_registry.path": transaction.path,
        "sandbox_registry.operation": transaction.doing.removesuffix(
            f" {transaction.sandbox_id!r}"
        ),
    }
    if transaction.sandbox_id and transaction.calls == 1:
        attributes["sandbox_registry.sandbox_id"] = transaction.sandbox_id

    def at(moment: float) -> int:
        return transaction.since + int((moment - transaction.began) * 1e9)

    write = tracer.start_span("registry.write", attributes=attributes, start_time=transaction.since)
    inside = trace.set_span_in_context(write)
    wait = tracer.start_span("registry.wait", inside, start_time=at(transaction.began))
    wait.end(at(transaction.waited_until))
    if group is not None and group.commit_ended:
        commit = tracer.start_span(
            "registry.commit",
            inside,
            attributes={"sandbox_registry.group_size": group.calls},
            start_time=at(group.commit_began),
        )
        commit.end(at(group.commit_ended))
        error = error or group.failure
    if not transaction.committed:
        write.set_status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}")
        if error is not None:
            write.record_exception(error)
    write.end(at(ended))
