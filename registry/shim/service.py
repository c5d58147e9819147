"""gRPC services of the CRI: translate requests into calls and records into responses."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

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
    NetNSError,
    NotFoundError,
    RegistryError,
    ResourceExhaustedError,
    Sandbox,
    State,
    Status,
    Store,
    UnavailableError,
)
from registry.cri import PodSandboxConfig, PodSandboxMetadata
from registry.shim import runtime_pb2 as api
from registry.shim.sandboxer import Sandboxer, name_of
from registry.shim.validate import options_of
from registry.version import __version__

Request = TypeVar("Request", bound=Message)

log = logging.getLogger("registry.shim")

RUNTIME: Final = "runtime.v1.RuntimeService"
IMAGE: Final = "runtime.v1.ImageService"
"""Service names on the wire; those of runtime.proto would begin with its own package."""

DETAILS_MAX: Final = 2048
"""Bytes of an error's text. gRPC escapes a byte by up to three, and refuses trailers of 8 KB."""

ITEMS_MAX: Final = 1024
"""Items of lists that are cached, of about 1 KiB each; a node runs some 250 pods at most."""

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
    return [
        grpc.method_handlers_generic_handler(RUNTIME, runtime.methods(changes)),
        grpc.method_handlers_generic_handler(
            IMAGE,
            {
                "ListImages": _unary(api.ListImagesRequest, lambda *_: api.ListImagesResponse()),
                "ImageFsInfo": _unary(api.ImageFsInfoRequest, lambda *_: api.ImageFsInfoResponse()),
            },
        ),
    ]


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
        self._items: Final[dict[tuple[object, ...], api.PodSandbox]] = {}
        """Items of lists by the columns that they are made of: a kubelet lists once a second."""
        self._damages: Final[set[str]] = set()
        """Messages about damaged records that were logged already."""

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
            "ListContainers": _unary(
                api.ListContainersRequest, lambda *_: api.ListContainersResponse()
            ),
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
        if request.verbose:
            response.info["registry"] = _json(self._store.path)
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
        sandbox = self._store.get(request.pod_sandbox_id)
        config = sandbox.config or PodSandboxConfig()
        fields = self._fields(sandbox, config, sandbox.status_as_read)
        status = api.PodSandboxStatus(**fields)
        status.network.ip = sandbox.ip
        for ip in sandbox.additional_ips or ():
            status.network.additional_ips.add(ip=ip)
        status.linux.namespaces.options.CopyFrom(options_of(config))
        response = api.PodSandboxStatusResponse(status=status)
        if request.verbose:
            response.info["info"] = _json(_info(sandbox))
        return response

    def _list(self, request: api.ListPodSandboxRequest, _: object) -> api.ListPodSandboxResponse:
        wanted, response = request.filter, api.ListPodSandboxResponse()
        state = wanted.state.state if wanted.HasField("state") else None
        if state not in {None, *api.PodSandboxState.values()}:
            why = f"list sandboxes: filter.state {state} is not a PodSandboxState"
            raise InvalidArgumentError(why, field="filter.state", value=state)
        try:
            id = self._store.get(wanted.id).id if wanted.id else None
        except (NotFoundError, AmbiguousPrefixError):
            return response
        for sandbox in self._store.list(id=id, labels=wanted.label_selector):
            item = self._item(sandbox)
            if state is None or item.state == state:
                response.items.append(item)
        return response

    def _item(self, sandbox: Sandbox) -> api.PodSandbox:
        """Return a list's item; that of a damaged record is made of the columns that are left."""
        stored = sandbox.stored
        columns = (stored["config"], stored["state"], stored["created_at"])
        key = (sandbox.id, sandbox.runtime_handler, *columns)
        item = self._items.get(key)
        if item is not None:
            return item
        try:
            config = sandbox.config or PodSandboxConfig()
            item = api.PodSandbox(**self._fields(sandbox, config, sandbox.status_as_read))
        except MetadataError as error:
            if str(error) not in self._damages:
                self._damages.add(str(error))
                log.warning(
                    "list sandboxes: %s",
                    error,
                    extra={
                        "event": "config_unreadable",
                        "sandbox_id": sandbox.id,
                        "error": type(error).__name__,
                    },
                )
            return api.PodSandbox(**self._fields(sandbox, _config_of(sandbox), None))
        if len(self._items) >= ITEMS_MAX:
            self._items.clear()
        self._items[key] = item
        return item

    def _fields(
        self, sandbox: Sandbox, config: PodSandboxConfig, status: Status | None
    ) -> dict[str, Any]:
        """Return the fields that PodSandbox and PodSandboxStatus have in common.

        Args:
            sandbox: record to translate.
            config: its config, or the part of it that could be read.
            status: its status; None if the record is damaged, whose columns are used then.
        """
        if status is None:
            ready = sandbox.stored["state"] == str(State.READY)
            created_at = sandbox.stored["created_at"]
        else:
            ready, created_at = status.state is State.READY, status.created_at
        if not isinstance(created_at, int) or created_at <= 0:
            created_at = self._added_at(sandbox)
        return {
            "id": _utf8(sandbox.id),
            "metadata": config.metadata,
            "state": api.SANDBOX_READY if ready else api.SANDBOX_NOTREADY,
            "created_at": created_at,
            "labels": config.labels,
            "annotations": config.annotations,
            "runtime_handler": _utf8(sandbox.runtime_handler),
        }

    def _added_at(self, sandbox: Sandbox) -> int:
        """Return when the record was added (ns since the epoch), or 1 if that is unknown.

        It stands for a missing time of creation: clients show 0 as 1970.
        """
        with contextlib.suppress(InvalidArgumentError):  # the id of a damaged record may be no text
            return next((change.at for change in self._store.history(sandbox.id, limit=1)), 1)
        return 1


def _json(value: object) -> str:
    """Return *value* as JSON, for verbose information."""
    import json  # noqa: PLC0415 - a server that is not asked for it starts without

    return json.dumps(value)


def _config_of(sandbox: Sandbox) -> PodSandboxConfig:
    """Return the config of a damaged record, or one with the metadata that its name contains."""
    with contextlib.suppress(MetadataError):
        return sandbox.config or PodSandboxConfig()
    return PodSandboxConfig(metadata=_metadata_of(_utf8(sandbox.name)))


def _utf8(text: object) -> str:
    """Return the text of a column; a message cannot hold characters that have no UTF-8."""
    return text.encode(errors="replace").decode() if isinstance(text, str) else ""


def _metadata_of(name: str) -> PodSandboxMetadata:
    """Return the pod's metadata that `name_of` has composed *name* from."""
    if not re.fullmatch(r"(.+_){3}[0-9]{1,9}", name):
        return PodSandboxMetadata(name=name)
    pod, namespace, uid, attempt = name.rsplit("_", 3)
    return PodSandboxMetadata(name=pod, namespace=namespace, uid=uid, attempt=int(attempt))


def _info(sandbox: Sandbox) -> dict[str, Any]:
    """Return the verbose information of a status; keys are containerd's where it has one."""
    status = sandbox.status_as_read
    return {
        "pid": status.pid,
        "netNamespaceClosed": _is_closed(sandbox),
        "netNamespacePath": sandbox.netns_path,
        "reason": status.reason,
        "message": status.message,
        "exitStatus": status.exit_status,
        "exitedAt": status.exited_at,
        "runtimeHandler": sandbox.runtime_handler,
    }


def _is_closed(sandbox: Sandbox) -> bool | None:
    """Return whether the sandbox's own namespace is closed; None when it cannot be observed."""
    try:
        return bool(sandbox.netns_path) and sandbox.netns is None
    except NetNSError:
        return None
