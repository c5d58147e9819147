"""Calls: bytes in, bytes out; errors become status codes, records of the log, and metrics.

No exception reaches gRPC, which would log it with the text of the client, and answer UNKNOWN. So
requests are parsed and responses are serialized here too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, NoReturn, Protocol

import grpc
from google.protobuf.message import DecodeError, Message

from registry import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    MetadataError,
    NetNSError,
    NotFoundError,
    RegistryError,
    ResourceExhaustedError,
    UnavailableError,
)
from registry.shim import limits
from registry.shim.ending import Ending
from registry.sync.interrupts import is_interrupt

log = logging.getLogger("registry.shim")

DETAILS_MAX: Final = 2048
"""Bytes of an error's text. gRPC escapes a byte by up to three, and refuses trailers of 8 KB."""

STREAMS: Final = 8
"""Streams that are open at a time. Each has a thread, and one more thread refuses the others."""

_CODES: Final[tuple[tuple[type[Exception], grpc.StatusCode], ...]] = (
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (AlreadyExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (MetadataError, grpc.StatusCode.DATA_LOSS),
    (InvalidArgumentError, grpc.StatusCode.INVALID_ARGUMENT),
    (FailedPreconditionError, grpc.StatusCode.FAILED_PRECONDITION),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (ResourceExhaustedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (MemoryError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DataLossError, grpc.StatusCode.DATA_LOSS),
    (Exception, grpc.StatusCode.INTERNAL),
)

Observe = Callable[[str, str, float], object]
"""Function that is given the name of a method, the code and the duration (seconds) of each call."""


class Method(NamedTuple):
    """Method of a service.

    Attributes:
        request: message class of the request.
        answer: returns the response to a request and its context, or the `Responses` of a stream.
        pool: threads of a method that changes something, or goes on for long, while the others
            are answered by the common ones.
        is_stream: whether there are many responses.
    """

    request: type[Message]
    answer: Callable[..., Any]
    pool: ThreadPoolExecutor | None = None
    is_stream: bool = False


class Responses(Protocol):
    """Responses of a stream."""

    def __iter__(self) -> Iterator[Message]:
        """Return an iterator of the responses."""

    def close(self) -> None:
        """End the iteration, also one that waits in another thread. Idempotent."""


class MalformedRequestError(InvalidArgumentError):
    """The bytes of a request are no message of its class."""


class Calls:
    """Runner of the calls of all services."""

    def __init__(self, ending: Ending, observe: Observe) -> None:
        """Note errors of the store in *ending*, and *observe* each call."""
        self.ending: Final = ending
        self._observe: Final = observe
        self._mutex: Final = threading.Lock()
        self._streams: Final[list[Responses]] = []
        self._closed = False

    def close(self) -> None:
        """End the streams that are open, and those that begin later."""
        with self._mutex:
            self._closed = True
            streams = list(self._streams)
        for responses in streams:
            responses.close()

    def service(self, name: str, methods: Mapping[str, Method]) -> grpc.GenericRpcHandler:
        """Return the service *name*; a method that it lacks is UNIMPLEMENTED."""
        handlers = {each: self._handler(each, method) for each, method in methods.items()}
        return grpc.method_handlers_generic_handler(name, handlers)

    def without(self, services: Collection[str], why: str) -> grpc.GenericRpcHandler:
        """Return the refusal of every other method of *services*; the message names it."""
        return _Unimplemented(services, why, self._observe)

    def _handler(self, name: str, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        def call(data: bytes, context: grpc.ServicerContext) -> bytes:
            with self._answering(name, method, context):
                response: Message = method.answer(_parsed(name, method, data), context)
                return response.SerializeToString()

        def stream(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            with (
                self._answering(name, method, context),
                self._opened(name, method.answer(_parsed(name, method, data), context)) as opened,
            ):
                if not context.add_callback(opened.close):  # called when the client leaves
                    return
                context.send_initial_metadata(())  # no event is missed from here on
                for response in opened:
                    yield response.SerializeToString()

        behavior: Any = stream if method.is_stream else call
        if method.pool is not None:
            # An experimental attribute of grpcio. A version without it would use the common pool.
            behavior.experimental_thread_pool = method.pool
        if method.is_stream:
            return grpc.unary_stream_rpc_method_handler(behavior)
        return grpc.unary_unary_rpc_method_handler(behavior)

    @contextmanager
    def _opened(self, name: str, responses: Responses) -> Iterator[Responses]:
        """Close *responses* after the body, or when this is closed.

        Raises:
            ResourceExhaustedError: too many streams are open.
        """
        with self._mutex:
            if len(self._streams) >= STREAMS:
                responses.close()
                raise ResourceExhaustedError(f"{name}: {STREAMS} streams are open; end one")
            self._streams.append(responses)
            closed = self._closed
        try:
            if closed:
                responses.close()
            yield responses
        finally:
            responses.close()
            with self._mutex:
                self._streams.remove(responses)

    @contextmanager
    def _answering(self, name: str, method: Method, context: Any) -> Iterator[None]:
        """Give an error of the body to the client as a status code, and observe the call."""
        begun, code = time.monotonic(), grpc.StatusCode.OK
        try:
            _require_waiting(context)
            yield
            code = context.code() or code
        except Exception as error:  # gRPC would log it with the text of the client
            if is_interrupt(error):
                raise
            code = _code_of(error)
            self.ending.note(error)
            self._log(name, method, error, code)
            text = f"{name}: unexpected {type(error).__name__}; see the log of the server"
            context.abort(
                code, _shortened(str(error)) if isinstance(error, RegistryError) else text
            )
        finally:
            self._observe(name, code.name, time.monotonic() - begun)

    def _log(self, name: str, method: Method, error: Exception, code: grpc.StatusCode) -> None:
        """Log a failed change, a malformed request, and an error that is not of this package."""
        if not isinstance(error, RegistryError):
            log.error(
                "%s: unexpected error",
                name,
                exc_info=error,
                extra={"event": "call_crashed", "method": name, "error": type(error).__name__},
            )
        elif method.pool is not None or isinstance(error, MalformedRequestError):
            log.warning(
                "%s: %s",
                code.name,
                error,
                extra={
                    "event": "call_failed",
                    "method": name,
                    "code": code.name,
                    "error": type(error).__name__,
                },
            )


class _Unimplemented(grpc.GenericRpcHandler):
    """Refusal of every method of some services."""

    def __init__(self, services: Collection[str], why: str, observe: Observe) -> None:
        """Refuse with the name of the method and *why*, and *observe* each call."""
        self._services: Final = services
        self._why: Final = why
        self._observe: Final = observe

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of one call; None if the call is of another service."""
        service, _, name = handler_call_details.method.lstrip("/").partition("/")
        if service not in self._services:
            return None

        def refuse(_: object, context: grpc.ServicerContext) -> NoReturn:
            # The name is any text of a client: each would be another time series.
            self._observe("other", grpc.StatusCode.UNIMPLEMENTED.name, 0)
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{name}: {self._why}")

        return grpc.unary_unary_rpc_method_handler(refuse)


def _code_of(error: Exception) -> grpc.StatusCode:
    if isinstance(error, NetNSError) and error.errno in limits.ADVICE:
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    return next(code for kind, code in _CODES if isinstance(error, kind))


def _require_waiting(context: grpc.ServicerContext) -> None:
    if not context.is_active():
        raise FailedPreconditionError("the client has cancelled the call")


def _parsed(name: str, method: Method, data: bytes) -> Message:
    """Return the request of a call.

    Raises:
        MalformedRequestError: *data* are no such message.
    """
    try:
        return method.request.FromString(data)
    except DecodeError as error:
        raise MalformedRequestError(
            f"{name}: the request is no valid {method.request.DESCRIPTOR.name}"
        ) from error


def _shortened(text: str) -> str:
    """Return *text*, without its middle if it is too long for the trailers of a response."""
    if len(text.encode(errors="replace")) <= DETAILS_MAX:
        return text
    return f"{text[: DETAILS_MAX // 8]} ... {text[-DETAILS_MAX // 8 :]}"
