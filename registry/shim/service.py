"""gRPC services of the CRI: translate requests into calls."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import grpc

from registry import (
    AmbiguousPrefixError,
    FailedPreconditionError,
    InvalidArgumentError,
    NameReservedError,
    NotFoundError,
    ResourceExhaustedError,
    Sandbox,
    Store,
)
from registry.shim import images, stats
from registry.shim import runtime_pb2 as api
from registry.shim.answers import Answers, info, to_json
from registry.shim.calls import Calls, Method
from registry.shim.cgroups import hierarchies, is_driver_systemd
from registry.shim.ending import Ending
from registry.shim.events import EventStream
from registry.shim.sandboxer import Sandboxer, name_of
from registry.version import __version__

log = logging.getLogger("registry.shim")

RUNTIME: Final = "runtime.v1.RuntimeService"
IMAGE: Final = "runtime.v1.ImageService"
"""Service names on the wire; those of runtime.proto would begin with its own package."""

KUBE_API_VERSION: Final = "0.1.0"
"""Version that a kubelet expects, whatever it asks for."""


class Pools(NamedTuple):
    """Threads of the calls that take long."""

    runs: ThreadPoolExecutor
    """Of those that run a sandbox."""
    stops: ThreadPoolExecutor
    """Of the others that change something."""
    streams: ThreadPoolExecutor
    """Of those with many responses."""


def services(
    store: Store, sandboxer: Sandboxer, pools: Pools, calls: Calls
) -> list[grpc.GenericRpcHandler]:
    """Return the runtime and the image service; a method that they lack is UNIMPLEMENTED.

    Args:
        store: registry that the reading calls query.
        sandboxer: runs, stops and removes sandboxes.
        pools: threads of the calls that take long.
        calls: runs the calls.
    """
    runtime = RuntimeService(store, sandboxer, calls.ending).methods(pools)
    containers = {name: Method(*each) for name, each in images.CONTAINERS.items()}
    image = {name: Method(*each) for name, each in images.methods(store.path).items()}
    return [
        calls.service(RUNTIME, {**containers, **runtime}),
        calls.service(IMAGE, image),
        calls.without({RUNTIME, IMAGE}, "sandbox-registry runs no containers and has no images"),
    ]


class RuntimeService:
    """The sandbox methods of runtime.v1.RuntimeService."""

    def __init__(self, store: Store, sandboxer: Sandboxer, ending: Ending) -> None:
        """Answer queries from *store*, and make changes through *sandboxer*.

        Status tells the error of *ending*.
        """
        self._store: Final = store
        self._sandboxer: Final = sandboxer
        self._ending: Final = ending
        self._answers: Final = Answers(store)

    def methods(self, pools: Pools) -> dict[str, Method]:
        """Return each method by its name on the wire."""
        return {
            "Version": Method(api.VersionRequest, self._answer_version),
            "Status": Method(api.StatusRequest, self._status),
            "RunPodSandbox": Method(api.RunPodSandboxRequest, self._run, pools.runs),
            "StopPodSandbox": Method(api.StopPodSandboxRequest, self._stop, pools.stops),
            "RemovePodSandbox": Method(api.RemovePodSandboxRequest, self._remove, pools.stops),
            "PodSandboxStatus": Method(api.PodSandboxStatusRequest, self._sandbox_status),
            "ListPodSandbox": Method(api.ListPodSandboxRequest, self._list),
            "GetContainerEvents": Method(
                api.GetEventsRequest, self._events, pools.streams, is_stream=True
            ),
            "UpdatePodSandboxResources": Method(
                api.UpdatePodSandboxResourcesRequest, self._update_resources, pools.stops
            ),
            "RuntimeConfig": Method(api.RuntimeConfigRequest, _runtime_config),
            "UpdateRuntimeConfig": Method(api.UpdateRuntimeConfigRequest, _update_runtime_config),
            "PodSandboxStats": Method(api.PodSandboxStatsRequest, self._stats),
            "ListPodSandboxStats": Method(api.ListPodSandboxStatsRequest, self._list_stats),
            "ListMetricDescriptors": Method(api.ListMetricDescriptorsRequest, _descriptors),
            "ListPodSandboxMetrics": Method(api.ListPodSandboxMetricsRequest, self._list_metrics),
        }

    def _answer_version(self, _request: api.VersionRequest, _: object) -> api.VersionResponse:
        return api.VersionResponse(
            version=KUBE_API_VERSION,
            runtime_name="sandbox-registry",
            runtime_version=__version__,
            runtime_api_version="v1",
        )

    def _status(self, request: api.StatusRequest, _: object) -> api.StatusResponse:
        response = api.StatusResponse()
        runtime = response.status.conditions.add(type="RuntimeReady", status=True)
        error = self._ending.tell()
        if error is not None:
            runtime.status, runtime.reason = False, type(error).__name__.removesuffix("Error")
            runtime.message = str(error)
        network = response.status.conditions.add(type="NetworkReady", status=True)
        why = self._sandboxer.why_no_network()
        if why is not None:
            # A limit is no statement about the network, but pods cannot be run.
            limited = isinstance(why, ResourceExhaustedError)
            network.reason = "ResourceExhausted" if limited else "NetworkPluginNotReady"
            network.status, network.message = False, f"Network plugin returns error: {why}"
        response.runtime_handlers.add(features=api.RuntimeHandlerFeatures())
        response.features.supplemental_groups_policy = True
        if request.verbose:
            response.info["registry"] = to_json(self._store.path)
            response.info["lastCNILoadStatus"] = to_json(str(why or "OK"))
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

    def _update_resources(
        self, request: api.UpdatePodSandboxResourcesRequest, _: object
    ) -> api.UpdatePodSandboxResourcesResponse:
        self._sandboxer.update_resources(request.pod_sandbox_id, request)
        return api.UpdatePodSandboxResourcesResponse()

    def _sandbox_status(
        self, request: api.PodSandboxStatusRequest, _: object
    ) -> api.PodSandboxStatusResponse:
        now = time.time_ns()
        sandbox = self._store.get(request.pod_sandbox_id)
        status = self._answers.status(sandbox)
        response = api.PodSandboxStatusResponse(status=status, timestamp=now)
        if request.verbose:
            network = self._sandboxer.check_network(sandbox)
            response.info["info"] = to_json(info(sandbox, self._store.path, network))
        return response

    def _events(self, *_: object) -> EventStream:
        return EventStream(self._store, self._answers.status)

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
