"""Client of the CRI, independent of our .proto: its messages are built from upstream's."""

from __future__ import annotations

import json
import os
from datetime import datetime
from functools import cache
from typing import Any, Self

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from registry.cri import PodSandboxConfig
from tests.tools import ROOT

UPSTREAM = os.path.join(ROOT, "tests", "data", "cri", "cri-v1-all.json")
DEADLINE = 60.0
"""Seconds that a call may take on a slow machine; crictl waits for 2."""


@cache
def upstream() -> dict[str, Any]:
    """Return services, messages and enums of the CRI."""
    with open(UPSTREAM, encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


@cache
def messages() -> dict[str, Any]:
    """Return the class of each message of runtime.v1, in a pool of its own."""
    file = FileDescriptorProto(name="api.proto", package="runtime.v1", syntax="proto3")
    for name, values in upstream()["enums"].items():
        enum = file.enum_type.add(name=name)
        for number, value in values:
            # All enums share one scope, and two of them have a value of the same name.
            enum.value.add(name=f"{name}_{value}", number=number)
    for name, fields in upstream()["messages"].items():
        message = file.message_type.add(name=name)
        for number, field, kind in fields:
            _add_field(message, number, field, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"runtime.v1.{name}"))
        for name in upstream()["messages"]
    }


def _add_field(message: DescriptorProto, number: int, name: str, kind: str) -> None:
    field = message.field.add(name=name, number=number)
    field.label = FieldDescriptorProto.LABEL_OPTIONAL
    if kind.startswith("repeated "):
        field.label = FieldDescriptorProto.LABEL_REPEATED
        kind = kind.removeprefix("repeated ")
    elif kind.startswith("map<"):
        field.label = FieldDescriptorProto.LABEL_REPEATED
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        for place, part in enumerate(kind.removeprefix("map<").removesuffix(">").split(", ")):
            _add_field(entry, place + 1, ("key", "value")[place], part)
        field.type_name = f".runtime.v1.{message.name}.{entry.name}"
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        return
    if kind in upstream()["messages"]:
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".runtime.v1.{kind}"
    elif kind in upstream()["enums"]:
        field.type, field.type_name = FieldDescriptorProto.TYPE_ENUM, f".runtime.v1.{kind}"
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")


READY, NOTREADY = 0, 1
"""Numbers of PodSandboxState."""
NODE = 2
"""Number of NamespaceMode.NODE."""


def pod_config(name: str, *, host_network: bool = False, **labels: str) -> Any:
    """Return the PodSandboxConfig of a pod, as crictl reads one from a file."""
    config = messages()["PodSandboxConfig"](hostname=f"host-of-{name}", labels=labels)
    config.metadata.name, config.metadata.namespace = name, "default"
    config.metadata.uid, config.metadata.attempt = f"uid-{name}", 1
    config.annotations["made-by"] = "a test"
    if host_network:
        config.linux.security_context.namespace_options.network = NODE
    return config


def nanoseconds(time: str) -> int:
    """Return a time of `Client.info`, as RFC 3339 has it, in ns since 1970."""
    return int(datetime.fromisoformat(time).timestamp() * 10**9)


class Client:
    """Client with one connection to a runtime."""

    def __init__(self, socket: str) -> None:
        eager = [(f"grpc.{name}_reconnect_backoff_ms", 20) for name in ("initial", "min", "max")]
        # Otherwise clients share a connection, also one to a server that was killed.
        alone = ("grpc.use_local_subchannel_pool", 1)
        self._channel = grpc.insecure_channel(f"unix://{socket}", [*eager, alone])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(
        self, method: str, /, *, timeout: float = DEADLINE, wait: bool = False, **fields: Any
    ) -> Any:
        """Call *method* of either service with *fields* as the request; *wait* for the server."""
        call, request = self._prepare(method, fields)
        return call(request, timeout=timeout, wait_for_ready=wait)

    def begin(self, method: str, /, *, timeout: float, wait: bool = False, **fields: Any) -> Any:
        """Begin a call, and return its future; *wait* for the server."""
        call, request = self._prepare(method, fields)
        return call.future(request, timeout=timeout, wait_for_ready=wait)

    def stream(self, method: str, /) -> Any:
        """Begin a call with many responses, and wait until the server has begun to answer."""
        call, request = self._prepare(method, {}, kind="unary_stream")
        responses = call(request, wait_for_ready=True)
        responses.initial_metadata()
        return responses

    def _prepare(
        self, method: str, fields: dict[str, Any], kind: str = "unary_unary"
    ) -> tuple[Any, Any]:
        for service, its in upstream()["services"].items():
            if method in its:
                call: Any = getattr(self._channel, kind)(
                    f"/runtime.v1.{service}/{method}",
                    request_serializer=lambda message: message.SerializeToString(),
                    response_deserializer=messages()[its[method]["response"]].FromString,
                )
                return call, messages()[its[method]["request"]](**fields)
        raise AssertionError(method)

    def run(self, config: Any, **options: Any) -> str:
        """Call RunPodSandbox, and return the id."""
        response = self.call("RunPodSandbox", config=config, **options)
        assert isinstance(response.pod_sandbox_id, str)
        return response.pod_sandbox_id

    def stop(self, id: str, timeout: float = DEADLINE) -> None:
        """Call StopPodSandbox."""
        self.call("StopPodSandbox", pod_sandbox_id=id, timeout=timeout)

    def remove(self, id: str, timeout: float = DEADLINE) -> None:
        """Call RemovePodSandbox."""
        self.call("RemovePodSandbox", pod_sandbox_id=id, timeout=timeout)

    def status(self, id: str) -> Any:
        """Call PodSandboxStatus, and return the status."""
        return self.call("PodSandboxStatus", pod_sandbox_id=id).status

    def info(self, id: str) -> Any:
        """Call PodSandboxStatus, and return the verbose information."""
        response = self.call("PodSandboxStatus", pod_sandbox_id=id, verbose=True)
        return json.loads(response.info["info"])

    def list(self, **filters: Any) -> list[Any]:
        """Call ListPodSandbox, and return the items."""
        state = filters.pop("state", None)
        if state is not None:
            filters["state"] = {"state": state}
        return list(self.call("ListPodSandbox", filter=filters).items)


def config(name: str = "web", *, host_network: bool = False) -> PodSandboxConfig:
    """Return the config of a pod with a network of its own, or on that of the host."""
    wanted = pod_config(name, host_network=host_network)
    return PodSandboxConfig.FromString(wanted.SerializeToString())


def refused(code: grpc.StatusCode, cri: Client, method: str, **fields: Any) -> str:
    """Make a call that must fail with *code*, and return its message."""
    with pytest.raises(grpc.RpcError) as caught:
        cri.call(method, **fields)
    assert code is caught.value.code()
    return str(caught.value.details())
