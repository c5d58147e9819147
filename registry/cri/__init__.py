"""The CRI v1 messages that a sandbox's configuration consists of.

A kubelet sends a `PodSandboxConfig` with RunPodSandbox; it contains the other messages. Numbers,
names and types are those of the CRI (Kubernetes, package `runtime.v1`). Bytes and JSON are
therefore compatible in both directions, and an unknown field of a newer CRI is kept:

    config = PodSandboxConfig.FromString(request.config.SerializeToString())

The proto package is `sandbox_registry.cri.v1`, not `runtime.v1`: protobuf refuses a second
definition of a name in one process, and a shim that serves the CRI has loaded `runtime.v1` already.
Neither the wire format nor the JSON contains the name of a package.

The numbers of an enum are its attributes: `NamespaceMode.NODE`. `registry.cri.gojson` has the JSON
of Go, in which containerd stores a config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from registry.sync.imports import late_import

if TYPE_CHECKING:
    from registry.cri.sandbox_config_pb2 import (
        DNSConfig,
        HugepageLimit,
        IDMapping,
        Int64Value,
        LinuxContainerResources,
        LinuxPodSandboxConfig,
        LinuxSandboxSecurityContext,
        NamespaceMode,
        NamespaceOption,
        PodSandboxConfig,
        PodSandboxMetadata,
        PortMapping,
        ProfileType,
        Protocol,
        SecurityProfile,
        SELinuxOption,
        SupplementalGroupsPolicy,
        UserNamespace,
        WindowsNamespaceOption,
        WindowsPodSandboxConfig,
        WindowsSandboxSecurityContext,
    )

__all__ = [
    "DNSConfig",
    "HugepageLimit",
    "IDMapping",
    "Int64Value",
    "LinuxContainerResources",
    "LinuxPodSandboxConfig",
    "LinuxSandboxSecurityContext",
    "NamespaceMode",
    "NamespaceOption",
    "PodSandboxConfig",
    "PodSandboxMetadata",
    "PortMapping",
    "ProfileType",
    "Protocol",
    "SELinuxOption",
    "SecurityProfile",
    "SupplementalGroupsPolicy",
    "UserNamespace",
    "WindowsNamespaceOption",
    "WindowsPodSandboxConfig",
    "WindowsSandboxSecurityContext",
]


if not TYPE_CHECKING:  # a type checker would accept any name otherwise

    def __getattr__(name: str) -> Any:
        """Return a message class; protobuf is imported when the first one is used (PEP 562).

        Raises:
            ResourceExhaustedError: no file descriptor is left to import it.
        """
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with late_import("google.protobuf"):
            from registry.cri import sandbox_config_pb2  # noqa: PLC0415 - 10 ms

        globals().update({each: getattr(sandbox_config_pb2, each) for each in __all__})
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
