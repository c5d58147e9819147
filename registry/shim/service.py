"""gRPC services of the CRI: translate requests into calls."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn, TypeVar

import grpc
from google.protobuf.message import Message

from registry import (
    AlreadyExistsError,
    AmbiguousPrefixError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    MetadataError,
    NameReservedError,
    NotFoundError,
    RegistryError,
    ResourceExhaustedError,
    Sandbox,
    Store,
    UnavailableError,
)
from registry.shim import images, stats
from registry.shim import runtime_pb2 as api
from registry.shim.answers import Answers, info, to_json
from registry.shim.cgroups import hierarchies, is_driver_systemd
from registry.shim.sandboxer import Sandboxer, name_of
from registry.version import __version__

Request = TypeVar("Request", bound=Message)

log = logging.getLogger("registry.shim")

RUNTIME: Final = "runtime.v1.RuntimeService"
IMAGE: Final = "runtime.v1.ImageService"
"""Service names on the wire; those of runtime.proto would begin with its own package."""

DETAILS_MAX: Final = 2048
"""Bytes of an error's text. gRPC escapes a byte by up to three, and refuses trailers of 8 KB."""

_CODES: Final[tuple[tuple[type[RegistryError], grpc.StatusCode], ...]] = (
    (NotFoundError, grpc.StatusCode.NOT_FOUND),
    (AlreadyExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (MetadataError, grpc.StatusCode.DATA_LOSS),
    (InvalidArgumentError, grpc.StatusCode.INVALID_ARGUMENT),
    (FailedPreconditionError, grpc.StatusCode.FAILED_PRECONDITION),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (ResourceExhaustedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DataLossError, grpc.StatusCode.DATA_LOSS),
    (RegistryError, grpc.StatusCode.INTERNAL),
)


def services(
    store: Store, sandboxer: Sandboxer, changes: ThreadPoolExecutor
) -> list[grpc.GenericRpcHandler]:
    """Return the runtime and the image service; a method that they lack is UNIMPLEMENTED.

    Args:
        store: registry that the reading calls query.
        sandboxer: runs, stops and removes sandboxes.
        changes: thread pool of the calls that change something.
    """
    runtime = RuntimeService(store, sandboxer)
    unchanging = {
        RUNTIME: images.CONTAINERS,
        IMAGE: images.methods(store.path),
    }
    return [
        grpc.method_handlers_generic_handler(RUNTIME, runtime.methods(changes)),
        *(
            grpc.method_handlers_generic_handler(
                service, {name: _unary(*method) for name, method in methods.items()}
            )
            for service, methods in unchanging.items()
        ),
        _Unimplemented(),
    ]


class _Unimplemented(grpc.GenericRpcHandler):
    """Refusal of each other method of the two services, by its name."""

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of one call; None if the call is not of the CRI v1."""
        service, _, name = handler_call_details.method.lstrip("/").partition("/")
        if service not in {RUNTIME, IMAGE}:
            return None
        message = f"{name}: sandbox-registry runs no containers and has no images"

        def refuse(_: object, context: grpc.ServicerContext) -> NoReturn:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, message)

        return grpc.unary_unary_rpc_method_handler(refuse)


def _unary(
    request_type: type[Request],
    answer: Callable[[Request, grpc.ServicerContext], Message],
    pool: ThreadPoolExecutor | None = None,
) -> grpc.RpcMethodHandler[Any, Any]:
    """Return the handler of one method; an error of *answer* becomes its gRPC status code.

    Args:
        request_type: message class of the request.
        answer: computes the response.
        pool: thread pool of a method that changes something. Such a method may wait for the
            database there while the other methods are answered.
    """

    def call(request: Request, context: grpc.ServicerContext) -> Message:
        try:
            if not context.is_active():
                raise FailedPreconditionError("the client has cancelled the call")
            return answer(request, context)
        except RegistryError as error:
            code = next(code for kind, code in _CODES if isinstance(error, kind))
            if pool is not None:
                log.warning(
                    "%s: %s",
                    code.name,
                    error,
                    extra={
                        "event": "call_failed",
                        "code": code.name,
                        "error": type(error).__name__,
                    },
                )
            context.abort(code, _shortened(str(error)))
            raise

    if pool is not None:
        # An experimental attribute of grpcio. A version without it would use the common pool.
        call.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return grpc.unary_unary_rpc_method_handler(
        call,
        request_deserializer=request_type.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )


def _shortened(text: str) -> str:
    """Return *text*, without its middle if it is too long for the trailers of a response."""
    if len(text.encode(errors="replace")) <= DETAILS_MAX:
        return text
    return f"{text[: DETAILS_MAX // 8]} ... {text[-DETAILS_MAX // 8 :]}"


class RuntimeService:
    """The sandbox methods of runtime.v1.RuntimeService."""

    def __init__(self, store: Store, sandboxer: Sandboxer) -> None:
        """Answer queries from *store*, and make changes through *sandboxer*."""
        self._store: Final = store
        self._sandboxer: Final = sandboxer
        self._answers: Final = Answers(store)

    def methods(self, changes: ThreadPoolExecutor) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """Return each method by its name on the wire."""
        return {
            "Version": _unary(api.VersionRequest, self._answer_version),
            "Status": _unary(api.StatusRequest, self._status),
            "RunPodSandbox": _unary(api.RunPodSandboxRequest, self._run, changes),
            "StopPodSandbox": _unary(api.StopPodSandboxRequest, self._stop, changes),
            "RemovePodSandbox": _unary(api.RemovePodSandboxRequest, self._remove, changes),
            "PodSandboxStatus": _unary(api.PodSandboxStatusRequest, self._sandbox_status),
            "ListPodSandbox": _unary(api.ListPodSandboxRequest, self._list),
            "RuntimeConfig": _unary(api.RuntimeConfigRequest, _runtime_config),
            "UpdateRuntimeConfig": _unary(api.UpdateRuntimeConfigRequest, _update_runtime_config),
            "PodSandboxStats": _unary(api.PodSandboxStatsRequest, self._stats),
            "ListPodSandboxStats": _unary(api.ListPodSandboxStatsRequest, self._list_stats),
            "ListMetricDescriptors": _unary(api.ListMetricDescriptorsRequest, _descriptors),
            "ListPodSandboxMetrics": _unary(api.ListPodSandboxMetricsRequest, self._list_metrics),
        }

    def _answer_version(self, request: api.VersionRequest, _: object) -> api.VersionResponse:
        return api.VersionResponse(
            version=request.version or "0.1.0",
            runtime_name="sandbox-registry",
            runtime_version=__version__,
            runtime_api_version="v1",
        )

    def _status(self, request: api.StatusRequest, _: object) -> api.StatusResponse:
        response = api.StatusResponse()
        for kind in ("RuntimeReady", "NetworkReady"):
            response.status.conditions.add(type=kind, status=True)
        response.runtime_handlers.add(features=api.RuntimeHandlerFeatures())
        response.features.supplemental_groups_policy = True
        if request.verbose:
            response.info["registry"] = to_json(self._store.path)
        return response

    def _run(
        self, request: api.RunPodSandboxRequest, context: grpc.ServicerContext
    ) -> api.RunPodSandboxResponse:
        try:
            id = self._sandboxer.run(request.config, request.runtime_handler, context.is_active)
        except NameReservedError as error:
            name = name_of(request.config)
            # Clients parse containerd's wording.
            message = (
                f'failed to reserve sandbox name "{name}": '
                f'name "{name}" is reserved for "{error.holder}"'
            )
            raise NameReservedError(message, name=name, holder=error.holder) from error
        return api.RunPodSandboxResponse(pod_sandbox_id=id)

    def _stop(self, request: api.StopPodSandboxRequest, _: object) -> api.StopPodSandboxResponse:
        self._sandboxer.stop(request.pod_sandbox_id)
        return api.StopPodSandboxResponse()

    def _remove(
        self, request: api.RemovePodSandboxRequest, _: object
    ) -> api.RemovePodSandboxResponse:
        self._sandboxer.remove(request.pod_sandbox_id)
        return api.RemovePodSandboxResponse()

    def _sandbox_status(
        self, request: api.PodSandboxStatusRequest, _: object
    ) -> api.PodSandboxStatusResponse:
        now = time.time_ns()
        sandbox = self._store.get(request.pod_sandbox_id)
        status = self._answers.status(sandbox)
        response = api.PodSandboxStatusResponse(status=status, timestamp=now)
        if request.verbose:
            response.info["info"] = to_json(info(sandbox))
        return response

    def _list(self, request: api.ListPodSandboxRequest, _: object) -> api.ListPodSandboxResponse:
        wanted, response = request.filter, api.ListPodSandboxResponse()
        state = wanted.state.state if wanted.HasField("state") else None
        if state not in {None, *api.PodSandboxState.values()}:
            why = f"list sandboxes: filter.state {state} is not a PodSandboxState"
            raise InvalidArgumentError(why, field="filter.state", value=state)
        for sandbox in self._selected(wanted.id, wanted.label_selector):
            item = self._answers.item(sandbox)
            if state is None or item.state == state:
                response.items.append(item)
        return response

    def _selected(self, id: str, labels: Mapping[str, str]) -> list[Sandbox]:
        """Return the sandboxes that match a filter; an ambiguous prefix matches none."""
        try:
            id = self._store.get(id).id if id else ""
        except (NotFoundError, AmbiguousPrefixError):
            return []
        return self._store.list(id=id or None, labels=labels)

    def _stats(self, request: api.PodSandboxStatsRequest, _: object) -> api.PodSandboxStatsResponse:
        sandbox = self._store.get(request.pod_sandbox_id)
        item = self._answers.item(sandbox)
        if item.state != api.SANDBOX_READY:
            message = f"statistics of sandbox {sandbox.id!r}: it is not ready"
            raise FailedPreconditionError(message, id=sandbox.id)
        return api.PodSandboxStatsResponse(stats=stats.stats_of(item, sandbox, hierarchies()))

    def _list_stats(
        self, request: api.ListPodSandboxStatsRequest, _: object
    ) -> api.ListPodSandboxStatsResponse:
        wanted = request.filter
        return api.ListPodSandboxStatsResponse(
            stats=self._stats_of_ready(wanted.id, wanted.label_selector)
        )

    def _list_metrics(self, *_: object) -> api.ListPodSandboxMetricsResponse:
        return api.ListPodSandboxMetricsResponse(
            pod_metrics=map(stats.metrics_of, self._stats_of_ready("", {}))
        )

    def _stats_of_ready(self, id: str, labels: Mapping[str, str]) -> Iterator[api.PodSandboxStats]:
        mounted = hierarchies()
        for sandbox in self._selected(id, labels):
            item = self._answers.item(sandbox)
            if item.state == api.SANDBOX_READY:
                yield stats.stats_of(item, sandbox, mounted)


def _runtime_config(*_: object) -> api.RuntimeConfigResponse:
    response = api.RuntimeConfigResponse()
    response.linux.cgroup_driver = api.SYSTEMD if is_driver_systemd() else api.CGROUPFS
    return response


def _update_runtime_config(
    request: api.UpdateRuntimeConfigRequest, _: object
) -> api.UpdateRuntimeConfigResponse:
    """Accept the addresses of the node's pods, which the configuration of CNI names itself."""
    cidr = request.runtime_config.network_config.pod_cidr
    log.info("addresses of the pods: %r", cidr, extra={"event": "pod_cidr", "pod_cidr": cidr})
    return api.UpdateRuntimeConfigResponse()


def _descriptors(*_: object) -> api.ListMetricDescriptorsResponse:
    return api.ListMetricDescriptorsResponse(descriptors=stats.descriptors())
