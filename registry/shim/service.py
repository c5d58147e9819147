"""The CRI's services: from requests to the Sandboxer, and from the registry to responses."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
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
    Store,
    UnavailableError,
)
from registry.cri import PodSandboxConfig, PodSandboxMetadata
from registry.shim import runtime_pb2 as api
from registry.shim.sandboxer import Sandboxer, name_of
from registry.shim.validate import options_of

Request = TypeVar("Request", bound=Message)

log = logging.getLogger("registry.shim")

RUNTIME: Final = "runtime.v1.RuntimeService"
IMAGE: Final = "runtime.v1.ImageService"
"""Wire names. Ours would begin with the package of runtime.proto."""

DETAILS_MAX: Final = 2048
"""Bytes of an error's text. gRPC writes up to three for each, and gives up at 8 KB."""

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
    """Return both services; what is not listed in them is UNIMPLEMENTED.

    Args:
        store: to read from.
        sandboxer: to change through.
        changes: in which changes are made.
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
    """Return a method that answers one request, or aborts with the code of what was raised.

    One that changes something has a *pool* of its own, where it may wait for the database without
    keeping others from being answered.
    """

    def call(request: Request, context: grpc.ServicerContext) -> Message:
        try:
            if not context.is_active():
                raise FailedPreconditionError("nobody waits for it any more")
            return answer(request, context)
        except RegistryError as error:
            code = next(code for kind, code in _CODES if isinstance(error, kind))
            if pool is not None:
                log.warning("%s: %s", code.name, error)
            context.abort(code, _shortened(str(error)))
            raise

    if pool is not None:
        # What gRPC has for this. Where it did not know it, all would share one pool again.
        call.experimental_thread_pool = pool  # type: ignore[attr-defined]
    return grpc.unary_unary_rpc_method_handler(
        call,
        request_deserializer=request_type.FromString,
        response_serializer=lambda response: response.SerializeToString(),
    )


def _shortened(text: str) -> str:
    """Return *text* without its middle if it is too long for the trailers of a response."""
    if len(text.encode(errors="replace")) <= DETAILS_MAX:
        return text
    return f"{text[: DETAILS_MAX // 8]} ... {text[-DETAILS_MAX // 8 :]}"


class RuntimeService:
    """runtime.v1.RuntimeService, as far as it is about sandboxes."""

    def __init__(self, store: Store, sandboxer: Sandboxer) -> None:
        """Read from *store*, and change through *sandboxer*."""
        self._store: Final = store
        self._sandboxer: Final = sandboxer
        self._version: Final = version("sandbox-registry")
        self._damages: Final[set[str]] = set()
        """Messages of damaged records that were logged."""

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
            runtime_version=self._version,
            runtime_api_version="v1",
        )

    def _status(self, request: api.StatusRequest, _: object) -> api.StatusResponse:
        response = api.StatusResponse()
        for kind in ("RuntimeReady", "NetworkReady"):
            response.status.conditions.add(type=kind, status=True)
        if request.verbose:
            response.info["registry"] = json.dumps(self._store.path)
        return response

    def _run(
        self, request: api.RunPodSandboxRequest, context: grpc.ServicerContext
    ) -> api.RunPodSandboxResponse:
        try:
            id = self._sandboxer.run(request.config, request.runtime_handler, context.is_active)
        except NameReservedError as error:
            name = name_of(request.config)
            # Clients look for containerd's words.
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
        _ = (
            sandbox.status_as_read
        )  # a state that cannot be read is an error here, and none in a list
        told = api.PodSandboxStatus(**self._told(sandbox, config))
        told.network.ip = sandbox.ip
        for ip in sandbox.additional_ips or ():
            told.network.additional_ips.add(ip=ip)
        told.linux.namespaces.options.CopyFrom(options_of(config))
        response = api.PodSandboxStatusResponse(status=told)
        if request.verbose:
            response.info["info"] = json.dumps(_info(sandbox))
        return response

    def _list(self, request: api.ListPodSandboxRequest, _: object) -> api.ListPodSandboxResponse:
        wanted, response = request.filter, api.ListPodSandboxResponse()
        state = wanted.state.state if wanted.HasField("state") else None
        if state not in {None, *api.PodSandboxState.values()}:
            why = f"list sandboxes: filter.state {state} is not a PodSandboxState"
            raise InvalidArgumentError(why, field="filter.state", value=state)
        try:
            whole = self._store.get(wanted.id).id if wanted.id else None
        except (NotFoundError, AmbiguousPrefixError):
            return response
        found = self._store.list(id=whole, labels=wanted.label_selector)
        response.items.extend(self._item(each) for each in found if state in {None, _state(each)})
        return response

    def _item(self, sandbox: Sandbox) -> api.PodSandbox:
        """Return a sandbox as a list has it; of a damaged one what its columns tell."""
        try:
            config = sandbox.config or PodSandboxConfig()
            _ = sandbox.status_as_read
        except MetadataError as error:
            if str(error) not in self._damages:  # a kubelet lists once a second
                self._damages.add(str(error))
                log.warning("list sandboxes: %s", error)
            config = _config_of(sandbox)
        return api.PodSandbox(**self._told(sandbox, config))

    def _told(self, sandbox: Sandbox, config: PodSandboxConfig) -> dict[str, Any]:
        """Return what a list and a status have in common, of a damaged sandbox too."""
        return {
            "id": _utf8(sandbox.id),
            "metadata": config.metadata,
            "state": _state(sandbox),
            "created_at": self._created_at(sandbox),
            "labels": config.labels,
            "annotations": config.annotations,
            "runtime_handler": _utf8(sandbox.runtime_handler),
        }

    def _created_at(self, sandbox: Sandbox) -> int:
        """Return when it was created (ns), or when its record was made: clients take 0 for 1970."""
        created_at = sandbox.stored["created_at"]
        if isinstance(created_at, int) and created_at > 0:
            return created_at
        with contextlib.suppress(InvalidArgumentError):  # damaged as well, or its id is no text
            return next((change.at for change in self._store.history(sandbox.id, limit=1)), 1)
        return 1


def _state(sandbox: Sandbox) -> api.PodSandboxState:
    """Return the state in the CRI's terms; one that is not known here is not READY."""
    ready = sandbox.stored["state"] == str(State.READY)
    return api.SANDBOX_READY if ready else api.SANDBOX_NOTREADY


def _config_of(sandbox: Sandbox) -> PodSandboxConfig:
    """Return the config of a damaged sandbox, or what its name tells of it."""
    with contextlib.suppress(MetadataError):
        return sandbox.config or PodSandboxConfig()
    return PodSandboxConfig(metadata=_metadata_of(_utf8(sandbox.name)))


def _utf8(text: object) -> str:
    """Return the text of a column without what is not UTF-8, which a message cannot hold."""
    return text.encode(errors="replace").decode() if isinstance(text, str) else ""


def _metadata_of(name: str) -> PodSandboxMetadata:
    """Return the pod that a sandbox's name, as `name_of` has made it, is of."""
    if not re.fullmatch(r"(.+_){3}[0-9]{1,9}", name):
        return PodSandboxMetadata(name=name)
    pod, namespace, uid, attempt = name.rsplit("_", 3)
    return PodSandboxMetadata(name=pod, namespace=namespace, uid=uid, attempt=int(attempt))


def _info(sandbox: Sandbox) -> dict[str, Any]:
    """Return what crictl shows beneath a status; containerd's names where it has one."""
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
    """Whether the sandbox's own namespace is closed; None when it cannot be seen."""
    try:
        return bool(sandbox.netns_path) and sandbox.netns is None
    except NetNSError:
        return None
